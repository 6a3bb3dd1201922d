"""A checkpoint leaves as a compressed-tensors folder: same integers, same predictions, without edgequant."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from compressed_tensors.quantization.lifecycle.forward import forward_quantize
from exported_folders import IDS, checkpoint_of, exported
from hypothesis import given, settings
from hypothesis import strategies as st
from near_ties import assert_same_linear_by_linear, integer_linears, linear_by_linear, rounding_noise
from safetensors.torch import load_file, save_file
from small_models import ARCHITECTURES

from edgequant import models
from edgequant.errors import UserError
from edgequant.export.compressed_tensors.write import write_compressed_tensors
from edgequant.export.formats import check_expressible
from edgequant.export.tensors_folder import WEIGHTS
from edgequant.quantization.arithmetic.affine import quantize
from edgequant.quantization.layers.integer import IntegerEmbedding, IntegerLinear
from edgequant.quantization.scheme import Scheme, WeightSpec, parse_scheme

WEIGHT_ONLY = ["w8", "w4-g32", "q8_0", "q4_0", "w8-sym", "w4-g32-sym", "w2-g64-sym", "w2-sym", "w1.58-g64"]
EMBEDDED = ["w8+emb8", "w4-g32+emb4", "w4-g64+emb8", "q4_0+emb8", "q8_0+emb4", "w4-g32-sym+emb4", "w1.58-g64+emb4"]
EMBEDDED += ["w4-g32-sym+emb8", "w2-g64-sym+emb2"]
ACTIVATIONS = ["w8a8", "w8a8-static", "w4a8-g32", "w8a8-static+emb8", "w4a8-g32+emb4", "w4a8-g32-sym", "w8a8-sym"]


@torch.no_grad()
def logits(model: Any) -> torch.Tensor:
    return model(input_ids=IDS).logits


def integer_layers(model: Any) -> dict[str, Any]:
    kinds = (IntegerLinear, IntegerEmbedding)
    return {name: module for name, module in model.named_modules() if isinstance(module, kinds)}


def assert_same_weights(ours: Any, theirs: Any) -> None:
    """Bit for bit, biases and norms included. `theirs` has been called once, which decompresses it."""
    layers = integer_layers(ours)
    for name, layer in layers.items():
        assert torch.equal(theirs.get_submodule(name).weight, layer.dequantized_weight()), name
    inside = tuple(f"{name}." for name in layers)
    others = {n: p for n, p in ours.named_parameters() if not n.startswith(inside) or n.endswith(".bias")}
    assert others
    for name, parameter in others.items():
        assert torch.equal(theirs.get_parameter(name), parameter), name


def stored_bits(folder: Path, name: str) -> float:
    """Bits of the codes of one linear over its weights."""
    state = load_file(folder / WEIGHTS)
    codes = state.get(f"{name}.weight_packed", state.get(f"{name}.weight"))
    rows, features = 512, 128
    return 8 * codes.numel() * codes.element_size() / (rows * features)


@pytest.mark.parametrize("scheme", WEIGHT_ONLY + EMBEDDED)
def test_weight_only_schemes_compute_bit_for_bit_what_ours_do(scheme, tiny, tmp_path):
    ours, theirs, _, _ = exported(tiny, scheme, tmp_path)
    assert torch.equal(logits(theirs), logits(ours.model))
    assert_same_weights(ours.model, theirs)


@pytest.mark.parametrize("scheme", ACTIVATIONS)
def test_quantized_activations_differ_by_rare_near_ties_alone(scheme, tiny, tmp_path):
    """Ours rounds x / S and adds Z, theirs rounds the sum: a few in a million near-ties fall the other way."""
    ours, theirs, _, _ = exported(tiny, scheme, tmp_path)
    expected, found = logits(ours.model), logits(theirs)
    assert_same_weights(ours.model, theirs)
    assert_same_linear_by_linear(linear_by_linear(ours.model, IDS), theirs, IDS, integer_linears(ours.model))
    noise = rounding_noise(ours.model, IDS)
    assert noise <= 0.1 * expected.std() and (found - expected).std() <= noise
    highest = expected.topk(2).values
    clear = highest[..., 0] - highest[..., 1] > 2 * (found - expected).abs().max()  # else either may be the first
    assert clear.float().mean() >= 0.5 and torch.equal(found.argmax(-1)[clear], expected.argmax(-1)[clear])


@pytest.mark.parametrize("scheme", ["w8a8", "w8a8-static"])
def test_codes_of_activations_follow_our_ranges_and_zero_points(scheme, tiny, tmp_path):
    ours, theirs, _, _ = exported(tiny, scheme, tmp_path)
    logits(theirs)
    draw = torch.Generator().manual_seed(2)
    for name in ("model.layers.0.self_attn.q_proj", "model.layers.1.mlp.down_proj"):
        layer, other = ours.model.get_submodule(name), theirs.get_submodule(name)
        inputs = torch.randn(4, 64, layer.in_features, generator=draw) + 0.3  # not centred: Z is not 0
        inputs[0, 0] = inputs[0, 0].abs() + 1  # a range that has to be widened to contain 0
        ranged = layer.quantized_input(inputs)
        scale, zero_point = ranged.scale, ranged.zero_point
        simulated = forward_quantize(other, inputs, "input", other.quantization_scheme.input_activations)
        steps = simulated / scale + zero_point - quantize(inputs, scale, zero_point, (-128, 127))
        assert steps.abs().max() <= 1.01
        assert (steps.abs() > 0.01).float().mean() <= 1e-4


@pytest.mark.parametrize("kind", ARCHITECTURES)
@pytest.mark.parametrize(
    ("scheme", "tied"),
    [
        ("w4-g32+emb4", True),
        ("w4-g32-sym+emb4", True),
        ("w4-g32-sym+emb4", False),
        ("w8a8-static+emb8", True),
        ("w8a8-static+emb8", False),
    ],
)
def test_architectures_keep_biases_norms_and_tied_heads(kind, tied, scheme, tmp_path):
    ours, theirs, _, _ = exported(ARCHITECTURES[kind](tied), scheme, tmp_path)
    assert type(theirs) is type(ours.model)
    logits(theirs)
    assert_same_weights(ours.model, theirs)
    assert_same_linear_by_linear(linear_by_linear(ours.model, IDS), theirs, IDS, integer_linears(ours.model))


@pytest.mark.parametrize("scheme", ["w4a8-g32+emb4", "w8a8-static+emb8", "w4-g32+emb4"])
@pytest.mark.parametrize("tied", [True, False])
def test_gemmas_factor_of_the_embedding_is_no_missing_weight(tied, scheme, tmp_path):
    """compressed-tensors makes a parameter of it beside quantised activations; no file holds it."""
    ours, theirs, folder, _ = exported(ARCHITECTURES["gemma3"](tied), scheme, tmp_path)
    again = models.load(str(folder), dtype="float32", device="cpu").model
    embedding = again.model.embed_tokens
    assert float(embedding.embed_scale) == again.config.hidden_size**0.5
    assert torch.equal(logits(again), logits(theirs))
    expected = logits(ours.model)
    assert (logits(again) - expected).std() <= 0.1 * expected.std()
    assert "embed_scale" in dict(embedding.named_buffers()) and "embed_scale" not in embedding.state_dict()


@settings(max_examples=8, deadline=None)
@given(
    bits=st.integers(2, 8),
    group=st.sampled_from(["", "-g16", "-g32", "-g128"]),
    symmetric=st.sampled_from(["", "-sym"]),
)
def test_any_width_and_group_goes_over_exactly(bits, group, symmetric, _tiny, tmp_path_factory):
    folder = tmp_path_factory.mktemp("widths")
    ours, theirs, plain, _ = exported(_tiny, f"w{bits}{group}{symmetric}", folder)
    logits(theirs)
    assert_same_weights(ours.model, theirs)
    assert stored_bits(plain, "model.layers.0.mlp.up_proj") == (3 if symmetric and bits == 2 else bits)


@pytest.mark.parametrize("activation", ["", "a8"])
def test_layers_of_several_widths_are_told_apart_by_name(activation, tiny, tmp_path):
    bits = (("model.layers.0.mlp.up_proj", 8), ("model.layers.1.self_attn.k_proj", 3), ("model.embed_tokens", 6))
    scheme = replace(parse_scheme(f"w4{activation}-g32+emb4"), layer_bits=bits)
    ours, theirs, _, _ = exported(tiny, scheme, tmp_path)
    expected, found = logits(ours.model), logits(theirs)
    assert_same_weights(ours.model, theirs)
    widths = {name: theirs.get_submodule(name).quantization_scheme.weights.num_bits for name, _ in bits}
    assert widths == dict(bits)
    assert theirs.model.layers[1].mlp.up_proj.quantization_scheme.weights.num_bits == 4
    assert (found - expected).std() <= (rounding_noise(ours.model, IDS) if activation else 0)


WITHOUT_EDGEQUANT = """
import sys

