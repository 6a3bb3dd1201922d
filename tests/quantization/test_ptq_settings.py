"""PTQ methods by name."""

from __future__ import annotations

import pytest

from edgequant.errors import UserError
from edgequant.quantization.ptq_settings import PtqSettings, parse_method


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("rtn", (None, "rtn", False)),
        ("gptq", (None, "gptq", False)),
        ("awq", ("awq", "mse", False)),
        ("smoothquant", ("smoothquant", "rtn", False)),
        ("block", (None, "mse", True)),
        ("awq+gptq+block", ("awq", "gptq", True)),
        ("smoothquant+block", ("smoothquant", "mse", True)),
    ],
)
def test_a_method_is_a_fold_a_rounding_and_learning(name, parts):
    method = parse_method(name)
    assert (method.fold, method.rounding, method.learn) == parts


@pytest.mark.parametrize("name", ["gptq+awq", "awq+smoothquant", "gptq+mse", "block+gptq", "gptq+gptq"])
def test_what_does_not_combine_is_refused(name):
    with pytest.raises(UserError, match="does not combine"):
        parse_method(name)


@pytest.mark.parametrize("name", ["", "gtpq", "awq+", "AWQ"])
def test_an_unknown_method_is_refused_with_the_known_ones(name):
    with pytest.raises(UserError, match="use rtn, mse, gptq"):
        parse_method(name)


@pytest.mark.parametrize("values", [{"damping": 2.0}, {"block_steps": 0}, {"block_learning_rate": 0.0}])
def test_impossible_settings_are_refused_by_name(values):
    with pytest.raises(UserError, match=next(iter(values))):
        PtqSettings(**values)
