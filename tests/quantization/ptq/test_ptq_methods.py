"""Every PTQ method from a floating-point model to integer layers."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch

from edgequant.errors import UserError
from edgequant.quantization.calibration import CalibrationSettings
from edgequant.quantization.layers.convert import prepare
from edgequant.quantization.layers.integer import IntegerEmbedding, IntegerLinear
from edgequant.quantization.ptq import methods
from edgequant.quantization.ptq.block_learning import BlockRounding
from edgequant.quantization.ptq.block_stream import BlockStream
from edgequant.quantization.ptq.calibrated_block import CalibratedBlock
from edgequant.quantization.ptq.methods import PtqMethod
from edgequant.quantization.ptq.quantize import quantize
from edgequant.quantization.ptq.rounding import Clipping, Gptq, Rounding
from edgequant.quantization.ptq.settings import PtqSettings
from edgequant.quantization.scheme import parse_scheme

FAST = PtqSettings(signround_steps=25, alphas=5)
SMALL_BATCHES = CalibrationSettings(batch_size=2, precision="float32")
METHODS = ["rtn", "mse_clip", "gptq", "awq", "smoothquant", "signround", "awq+gptq", "gptq+signround"]
SCHEMES = ["w8a8-static", "w8a8", "w8", "w4-g32", "w3-g64", "w4a8-g32+emb4", "q8_0", "q4_0", "q4_1"]


@pytest.fixture(scope="module")
def tokens() -> torch.Tensor:
    return torch.randint(0, 256, (8, 32), generator=torch.Generator().manual_seed(0))


def quantized(tiny, tokens, scheme, method, **more):
    model = copy.deepcopy(tiny.model)
    errors = quantize(
        model,
        parse_scheme(scheme),
        calibration=[tokens],
        method=method,
        settings=FAST,
        calibration_settings=SMALL_BATCHES,
        **more,
    )
    return model, errors


@torch.no_grad()
def with_loud_channels(model):
    """A few channels of the norms a hundred times the others, as in large models (Xiao et al. 2022, figure 4)."""
    for layer in model.model.layers:
        for norm, behind in ((layer.input_layernorm, layer.self_attn), (layer.post_attention_layernorm, layer.mlp)):
            norm.weight[:4] *= 100
            for name, linear in behind.named_children():
                if name in ("q_proj", "k_proj", "v_proj", "gate_proj", "up_proj"):
                    linear.weight[:, :4] /= 10
    return model


def last_block_error(errors) -> float:
    return [row["output_error"] for row in errors if row["kind"] == "block"][-1]


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("method", METHODS)
def test_every_method_leaves_integers_under_every_scheme(_tiny, tokens, scheme, method):
    model, errors = quantized(_tiny, tokens, scheme, method)
    integer = [module for module in model.modules() if isinstance(module, (IntegerLinear, IntegerEmbedding))]
    linears = [row for row in errors if row["kind"] == "linear"]
    assert len(integer) == 14 + 2 * ("+emb" in scheme)
    assert len(linears) == 14
    assert all(0 < row["weight_error"] < 0.5 for row in linears)
    assert torch.isfinite(model(input_ids=tokens).logits).all()


@pytest.mark.parametrize("scheme", ["w3-g64", "w4a8-g32", "q4_0"])
@pytest.mark.parametrize("method", ["gptq", "signround", "awq+gptq", "gptq+signround"])
def test_outputs_err_less_than_after_clipping_alone(_tiny, tokens, scheme, method):
    _, plain = quantized(_tiny, tokens, scheme, "mse_clip")
    _, better = quantized(_tiny, tokens, scheme, method)
    assert last_block_error(better) < last_block_error(plain)


def test_smoothing_helps_static_activations_with_loud_channels(tiny, tokens):
    with_loud_channels(tiny.model)
    _, smooth = quantized(tiny, tokens, "w8a8-static", "smoothquant+mse_clip")
    _, plain = quantized(tiny, tokens, "w8a8-static", "mse_clip")
    assert last_block_error(smooth) < 0.5 * last_block_error(plain)


def test_smoothing_as_far_as_it_helps_beats_the_papers_half(tiny, tokens):
    with_loud_channels(tiny.model)
    errors = {
        alpha: last_block_error(
            quantize(
                copy.deepcopy(tiny.model), parse_scheme("w8a8-static"), calibration=[tokens], method="smoothquant",
                settings=replace(FAST, smoothing_strength=alpha),
            )
        )
        for alpha in (None, 0.0, 0.5)
    }  # fmt: skip
    assert errors[None] < 0.9 * min(errors[0.0], errors[0.5])


def test_awq_spares_the_weights_that_meet_loud_channels(tiny, tokens):
    with_loud_channels(tiny.model)
    _, aware = quantized(tiny, tokens, "w3-g64", "awq+rtn")
    _, clipped = quantized(tiny, tokens, "w3-g64", "mse_clip")
    assert last_block_error(aware) < last_block_error(clipped)


def test_statistics_are_summed_in_full_precision_under_bfloat16(tiny, tokens):
    prepare(tiny.model, parse_scheme("w4-g32"))
    stream = BlockStream(tiny.model, list(tokens.split(2)), bfloat16=True)
    inputs = stream.first_inputs()
    block = CalibratedBlock(stream, 0, "model.layers.0", inputs, inputs)
    name, seen = "model.layers.0.mlp.down_proj", []
    handle = block.layers[name].register_forward_pre_hook(lambda _module, args: seen.append(args[0].double()))
    hessian = block.second_moments([name])[name].mean
    handle.remove()
    rows = torch.cat(seen).flatten(0, 1)
    expected = rows.t() @ rows / len(rows)
    torch.testing.assert_close(hessian.double(), expected, rtol=0, atol=1e-6 * float(expected.abs().max()))


def test_a_quantized_embedding_is_part_of_what_later_layers_see(_tiny, tokens):
    _, errors = quantized(_tiny, tokens, "w4-g32+emb4", "gptq")
    assert [row["layer"] for row in errors if row["kind"] == "embedding"] == ["model.embed_tokens"]


def test_an_untied_head_is_quantized_by_gptq_too(tiny, tokens):
    config = copy.deepcopy(tiny.model.config)
    config.tie_word_embeddings = False
    tiny = tiny._replace(model=type(tiny.model)(config).eval())
    expected = tiny.model(input_ids=tokens).logits
    errors = {}
    for method in ("mse_clip", "gptq"):
        model, rows = quantized(tiny, tokens, "w8+emb3", method)
        assert sum(row["layer"] == "lm_head" for row in rows) == 1
        errors[method] = float((model(input_ids=tokens).logits - expected).square().mean())
    assert errors["gptq"] < errors["mse_clip"]


def test_learning_that_does_not_help_is_undone(_tiny, tokens, monkeypatch):
    _, start = quantized(_tiny, tokens, "w4-g32", "mse_clip")
    monkeypatch.setattr(
        BlockRounding,
        "_learn",
        lambda self, block, learned, others: [quantizer.offset.data.uniform_(-0.5, 0.5) for quantizer in learned],
    )
    _, spoilt = quantized(_tiny, tokens, "w4-g32", "signround")
    assert last_block_error(spoilt) == last_block_error(start)


def test_learned_codes_are_neighbors_of_the_start(_tiny, tokens):
    """Rounding offsets reach half a step, scales and zero points may add another."""
    start, _ = quantized(_tiny, tokens, "w4-g32", "mse_clip")
    learned, _ = quantized(_tiny, tokens, "w4-g32", "signround")
    name = "model.layers.0.mlp.down_proj"
    codes = [model.get_submodule(name).packed.unpacked().codes.int() for model in (start, learned)]
    moved = (codes[0] - codes[1]).abs()
    assert 0 < moved.float().mean() < 0.5
    assert moved.max() <= 4


def test_batches_of_any_size_and_offloaded_inputs_give_the_same_integers(_tiny, tokens):
    whole, _ = quantized(_tiny, tokens, "w4-g32", "gptq")
    parts = copy.deepcopy(_tiny.model)
    how = {"settings": FAST, "calibration_settings": replace(SMALL_BATCHES, offload=True)}
    batches = list(tokens.split(3))
    quantize(parts, parse_scheme("w4-g32"), calibration=batches, method="gptq", **how)
    for (name, one), other in zip(whole.state_dict().items(), parts.state_dict().values(), strict=True):
        assert torch.equal(one, other), name


@pytest.mark.parametrize("method", ["gptq", "awq", "smoothquant", "signround"])
def test_calibrated_methods_ask_for_calibration(tiny, method):
    with pytest.raises(UserError, match="calibration text"):
        quantize(tiny.model, parse_scheme("w4-g32"), method=method)


def test_a_layer_that_gptq_cannot_quantize_is_named(tiny, tokens):
    with torch.no_grad():
        tiny.model.model.layers[1].post_attention_layernorm.weight.fill_(1e15)  # float32 cannot hold 1e30 squared
    with pytest.raises(UserError, match=r"model\.layers\.1\.mlp\.down_proj"):
        quantized(tiny, tokens, "w4-g32", "gptq")


@pytest.mark.gpu
def test_gptq_of_smollm2_takes_at_most_a_minute(data_dir):
    import time

    from edgequant import models
    from edgequant.corpora.benchmarks import load_wikitext2
    from edgequant.corpora.packing import pack

    loaded = models.load("smollm2-135m", dtype="float32", device="cuda")
    rows = pack(["".join(load_wikitext2("validation", data_dir))], loaded.tokenizer, 2048)[:128].cuda()
    start = time.perf_counter()
    quantize(loaded.model, parse_scheme("w4-g64"), calibration=[rows], method="gptq")
    assert time.perf_counter() - start <= 60


class Clipped:
    def apply(self, block):
        Clipping(replace(FAST, activation_weighted=False)).apply(block)


class Own(Clipped, Gptq):
    """A package's method that takes over gptq's way through a block."""


class Other(Clipped, Rounding):
    """The same, of another family."""

    def __init__(self, settings):
        pass


def test_a_packages_rounding_may_change_layers_before_anything_looks_at_the_floating_point_block(
    _tiny, tokens, monkeypatch
):
    made = {"own": Own, "other": Other}
    own = [PtqMethod(name=n, stage="round", description="-", make=k, needs_calibration=True) for n, k in made.items()]
    monkeypatch.setattr(methods, "METHODS", (*methods.METHODS, *own))
    errors = {name: quantized(_tiny, tokens, "w3-g64", name)[1] for name in made}
    blocks = [[row["output_error"] for row in rows if row["kind"] == "block"] for rows in errors.values()]
    assert blocks[0] == blocks[1] and min(blocks[0]) > 1e-4
