"""QAT from a PTQ method's result: before the first step the simulated model is the one that PTQ would deploy."""

from __future__ import annotations

import copy

import pytest
import torch

from edgequant.errors import UserError
from edgequant.quantization.layers.convert import convert
from edgequant.quantization.layers.fake_quantized import FakeQuantizedEmbedding, FakeQuantizedLinear
from edgequant.quantization.ptq.quantize import quantize
from edgequant.quantization.ptq.settings import PtqSettings
from edgequant.quantization.qat.ptq_initialization import prepare_from_ptq
from edgequant.quantization.qat.settings import QatSettings
from edgequant.quantization.scheme import parse_scheme
from edgequant.training.loop import train
from edgequant.training.settings import TrainingSettings


def logits(model, tokens):
    with torch.no_grad():
        return model(input_ids=tokens, use_cache=False).logits


@pytest.mark.parametrize(
    ("scheme", "method"),
    [("w4-g32+emb4", "mse_clip"), ("w4-g32+emb4", "awq+gptq"), ("w8a8-static", "gptq"), ("w4-g32", "signround")],
)
def test_the_start_is_exactly_what_ptq_deploys(tiny, sequences, scheme, method):
    calibration, settings = [sequences[:8, :64]], PtqSettings(signround_steps=4, alphas=4)
    rounded, started = copy.deepcopy(tiny.model), copy.deepcopy(tiny.model)
    quantize(rounded, parse_scheme(scheme), calibration=calibration, method=method, settings=settings)
    prepare_from_ptq(started, parse_scheme(scheme), method, calibration, settings=settings)
    convert(started)
    assert torch.equal(logits(started, sequences[-2:]), logits(rounded, sequences[-2:]))


@pytest.mark.parametrize("method", ["gptq", "smoothquant", "awq+gptq"])
def test_a_start_from_kept_blocks_is_the_same_start(tiny, sequences, tmp_path, method):
    calibration, settings = [sequences[:8, :64]], PtqSettings(alphas=4)
    found = []
    for _ in range(2):  # the second time every block comes from the folder, scaled weights included
        model = copy.deepcopy(tiny.model)
        prepare_from_ptq(
            model, parse_scheme("w8a8-static"), method, calibration, settings=settings, work_folder=tmp_path
        )
        found.append(model.state_dict())
    assert found[0].keys() == found[1].keys()
    assert all(torch.equal(value, found[1][name]) for name, value in found[0].items())


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, ["best", "second"]),
        ({"init_from": "gptq"}, ["gptq"]),
        ({"init_from": "rtn"}, ["rtn"]),
        ({"sparsity": 0.5}, ["mse_clip"]),
    ],
)
def test_ptq_is_by_the_best_methods_unless_told_otherwise_and_keeps_pruned_weights(settings, expected):
    assert QatSettings(**settings).ptq_methods(["best", "second"]) == expected


def test_training_starts_from_ptqs_integers_where_scales_learn_and_there_are_such():
    assert QatSettings().starts_from("gptq") and QatSettings().starts_from("rtn")
    assert not QatSettings(init_from="rtn").starts_from("rtn")
    assert not QatSettings(learnable_scales=False).starts_from("mse_clip")


def test_weights_move_no_further_than_their_integers_demand(tiny, sequences):
    scheme = parse_scheme("w4-g32")
    started = copy.deepcopy(tiny.model)
    prepare_from_ptq(started, scheme, "mse_clip", [sequences[:8, :64]], settings=PtqSettings(activation_weighted=False))
    before, layer = tiny.model.model.layers[0].mlp.up_proj.weight, started.model.layers[0].mlp.up_proj
    quantizer = layer.quantizer
    moved = (layer.weight - before).abs()
    scale = quantizer.current_grid().scale.expand(-1, -1, 32).reshape(before.shape)
    codes = quantizer.quantized(layer.weight).codes.reshape(before.shape)
    inner = (codes > -8) & (codes < 7)  # clipped extremes move to the edge of the range
    assert inner.float().mean() > 0.7
    assert (moved[inner] <= 0.02 * scale[inner]).all()  # `mse_clip` rounds to nearest: only the margin at a step's edge


def test_the_model_trains_and_converts_from_there(tiny, sequences, tmp_path):
    model = copy.deepcopy(tiny.model)
    prepare_from_ptq(model, parse_scheme("w4-g32+emb4"), "gptq", [sequences[:8, :64]])
    model.requires_grad_(True)
    layers = [m for m in model.modules() if isinstance(m, (FakeQuantizedLinear, FakeQuantizedEmbedding))]
    assert layers and all(layer.weight.requires_grad for layer in layers)
    assert model.lm_head.quantizer is model.model.embed_tokens.weight_quantizer  # tied: one set of scales to learn
    settings = TrainingSettings(steps=8, batch_size=4, sequence_length=64, learning_rate=3e-3, precision="float32")
    losses: list[float] = []
    train(model, sequences[:, :64], settings, tmp_path, on_log=lambda _step, found: losses.append(found["train/loss"]))
    assert losses[-1] < losses[0]
    simulated = logits(model, sequences[-2:])
    convert(model)
    assert (logits(model, sequences[-2:]).argmax(-1) == simulated.argmax(-1)).float().mean() > 0.99


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"init_from": "gtpq"}, r"PTQ method 'gtpq' is unknown"),
        (
            {"init_from": "gptq", "learnable_scales": False},
            r"qat.init_from gptq sets scales .* set qat.learnable_scales to true",
        ),
        ({"init_from": "gptq", "sparsity": 0.5}, r"does not keep pruned weights at 0"),
    ],
)
def test_what_does_not_go_together_is_refused(values, message):
    with pytest.raises(UserError, match=message):
        QatSettings(**values)
