"""Schemes: their names, what they mean, and what is refused."""

import subprocess
import sys
from dataclasses import replace

import pytest
import yaml

from edgequant.errors import UserError
from edgequant.quantization.scheme import SCHEMES, Scheme, check_group_sizes, parse_scheme

# name: (weight bits, group, zero point, activations), as docs/architecture.md lists them
NAMED_SCHEMES = {
    "w8a8-static": (8, None, "integer", "static"),
    "w8a8": (8, None, "integer", "dynamic"),
    "w8": (8, None, "integer", None),
    "w4-g32": (4, 32, "integer", None),
    "w4-g64": (4, 64, "integer", None),
    "w4-g128": (4, 128, "integer", None),
    "w3-g64": (3, 64, "integer", None),
    "w2-g64": (2, 64, "integer", None),
    "w4a8-g32": (4, 32, "integer", "dynamic"),
    "w8a8-sym": (8, None, "none", "dynamic"),
    "w4-g32-sym": (4, 32, "none", None),
    "w4a8-g32-sym": (4, 32, "none", "dynamic"),
    "w2-g64-sym": (2, 64, "none", None),
    "w1.58-g64": (2, 64, "none", None),
    "q8_0": (8, 32, "none", None),
    "q4_0": (4, 32, "none", None),
    "q4_1": (4, 32, "real", None),
    "q4_k": (4, 32, "real", None),
    "q6_k": (6, 16, "none", None),
}


@pytest.mark.parametrize("suffix", ["", "+emb4", "+emb8"])
@pytest.mark.parametrize("name", NAMED_SCHEMES)
def test_every_named_scheme_means_what_the_architecture_says(name, suffix):
    bits, group, zero_point, activations = NAMED_SCHEMES[name]
    scheme = parse_scheme(name + suffix)
    assert scheme.name == name + suffix
    assert (scheme.weight.bits, scheme.weight.group_size, scheme.weight.zero_point) == (bits, group, zero_point)
    assert (scheme.activation.mode if scheme.activation else None) == activations
    assert (scheme.embedding.bits if scheme.embedding else None) == (int(suffix[-1]) if suffix else None)


def test_the_named_schemes_are_all_known():
    own = {"q8_0+embq8_0", "q4_0+embq4_0", "q4_1+embq4_1", "q4_k+embq4_k", "q4_k+embq6_k", "q6_k+embq6_k"}
    assert set(SCHEMES) == {*NAMED_SCHEMES, *own, "bnb-int8", "bnb-nf4", "bnb-fp4"}


GGML = ["q8_0", "q4_0", "q4_1", "q4_k", "q6_k"]


@pytest.mark.parametrize("embedding", GGML)
@pytest.mark.parametrize("linears", GGML)
def test_embedding_and_head_can_be_in_a_layout_of_llama_cpp_too(linears, embedding):
    scheme = parse_scheme(f"{linears}+emb{embedding}")
    assert (scheme.weight, scheme.embedding) == (parse_scheme(linears).weight, parse_scheme(embedding).weight)
    assert scheme.group_sizes == {32}
    assert scheme.can_mix_bits == (linears.endswith("k") and embedding.endswith("k"))


def test_layers_of_a_k_quants_scheme_are_k_quants_or_q8_0_where_their_width_allows():
    scheme = parse_scheme("q4_k+embq6_k@5bpp")
    assert scheme.candidate_bits == (4, 6, 8) and scheme.awaits_layer_bits
    assert parse_scheme("q4_k+emb4@5bpp").candidate_bits == (4, 6, 8)
    assert parse_scheme("w4-g32@5bpp").candidate_bits == (3, 4, 5, 6, 8)
    chosen = replace(scheme, layer_bits=(("a", 4), ("b", 6), ("c", 8), ("embedding", 4)))
    assert Scheme.from_dict(yaml.safe_load(yaml.safe_dump(chosen.to_dict()))) == chosen
    found = {width: [chosen.spec_of(layer, width).layout for layer in "abcd"] for width in (2048, 576)}
    assert found == {2048: ["q4_k", "q6_k", "q8_0", "q4_k"], 576: ["q4_1", "q8_0", "q8_0", "q4_1"]}
    assert chosen.spec_of("embedding", 2048, embedding=True).layout == "q4_k"
    assert chosen.spec_of("head", 2048, embedding=True).layout == "q6_k"
    with pytest.raises(UserError, match=r"scheme q4_k\+embq6_k@5bpp: bits of a must be one of \(4, 6, 8\), got 5"):
        replace(scheme, layer_bits=(("a", 5),))


