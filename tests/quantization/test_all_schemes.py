"""Every named scheme on `tiny`: what is simulated, what is converted, what lies on disk, what is loaded back."""

from __future__ import annotations

import copy
import json
import math
import re
import struct
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from near_ties import assert_same_linear_by_linear, linear_by_linear, rounding_noise
from transformers import AutoModelForCausalLM

from edgequant import models
from edgequant.quantization import checkpoint
from edgequant.quantization.layers.convert import calibrate, convert, has_static_ranges, prepare
from edgequant.quantization.scheme import parse_scheme

NAMES = ("w8a8-static", "w8a8", "w8", "w4-g32", "w4-g64", "w4-g128", "w3-g64", "w4a8-g32", "q8_0", "q4_0", "q4_1")
SCHEMES = [name + suffix for name in NAMES for suffix in ("", "+emb4", "+emb8")]
SCHEMES += ["q4_0+embq4_0", "q8_0+embq8_0", "q4_1+embq4_1", "q4_0+embq8_0"]
SCHEMES += ["w2-g64", "w8a8-sym", "w4a8-g32-sym", "w4-g32-sym+emb4", "w8-sym+emb8"]
SCHEMES += ["w2-g64-sym+emb2", "w2-sym", "w1.58-g64+emb4", "w1.58a8"]
LINEARS = [
    f"model.layers.{layer}.{linear}"
    for layer in (0, 1)
    for linear in (
        *(f"self_attn.{name}_proj" for name in "qkvo"),
        *(f"mlp.{name}_proj" for name in ("gate", "up", "down")),
    )
]


class Made(NamedTuple):
    """A scheme's way through edgequant: logits while simulated, as integers, their `rounding_noise`, the checkpoint."""

    floating: Any
    targets: Any
    simulated: torch.Tensor
    integer: torch.Tensor
    noise: float
    saved: checkpoint.QuantizedCheckpoint


