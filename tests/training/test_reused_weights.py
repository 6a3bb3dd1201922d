"""Accumulated gradients: the passes of one step share each simulated weight, and nothing else changes."""

from __future__ import annotations

import copy

import pytest
import torch
from near_ties import assert_same_linear_by_linear, linear_by_linear

from edgequant.quantization.arithmetic import affine
from edgequant.quantization.layers import weight_quantizer
from edgequant.quantization.layers.convert import convert, prepare, set_phase
from edgequant.quantization.qat import low_rank
from edgequant.quantization.scheme import parse_scheme
from edgequant.training.loop import train
from edgequant.training.settings import TrainingSettings


@pytest.fixture
def simulations(monkeypatch):
    """Counts simulated weights."""
    counted: list[int] = []

    def counting(weight, spec):
        counted.append(1)
        return affine_simulated(weight, spec)

    affine_simulated = affine.simulated_weight
    monkeypatch.setattr(affine, "simulated_weight", counting)
    monkeypatch.setattr(weight_quantizer, "simulated_weight", counting)
    return counted


def trained(floating, sequences, folder, *, reuse: bool, precision: str = "float32", rank: int = 0):
    scheme = parse_scheme("w4a8-g32+emb4")
    model = copy.deepcopy(floating).requires_grad_(True)
    prepare(model, scheme)
    if rank:
        low_rank.attach(model, scheme, rank, 16.0)

    def phase(done, steps):
        set_phase(model, quantize_inputs=done > 0, observe=False, reuse_weights=reuse)

    settings = TrainingSettings(
        steps=3, batch_size=2, gradient_accumulation=4, sequence_length=32, learning_rate=3e-3, precision=precision
    )
    result = train(model, sequences, settings, folder, on_step=phase)
    set_phase(model, quantize_inputs=True, observe=False)
    return model, result.loss


@pytest.mark.long
@pytest.mark.parametrize(("precision", "rank"), [("float32", 0), ("bfloat16", 0), ("float32", 4)])
def test_reusing_simulated_weights_changes_no_bit(tiny, sequences, tmp_path, simulations, precision, rank):
    made = {
        reuse: trained(tiny.model, sequences, tmp_path / str(reuse), reuse=reuse, precision=precision, rank=rank)
        for reuse in (False, True)
    }
    assert made[True][1] == made[False][1]
    expected = made[False][0].state_dict()
    for name, tensor in made[True][0].state_dict().items():
        assert torch.equal(tensor, expected[name]), name


def test_a_step_simulates_each_whole_weight_once(tiny, sequences, tmp_path, simulations):
    trained(tiny.model, sequences, tmp_path / "a", reuse=False)
    every_pass, before = len(simulations), len(simulations)
    trained(tiny.model, sequences, tmp_path / "b", reuse=True)
    lookups = 3 * 4  # the embedding's rows are other ones in every pass
    assert (len(simulations) - before - lookups) * 4 == every_pass - lookups


def test_after_training_the_weights_as_they_are_count(tiny, sequences, tmp_path):
    model, _ = trained(tiny.model, sequences, tmp_path, reuse=True)
    simulated = linear_by_linear(model, sequences[:1])
    convert(model)
    assert_same_linear_by_linear(simulated, model, sequences[:1])
