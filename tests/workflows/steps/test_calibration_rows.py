"""Which text calibration sees: human text first, and with fixed ranges as much again that the model writes itself."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from edgequant.corpora.packing import pack
from edgequant.quantization.calibration import CalibrationSettings
from edgequant.quantization.ptq.methods import needs_own_text
from edgequant.quantization.ptq.settings import PtqSettings
from edgequant.quantization.qat.settings import QatSettings
from edgequant.quantization.scheme import parse_scheme
from edgequant.workflows import ptq
from edgequant.workflows.steps import ptq_choice
from edgequant.workflows.steps.ptq_choice import own_rows
from edgequant.workflows.steps.qat_experiment import QatExperiment
from edgequant.workflows.steps.sequences import fitting_length

STATIC = "w8a8-static"
WRITTEN = 100  # and above: rows that the model writes


@pytest.fixture
def asked(monkeypatch):
    """How many rows the model was asked to write, and of which length."""
    found = []

    def generated(_model, _tokenizer, count, length, *, seed):
        found.append((count, length))
        return torch.arange(WRITTEN, WRITTEN + count)[:, None].expand(-1, length)

    monkeypatch.setattr(ptq_choice, "generated_sequences", generated)
    return found


def calibrated_on(scheme: str, generated: torch.Tensor, **qat) -> list[list[int]]:
    """Rows of a training text of ten, by their numbers, in the batches that QAT's PTQ is given."""
    experiment = SimpleNamespace(
        sequences=torch.arange(10).view(10, 1), generated=generated, device="cpu", parameters=10**6, seed=0,
        scheme=parse_scheme(scheme), qat=QatSettings(**qat), floating=None, tokenizer=None,
        calibration=CalibrationSettings(num_calibration_samples=4, batch_size=3),
    )  # fmt: skip
    batches = QatExperiment.calibration_batches.func(experiment)
    return [batch.flatten().tolist() for batch in batches]


@pytest.mark.parametrize(
    ("scheme", "method", "expected"),
    [
        (STATIC, "auto", True), (STATIC, "smoothquant", True), (STATIC, "smoothquant+gptq", True),
        (STATIC, "rtn", False), (STATIC, "gptq", False), ("w8a8", "smoothquant", False), ("w4a8-g32", "auto", False),
        ("w4-g64", "awq", False),
    ],
)  # fmt: skip
def test_own_text_is_for_scales_that_are_fitted_to_fixed_ranges(scheme, method, expected):
    assert needs_own_text(parse_scheme(scheme), method) is expected


def test_calibration_takes_what_the_model_did_not_write_first(asked):
    even = torch.arange(10) % 2 == 0
    assert calibrated_on("w4-g32", even) == [[1, 3, 5], [7]]
    assert calibrated_on("w4-g32", torch.arange(10) > 1) == [[0, 1, 2], [3]]
    assert calibrated_on(STATIC, even, init_from="mse_clip") == [[1, 3, 5], [7]]
    assert asked == []


def test_with_fixed_ranges_it_takes_as_much_again_of_what_the_model_wrote(asked):
    assert calibrated_on(STATIC, torch.arange(10) % 2 == 0) == [[1, 0, 3], [2, 5, 4], [7, 6]]
    assert calibrated_on(STATIC, torch.arange(10) > 1) == [[0, 2, 1], [3, 4, 5]]
    assert asked == []  # the text has such rows


def test_where_the_text_has_none_of_it_the_model_writes_it(asked):
    first, second, third = calibrated_on(STATIC, torch.zeros(10, dtype=torch.bool))
    assert first + second + third == [0, WRITTEN, 1, WRITTEN + 1, 2, WRITTEN + 2, 3, WRITTEN + 3] and asked == [(4, 1)]


@pytest.mark.parametrize(
    ("schemes", "method", "dataset", "expected"),
    [
        ([STATIC, "w4-g32"], "smoothquant", "disaster", [(6, 8)]),
        ([STATIC], "rtn", "disaster", []),
        (["w4-g32", "q8_0", "bnb-nf4"], "auto", "disaster", []),
        ([STATIC], "auto", "wikitext-2:0.5,self-generated:0.5", []),
    ],
)
def test_ptq_lets_the_model_write_where_a_scheme_needs_it(schemes, method, dataset, expected, asked, tiny):
    text = torch.zeros(6, 8, dtype=torch.int64)
    parsed = [parse_scheme(scheme) for scheme in schemes]
    rows = own_rows(tiny, parsed, method, text, dataset, seed=0)
    assert asked == expected and len(rows) == (6 if expected else 0)


def test_auto_on_a_cpu_lets_it_write_half_of_what_it_has_the_time_for(asked, tiny, monkeypatch):
    monkeypatch.setattr(ptq_choice, "affordable_tokens", lambda _parameters, device: {"cpu": 40}[device])
    text = torch.zeros(6, 8, dtype=torch.int64)
    for method in ("auto", "smoothquant"):
        own_rows(tiny, [parse_scheme(STATIC)], method, text, "disaster", seed=0)
    assert asked == [(2, 8), (6, 8)]


def test_of_several_schemes_each_sees_its_own_text(tmp_path):
    text, own = torch.arange(3)[:, None], torch.arange(WRITTEN, WRITTEN + 2)[:, None]
    rounding = ptq.Rounding("auto", PtqSettings(), CalibrationSettings(), text, own, tmp_path)
    assert rounding.rows_for(parse_scheme(STATIC)).flatten().tolist() == [0, WRITTEN, 1, WRITTEN + 1, 2]
    assert rounding.rows_for(parse_scheme("w4-g32")) is text


def test_rows_are_as_long_as_the_shortest_part_of_a_text_allows(tmp_path, tiny):
    short, long = tmp_path / "short.txt", tmp_path / "long.txt"
    short.write_text("a flood " * 20)
    long.write_text("a storm " * 500)
    tokens = len(pack([short.read_text().strip()], tiny.tokenizer, 2)) * 2

    def length(dataset: str) -> int:
        return fitting_length(dataset, tiny.tokenizer, None, 512)

    assert length(str(long)) == 512 and length("self-generated") == 512
    assert abs(length(str(short)) - tokens) <= 2 and length(f"{long},{short},self-generated") == length(str(short))
    (tmp_path / "empty.txt").write_text("")
    assert length(str(tmp_path / "empty.txt")) == 512  # what is wrong says who reads it


def test_of_a_long_text_no_more_is_tokenised_than_tells_that_it_fills_a_row(tmp_path, tiny, monkeypatch):
    read = []
    monkeypatch.setattr("edgequant.corpora.packing.pack", lambda texts, *_: read.extend(texts) or torch.zeros(256, 2))
    (tmp_path / "long.txt").write_text("a storm " * 50_000)
    assert fitting_length(str(tmp_path / "long.txt"), tiny.tokenizer, None, 512) == 512
    assert sum(map(len, read)) == 512 * 64