@pytest.fixture(scope="module")
def tokens() -> torch.Tensor:
    return torch.randint(0, 256, (4, 64), generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module", params=SCHEMES)
def made(request, _tiny, tokens, tmp_path_factory) -> Made:
    scheme = parse_scheme(request.param)
    model = copy.deepcopy(_tiny.model)
    targets = prepare(model, scheme)
    if has_static_ranges(model):
        calibrate(model, [tokens])
    with torch.no_grad():
        simulated = model(input_ids=tokens).logits
        convert(model)
        integer = model(input_ids=tokens).logits
    folder = tmp_path_factory.mktemp("checkpoints") / "model"
    parameters = sum(p.numel() for p in _tiny.model.parameters())
    saved = checkpoint.save(model, _tiny.tokenizer, folder, scheme, parameters=parameters, made_from="tiny")
    return Made(_tiny.model, targets, simulated, integer, rounding_noise(model, tokens), saved)


def stored_tensors(folder: Path) -> tuple[dict[str, Any], int]:
    """Header of the safetensors file, and the bytes behind it, read as the format's page describes it."""
    content = (folder / "model.safetensors").read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    header = json.loads(content[8 : 8 + length])
    header.pop("__metadata__", None)
    return header, len(content) - 8 - length


def test_simulated_and_integer_model_agree(made: Made) -> None:
    """Exactly, where only weights are integers; where activations are too, a sum's last bit may move a code by one,
    which does less than all rounding of activations (`rounding_noise`)."""
    assert (made.simulated - made.integer).std() <= made.noise
    assert made.noise <= 0.1 * made.simulated.std()


@pytest.mark.parametrize("name", [name for name in SCHEMES if "a8" in name])
def test_each_layer_agrees_to_rounding_on_the_inputs_that_the_simulation_saw(name, _tiny, tokens) -> None:
    """Layer by layer no moved code of an earlier layer can hide behind the whole model's bound, or excuse it."""
    model = copy.deepcopy(_tiny.model)
    prepare(model, parse_scheme(name))
    if has_static_ranges(model):
        calibrate(model, [tokens])
    simulated = linear_by_linear(model, tokens)
    convert(model)
    assert_same_linear_by_linear(simulated, model, tokens)


def test_reloaded_checkpoint_gives_the_same_logits(made: Made, tokens: torch.Tensor) -> None:
    reloaded = AutoModelForCausalLM.from_pretrained(made.saved.folder)
    with torch.no_grad():
        assert torch.equal(reloaded(input_ids=tokens).logits, made.integer)


def test_every_quantized_layer_is_stored_as_integers_and_only_so(made: Made) -> None:
    header, _ = stored_tensors(made.saved.folder)
    scheme = made.saved.scheme
    assert set(made.targets.linears) == set(LINEARS)
    layers = dict.fromkeys(LINEARS, scheme.weight) | (
        {"model.embed_tokens": scheme.embedding} if scheme.embedding else {}
    )
    for layer, spec in layers.items():
        assert header[f"{layer}.packed_weight.codes"]["dtype"] == ("I8" if spec.bits == 8 else "U8")
        assert f"{layer}.weight" not in header


def test_tied_embedding_and_head_are_stored_once(made: Made) -> None:
    header, _ = stored_tensors(made.saved.folder)
    kept = [name for name in header if re.match(r"(model\.embed_tokens|lm_head)\..*(weight|codes)$", name)]
    quantized = made.saved.scheme.embedding is not None
    assert kept == ["model.embed_tokens.packed_weight.codes" if quantized else "model.embed_tokens.weight"]


def bytes_of_matrix(rows: int, features: int, bits: int, group: int | None, kind: str) -> int:
    """Codes, scales and zero points of one matrix: `kind` is integer, none (symmetric) or real (a minimum).

    One bit stands for ternary codes, five in a byte.
    """
    groups = features // group if group else 1

    def packed(count: int) -> int:  # 2, 4 and 8 bits end at a byte; others at a run of eight codes
        if bits == 1:
            return math.ceil(count / 5)
        return math.ceil(count * bits / 8) if bits in (2, 4, 8) else math.ceil(count / 8) * bits

    scale = 2 if group else 4
    offset = {"integer": packed(groups), "none": 0, "real": groups * scale}[kind]
    return rows * (packed(features) + groups * scale + offset)


def test_size_on_disk_is_what_bits_scales_and_zero_points_add_up_to(made: Made) -> None:
    name = made.saved.scheme.name
    base, _, suffix = name.partition("+emb")
    bits = int(re.search(r"[wq](\d)", base)[1])  # type: ignore[index]
    group = int(base.partition("-g")[2].removesuffix("-sym") or 0) or (32 if base[0] == "q" else None)
    embedding_kind = "none" if base.endswith("-sym") else "integer"
    kind = {"q8_0": "none", "q4_0": "none", "q4_1": "real"}.get(base, "none" if bits == 1 else embedding_kind)
    expected = 0
    for layer, module in made.floating.named_modules():
        if isinstance(module, torch.nn.Linear) and layer != "lm_head":
            expected += bytes_of_matrix(*module.weight.shape, bits, group, kind)
            expected += 4 * (module.bias.numel() if module.bias is not None else 0)
            expected += 5 if "static" in base else 0  # the input's float32 scale and int8 zero point
        elif isinstance(module, torch.nn.Embedding):
            shape = module.weight.shape
            grouped = None if suffix == "8" else group or 32
            width = int(suffix.removeprefix("q")[:1] or 0)
            zero = {"q4_1": "real", "q4_0": "none", "q8_0": "none"}.get(suffix, embedding_kind)
            expected += bytes_of_matrix(*shape, width, grouped, zero) if suffix else 4 * shape.numel()
        elif "norm" in layer:
            expected += 4 * module.weight.numel()
    expected += 5 if "static" in base and suffix else 0  # the head's input
    _, size = stored_tensors(made.saved.folder)
    assert size == expected
    assert made.saved.weight_bytes == (made.saved.folder / "model.safetensors").stat().st_size


def test_parameters_count_tied_weights_once(made: Made) -> None:
    per_layer = 128 * 128 * 2 + 64 * 128 * 2 + (128 + 64 + 64) + 3 * 128 * 512 + 2 * 128
    assert made.saved.parameters == 264 * 128 + 2 * per_layer + 128
    assert checkpoint.open_checkpoint(made.saved.folder) == made.saved


@pytest.mark.parametrize(
    "name",
    ["w8a8-static+emb8", "w4a8-g32+emb4", "q4_1", "q4_0+embq4_0", "q4_k", "q6_k", "w3-g64+emb4", "w1.58-g64+emb4"],
)
def test_a_bfloat16_checkpoint_keeps_its_scales_and_its_logits(name, tiny, tokens, tmp_path) -> None:
    scheme = parse_scheme(name)
    prepare(tiny.model, scheme)
    if has_static_ranges(tiny.model):
        calibrate(tiny.model, [tokens])
    convert(tiny.model)
    names = re.compile(r"packed_weight|input_(scale|zero_point)$")
    wanted = {key: tensor.clone() for key, tensor in tiny.model.state_dict().items() if names.search(key)}
    models.cast(tiny.model, "bfloat16")
    checkpoint.save(tiny.model, tiny.tokenizer, tmp_path / "c", scheme, parameters=1, made_from="tiny")
    reloaded = AutoModelForCausalLM.from_pretrained(tmp_path / "c")
    state = reloaded.state_dict()
    for key, tensor in wanted.items():
        assert state[key].dtype == tensor.dtype and torch.equal(state[key], tensor), key
    assert reloaded.dtype == torch.bfloat16
    with torch.no_grad():
        assert torch.equal(reloaded(input_ids=tokens).logits, tiny.model(input_ids=tokens).logits)
