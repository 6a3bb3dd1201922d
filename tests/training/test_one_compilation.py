"""Training is compiled once for each kind of block, whatever phases it goes through and however often it is scored."""

from __future__ import annotations

import copy

import pytest
import torch
from functorch.compile import make_boxed_func, min_cut_rematerialization_partition
from torch._dynamo.backends.common import aot_autograd

from edgequant.quantization.layers.convert import calibrate, has_static_ranges, prepare, set_phase
from edgequant.quantization.layers.fake_quantized import fake_quantized_linears
from edgequant.quantization.scheme import parse_scheme
from edgequant.training import compilation
from edgequant.training.compilation import compiled_blocks, scoring
from edgequant.training.loop import train
from edgequant.training.settings import TrainingSettings

pytestmark = pytest.mark.long  # a minute of tracing


@pytest.fixture
def compiled(monkeypatch):
    """The graphs that were compiled, as they come; they run by PyTorch's own kernels."""
    graphs: list[torch.fx.GraphModule] = []

    def backend(graph, inputs):
        graphs.append(graph)
        return graph.forward

    torch._dynamo.reset()
    monkeypatch.setattr(compilation, "BACKEND", backend)
    return graphs


def through_all_phases(floating, sequences, folder, scheme, *, observer="minmax", warm=True, look=None):
    """Six steps of two passes: inputs as they are, quantised, with observers frozen, and weights reused or not."""
    model = copy.deepcopy(floating).requires_grad_(True)
    prepare(model, parse_scheme(scheme), observer=observer)
    if warm and has_static_ranges(model):
        calibrate(model, [sequences[:8]])

    def before_step(done, steps):
        if look is not None:
            look(model)
        set_phase(model, quantize_inputs=done >= 2, observe=done < 4, reuse_weights=done % 2 == 0)

    settings = TrainingSettings(
        steps=6, batch_size=2, gradient_accumulation=2, sequence_length=32, learning_rate=3e-3, precision="float32",
        save_steps=0, compile=True,
    )  # fmt: skip
    train(model, sequences, settings, folder, on_step=before_step)
    return model


@pytest.mark.parametrize(
    ("scheme", "kinds"), [("w4a8-g32", 1), ("w4a8-g32+emb4", 2), ("w8a8-static", 1), ("w8a8-static+emb8", 2)]
)
def test_every_kind_of_block_is_compiled_once_over_all_phases(tiny, sequences, tmp_path, compiled, scheme, kinds):
    through_all_phases(tiny.model, sequences, tmp_path, scheme)
    assert len(compiled) == kinds


@pytest.mark.parametrize("observer", ["moving_average_minmax", "percentile", "mse"])
def test_ranges_that_are_first_seen_in_training_compile_nothing_anew(tiny, sequences, tmp_path, compiled, observer):
    through_all_phases(tiny.model, sequences, tmp_path, "w8a8-static", observer=observer, warm=False)
    assert len(compiled) == 1


def test_looks_at_held_out_text_compile_nothing_and_see_what_is_deployed(tiny, sequences, tmp_path, compiled):
    seen = []

    def look(model):
        set_phase(model, quantize_inputs=True, observe=False)
        ranges = [layer.input_quantizer.observer.high.clone() for layer in fake_quantized_linears(model).values()]
        with scoring(model):
            seen.append((model(input_ids=sequences[:2, :32]).logits.detach(), copy.deepcopy(model).eval()))
        assert model.training or len(seen) == 1
        assert all(
            torch.equal(layer.input_quantizer.observer.high, before)
            for layer, before in zip(fake_quantized_linears(model).values(), ranges, strict=True)
        )

    through_all_phases(tiny.model, sequences, tmp_path, "w8a8-static", look=look)
    assert len(compiled) == 1
    assert len(seen) == 6
    for logits, kept in seen:
        with torch.no_grad():
            torch.testing.assert_close(kept(input_ids=sequences[:2, :32]).logits, logits)


def test_compiled_linears_that_share_an_input_quantize_it_once(tiny, sequences, monkeypatch):
    forward: list[torch.fx.GraphModule] = []
    backend = aot_autograd(
        fw_compiler=lambda graph, inputs: make_boxed_func((forward.append(graph), graph.forward)[1]),
        bw_compiler=lambda graph, inputs: make_boxed_func(graph.forward),
        partition_fn=min_cut_rematerialization_partition,  # merges equal operations, as Inductor has it
    )
    torch._dynamo.reset()
    monkeypatch.setattr(compilation, "BACKEND", backend)
    prepare(tiny.model.requires_grad_(True), parse_scheme("w8a8"))
    with compiled_blocks(tiny.model):
        tiny.model(input_ids=sequences[:2]).logits.sum().backward()
    switches = [node for node in forward[0].graph.nodes if node.target is torch.ops.aten.where.self]
    inputs = [node for node in switches if node.args[0].meta["val"].ndim == 0]
    assert len(inputs) == 4  # of query, key and value; of the attention's output; of gate and up; of down


def test_moving_a_model_keeps_one_phase_for_the_linears_of_a_parent(tiny):
    prepare(tiny.model, parse_scheme("w8a8"))
    moved = copy.deepcopy(tiny.model).to("meta")
    attention = moved.model.layers[0].self_attn
    assert attention.q_proj.input_quantizer.phase.simulates is attention.k_proj.input_quantizer.phase.simulates