@pytest.mark.parametrize("name", ["w4-g32-sym", "w4a8-g32-sym", "w2-g64-sym", "w8a8-sym", "w1.58-g64"])
def test_the_embedding_is_symmetric_where_the_name_says_sym(name):
    assert parse_scheme(f"{name}+emb4").embedding.zero_point == ("none" if name.endswith("-sym") else "integer")


@pytest.mark.parametrize(
    ("name", "integers"),
    [
        ("w8-sym", (-127, 127)),  # TensorFlow Lite's specification, XNNPACK
        ("w4-g32-sym", (-8, 7)),  # torchao and ExecuTorch 8da4w, GPTQ, compressed-tensors
        ("w3-g64-sym", (-4, 3)),
        ("w2-g64-sym", (-2, 1)),
        ("w1.58-g64", (-1, 1)),
        ("q8_0", (-127, 127)),
        ("q4_0", (-8, 7)),
        ("w4-g32", (-8, 7)),
    ],
)
def test_integers_are_those_that_runtimes_hold(name, integers):
    assert parse_scheme(name).weight.integer_range == integers


def test_only_two_symmetric_bits_have_levels_at_halves():
    halves = [name for name in (*SCHEMES, "w2-sym") if (w := parse_scheme(name).weight) and w.has_half_levels]
    assert halves == ["w2-g64-sym", "w2-sym"]


def test_a_symmetric_scheme_takes_a_size_budget_and_a_ternary_one_does_not():
    assert parse_scheme("w4-g32-sym+emb4@4.5bpp").awaits_layer_bits
    with pytest.raises(UserError, match=r"w1\.58-g64.* fixed bits"):
        parse_scheme("w1.58-g64@4bpp")


def test_a_scheme_of_an_older_checkpoint_has_all_levels():
    values = parse_scheme("w2-g64").to_dict()
    del values["weight"]["levels"]
    assert Scheme.from_dict(values) == parse_scheme("w2-g64")


@pytest.mark.parametrize("name", [*SCHEMES, "w4a8-g32+emb4", "q4_0+emb8", "w2-g16+emb3", "w3a8-static-g16-sym+emb8"])
def test_a_scheme_survives_yaml(name):
    scheme = parse_scheme(name)
    assert Scheme.from_dict(yaml.safe_load(yaml.safe_dump(scheme.to_dict()))) == scheme


@pytest.mark.parametrize(
    "name",
    [
        "w9",
        "w1-g32",
        "w4-g0",
        "w4-g",
        "w4a4",
        "w4+emb9",
        "w4a8-dynamic",
        "bnb-int8+emb8",
        "int4",
        "",
        "W4-g32",
        "w4-sym-g32",
        "w4-symm",
        "q4_0-sym",
        "q4_0+embq5_0",
        "q4_K",
        "Q4_K_M",
        "q5_k",
        "q4_k-g32",
        "w4-g32+embq4_k",
        "q4_0+embq4",
        "w4-g32+embq4_0",
        "q4_0+embq4_0+emb8",
        "w1.58-sym",
        "w1.5",
        "w1,58",
    ],
)
def test_a_name_outside_the_grammar_is_refused_with_the_known_ones(name):
    with pytest.raises(UserError) as refusal:
        parse_scheme(name)
    assert repr(name) in str(refusal.value) and "w4a8-g32" in str(refusal.value)


def test_a_misspelt_name_is_answered_with_the_nearest():
    with pytest.raises(UserError, match=r"Did you mean w8a8-static\?"):
        parse_scheme("w8a8-statik")
    for name in ("Q4_K", "q4_k_m", "Q4_K_S"):  # llama.cpp's names of files
        with pytest.raises(UserError, match=r"Did you mean q4_k\?"):
            parse_scheme(name)


