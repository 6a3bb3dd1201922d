"""q4_k and q6_k as schemes: every PTQ method chooses them, QAT trains them, what is deployed is what was simulated."""

from __future__ import annotations

import copy
import math
from typing import Any

import numpy as np
import pytest
import torch
from small_models import TEXT, small
from transformers import AutoModelForCausalLM

from edgequant.errors import UserError
from edgequant.export.choice import choose_target
from edgequant.quantization import checkpoint
from edgequant.quantization.arithmetic.affine import dequantize_weight, grouped
from edgequant.quantization.layers.convert import check_weights, convert, prepare
from edgequant.quantization.layers.fake_quantized import fake_quantized_layers
from edgequant.quantization.layers.integer import integer_layers
from edgequant.quantization.layers.targets import find_targets, widths_of
from edgequant.quantization.layers.weight_quantizer import WeightQuantizer
from edgequant.quantization.mixed_precision.bit_allocation import choose_layer_bits
from edgequant.quantization.ptq.quantize import choose_integers, quantize
from edgequant.quantization.ptq.settings import PtqSettings
from edgequant.quantization.qat.frozen_weights import freeze_weights
from edgequant.quantization.qat.ptq_initialization import learn_from_integers
from edgequant.quantization.qat.settings import QatSettings
from edgequant.quantization.scheme import parse_scheme, told_replacements

SCHEMES = ["q4_k+embq4_k", "q6_k+embq6_k", "q4_k+embq6_k", "q4_k"]
METHODS = [
    *("mse_clip", "gptq", "awq", "awq+gptq", "signround", "gptq+signround", "block_ap", "e2e_qp", "smoothquant"),
]
QUICK = PtqSettings(signround_steps=8, block_ap_steps=8, tune_steps=4, alphas=4)


@pytest.fixture(scope="module")
def _wide() -> Any:
    return small("qwen2", tied=True, hidden_size=256, intermediate_size=512)


@pytest.fixture
def wide(_wide) -> Any:
    """A model whose widths K-quants hold."""
    return copy.deepcopy(_wide)


