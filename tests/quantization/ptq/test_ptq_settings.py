"""PTQ methods by name."""

from __future__ import annotations

import pytest

from edgequant.errors import UserError
from edgequant.quantization.ptq.methods import (
    METHODS,
    PtqMethod,
    affordable_tokens,
    best_method,
    describe_methods,
    parse_method,
)
from edgequant.quantization.ptq.settings import PtqSettings
from edgequant.quantization.scheme import parse_scheme


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
        ("block_ap", (None, "gptq", True)),
        ("e2e_qp", (None, "gptq", False)),
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


@pytest.mark.parametrize(
    "values",
    [{"dampening_frac": 2.0}, {"shrinkage": 1.5}, {"signround_steps": 0}, {"signround_learning_rate": 0.0}],
)
def test_impossible_settings_are_refused_by_name(values):
    with pytest.raises(UserError, match=next(iter(values))):
        PtqSettings(**values)


@pytest.mark.parametrize("scheme", ["w4-g64", "w3-g64", "w8", "w8a8-static", "w4a8-g32+emb4", "q4_0", "bnb-nf4"])
@pytest.mark.parametrize("device", ["cpu", "cuda", "mps"])
@pytest.mark.parametrize("parameters", [10**6, 10**9, 10**10])
@pytest.mark.parametrize("has_text", [True, False])
def test_the_automatic_method_is_one_that_can_work_and_never_plain_rounding(scheme, device, parameters, has_text):
    found = parse_method(best_method(parse_scheme(scheme), parameters, device, has_text=has_text))
    assert found.round.name != "rtn"
    assert has_text or not found.needs_calibration
    assert (found.scale is not None) == (scheme == "w8a8-static" and has_text)
    assert device != "cpu" or (found.learn is None and found.tune is None)


def test_on_a_cpu_the_automatic_method_reads_less_text_the_larger_the_model():
    assert affordable_tokens(10**9, "cuda") is None
    assert 512 <= affordable_tokens(10**9, "cpu") < affordable_tokens(135 * 10**6, "cpu") <= 8192


@pytest.mark.parametrize("name", ["gptq+e2e_qp+signround", "signround+block_ap", "e2e_qp+gptq"])
def test_tuning_comes_last_and_learning_once(name):
    with pytest.raises(UserError, match="does not combine"):
        parse_method(name)
