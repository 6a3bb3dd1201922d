"""Gradient checkpointing changes what is kept, and no gradient and no range."""

from __future__ import annotations

import copy

import pytest
import torch

from edgequant.quantization.layers.convert import prepare, set_phase
from edgequant.quantization.layers.fake_quantized import fake_quantized_linears
from edgequant.quantization.layers.input_quantizers import DynamicInputQuantizer
from edgequant.quantization.scheme import parse_scheme
from edgequant.training import compilation
from edgequant.training.checkpointing import checkpointed_blocks
from edgequant.training.compilation import compiled_blocks, repeated_blocks
from edgequant.training.loop import train
from edgequant.training.settings import TrainingSettings

SCHEMES = [None, "w4a8-g32+emb4", "w8a8-static+emb8", "w3-g64"]


def trained(floating, sequences, folder, scheme, *, checkpointed, compiled):
    """Parameters and ranges after three steps of two passes, ranges first seen in training."""
    model = copy.deepcopy(floating).requires_grad_(True)
    phase = None
    if scheme:
        prepare(model, parse_scheme(scheme), learnable_scales=scheme.startswith("w3"))

        def phase(done, steps):
            set_phase(model, quantize_inputs=done > 0, observe=done < 2, reuse_weights=True)

    settings = TrainingSettings(
        steps=3, batch_size=2, gradient_accumulation=2, sequence_length=32, learning_rate=3e-3, precision="float32",
        save_steps=0, compile=compiled, gradient_checkpointing=checkpointed,
    )  # fmt: skip
    train(model, sequences, settings, folder, on_step=phase)
    return model


@pytest.mark.parametrize("compiled", [False, pytest.param(True, marks=pytest.mark.long)])
@pytest.mark.parametrize("scheme", SCHEMES)
def test_checkpointed_training_ends_with_the_same_weights_and_ranges(
    tiny, sequences, tmp_path, monkeypatch, scheme, compiled
):
    monkeypatch.setattr(compilation, "BACKEND", "aot_eager")
    made = {
        checkpointed: trained(
            tiny.model, sequences, tmp_path / str(checkpointed), scheme, checkpointed=checkpointed, compiled=compiled
        )
        for checkpointed in (False, True)
    }
    expected = made[False].state_dict()
    for name, tensor in made[True].state_dict().items():
        torch.testing.assert_close(tensor.float(), expected[name].float(), rtol=1e-5, atol=1e-6, msg=name)
    assert all(block._compiled_call_impl is None for block in repeated_blocks(made[True]))


@pytest.mark.parametrize("scheme", ["w4a8-g32+emb4", "w8a8-static"])
def test_gradients_are_those_of_the_plain_backward_pass(tiny, sequences, scheme):
    prepare(tiny.model.requires_grad_(True).train(), parse_scheme(scheme))
    tiny.model(input_ids=sequences[:2], labels=sequences[:2]).loss.backward()
    expected = {name: parameter.grad.clone() for name, parameter in tiny.model.named_parameters()}
    tiny.model.zero_grad()
    for layer in fake_quantized_linears(tiny.model).values():
        if hasattr(layer.input_quantizer, "observer"):
            layer.input_quantizer.observer.batches.zero_()
    with checkpointed_blocks(tiny.model):
        tiny.model(input_ids=sequences[:2], labels=sequences[:2]).loss.backward()
    for name, parameter in tiny.model.named_parameters():
        torch.testing.assert_close(parameter.grad, expected[name], msg=name)


def saved_bytes(model, tokens) -> int:
    """Of what autograd keeps between the two passes, parameters aside."""
    kept: dict[int, int] = {}
    own = {parameter.data_ptr() for parameter in model.parameters()}

    def pack(tensor):
        if tensor.data_ptr() not in own:
            kept[tensor.data_ptr()] = tensor.numel() * tensor.element_size()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        model.model(input_ids=tokens)
    DynamicInputQuantizer.forget()
    return sum(kept.values())


def test_a_block_keeps_little_more_than_its_input(tiny, sequences):
    prepare(tiny.model.requires_grad_(True).train(), parse_scheme("w4a8-g32"))
    tokens = sequences[:8]
    plain = saved_bytes(tiny.model, tokens)
    with checkpointed_blocks(tiny.model):
        assert saved_bytes(tiny.model, tokens) < plain / 5


@pytest.mark.long
@pytest.mark.parametrize("scheme", ["w4a8-g32", "w8a8-static"])
def test_recomputing_compiles_nothing_more(tiny, sequences, tmp_path, monkeypatch, scheme):
    graphs = []

    def backend(graph, inputs):
        graphs.append(graph)
        return graph.forward

    torch._dynamo.reset()
    monkeypatch.setattr(compilation, "BACKEND", backend)
    trained(tiny.model, sequences, tmp_path, scheme, checkpointed=True, compiled=True)
    assert len(graphs) == 1


def test_outside_training_a_block_is_run_as_it_is(tiny, sequences):
    expected = tiny.model(input_ids=sequences[:2]).logits
    with compiled_blocks(), checkpointed_blocks(tiny.model.eval()):
        torch.testing.assert_close(tiny.model(input_ids=sequences[:2]).logits, expected)
