"""What workflows write replaces an earlier result once it stands; where it fails, the earlier one is still there."""

from __future__ import annotations

import errno
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from edgequant import api, tracking
from edgequant.corpora.settings import CorpusSettings
from edgequant.errors import UserError
from edgequant.models.sources import ModelSource
from edgequant.quantization import checkpoint
from edgequant.quantization.calibration import CalibrationSettings
from edgequant.training.settings import LoraSettings
from edgequant.workflows.corpus import corpus
from edgequant.workflows.finetune import finetune
from edgequant.workflows.pipeline import pipeline
from edgequant.workflows.ptq import ptq
from edgequant.workflows.settings import RunSettings
from edgequant.workflows.steps.qat_variants import save_result
from edgequant.workflows.validate import places_read

CPU = RunSettings(device="cpu", dtype="float32")
FAILURES = [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt()]


def tree(folder: Path) -> dict[str, bytes]:
    """Every file below a folder with its bytes."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def failing(error: BaseException, before: int = 0) -> Any:
    """A function that raises, after so many calls that do nothing."""
    calls: list[int] = []

    def fail(*_: Any, **__: Any) -> None:
        calls.append(1)
        if len(calls) > before:
            raise error

    return fail


@pytest.fixture
def settings(quick: Any) -> dict[str, Any]:
    """Of a `ptq` that takes a second."""
    small = CalibrationSettings(num_calibration_samples=2, sequence_length=32)
    return {
        "model": "tiny",
        "calibration": small,
        "run": CPU,
        "evaluation": replace(quick, tasks=("domain_perplexity",)),
    }


def save(tiny: Any, folder: Path, scheme: str) -> None:
    import copy

    model = copy.deepcopy(tiny.model)
    api.quantize(model, scheme)
    api.save(model, tiny.tokenizer, folder)


def test_what_a_run_reads_is_all_that_it_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The model, the base of an adapter, a teacher, every part of a mix, and the benchmarks of the environment."""
    monkeypatch.chdir(tmp_path)
    for name in ("adapter", "base", "teacher", "floods", "guard", "data"):
        (tmp_path / name).mkdir()
    (tmp_path / "adapter" / "adapter_config.json").write_text('{"base_model_name_or_path": "base"}')
    (tmp_path / "base" / "config.json").write_text("{}")
    monkeypatch.setenv("EDGEQUANT_DATA", "data")
    source = ModelSource("folder", "adapter", str(tmp_path / "adapter"))
    read = places_read(source, "disaster,floods:0.3,self-generated", "guard", teacher="teacher")
    assert {place.path.name for place in read} == {"adapter", "base", "teacher", "floods", "guard", "data"}
    assert not places_read(ModelSource("tiny", "tiny", "tiny"), "wikitext-2", "self-generated", data_dir="nowhere")