@pytest.fixture
def tokens(_wide) -> torch.Tensor:
    ids = _wide.tokenizer("\n".join(TEXT))["input_ids"]
    return torch.tensor(ids[: len(ids) // 32 * 32]).view(-1, 32)


def chosen_of(model: Any) -> dict[str, Any]:
    return {name: layer.quantizer.quantized(layer.weight) for name, layer in fake_quantized_layers(model).items()}


@torch.no_grad()
def logits(model: Any, tokens: torch.Tensor) -> torch.Tensor:
    return model(input_ids=tokens).logits


@pytest.mark.parametrize("method", METHODS)
def test_every_ptq_method_chooses_them_and_errs_less_than_rounding_to_nearest(wide, tokens, method):
    expected, distances = logits(wide.model, tokens), []
    for how in (method, "rtn"):
        model = copy.deepcopy(wide.model)
        quantize(model, parse_scheme("q4_k"), calibration=[tokens], method=how, settings=QUICK)
        distances.append(float((logits(model, tokens) - expected).square().mean()))
        assert {layer.packed.spec.layout for layer in integer_layers(model).values()} == {"q4_k"}
    assert distances[0] < (1.001 if method == "smoothquant" else 0.95) * distances[1]


@pytest.mark.long
@pytest.mark.parametrize("method", ["rtn", "mse_clip", "gptq", "gptq+block_ap+e2e_qp"])
def test_six_bits_err_less_than_a_fifth_of_what_four_do(wide, tokens, method):
    """By the squares of their steps, 1/32 and 2/15 of a group's largest, it would be a twentieth."""
    expected, distances = logits(wide.model, tokens), {}
    for scheme in ("q6_k", "q4_k"):
        model = copy.deepcopy(wide.model)
        quantize(model, parse_scheme(scheme), calibration=[tokens], method=method, settings=QUICK)
        distances[scheme] = float((logits(model, tokens) - expected).square().mean())
    assert distances["q6_k"] < 0.2 * distances["q4_k"]


@pytest.mark.parametrize("value", [math.nan, math.inf, -5e6, 7e8])
@pytest.mark.parametrize("scheme", ["q4_k", "q6_k"])
def test_a_weight_that_is_no_number_or_too_large_is_refused_by_name(wide, scheme, value):
    """q4_k's minima reach 63 times 65,504, q6_k's numbers 128 times 32 times that."""
    layer = "model.layers.1.mlp.down_proj"
    with torch.no_grad():
        wide.model.get_submodule(layer).weight[3, 5] = value
    if (scheme, value) == ("q6_k", -5e6):
        check_weights(wide.model, parse_scheme(scheme))
        return
    with pytest.raises(UserError, match=rf"must (be finite|have scales within float16).* in {layer}"):
        prepare(wide.model, parse_scheme(scheme))
    assert not fake_quantized_layers(wide.model)


def test_a_size_budget_gives_more_bits_to_the_layers_that_need_them(wide, tokens, tmp_path):
    """As Q4_K_M mixes them, but by measured sensitivity; the file is as large as said, and a GGUF holds it as it is."""
    allocation = choose_layer_bits(wide.model, parse_scheme("q4_k+embq6_k@5.5bpp"), list(tokens), dtype="float32")
    rows = {row["layer"]: row for row in allocation.rows}
    assert {4, 6} <= {row["bits"] for row in rows.values()} <= {4, 6, 8}
    parameters = sum(parameter.numel() for parameter in wide.model.parameters())
    assert 5.3 < allocation.size * 8 / parameters <= 5.5

    def gain(row: dict[str, Any]) -> float:  # nats for a byte
        return (row["sensitivity_4"] - row["sensitivity_6"]) / row["parameters"]

    of_bits = {bits: [gain(row) for row in rows.values() if row["bits"] == bits] for bits in (4, 6)}
    assert np.median(of_bits[6]) > np.median(of_bits[4])
    quantize(wide.model, allocation.scheme, method="mse_clip")
    layouts = {name: layer.packed.spec.layout for name, layer in integer_layers(wide.model).items()}
    expected = {4: "q4_k", 6: "q6_k", 8: "q8_0"}
    assert layouts == {name: expected[rows[name if name in rows else "model.embed_tokens"]["bits"]] for name in layouts}
    saved = checkpoint.save(
        wide.model, wide.tokenizer, tmp_path / "c", allocation.scheme, parameters=parameters, made_from="small"
    )
    assert 0.99 * allocation.size < saved.weight_bytes <= allocation.size
    target = choose_target(checkpoint.open_checkpoint(tmp_path / "c").scheme)
    assert target.format == "q4_k" and not target.encoded_again(allocation.scheme)


def test_gptq_may_fit_their_scales_anew(wide, tokens):
    errors = {}
    for refit in (False, True):
        model = copy.deepcopy(wide.model)
        # all that these few tokens say, of the outputs on the very inputs by which errors are told
        settings = PtqSettings(refit_scales=refit, shrinkage=0.0, asymmetric_calibration=False)
        rows = quantize(model, parse_scheme("q4_k"), calibration=[tokens], method="gptq", settings=settings)
        errors[refit] = [row["output_error"] for row in rows if row["kind"] == "linear"]
    assert sum(errors[True]) < sum(errors[False])


@pytest.mark.parametrize("method", ["mse_clip", "gptq"])
@pytest.mark.parametrize("scheme", SCHEMES)
def test_qat_starts_from_exactly_what_ptq_chose(wide, tokens, scheme, method):
    choose_integers(wide.model, parse_scheme(scheme), [tokens], method)
    chosen = chosen_of(wide.model)
    learn_from_integers(wide.model)
    for name, found in chosen_of(wide.model).items():
        for part, start in zip(found, chosen[name], strict=True):
            assert (part is None and start is None) or torch.equal(part, start), name


@pytest.mark.parametrize("trained", ["weights", "scales", "all"])
@pytest.mark.parametrize("scheme", SCHEMES)
def test_what_trains_is_deployed_and_reloaded_as_it_was_simulated(wide, tokens, scheme, trained, tmp_path):
    parsed = parse_scheme(scheme)
    prepare(wide.model, parsed, learnable_scales=trained != "weights")
    if trained == "scales":
        freeze_weights(wide.model)
    optimizer = torch.optim.SGD([one for one in wide.model.parameters() if one.requires_grad], lr=0.05)
    before = {name: one.clone() for name, one in wide.model.named_parameters()}
    for _ in range(3):
        optimizer.zero_grad()
        wide.model(input_ids=tokens, labels=tokens).loss.backward()
        optimizer.step()
    after = dict(wide.model.named_parameters())
    moved = {name.rpartition(".")[2] for name, one in before.items() if not torch.equal(one, after[name])}
    scales = {"relative_scale"} | ({"minimum_shift"} if "q4_k" in scheme else set())
    assert moved >= {"weights": {"weight"}, "scales": scales, "all": scales | {"weight"}}[trained]
    layers = fake_quantized_layers(wide.model)
    simulated = {name: layer.quantizer(layer.weight).detach().clone() for name, layer in layers.items()}
    expected = logits(wide.model, tokens)
    convert(wide.model)
    torch.testing.assert_close(logits(wide.model, tokens), expected)  # a product's last bit may differ
    for name, layer in integer_layers(wide.model).items():
        assert torch.equal(layer.dequantized_weight(), simulated[name]), name
    checkpoint.save(wide.model, wide.tokenizer, tmp_path / "c", parsed, parameters=1, made_from="small")
    assert checkpoint.open_checkpoint(tmp_path / "c").scheme == parsed
    reloaded = AutoModelForCausalLM.from_pretrained(tmp_path / "c", attn_implementation="eager")
    assert torch.equal(logits(reloaded, tokens), logits(wide.model, tokens))


@pytest.mark.parametrize("learned", [True, False])
@pytest.mark.parametrize("scheme", ["q4_k", "q6_k"])
def test_gradients_pass_straight_through_and_reach_scales_as_the_formula_says(scheme, learned):
    """value = S code + offset, codes held still; as a scale is stored, so its gradient passes."""
    generator = torch.Generator().manual_seed(1)
    weight, pulled = (torch.randn(8, 512, generator=generator) for _ in range(2))
    weight.requires_grad_()
    quantizer = WeightQuantizer(parse_scheme(scheme).weight, weight, learned=learned)
    values = quantizer(weight)
    values.backward(pulled)
    found = quantizer.quantized(weight)
    torch.testing.assert_close(values, dequantize_weight(found, weight.shape))
    if not learned:
        assert torch.equal(weight.grad, pulled)
        return
    spec = quantizer.spec
    groups, gradient = grouped(weight.detach(), spec), grouped(pulled, spec)
    lowest, offset = (0, 0) if found.minimum is None else (-8, found.minimum)
    position = (groups - offset) / found.scale + lowest
    inside = (position.round() >= spec.integer_range[0]) & (position.round() <= spec.integer_range[1])
    assert torch.equal(grouped(weight.grad, spec), gradient * inside)
    for_scale = torch.where(inside, found.codes - position, found.codes.float() - lowest) * gradient
    expected = for_scale.sum(-1, keepdim=True) * quantizer.initial_scale
    torch.testing.assert_close(quantizer.relative_scale.grad, expected, rtol=1e-4, atol=1e-5)
    if found.minimum is not None:
        expected = (gradient * ~inside).sum(-1, keepdim=True) * quantizer.initial_scale
        torch.testing.assert_close(quantizer.minimum_shift.grad, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("rows", [1, 40])
@pytest.mark.parametrize("scheme", ["q4_k", "q6_k"])
def test_integer_layers_multiply_by_what_is_stored(wide, scheme, rows, dtype):
    quantize(wide.model, parse_scheme(scheme), method="mse_clip")
    layer = integer_layers(wide.model.to(dtype))["model.layers.0.mlp.down_proj"]
    inputs = torch.randn(rows, 512, generator=torch.Generator().manual_seed(0)).to(dtype)
    expected = inputs.double() @ layer.packed.dequantized().double().t()
    error = (layer(inputs).double() - expected).abs().max() / expected.abs().max()
    assert error < (1e-5 if dtype == torch.float32 else 1e-2)


def test_rows_that_256_does_not_divide_take_a_format_of_as_many_bits_or_more(tiny, tokens):
    """`tiny` has rows of 128 but for its down projections' 512."""
    scheme = parse_scheme("q4_k+embq6_k")
    targets = find_targets(tiny.model, scheme)
    line = told_replacements(scheme, widths_of(tiny.model, targets), [targets.embedding])
    assert "12 of 15 become q4_1 for q4_k, 1 of 15 become q8_0 for q6_k" in line and "rows of 128" in line
    quantize(tiny.model, scheme, method="mse_clip")
    layouts = {name: layer.packed.spec.layout for name, layer in integer_layers(tiny.model).items()}
    assert layouts.pop("model.embed_tokens") == layouts.pop("lm_head") == "q8_0"
    assert {name: layout for name, layout in layouts.items() if layout != "q4_1"} == {
        f"model.layers.{layer}.mlp.down_proj": "q4_k" for layer in (0, 1)
    }


def test_nothing_is_told_where_every_row_fits(wide):
    scheme = parse_scheme("q4_k+embq6_k")
    assert (
        told_replacements(scheme, widths_of(wide.model, find_targets(wide.model, scheme)), ["model.embed_tokens"]) == ""
    )


@pytest.mark.parametrize("scheme", ["q4_k", "q6_k"])
def test_rows_that_not_even_32_divides_are_refused_by_name(scheme):
    model = small("qwen2", hidden_size=256, intermediate_size=272).model
    with pytest.raises(UserError, match=r"group_size 32 .* 272 input features of model\.layers\.0\.mlp\.down_proj"):
        check_weights(model, parse_scheme(scheme))


def test_pruning_needs_a_layout_that_says_zero():
    with pytest.raises(UserError, match="real minimum"):
        QatSettings(sparsity=0.5).check_scheme(parse_scheme("q4_k"))
    QatSettings(sparsity=0.5).check_scheme(parse_scheme("q6_k"))


def test_a_budget_below_four_bits_everywhere_is_refused_with_those_that_can_be_met(wide, tokens):
    with pytest.raises(UserError, match=r"with 4 bits in every layer .* give bits_per_parameter=4\.\d+ to"):
        choose_layer_bits(wide.model, parse_scheme("q4_k+embq6_k@4.1bpp"), list(tokens), dtype="float32")