class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0].startswith("edgequant"):
            raise ImportError(f"{name} is blocked")

sys.meta_path.insert(0, Blocked())
try:
    import edgequant
except ImportError:
    pass
else:
    sys.exit("edgequant could be imported")

import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

for folder in sys.argv[1:]:
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    expected = load_file(f"{folder}/../expected.safetensors")
    with torch.no_grad():
        found = model(input_ids=expected["ids"]).logits
    assert (found - expected["logits"]).std() <= expected["most"], folder
    prompt = tokenizer("The river rose", return_tensors="pt")
    generated = model.generate(**prompt, max_new_tokens=4, min_new_tokens=4, do_sample=False)
    assert generated.shape[1] == prompt["input_ids"].shape[1] + 4
    assert not [name for name in sys.modules if name.startswith("edgequant")]
    print("read", folder)
"""


@pytest.mark.long
def test_a_process_that_cannot_import_edgequant_loads_and_generates(tiny, tmp_path, environment):
    folders = []
    for scheme in ("w4-g32+emb4", "w8a8-static", "q4_0"):
        ours, _, folder, _ = exported(tiny, scheme, tmp_path / scheme)
        expected = logits(ours.model)
        most = max(rounding_noise(ours.model, IDS), 1e-5 * float(expected.std()))  # or another process's order of sums
        save_file({"ids": IDS, "logits": expected, "most": torch.tensor(most)}, folder.parent / "expected.safetensors")
        folders.append(str(folder))
    plain = {name: value for name, value in environment.items() if name != "PYTHONPATH"}
    command = [sys.executable, "-c", WITHOUT_EDGEQUANT, *folders]
    done = subprocess.run(command, cwd=tmp_path, env=plain, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("read") == 3


def test_the_folder_holds_the_names_that_vllm_reads(tiny, tmp_path):
    """vLLM takes `format`, `targets`, `ignore` and packed zero points from here; see docs/export.md."""
    _, _, folder, _ = exported(tiny, "w4-g32", tmp_path)
    config = json.loads((folder / "config.json").read_text())
    quantization = config["quantization_config"]
    (group,) = quantization["config_groups"].values()
    assert (quantization["quant_method"], quantization["format"]) == ("compressed-tensors", "pack-quantized")
    assert (group["targets"], quantization["ignore"]) == (["Linear"], ["lm_head"])
    assert group["weights"] == {
        "num_bits": 4,
        "type": "int",
        "symmetric": False,
        "strategy": "group",
        "group_size": 32,
        "dynamic": False,
    }
    state = load_file(folder / WEIGHTS)
    shapes = {name.rpartition(".")[2]: tuple(t.shape) for name, t in state.items() if ".0.mlp.up_proj." in name}
    assert shapes == {
        "weight_packed": (512, 16),
        "weight_scale": (512, 4),
        "weight_shape": (2,),
        "weight_zero_point": (64, 4),
    }
    assert "lm_head.weight" not in state and config["tie_word_embeddings"]
    assert config["dtype"] == "float32" and "_name_or_path" not in config


def test_activations_are_stored_as_int_quantized(tiny, tmp_path):
    _, _, folder, notes = exported(tiny, "w8a8-static", tmp_path)
    quantization = json.loads((folder / "config.json").read_text())["quantization_config"]
    (group,) = quantization["config_groups"].values()
    inputs = group["input_activations"]
    assert quantization["format"] == "int-quantized"
    assert (inputs["strategy"], inputs["dynamic"], inputs["symmetric"]) == ("tensor", False, False)
    assert load_file(folder / WEIGHTS)["model.layers.0.mlp.up_proj.weight"].dtype == torch.int8
    assert any("vLLM refuses" in note for note in notes)


def test_what_cannot_be_packed_says_that_it_takes_a_byte(tiny, tmp_path):
    _, _, folder, notes = exported(tiny, "w4a8-g32", tmp_path)
    assert stored_bits(folder, "model.layers.0.mlp.up_proj") == 8
    assert any(note.startswith("14 of 14 matrices take a byte for each integer") for note in notes)


def test_what_stays_in_floating_point_keeps_its_type_on_disk(tiny, tmp_path):
    ours, theirs, folder, _ = exported(tiny, "w4-g32", tmp_path, dtype="bfloat16")
    state = load_file(folder / WEIGHTS)
    assert state["model.embed_tokens.weight"].dtype == torch.bfloat16 and theirs.dtype == torch.float32
    assert torch.equal(logits(theirs), logits(ours.model))


def test_the_size_and_hash_are_the_files(tiny, tmp_path):
    ours = checkpoint_of(tiny, "w4-g32+emb4", tmp_path / "checkpoint")
    written = write_compressed_tensors(ours, tmp_path / "plain")
    assert written.size_bytes == (tmp_path / "plain" / WEIGHTS).stat().st_size
    assert written.parameters == tiny.model.num_parameters()
    again = write_compressed_tensors(ours, tmp_path / "plain")
    assert again.sha256 == written.sha256 and not list(tmp_path.glob(".plain*"))


def test_a_model_in_floating_point_is_sent_to_ptq(tiny, tmp_path):
    with pytest.raises(
        UserError, match=r"got 'tiny' without integers; run .edgequant ptq --model tiny --scheme w4-g32"
    ):
        write_compressed_tensors(tiny, tmp_path / "plain")
    assert not (tmp_path / "plain").exists()


@pytest.mark.parametrize(
    ("scheme", "lacking"),
    [
        (parse_scheme("q4_1"), "scheme q4_1 .* a real minimum .*--format q4_1"),
        (parse_scheme("bnb-nf4"), "scheme bnb-nf4 .*bitsandbytes' data types"),
        (Scheme(name="own", weight=WeightSpec(bits=8, granularity="tensor")), "zero points of whole tensors"),
    ],
)
def test_what_compressed_tensors_cannot_hold_is_refused(scheme, lacking):
    with pytest.raises(UserError, match=lacking):
        check_expressible(scheme)


def test_what_it_can_hold_is_not():
    for scheme in (*WEIGHT_ONLY, *EMBEDDED, *ACTIVATIONS):
        check_expressible(parse_scheme(scheme))
