"""benchmarks/edge_vs_llama_cpp.py: its rows, llama.cpp's importance matrix, what its quantiser is given, the table."""

from __future__ import annotations

import argparse
import math
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parent.parent.parent
sys.path.insert(0, str(ROOT / "benchmarks"))

import edge_vs_llama_cpp  # noqa: E402, F401 - its imports work
from edge_rows.files import Files, Key, planned  # noqa: E402
from edge_rows.table import edge_table, paired_table  # noqa: E402
from peers.importance_matrix import importance_matrix, write_importance  # noqa: E402
from peers.llama_cpp_quantizer import BEHIND_TYPES, MARKS, give_importance, importance_list, read_importance  # noqa: E402
from peers.ptq_rows import Row  # noqa: E402


@pytest.fixture
def sequences() -> torch.Tensor:
    return torch.randint(0, 256, (3, 20), generator=torch.Generator().manual_seed(0))


@torch.no_grad()
def test_the_importance_of_an_input_is_its_mean_square_over_the_text(tiny, sequences):
    found = importance_matrix(tiny.model, sequences)
    block = tiny.model.model.layers[0]
    seen = block.input_layernorm(tiny.model.get_input_embeddings()(sequences))
    for name in ("attn_q", "attn_k", "attn_v"):
        torch.testing.assert_close(found[f"blk.0.{name}.weight"], seen.square().mean((0, 1)))
    assert len(found) == 7 * len(tiny.model.model.layers)  # neither the head nor the embedding


def test_it_is_read_as_it_was_written(tmp_path):
    given = {"blk.0.attn_q.weight": torch.tensor([1.5, 0.25]), "blk.1.ffn_down.weight": torch.tensor([0.0, 4.0, 9.0])}
    write_importance(given, tmp_path / "matrix", 4)
    assert {name: list(values) for name, values in read_importance(str(tmp_path / "matrix")).items()} == {
        "blk.0.attn_q.weight": [1.5, 0.25],
        "blk.1.ffn_down.weight": [0.0, 4.0, 9.0],
    }
    (first, second, last) = importance_list(read_importance(str(tmp_path / "matrix")))
    assert first.name == b"blk.0.attn_q.weight" and first.data[:2] == [1.5, 0.25] and first.size == 2
    assert second.size == 3 and last.name is None


def test_a_structure_of_another_layout_is_not_written_to():
    class Others:
        __slots__ = ("ftype", "imatrix", "nthread")

    parameters = Others()
    with pytest.raises(SystemExit, match="laid out in another way"):
        give_importance(parameters, importance_list({}))
    assert len(MARKS) == 2 and BEHIND_TYPES.size == 16


def options(**given) -> argparse.Namespace:
    values = {
        "rows": ["F16", "Q4_0", "Q4_0-imatrix", "PTQ", "QAT"],
        "seeds": [0, 1],
        "checkpoint": [],
        "model": "a/tiny",
    }
    return argparse.Namespace(
        **values | {"quantizer": None, "schemes": ["q4_0", "q8_0"], "onnx_scheme": "w4-g32", "method": "auto"} | given
    )


def test_rows_that_need_what_is_not_there_are_left_out(capsys):
    ours = [Key("PTQ", seed, scheme) for scheme in ("q4_0", "q8_0") for seed in (0, 1)]
    assert planned(options()) == [Key("F16", 0), *ours]
    assert planned(options(rows=["ONNX"], seeds=[3])) == [Key("ONNX", 3, "w4-g32")]
    assert "without --quantizer there is no Q4_0, Q4_0-imatrix" in capsys.readouterr().err
    whole = planned(options(quantizer="python", checkpoint=["a", "b", "c"]))
    assert [key.seed for key in whole if key.system == "QAT"] == [0, 1, 2]
    assert [key.seed for key in whole if key.system == "Q4_0"] == [0]
    assert [key.seed for key in whole if key.system == "Q4_0-imatrix"] == [0, 1]


def test_another_checkpoint_is_another_row(tmp_path):
    names = {Files(options(keep=tmp_path, checkpoint=[name])).name(Key("QAT", 0)) for name in ("a", "b")}
    assert len(names) == 2 and all(name.startswith("tiny-QAT-") for name in names)


def test_several_seeds_are_one_line_with_their_interval():
    def row(perplexity, **more):
        return Row("PTQ", "", 0.0, metrics={"wikitext2/perplexity": perplexity, "deploy/size_gb": 0.0775} | more)

    rows = [(Key("F16", 0), row(20.0, **{"wikitext2/perplexity_ci_low": 19.0, "wikitext2/perplexity_ci_high": 21.5}))]
    rows += [(Key("PTQ", seed, "q4_0"), row(value)) for seed, value in enumerate((21.0, 22.0, 23.0))]
    first, second = edge_table(rows).splitlines()[2:]
    assert first.startswith("| F16 | +0.0 % | 77.5 |") and "| 20.00 (19.00 to 21.50) |" in first
    half = 4.3027 * 1.0 / math.sqrt(3)  # Student's t of two degrees of freedom, standard deviation 1
    assert second.startswith("| PTQ q4_0 (3 seeds) | +10.0 % | 77.5 |")
    assert f"| 22.00 ({22 - half:.2f} to {22 + half:.2f}) |" in second


def test_files_are_compared_window_by_window_with_both_references():
    def row(shift, noise):
        items = [
            {"id": f"window-{at}", "tokens": 100, "nats": 300 + 40 * (at % 5) + 100 * shift + noise * (at % 3 - 1)}
            for at in range(30)
        ]
        return Row("", "", 0.0, metrics={"wikitext2/perplexity": 1.0}, items={"wikitext2": items})

    rows = [(Key("F16", 0), row(0.0, 0.0)), (Key("Q4_0-imatrix", 0), row(0.11, 1.0)), (Key("QAT", 1), row(0.06, 2.0))]
    heads, _, first, second, third = paired_table(rows).splitlines()
    assert heads.startswith("| file | WikiText-2 against F16 |") and "WikiText-2 against Q4_0-imatrix" in heads
    assert first.count("%") == second.count("%") == 1, "each against the other, neither against itself"
    cells = [cell.strip() for cell in third.split("|")[1:-1]]
    assert cells[0] == "QAT seed 1" and cells[2] == "-"
    lost = {at: float(cells[at].split(" %")[0]) for at in (1, 5)}
    assert lost[1] == pytest.approx(100 * (math.exp(0.06) - 1), abs=0.1)
    assert lost[5] == pytest.approx(100 * (math.exp(-0.05) - 1), abs=0.1)
    low, high = (float(part) for part in cells[1].split("(")[1].rstrip(")").split(" to "))
    assert 5.0 < low < lost[1] < high < 7.5
