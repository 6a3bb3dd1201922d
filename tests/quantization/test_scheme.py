"""Schemes: their names, what they mean, and what is refused."""

import subprocess
import sys

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
    "w4a8-g32": (4, 32, "integer", "dynamic"),
    "q8_0": (8, 32, "none", None),
    "q4_0": (4, 32, "none", None),
    "q4_1": (4, 32, "real", None),
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
    assert set(SCHEMES) == {*NAMED_SCHEMES, "bnb-int8", "bnb-nf4", "bnb-fp4"}


@pytest.mark.parametrize("name", [*SCHEMES, "w4a8-g32+emb4", "q4_0+emb8", "w2-g16+emb3"])
def test_a_scheme_survives_yaml(name):
    scheme = parse_scheme(name)
    assert Scheme.from_dict(yaml.safe_load(yaml.safe_dump(scheme.to_dict()))) == scheme


@pytest.mark.parametrize(
    "name", ["w9", "w1-g32", "w4-g0", "w4-g", "w4a4", "w4+emb9", "w4a8-dynamic", "bnb-int8+emb8", "int4", "", "W4-g32"]
)
def test_a_name_outside_the_grammar_is_refused_with_the_known_ones(name):
    with pytest.raises(UserError) as refusal:
        parse_scheme(name)
    assert repr(name) in str(refusal.value) and "w4a8-g32" in str(refusal.value)


def test_a_misspelt_name_is_answered_with_the_nearest():
    with pytest.raises(UserError, match=r"Did you mean w8a8-static\?"):
        parse_scheme("w8a8-statik")


def test_a_group_that_does_not_divide_names_the_layer_its_features_and_sizes_that_do():
    features = {"model.layers.0.self_attn.q_proj": 896, "model.layers.0.mlp.down_proj": 4864}
    with pytest.raises(UserError, match=r"group_size 96 .*896 input features of model\.layers\.0.*32, 64, 128"):
        check_group_sizes(parse_scheme("w4-g96"), features)
    check_group_sizes(parse_scheme("w4-g64"), features)


@pytest.mark.parametrize(
    ("name", "features", "bits"),
    [
        ("w4-g32", 896, 4 + (16 + 4) / 32),  # float16 scale and a 4-bit zero point per group
        ("w3-g64", 896, 3 + (16 + 3) / 64),
        ("w8", 512, 8 + (32 + 8) / 512),  # float32 scale and int8 zero point per row
        ("q8_0", 896, 8.5),
        ("q4_1", 896, 5.0),
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
