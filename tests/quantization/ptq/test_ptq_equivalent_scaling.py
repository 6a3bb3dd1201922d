"""Scalings that leave the model as it was, found from the forward pass alone."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from random_architectures import KINDS

from edgequant.errors import UserError
from edgequant.quantization.layers.convert import prepare
from edgequant.quantization.layers.fixed_weights import IdentityQuantizer
from edgequant.quantization.ptq.block_stream import BlockStream
from edgequant.quantization.ptq.calibrated_block import CalibratedBlock
from edgequant.quantization.ptq.scaling.awq import ActivationAwareScaling
from edgequant.quantization.ptq.scaling.equivalent_scaling import find_scaling_pairs, keeps_output
from edgequant.quantization.ptq.scaling.smoothquant import Smoothing
from edgequant.quantization.scheme import parse_scheme

# What each block allows, worked out by hand: norms before linears, value heads before the output projection, and the
# linear branch of a gated MLP before the down projection. Phi's activation lies between fc1 and fc2.
EXPECTED = {
    "llama": {"q_proj k_proj v_proj", "o_proj", "gate_proj up_proj", "down_proj"},
    "qwen2": {"q_proj k_proj v_proj", "o_proj", "gate_proj up_proj", "down_proj"},
    "phi": {"q_proj k_proj v_proj fc1", "dense"},
    "gemma3": {"q_proj k_proj v_proj", "o_proj", "gate_proj up_proj", "down_proj"},
}


@pytest.fixture(params=KINDS)
def prepared(request) -> tuple[str, Any, torch.Tensor]:
    torch.manual_seed(0)
    model = KINDS[request.param]().eval().requires_grad_(False)
    for parameter in model.parameters():  # biases and norms must matter
        parameter.add_(0.2 * torch.randn_like(parameter))
    prepare(model, parse_scheme("w4-g32"))
    for layer in [module for module in model.modules() if hasattr(module, "weight_quantizer")]:
        layer.quantizer = IdentityQuantizer(layer.spec)
    return request.param, model, torch.randint(0, 256, (4, 24))


def blocks(model: Any, tokens: torch.Tensor) -> list[CalibratedBlock]:
    stream = BlockStream(model, list(tokens.split(2)))
    inputs, found = stream.first_inputs(), []
    for index, name in enumerate(stream.blocks):
        found.append(CalibratedBlock(stream, index, name, inputs, inputs))
        inputs = [output.detach() for output in found[-1].outputs()]
    return found


def test_every_exact_scaling_of_the_architecture_is_found(prepared):
    kind, model, tokens = prepared
    for block in blocks(model, tokens):
        names = {" ".join(name.split(".")[-1] for name in group.names) for group, _ in find_scaling_pairs(block)}
        assert names == EXPECTED[kind]


def test_looking_for_scalings_changes_no_weight(prepared):
    _, model, tokens = prepared
    before = {name: parameter.clone() for name, parameter in model.named_parameters()}
    for block in blocks(model, tokens):
        find_scaling_pairs(block)
    assert all(torch.equal(before[name], parameter) for name, parameter in model.named_parameters())


@pytest.mark.parametrize("step", [ActivationAwareScaling(4), Smoothing()], ids=["awq", "smoothquant"])
def test_absorbed_scales_keep_the_logits_of_the_unquantized_model(prepared, step):
    _, model, tokens = prepared
    expected = model(input_ids=tokens).logits
    before = {name: parameter.clone() for name, parameter in model.named_parameters()}
    for block in blocks(model, tokens):
        step.apply(block)
    moved = [name for name, parameter in model.named_parameters() if not torch.equal(before[name], parameter)]
    assert any("norm" in name for name in moved)
    torch.testing.assert_close(model(input_ids=tokens).logits, expected, rtol=1e-3, atol=1e-3)


def test_smoothing_divides_the_paper_s_scale_between_norm_and_linears(prepared):
    """s = sqrt(max|x| / max|w|) for alpha 1/2 (Xiao et al. 2022, equation 4), computed here from hooks."""
    _, model, tokens = prepared
    block = blocks(model, tokens)[0]
    names = next(group.names for group, _ in find_scaling_pairs(block) if group.names[0].endswith("q_proj"))
    seen: list[torch.Tensor] = []
    handle = block.layers[names[0]].register_forward_pre_hook(lambda _m, args: seen.append(args[0]))
    model(input_ids=tokens)
    handle.remove()
    largest_weight = torch.stack([block.layers[name].weight.abs().amax(0) for name in names]).amax(0)
    scale = (seen[0].abs().amax((0, 1)) / largest_weight).sqrt()
    scale = scale / scale.log().mean().exp()  # centred: its size as a whole changes nothing
    before = block.layers[names[0]].weight.clone()
    Smoothing(0.5).apply(block)
    torch.testing.assert_close(block.layers[names[0]].weight, before * scale, rtol=1e-4, atol=1e-6)


def test_the_stream_of_blocks_computes_what_the_model_does(prepared):
    _, model, tokens = prepared
    last = blocks(model, tokens)[-1]
    outputs = [output.detach() for output in last.outputs()]
    logits = [model.lm_head(inputs) for inputs in last.stream.head_inputs(outputs, model.lm_head)]
    torch.testing.assert_close(torch.cat(logits), model(input_ids=tokens).logits, rtol=1e-4, atol=1e-4)


def test_a_scaling_that_changes_the_block_is_refused(prepared):
    """Every second column scaled, and nothing that divides its input."""
    _, model, tokens = prepared
    block = blocks(model, tokens)[0]
    with (
        pytest.raises(
            UserError, match=r"^scaling the weights of model\.layers\.0 changed .* differ by \d.*without awq"
        ),
        keeps_output(block),
    ):
        block.layers["model.layers.0.self_attn.v_proj"].weight[:, ::2].mul_(2)


@pytest.mark.parametrize("share", ["module", "parameter"])
def test_a_norm_of_two_blocks_is_not_scaled_for_one_of_them(prepared, share):
    kind, model, tokens = prepared
    first, second = model.model.layers
    if share == "module":
        second.input_layernorm = first.input_layernorm
    else:
        second.input_layernorm.weight = first.input_layernorm.weight
    expected = model(input_ids=tokens).logits
    for block in blocks(model, tokens):
        ActivationAwareScaling(4).apply(block)
        names = {" ".join(name.split(".")[-1] for name in group.names) for group, _ in find_scaling_pairs(block)}
        assert names < EXPECTED[kind]
    torch.testing.assert_close(model(input_ids=tokens).logits, expected, rtol=1e-3, atol=1e-4)
