"""Adapters inside the quantiser: they start from nothing, train alone, and end in the integers."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from near_ties import assert_same_linear_by_linear, linear_by_linear

from edgequant.errors import UserError
from edgequant.quantization.layers.convert import calibrate, convert, has_static_ranges, prepare, set_phase
from edgequant.quantization.layers.integer import IntegerLinear
from edgequant.quantization.ptq.quantize import quantize, weight_errors
from edgequant.quantization.qat import low_rank, pruning
from edgequant.quantization.scheme import parse_scheme
from edgequant.training.loop import train
from edgequant.training.settings import TrainingSettings

SETTINGS = TrainingSettings(
    steps=6, batch_size=2, sequence_length=32, learning_rate=1e-2, precision="float32", save_steps=2
)


@pytest.fixture
def sequences() -> torch.Tensor:
    """[16, 32] bytes that count upwards from seeded starts."""
    starts = torch.randint(0, 220, (16, 1), generator=torch.Generator().manual_seed(0))
    return starts + torch.arange(32)


def adapted(floating, scheme: str, sequences, *, learned: bool = False, rank: int = 4):
    model, parsed = copy.deepcopy(floating).requires_grad_(True), parse_scheme(scheme)
    prepare(model, parsed, learnable_scales=learned)
    low_rank.attach(model, parsed, rank, alpha=8.0, seed=3)
    if has_static_ranges(model):
        calibrate(model, [sequences[:4]])
    return model


@torch.no_grad()
def logits(model, sequences) -> torch.Tensor:
    return model(input_ids=sequences[:2]).logits


@pytest.mark.parametrize("scheme", ["w4a8-g32+emb4", "w3-g64", "w8a8-static", "q4_1"])
def test_the_start_is_what_rounding_makes_of_the_model(tiny, sequences, scheme):
    rounded = copy.deepcopy(tiny.model)
    quantize(rounded, parse_scheme(scheme), calibration=[sequences[:4]])
    model = adapted(tiny.model, scheme, sequences)
    convert(model)
    assert torch.equal(logits(model, sequences), logits(rounded, sequences))


@pytest.mark.parametrize("learned", [False, True])
@pytest.mark.parametrize("scheme", ["w4a8-g32+emb4", "w8a8-static", "w2-g16"])
def test_after_training_the_integers_are_what_was_simulated(tiny, sequences, tmp_path, scheme, learned):
    model = adapted(tiny.model, scheme, sequences, learned=learned)
    start = logits(model, sequences)
    train(model, sequences, SETTINGS, tmp_path)
    set_phase(model, quantize_inputs=True, observe=False)
    simulated = linear_by_linear(model, sequences[:2])
    assert (simulated.logits - start).std() > 0.1 * start.std()  # it went somewhere
    convert(model)
    assert_same_linear_by_linear(simulated, model, sequences[:2])
    names = {name for name, _ in [*model.named_parameters(), *model.named_buffers()]}
    assert not [name for name in names if "before_rounding" in name]  # merged: the deployed model has no adapters


def test_the_integers_are_those_of_the_merged_weight(tiny, sequences, tmp_path):
    """Q(W + (alpha / rank) B A), written out with the frozen weight and the trained factors."""
    model = adapted(tiny.model, "w8", sequences, rank=4)
    train(model, sequences, SETTINGS, tmp_path)
    name = "model.layers.1.mlp.down_proj"
    update = model.get_submodule(name).before_rounding[0]
    merged = tiny.model.get_submodule(name).weight + 8.0 / 4 * update.b @ update.a
    scale = merged.detach().abs().amax(1, keepdim=True) / 127
    convert(model)
    found = model.get_submodule(name).dequantized_weight()
    assert (found - merged).abs().max() <= 0.51 * scale.max()
    assert (found - tiny.model.get_submodule(name).weight).abs().max() > scale.max()


@pytest.mark.parametrize("learned", [False, True])
def test_only_adapters_norms_and_learned_scales_are_trained(tiny, sequences, learned):
    model = adapted(tiny.model, "w4a8-g32+emb4", sequences, learned=learned)
    model(input_ids=sequences[:2], labels=sequences[:2]).loss.backward()
    trained = {name for name, parameter in model.named_parameters() if parameter.grad is not None}
    kinds = {"before_rounding" in name or "norm" in name or "weight_quantizer" in name for name in trained}
    assert kinds == {True}
    assert sum(name.endswith(".b") for name in trained) == 14  # every linear's
    assert any("weight_quantizer" in name for name in trained) == learned
    assert "model.embed_tokens.weight" not in trained


@pytest.mark.long
def test_frozen_weights_stay_and_need_no_optimizer_state(tiny, sequences, tmp_path):
    whole = copy.deepcopy(tiny.model).requires_grad_(True)
    prepare(whole, parse_scheme("w4a8-g32+emb4"))
    train(whole, sequences, SETTINGS, tmp_path / "whole")
    model = adapted(tiny.model, "w4a8-g32+emb4", sequences)
    train(model, sequences, SETTINGS, tmp_path / "adapters")
    before = dict(tiny.model.named_parameters())
    for name, parameter in model.named_parameters():
        if name in before and "norm" not in name:
            assert torch.equal(parameter, before[name]), name
    trainable = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    states = {run: optimizer_bytes(tmp_path / run) for run in ("whole", "adapters")}
    assert states["adapters"] == pytest.approx(8 * trainable, rel=0.01)  # Adam's two float32 moments of each
    assert states["adapters"] < 0.1 * states["whole"]


def optimizer_bytes(folder: Path) -> int:
    newest = max(folder.glob("checkpoint-*"), key=lambda path: int(path.name.rpartition("-")[2]))
    state = torch.load(newest / "optimizer.pt", weights_only=True)["state"]
    return sum(value.nbytes for moments in state.values() for value in moments.values() if torch.is_tensor(value))


@pytest.mark.parametrize("scheme", ["w4a8-g32+emb4", pytest.param("w8a8-static", marks=pytest.mark.long)])
def test_resumed_training_ends_with_the_same_bits(tiny, sequences, tmp_path, scheme):
    class Killed(Exception):
        pass

    def kill(step, _metrics):
        if step == 5:
            raise Killed

    whole = adapted(tiny.model, scheme, sequences)
    expected = train(whole, sequences, SETTINGS, tmp_path / "whole")
    with pytest.raises(Killed):
        train(adapted(tiny.model, scheme, sequences), sequences, SETTINGS, tmp_path / "cut", on_log=kill)
    resumed = adapted(tiny.model, scheme, sequences)
    found = train(resumed, sequences, SETTINGS, tmp_path / "cut", resume=True)
    assert found.loss == expected.loss
    wanted, got = whole.state_dict(), resumed.state_dict()
    assert any("before_rounding" in name for name in wanted)
    assert [name for name in wanted if not torch.equal(wanted[name], got[name])] == []


def test_a_rank_that_saves_nothing_is_refused_by_the_layers_name(tiny):
    """`tiny` has two key-value heads of 32: its smallest linears are [64, 128]."""
    low_rank.check_rank(tiny.model, parse_scheme("w4-g32"), 64)
    with pytest.raises(UserError, match=r"lora_rank must be at most 64 for layer \S+k_proj \[64, 128\].* got 65"):
        low_rank.check_rank(tiny.model, parse_scheme("w4-g32"), 65)


def test_layer_errors_are_those_of_the_merged_weights(tiny, sequences, tmp_path):
    model = adapted(tiny.model, "w3-g32", sequences)
    train(model, sequences, SETTINGS, tmp_path)
    merged = {row["layer"]: model.get_submodule(row["layer"]).real_weight.detach() for row in weight_errors(model)}
    errors = {row["layer"]: row["weight_error"] for row in weight_errors(model)}
    convert(model)
    assert len(merged) == 14
    for name, weight in merged.items():
        lost = model.get_submodule(name).dequantized_weight() - weight
        assert errors[name] == pytest.approx(float(lost.square().sum() / weight.square().sum()), rel=1e-4)


def test_adapters_bring_no_pruned_weight_back(tiny, sequences, tmp_path):
    model, parsed = copy.deepcopy(tiny.model).requires_grad_(True), parse_scheme("w4a8-g32+emb4")
    masks = pruning.prune(model, parsed, 0.4)
    prepare(model, parsed)
    low_rank.attach(model, parsed, 4, alpha=8.0)
    pruning.attach_masks(model, masks)
    train(model, sequences, SETTINGS, tmp_path)
    simulated = logits(model, sequences)
    convert(model)
    assert (simulated - logits(model, sequences)).abs().median() < 1e-4
    for name, keep in masks.items():
        layer = model.get_submodule(name)
        assert isinstance(layer, IntegerLinear)
        assert (layer.dequantized_weight()[~keep] == 0).all()
