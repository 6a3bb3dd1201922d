"""Frozen weights: integers stay, scales and zero points, norms and biases train, and that is what is deployed."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
from near_ties import assert_same_linear_by_linear, linear_by_linear

from edgequant.errors import UserError
from edgequant.models.tiny import tiny_model
from edgequant.quantization.arithmetic.affine import dequantize_weight
from edgequant.quantization.layers.convert import convert, prepare, set_phase
from edgequant.quantization.layers.fake_quantized import fake_quantized_layers
from edgequant.quantization.ptq.quantize import quantize, weight_errors
from edgequant.quantization.qat.frozen_weights import freeze_weights
from edgequant.quantization.qat.ptq_initialization import prepare_from_ptq
from edgequant.quantization.qat.settings import QatSettings
from edgequant.quantization.scheme import parse_scheme
from edgequant.training import compilation
from edgequant.training.loop import train
from edgequant.training.settings import TrainingSettings

SCHEMES = ["w4-g32+emb4", "w4a8-g32+emb4", "w3-g64", "w8a8+emb8", "w2-g16", "q4_0+embq4_0", "q4_1+embq8_0"]
SETTINGS = TrainingSettings(
    steps=6, batch_size=4, sequence_length=32, learning_rate=3e-3, precision="float32", save_steps=3
)


@pytest.fixture
def sequences() -> torch.Tensor:
    """[24, 32] tokens: bytes that count upwards from seeded starts."""
    starts = torch.randint(0, 250, (24, 1), generator=torch.Generator().manual_seed(0))
    return (starts + torch.arange(32)) % 250


def integers(model) -> dict[str, torch.Tensor]:
    return {name: layer.packed().codes.clone() for name, layer in fake_quantized_layers(model).items()}


def trained(model, sequences, folder, settings=SETTINGS, **more) -> list[float]:
    losses: list[float] = []
    train(model, sequences, settings, folder, on_log=lambda _, m: losses.append(m["train/loss"]), **more)
    return losses


@pytest.mark.parametrize("learned", [False, True])
@pytest.mark.parametrize("scheme", SCHEMES)
def test_freezing_changes_no_prediction(tiny, sequences, scheme, learned):
    prepare(tiny.model, parse_scheme(scheme), learnable_scales=learned)
    with torch.no_grad():
        before = tiny.model(input_ids=sequences[:4]).logits
        freeze_weights(tiny.model)
        torch.testing.assert_close(tiny.model(input_ids=sequences[:4]).logits, before, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_training_moves_scales_and_norms_and_no_integer(tiny, sequences, tmp_path, scheme):
    model = tiny.model
    prepare(model.requires_grad_(True), parse_scheme(scheme))
    freeze_weights(model)
    before, start = copy.deepcopy(model), integers(model)
    losses = trained(model, sequences, tmp_path)
    assert losses[-1] < losses[0]
    assert all(torch.equal(codes, start[name]) for name, codes in integers(model).items())
    moved = {
        name for (name, new), old in zip(model.named_parameters(), before.parameters(), strict=True)
        if not torch.equal(new, old)
    }  # fmt: skip
    assert moved == {name for name, parameter in before.named_parameters() if parameter.requires_grad}
    offsets = {"q4_0+embq4_0": set(), "q4_1+embq8_0": {"minimum_shift"}}.get(scheme, {"zero_point"})
    assert {name.rpartition(".")[2] for name in moved} == {"relative_scale", "weight", "bias"} | offsets
    assert all("norm" in name for name in moved if name.endswith("weight"))


@pytest.mark.parametrize("scheme", SCHEMES)
def test_after_training_the_integers_are_what_was_simulated(tiny, sequences, tmp_path, scheme):
    prepare(tiny.model.requires_grad_(True), parse_scheme(scheme))
    freeze_weights(tiny.model)
    trained(tiny.model, sequences, tmp_path)
    set_phase(tiny.model, quantize_inputs=True, observe=False)
    simulated = linear_by_linear(tiny.model, sequences[:1])
    assert all(row["weight_error"] == 0 for row in weight_errors(tiny.model))
    convert(tiny.model)
    assert_same_linear_by_linear(simulated, tiny.model, sequences[:1])


def test_gradients_are_those_of_the_formula_written_out(tiny):
    prepare(tiny.model, parse_scheme("w4-g32"))
    freeze_weights(tiny.model)
    layer = tiny.model.model.layers[0].mlp.up_proj
    quantizer, pulled = layer.quantizer, torch.randn(512, 128)
    codes = quantizer.codes(layer.weight)
    scale, zero = quantizer.initial_scale.clone().requires_grad_(), codes.zero_point.clone().requires_grad_()
    written_out = ((codes.codes.float() - zero) * scale).reshape(512, 128)
    torch.testing.assert_close(quantizer(layer.weight), written_out)
    quantizer(layer.weight).backward(pulled)
    written_out.backward(pulled)
    torch.testing.assert_close(quantizer.relative_scale.grad, scale.grad * quantizer.initial_scale)
    torch.testing.assert_close(quantizer.zero_point.grad, zero.grad)


def test_a_ptq_methods_integers_are_what_is_frozen(tiny, sequences):
    scheme, rounded = parse_scheme("w4-g32"), copy.deepcopy(tiny.model)
    quantize(rounded, scheme, calibration=[sequences], method="gptq")
    prepare_from_ptq(tiny.model, scheme, "gptq", [sequences])
    freeze_weights(tiny.model)
    with torch.no_grad():
        found, expected = (model(input_ids=sequences[:4]).logits for model in (tiny.model, rounded))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_a_tied_head_shares_integers_and_scales_with_the_embedding(tiny):
    prepare(tiny.model, parse_scheme("w4-g32+emb4"))
    freeze_weights(tiny.model)
    head, embedding = tiny.model.lm_head, tiny.model.model.embed_tokens
    assert head.weight is embedding.weight
    assert head.quantizer is embedding.quantizer
    assert head.weight.dtype == torch.uint8


def test_weights_take_half_a_byte_and_no_gradient_at_4_bits(tiny):
    model = tiny.model.requires_grad_(True)
    count = sum(parameter.numel() for parameter in model.parameters())
    prepare(model, parse_scheme("w4-g32+emb4"))
    freeze_weights(model)
    size = sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())
    trains = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    scales = sum(buffer.numel() * 4 for name, buffer in model.named_buffers() if name.endswith("initial_scale"))
    assert size + scales < 0.92 * count  # 0.5 for the codes and 12 / 32 for scales, their starts and zero points
    assert trains < 0.08 * count


def frozen(scheme: str):
    model = tiny_model().requires_grad_(True)
    prepare(model, parse_scheme(scheme))
    freeze_weights(model)
    return model


@pytest.mark.parametrize("frozen_first", [False, True])
def test_a_copy_trains_its_scales_at_the_rate_of_the_original(tiny, frozen_first):
    prepare(tiny.model, parse_scheme("w4-g32"), learnable_scales=True)
    if frozen_first:
        freeze_weights(tiny.model)
    for one, other in zip(tiny.model.parameters(), copy.deepcopy(tiny.model).parameters(), strict=True):
        assert getattr(other, "learning_rate_factor", 1.0) == getattr(one, "learning_rate_factor", 1.0)
    assert any(hasattr(parameter, "learning_rate_factor") for parameter in tiny.model.parameters())


@pytest.mark.long
def test_an_interrupted_training_goes_on_to_the_same_numbers(sequences, tmp_path):
    whole, model = trained(frozen("w4a8-g32+emb4"), sequences, tmp_path / "whole"), frozen("w4a8-g32+emb4")

    def stop(done, steps):
        if done == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        trained(model, sequences, tmp_path / "training", on_step=stop)
    rest = trained(frozen("w4a8-g32+emb4"), sequences, tmp_path / "training", resume=True)
    assert rest == pytest.approx(whole[3:], rel=1e-5)


@pytest.mark.long
def test_frozen_blocks_compile_once_and_train_alike(sequences, tmp_path, monkeypatch):
    graphs = []

    def backend(graph, inputs):
        graphs.append(graph)
        return graph.forward

    monkeypatch.setattr(compilation, "BACKEND", backend)
    torch._dynamo.reset()
    losses = [
        trained(frozen("w4-g32+emb4"), sequences, tmp_path / str(flag), replace(SETTINGS, save_steps=0, compile=flag))
        for flag in (True, False)
    ]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    assert len(graphs) == 2  # a decoder block, the head


@pytest.mark.parametrize(("name", "value"), [("lora_rank", 8), ("sparsity", 0.5)])
def test_settings_that_change_weights_are_refused_beside_frozen_ones(name, value):
    with pytest.raises(UserError, match=rf"qat\.{name} must be 0\S* with qat.trainable scales"):
        QatSettings(trainable="scales", **{name: value})


@pytest.mark.parametrize("scheme", ["w3-g64", "q4_0", "q4_1"])
def test_dequantized_codes_are_the_deployed_weight(tiny, scheme):
    prepare(tiny.model, parse_scheme(scheme))
    freeze_weights(tiny.model)
    for layer in fake_quantized_layers(tiny.model).values():
        deployed = dequantize_weight(layer.packed().unpacked(), (layer.out_features, layer.in_features))
        torch.testing.assert_close(layer.real_weight, deployed)