def test_a_group_that_does_not_divide_names_the_layer_its_features_and_sizes_that_do():
    features = {"model.layers.0.self_attn.q_proj": 896, "model.layers.0.mlp.down_proj": 4864}
    with pytest.raises(
        UserError, match=r"group_size 96 .*896 .* of model\.layers\.0.*; use w4-g32, w4-g64, w4-g128 or w4$"
    ):
        check_group_sizes(parse_scheme("w4-g96"), features)
    check_group_sizes(parse_scheme("w4-g64"), features)


@pytest.mark.parametrize(
    ("name", "widths", "offered"),
    [
        ("w4a8-g32+emb4", (80, 80, 200), "w4a8-g8+emb4, w4a8-g40+emb4 or w4a8+emb8"),
        ("w4a8-g64+emb4", (96, 96, 192), "w4a8-g32+emb4, w4a8-g48+emb4, w4a8-g96+emb4 or w4a8+emb4"),
        ("w4-g32-sym+emb8", (72, 72, 144), "w4-g8-sym+emb8, w4-g24-sym+emb8, w4-g72-sym+emb8 or w4-sym+emb8"),
        ("w4-g32+emb3@4.5bpp", (72, 72, 280), "w4-g8+emb3@4.5bpp or w4+emb8@4.5bpp"),
        ("w1.58-g64", (20, 20, 60), "w1.58-g10, w1.58-g20 or w1.58"),
        ("w3-g64+emb3", (22, 14), "w3+emb8"),
        ("w2a8-static-g32", (7,), "w2a8-static"),
        ("w4+emb4", (80,), "w4+emb8"),
        ("w4+emb4", (80, 200), "w4-g8+emb4, w4-g40+emb4 or w4+emb8"),
        ("q4_0", (80, 200), "w4-g8, w4-g40 or w8"),
        ("q4_1+embq8_0", (80, 200), "w4-g8+emb8, w4-g40+emb8 or w8+emb8"),
        ("q8_0+emb4", (80, 200), "w8-g8+emb4, w8-g40+emb4 or w8+emb8"),
        ("q4_k+embq6_k", (112, 224), "w4-g16+emb6, w4-g56+emb6, w4-g112+emb6 or w8+emb8"),
    ],
)
def test_what_is_offered_instead_of_a_group_that_does_not_divide_fits_itself(name, widths, offered):
    features = {f"layers.{at}": width for at, width in enumerate(widths)}
    with pytest.raises(UserError) as refusal:
        check_group_sizes(parse_scheme(name), features)
    found = str(refusal.value).partition("; use ")[2]
    assert found == offered
    for one in found.replace(" or ", ", ").split(", "):
        check_group_sizes(parse_scheme(one), features)


def test_a_scheme_by_no_name_of_ours_is_answered_with_one_that_fits_any_width():
    with pytest.raises(UserError, match=r"group_size 32 of scheme mine .*; use one without groups, such as w8$"):
        check_group_sizes(replace(parse_scheme("w4-g32"), name="mine"), {"layer": 80})


@pytest.mark.parametrize(
    ("name", "features", "bits"),
    [
        ("w4-g32", 896, 4 + (16 + 4) / 32),  # float16 scale and a 4-bit zero point per group
        ("w3-g64", 896, 3 + (16 + 3) / 64),
        ("w8", 512, 8 + (32 + 8) / 512),  # float32 scale and int8 zero point per row
        ("w4-g32-sym", 896, 4 + 16 / 32),
        ("w2-g64-sym", 896, 2 + 16 / 64),
        ("w1.58-g64", 896, 8 / 5 + 16 / 64),  # five codes in a byte
        ("q8_0", 896, 8.5),
        ("q4_1", 896, 5.0),
        ("q4_k", 2048, 144 * 8 / 256),  # ggml-common.h, block_q4_K
        ("q6_k", 2048, 210 * 8 / 256),
    ],
)
def test_bits_per_weight_count_scales_and_zero_points(name, features, bits):
    assert parse_scheme(name).weight.bits_per_weight(features) == pytest.approx(bits)


def test_schemes_are_parsed_without_torch():
    code = (
        "import sys, edgequant.quantization.scheme as s; s.parse_scheme('w4a8-g32+emb4'); print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env={"PYTHONPATH": _paths()})
    assert done.stdout.strip() == "False", done.stderr


def _paths() -> str:
    return ":".join(path for path in sys.path if path)
