"""`e2e_qp`: scales of the whole model trained towards the floating-point model's predictions, integers fixed."""

from __future__ import annotations

import copy

import pytest
import torch

from edgequant.quantization.calibration import CalibrationSettings
from edgequant.quantization.layers.fake_quantized import fake_quantized_layers
from edgequant.quantization.layers.fixed_weights import fixed_codes_of
from edgequant.quantization.ptq.quantize import choose_integers, quantize
from edgequant.quantization.ptq.settings import PtqSettings
from edgequant.quantization.scheme import parse_scheme

SMALL = CalibrationSettings(batch_size=2, precision="float32")
SCHEMES = ["w3-g64", "w8a8-static", "w4a8-g32+emb4", "q4_0", "q4_1"]


@pytest.fixture(scope="module")
def tokens() -> torch.Tensor:
    return torch.randint(0, 256, (8, 32), generator=torch.Generator().manual_seed(0))


def chosen(tiny, tokens, scheme, method, **values):
    model = copy.deepcopy(tiny.model)
    settings = PtqSettings(**({"tune_steps": 20, "signround_steps": 5} | values))
    rows = choose_integers(model, parse_scheme(scheme), [tokens], method, settings, SMALL)
    return model, rows


@torch.no_grad()
def divergence(floating, quantized, tokens) -> float:
    """KL of the quantised model's predictions from the floating-point one's, by torch's own function."""
    expected = floating(input_ids=tokens).logits.log_softmax(-1).flatten(0, 1)
    found = quantized(input_ids=tokens).logits.log_softmax(-1).flatten(0, 1)
    return float(torch.nn.functional.kl_div(found, expected, log_target=True, reduction="batchmean"))


@pytest.mark.parametrize("scheme", SCHEMES)
def test_predictions_come_closer_to_the_floating_models_on_text_held_out(_tiny, tokens, scheme):
    held_out = tokens[4:5]  # of eight sequences, the fifth is not learned from
    method = "rtn" if scheme == "q4_0" else "mse_clip"  # its least-squares scales leave eight sequences nothing to gain
    start, _ = chosen(_tiny, tokens, scheme, method)
    tuned, rows = chosen(_tiny, tokens, scheme, f"{method}+e2e_qp")
    told = next(row for row in rows if row["kind"] == "model")
    before, after = (divergence(_tiny.model, model, held_out) for model in (start, tuned))
    assert after < before
    assert told["divergence_before"] == pytest.approx(before, rel=2e-2)
    assert told["divergence"] == pytest.approx(after, rel=2e-2)


@pytest.mark.parametrize("scheme", ["w3-g64", "w4-g32+emb4", "q4_1"])
def test_integers_stay_and_scales_move(_tiny, tokens, scheme):
    start, _ = chosen(_tiny, tokens, scheme, "mse_clip")
    tuned, _ = chosen(_tiny, tokens, scheme, "mse_clip+e2e_qp")
    others = fake_quantized_layers(tuned)
    own = {name: layer for name, layer in fake_quantized_layers(start).items() if not layer.is_tied}
    for name, layer in own.items():
        before, after = fixed_codes_of(layer), fixed_codes_of(others[name])
        assert torch.equal(before.codes, after.codes), name
        assert not torch.equal(before.scale, after.scale), name
        assert torch.equal(after.scale, after.scale.half().float()), name


def test_a_rate_that_only_harms_leaves_the_start(_tiny, tokens):
    start, _ = chosen(_tiny, tokens, "w4-g32", "mse_clip")
    spoilt, rows = chosen(_tiny, tokens, "w4-g32", "mse_clip+e2e_qp", tune_learning_rate=1.0, tune_steps=2)
    told = next(row for row in rows if row["kind"] == "model")
    assert told["divergence"] <= told["divergence_before"]
    if told["divergence"] == told["divergence_before"]:
        torch.testing.assert_close(spoilt(input_ids=tokens).logits, start(input_ids=tokens).logits, rtol=0, atol=0)


def test_a_tuned_model_is_converted_and_computes_what_was_tuned(_tiny, tokens):
    simulated, _ = chosen(_tiny, tokens, "w4-g32+emb4", "gptq+signround+e2e_qp")
    model = copy.deepcopy(_tiny.model)
    settings = PtqSettings(tune_steps=20, signround_steps=5)
    quantize(
        model, parse_scheme("w4-g32+emb4"), calibration=[tokens], method="gptq+signround+e2e_qp", settings=settings,
        calibration_settings=SMALL,
    )  # fmt: skip
    torch.testing.assert_close(model(input_ids=tokens).logits, simulated(input_ids=tokens).logits, rtol=1e-4, atol=1e-4)


def test_the_floating_weights_and_their_wish_for_gradients_stay(_tiny, tokens):
    tuned, _ = chosen(_tiny, tokens, "w4-g32+emb4", "mse_clip+e2e_qp")
    before = dict(_tiny.model.named_parameters())
    for name, layer in fake_quantized_layers(tuned).items():
        assert torch.equal(layer.weight, before[f"{name}.weight"] if not layer.is_tied else layer.weight)
        assert layer.weight.requires_grad