@pytest.mark.parametrize("error", FAILURES, ids=["full disk", "interrupted"])
def test_a_checkpoint_that_cannot_be_written_leaves_the_earlier_one(
    tiny: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    save(tiny, tmp_path / "small", "w4-g32")
    before = tree(tmp_path)
    with monkeypatch.context() as broken, pytest.raises((UserError, KeyboardInterrupt)):
        broken.setattr(type(tiny.tokenizer), "save_pretrained", failing(error))
        save(tiny, tmp_path / "small", "w8")
    assert tree(tmp_path) == before
    save(tiny, tmp_path / "small", "w8")
    assert checkpoint.open_checkpoint(tmp_path / "small").scheme.name == "w8"
    assert [path.name for path in tmp_path.iterdir()] == ["small"]


def test_the_api_does_not_save_over_the_model_that_it_loaded(tiny: Any, tmp_path: Path) -> None:
    save(tiny, tmp_path / "small", "w4-g32")
    before = tree(tmp_path)
    loaded = api.load(str(tmp_path / "small"), device="cpu")
    with pytest.raises(UserError, match="which is model"):
        api.save(loaded.model, loaded.tokenizer, tmp_path / "small")
    with pytest.raises(UserError, match="which lies in "):
        api.save(loaded.model, loaded.tokenizer, tmp_path / "small" / "again")
    assert tree(tmp_path) == before


@pytest.mark.long
def test_of_several_schemes_each_is_replaced_by_itself_and_the_users_text_beside_them_stays(
    store: Any, tmp_path: Path, settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    ptq(scheme="w8,bnb-nf4,w4-g32", output=str(out), **settings)
    (out / "notes.txt").write_text("mine")
    before, inodes = tree(out), {path.name: path.stat().st_ino for path in out.iterdir()}
    with monkeypatch.context() as broken, pytest.raises(UserError, match="the disk is full"):
        broken.setattr("edgequant.quantization.checkpoint.ensure_manifest", failing(FAILURES[0]))  # of bnb-nf4
        ptq(scheme="w8,bnb-nf4,w4-g32", output=str(out), **settings)
    assert tree(out) == before, "equal settings write equal bytes, and nothing else is left"
    after = {path.name: path.stat().st_ino for path in out.iterdir()}
    assert {name for name in after if after[name] != inodes[name]} - {"edgequant-output.json"} == {"w8"}
    ptq(scheme="w8,bnb-nf4", output=str(out), **settings)
    assert tree(out) == before


@pytest.mark.long
def test_folders_of_one_and_of_several_schemes_do_not_take_each_others_place(
    store: Any, tmp_path: Path, settings: dict[str, Any]
) -> None:
    ptq(scheme="bnb-int8", output=str(tmp_path / "one"), **settings)
    ptq(scheme="bnb-int8", output=str(tmp_path / "one"), **settings)
    ptq(scheme="w8,w4-g32", output=str(tmp_path / "two"), **settings)
    before, runs = tree(tmp_path / "two"), len(tracking.find_runs(workflow="ptq"))
    with pytest.raises(UserError, match=r"something else of edgequant's \(ptq\)"):
        ptq(scheme="w8", output=str(tmp_path / "two"), **settings)
    with pytest.raises(UserError, match=r"something else of edgequant's \(checkpoint\)"):
        ptq(scheme="w8,w4-g32", output=str(tmp_path / "one"), **settings)
    assert tree(tmp_path / "two") == before and len(tracking.find_runs(workflow="ptq")) == runs


@pytest.mark.long
def test_adapter_and_merged_model_change_together(
    store: Any, tmp_path: Path, quick: Any, short: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: dict[str, Any] = {"model": "tiny", "lora": LoraSettings(rank=2), "run": CPU, "output": str(tmp_path / "out")}
    given |= {"evaluation": replace(quick, tasks=("domain_perplexity",)), "training": replace(short, steps=2)}
    (tmp_path / "out" / "training").mkdir(parents=True)
    (tmp_path / "out" / "training" / "log.txt").write_text("mine")
    with pytest.raises(UserError, match="holds 'training', which edgequant did not write"):
        finetune(**given)
    (tmp_path / "out" / "training").rename(tmp_path / "training")
    finetune(**given)
    (tmp_path / "training").rename(tmp_path / "out" / "training")
    before = tree(tmp_path / "out")
    with monkeypatch.context() as broken, pytest.raises(UserError, match="the disk is full"):
        complete = failing(FAILURES[0], before=1)  # the adapter's is the first
        broken.setattr("edgequant.quantization.checkpoint.ensure_manifest", complete)
        finetune(**given | {"training": replace(short, steps=3)})
    assert tree(tmp_path / "out") == before
    finetune(**given | {"training": replace(short, steps=3)})
    after = tree(tmp_path / "out")
    changed = {
        name.rpartition("/")[0] for name in after if name.endswith(".safetensors") and after[name] != before[name]
    }
    assert changed == {"adapter", "merged"} and after["training/log.txt"] == b"mine"
    with pytest.raises(UserError, match="holds 'merged', of which these settings write none"):
        finetune(**given, base="bnb-nf4")


@pytest.mark.long
def test_a_data_set_that_cannot_be_written_leaves_the_earlier_one(
    store: Any, tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, out = tmp_path / "in", tmp_path / "out"
    source.mkdir()
    (source / "report.md").write_text("# Flood\n\n" + "The crew moved a family from house three at noon. " * 40)
    settings = CorpusSettings(min_tokens=300, max_tokens=500, workers=1)
    given: dict[str, Any] = {"source": str(source), "output": str(out), "model": "tiny", "settings": settings}
    corpus(**given)
    before = tree(out)
    (source / "added.md").write_text("# Storm\n\n" + "The wind took a roof from house nine at night. " * 40)
    with monkeypatch.context() as broken, pytest.raises(UserError, match="the disk is full"):
        broken.setattr("edgequant.corpora.output.write.save_plots", failing(FAILURES[0]))
        corpus(**given)
    assert tree(out) == before
    corpus(**given)
    assert tree(out)["manifest.json"] != before["manifest.json"]
    (out / "train" / "mine.txt").write_text("mine")
    with pytest.raises(UserError, match=r"holds 'train/mine.txt', which edgequant did not write"):
        corpus(**given)


def test_what_qat_delivers_replaces_an_earlier_checkpoint_and_nothing_else(tiny: Any, tmp_path: Path) -> None:
    """`outputs.check_output` has refused the folder before the run; hours later this is asked again."""
    for scheme, folder in (("w4-g32", "run/qat"), ("w8", "mine")):
        save(tiny, tmp_path / folder, scheme)
    made = tree(tmp_path / "run" / "qat")
    experiment: Any = SimpleNamespace(folder=tmp_path / "run")
    assert save_result(experiment, "qat", tmp_path / "mine") == tmp_path / "mine"
    assert tree(tmp_path / "mine") == made
    (tmp_path / "mine" / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match=r"holds 'notes.txt'"):
        save_result(experiment, "qat", tmp_path / "mine")
    assert (tmp_path / "mine" / "notes.txt").read_text() == "mine"
    assert tree(tmp_path / "run" / "checkpoint") == made, "what was trained is where the run keeps it"


@pytest.mark.long
def test_a_second_pipeline_goes_into_the_folder_of_the_first(
    store: Any, tmp_path: Path, quick: Any, cache: Path
) -> None:
    given: dict[str, Any] = {"model": "tiny", "run": CPU, "output": str(tmp_path / "out")}
    given["evaluation"] = replace(quick, tasks=("domain_perplexity",))
    for _ in range(2):
        pipeline(**given, phases=("baseline", "ptq", "report"))
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        "ptq",
        "report",
        "phases.json",
        "edgequant-output.json",
    }
    (tmp_path / "out" / "report" / "report.md").write_text("my remarks")
    with pytest.raises(UserError, match=r"holds 'report.md', which was changed since edgequant wrote it"):
        pipeline(**given, phases=("baseline", "report"))
    assert len(tracking.find_runs(workflow="pipeline")) == 2
