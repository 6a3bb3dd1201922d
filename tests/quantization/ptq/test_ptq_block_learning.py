"""`signround` and `block_ap`: learned against a block's output, judged by calibration batches held out."""

from __future__ import annotations

import copy

import pytest
import torch

from edgequant.quantization.calibration import CalibrationSettings
from edgequant.quantization.ptq import block_learning
from edgequant.quantization.ptq.quantize import choose_integers
from edgequant.quantization.ptq.settings import PtqSettings
from edgequant.quantization.scheme import parse_scheme

SMALL = CalibrationSettings(batch_size=8, precision="float32")
SETTINGS = PtqSettings(signround_steps=40, block_ap_steps=40)


@pytest.fixture(scope="module")
def tokens() -> torch.Tensor:
    return torch.randint(0, 256, (64, 32), generator=torch.Generator().manual_seed(0))


def chosen(tiny, tokens, scheme, method, settings=SETTINGS):
    model = copy.deepcopy(tiny.model)
    return model, choose_integers(model, parse_scheme(scheme), [tokens], method, settings, SMALL)


def block_errors(rows) -> list[float]:
    return [row["output_error"] for row in rows if row["kind"] == "block"]


@pytest.mark.parametrize("scheme", ["w3-g64", "w2-g64", "w4a8-g32+emb4", "q4_0", "q4_1"])
@pytest.mark.parametrize("method", ["signround", "block_ap"])
def test_the_first_block_errs_less_than_its_start(_tiny, tokens, scheme, method):
    _, start = chosen(_tiny, tokens, scheme, "mse_clip")
    _, learned = chosen(_tiny, tokens, scheme, f"mse_clip+{method}")
    assert block_errors(learned)[0] < block_errors(start)[0]


@pytest.mark.parametrize("method", ["signround", "block_ap"])
def test_learning_at_a_rate_that_only_harms_ends_where_it_began(_tiny, tokens, method):
    wild = PtqSettings(signround_steps=2, block_ap_steps=2, signround_learning_rate=1.0, block_ap_learning_rate=1.0)
    _, start = chosen(_tiny, tokens, "w4-g32", "gptq")
    model, spoilt = chosen(_tiny, tokens, "w4-g32", f"gptq+{method}", wild)
    assert block_errors(spoilt) == block_errors(start)
    norms = [value for name, value in model.state_dict().items() if "norm" in name]
    expected = [value for name, value in _tiny.model.state_dict().items() if "norm" in name]
    assert all(torch.equal(one, other) for one, other in zip(norms, expected, strict=True))


def test_the_best_state_is_kept_and_a_clearly_worse_one_halves_the_rate():
    parameter = torch.nn.Parameter(torch.zeros(3))
    best = block_learning.BestState([parameter], 1.0)
    seen = []
    for value, score in ((1.0, 0.5), (2.0, 0.501), (3.0, 0.9), (4.0, float("nan"))):
        with torch.no_grad():
            parameter.fill_(value)
        best.offer(score)
        seen.append((float(parameter[0]), best.share, best.least))
    assert seen == [(1.0, 1.0, 0.5), (2.0, 1.0, 0.5), (1.0, 0.5, 0.5), (1.0, 0.25, 0.5)]
    best.load()
    assert parameter.tolist() == [1.0, 1.0, 1.0]


@pytest.mark.parametrize("count", [1, 3, 4, 8, 16, 17])
def test_batches_are_split_once_there_are_four(count):
    training, held_out = block_learning._split(count)
    assert held_out
    assert set(training) | set(held_out) == set(range(count))
    assert bool(set(training) & set(held_out)) == (count < 4)


def test_a_model_whose_parameters_are_frozen_is_rounded_like_any_other_and_stays_frozen(_tiny, tokens):
    few = PtqSettings(block_ap_steps=4, tune_steps=2)
    method, scheme = "mse_clip+block_ap+e2e_qp", parse_scheme("w3-g64")
    made = []
    for wanted in (True, False):
        model = copy.deepcopy(_tiny.model).requires_grad_(wanted)
        made.append(choose_integers(model, scheme, [tokens], method, few, SMALL))
        assert all(parameter.requires_grad == wanted for parameter in model.parameters())
    assert made[0] == made[1]
