"""PTQ methods by name."""

from __future__ import annotations

import pytest

from edgequant.errors import UserError
from edgequant.quantization.ptq.methods import METHODS, PtqMethod, describe_methods, parse_method
from edgequant.quantization.ptq.settings import PtqSettings


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("rtn", (None, "rtn", False)),
        ("gptq", (None, "gptq", False)),
        ("awq", ("awq", "mse_clip", False)),
        ("smoothquant", ("smoothquant", "rtn", False)),
        ("signround", (None, "mse_clip", True)),
        ("awq+gptq+signround", ("awq", "gptq", True)),
        ("smoothquant+signround", ("smoothquant", "mse_clip", True)),
    ],
)
def test_a_method_is_a_scaling_a_rounding_and_learning(name, parts):
    found = parse_method(name)
    assert (found.scale and found.scale.name, found.round.name, found.learn is not None) == parts


@pytest.mark.parametrize("name", ["gptq+awq", "awq+smoothquant", "gptq+mse_clip", "signround+gptq", "gptq+gptq"])
def test_what_does_not_combine_is_refused(name):
    with pytest.raises(UserError, match="does not combine"):
        parse_method(name)


@pytest.mark.parametrize("name", ["", "gtpq", "awq+", "AWQ"])
def test_an_unknown_method_is_refused_with_the_known_ones(name):
    with pytest.raises(UserError, match="Use rtn, mse_clip, gptq"):
        parse_method(name)


@pytest.mark.parametrize(("name", "meant"), [("gtpq", "gptq"), ("awq+sign_round", "signround"), ("AWQ", "awq")])
def test_a_misspelt_method_is_answered_with_the_one_that_was_meant(name, meant):
    with pytest.raises(UserError, match=f"Did you mean {meant}\\?"):
        parse_method(name)


@pytest.mark.parametrize(("old", "new"), [("block", "signround"), ("gptq+block", "signround"), ("mse", "mse_clip")])
def test_an_old_name_is_refused_with_the_new_one(old, new):
    with pytest.raises(UserError, match=f"is now called {new}$"):
        parse_method(old)


def test_help_describes_every_method_in_a_line_of_its_own_words():
    text = describe_methods()
    assert [method.name for method in METHODS if f"{method.name} ({method.description})" not in text] == []
    assert len({method.description for method in METHODS}) == len(METHODS)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"name": "Mine+yours"}, "'Mine\\+yours' must be small letters"),
        ({"stage": "fold"}, "must be one of scale, round, learn, tune, got 'fold'"),
        ({"stage": "learn"}, "needs_calibration=True"),
    ],
)
def test_a_method_that_cannot_work_is_refused_where_it_is_made(values, said):
    usual = {"name": "mine", "stage": "round", "description": "as others do", "make": lambda _settings: None}
    with pytest.raises(UserError, match=said):
        PtqMethod(**(usual | values))


@pytest.mark.parametrize("values", [{"dampening_frac": 2.0}, {"signround_steps": 0}, {"signround_learning_rate": 0.0}])
def test_impossible_settings_are_refused_by_name(values):
    with pytest.raises(UserError, match=next(iter(values))):
        PtqSettings(**values)
