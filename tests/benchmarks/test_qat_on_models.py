"""benchmarks/qat_on_models.py: its cells, the processes that make them, its tables, and a run where no MLflow is."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent.parent
sys.path.insert(0, str(ROOT / "benchmarks"))

import qat_on_models  # noqa: E402
from qat_quality.cells import Cell, Store, planned, schemes_of_both  # noqa: E402
from qat_quality.tables import grid_table, quality_table, rows_of  # noqa: E402
from qat_quality.workers import Workers  # noqa: E402

# Makes every cell but those called `bad`, which fail, and `deadly`, which end the process.
WORKER = """
import os, sys
from pathlib import Path
sys.path[:0] = [{platform!r}, {benchmarks!r}]
from qat_quality.cells import Cell, Store
from qat_quality.workers import serve
def make(cell):
    if cell.variant == "deadly":
        os._exit(3)
    if cell.variant == "bad":
        raise ValueError("no such luck")
    return [{{"metrics": {{"wikitext2/perplexity": 20.0 + cell.seed}}, "gpu": os.environ.get("CUDA_VISIBLE_DEVICES")}}]
names = ["good", "bad", "deadly", "after"]
serve(sys.stdin, [Cell(name, "w4", seed, "run") for name in names for seed in (0, 1)], Store(Path({folder!r})), make)
"""


@pytest.fixture
def options(monkeypatch, tmp_path):
    def made(*arguments: str):
        monkeypatch.setattr(sys, "argv", ["qat_on_models.py", "--data_dir", "d", "--keep", str(tmp_path), *arguments])
        return qat_on_models.arguments()

    return made


@pytest.fixture
def workers(tmp_path):
    def made(**named):
        store = Store(tmp_path / "cells")
        names = {"platform": str(ROOT / "platform"), "benchmarks": str(ROOT / "benchmarks")}
        code = WORKER.format(**names, folder=str(store.folder))
        return store, Workers(store, [sys.executable, "-c", code], jobs=2, logs=tmp_path, **named)

    return made


def test_every_cell_comes_after_those_that_it_needs(options):
    for more in ((), ("--rate_grid", "w4-g64")):
        cells = planned(options("--seeds", "0", "1", *more))
        keys = [cell.key for cell in cells]
        assert len(set(keys)) == len(keys) > 10
        assert all(keys.index(needed) < keys.index(cell.key) for cell in cells for needed in cell.needs)


def test_a_cell_is_another_one_with_other_settings_but_not_beside_other_seeds(options):
    first = {cell.key for cell in planned(options("--seeds", "0"))}
    assert first < {cell.key for cell in planned(options("--seeds", "0", "1", "--jobs", "3"))}
    for changed in (("--steps", "7"), ("--dataset", "disaster"), ("--model", "tiny"), ("--windows", "3")):
        assert first.isdisjoint({cell.key for cell in planned(options("--seeds", "0", *changed))})


def test_a_folder_s_cells_are_another_s_when_its_files_change(options, tmp_path):
    (tmp_path / "model").mkdir()
    keys = []
    for text in ("{}", '{"a": 1}'):
        (tmp_path / "model" / "config.json").write_text(text)
        keys.append(planned(options("--model", str(tmp_path / "model")))[0].key)
    assert keys[0] != keys[1]


@pytest.mark.parametrize(("scheme", "linears"), [("w4a8-g32+emb4", "w4a8-g32"), ("w3-g64", "w3-g64")])
def test_torchao_s_qat_is_compared_on_the_linears_alone(scheme, linears):
    assert [name.removesuffix("-sym") for name in schemes_of_both(scheme)] == [linears]


@pytest.mark.parametrize("scheme", ["w8a8-static", "w8", "w8a8"])
def test_torchao_s_qat_has_no_counterpart_of_static_ranges_or_of_whole_channels(scheme):
    assert list(schemes_of_both(scheme)) == []


@pytest.mark.long
def test_workers_make_what_can_be_made_and_say_what_failed(workers, monkeypatch, capsys):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,7")
    store, made = workers()
    cells = [Cell(name, "w4", seed, "run") for name in ("good", "bad", "deadly") for seed in (0, 1)]
    cells += [Cell("after", "w4", 0, "run", (cells[2].key,))]
    made.make(cells)
    assert [store.has(cell) for cell in cells] == [True, True, False, False, False, False, True]
    assert "ValueError: no such luck" in store.error(cells[2]) and "ended with 3" in store.error(cells[4])
    assert "3 of 7 made, 4 failed" in capsys.readouterr().out
    assert {row["gpu"] for cell in cells for row in store.rows(cell)} <= {"4", "7"}
    assert all(worker.process.poll() is not None for worker in made.workers)


def test_workers_leave_alone_what_was_made_before_and_stop_in_time(workers):
    store, made = workers(stop_after=0.0)
    cells = [Cell("good", "w4", 0, "run"), Cell("good", "w4", 1, "run")]
    store.keep(cells[0], [{"metrics": {}}])
    made.make(cells)
    assert [store.has(cell) for cell in cells] == [True, False]
    assert store.rows(cells[0]) == [{"variant": "good", "scheme": "w4", "seed": 0, "metrics": {}}]


def test_the_table_shows_means_over_seeds_and_losses_against_the_same_seed_s_baseline(tmp_path):
    store, cells = Store(tmp_path), []
    for seed, before, after in ((0, 20.0, 22.0), (1, 40.0, 42.0)):
        cells += [Cell("baseline", "none", seed, "r"), Cell("qat", "w4", seed, "r")]
        store.keep(cells[-2], [{"metrics": {"wikitext2/perplexity": before, "boolq/accuracy": 50.0}}])
        metrics = {"wikitext2/perplexity": after, "boolq/accuracy": 48.0 + 2 * seed}
        store.keep(cells[-1], [{"metrics": metrics}])
    cells.append(Cell("hqq", "w4", 0, "r"))
    store.fail(cells[-1], "Traceback\nKeyError: 'a'")
    lines = {tuple(line.split(" | ")[:2]): line for line in quality_table(rows_of(cells, store)).splitlines()}
    # (10 % + 5 %) / 2, and the deviation of two values is their distance over the root of 2
    assert f"32.00 ± {20 / math.sqrt(2):.2f}" in lines["| w4", "qat"]
    assert f"7.50 ± {5 / math.sqrt(2):.2f}" in lines["| w4", "qat"]
    assert f"1.00 ± {2 / math.sqrt(2):.2f}" in lines["| w4", "qat"]
    assert "failed: KeyError: 'a'" in lines["| w4", "hqq"]


def test_the_grid_says_how_far_the_automatic_rate_is_from_the_best():
    rows = [
        {
            "variant": f"rate x {multiple}", "seed": 0, "notes": {}, "rate_test": {"rate": 1e-4 * multiple},
            "metrics": {"held_out/guard_loss": loss, "held_out/validation_loss": loss, "wikitext2/perplexity": ppl},
        }
        for multiple, loss, ppl in ((1, 2.02, 20.6), (3.2, 2.0, 20.0), (10, 3.0, 50.0))
    ]  # fmt: skip
    said = grid_table(rows)
    assert f"held-out perplexity {100 * math.expm1(0.02):.2f} % above the best, rate x 3.2" in said
    assert "WikiText-2 perplexity 3.00 % above the best, rate x 3.2" in said


@pytest.mark.long
def test_a_run_needs_torch_transformers_and_accelerate_alone(tmp_path):
    others = ["mlflow", "ray", "datasets", "bitsandbytes", "plotly", "optuna", "jsonargparse", "pydantic"]
    of_corpora = ["ftfy", "pypdf", "docx", "bs4", "semchunk", "py3langid", "datasketch"]
    blocked = f"import sys\nsys.modules |= dict.fromkeys({others + of_corpora})\n"
    (tmp_path / "sitecustomize.py").write_text(blocked)
    command = [sys.executable, "benchmarks/qat_on_models.py", "--model", "tiny", "--data_dir", str(tmp_path)]
    command += ["--keep", str(tmp_path / "keep"), "--quick", "--schemes", "w4-g64", "--variants", "ptq", "qat"]
    command += ["--tasks", "domain_perplexity", "--dataset", "disaster"]
    environment = os.environ | {"PYTHONPATH": str(tmp_path), "EDGEQUANT_CACHE": str(tmp_path / "cache")}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False, timeout=280)
    logs = "".join(file.read_text() for file in (tmp_path / "keep" / "logs").glob("*.log"))
    assert done.returncode == 0 and "3 of 3 made, 0 failed" in done.stdout, done.stdout + done.stderr + logs
    made = [json.loads(file.read_text())["rows"][0] for file in (tmp_path / "keep").glob("qat*.json")]
    assert [row["delivered"] in ("ptq", "qat") for row in made] == [True]
    assert made[0]["metrics"]["domain/perplexity"] > 1 and made[0]["rate_test"]["rate"] > 0
