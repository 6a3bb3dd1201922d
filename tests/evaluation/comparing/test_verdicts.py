"""One rule behind better, worse and undecided, corrected for how many metrics were looked at."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgequant.evaluation.harm import Loss, family, losses
from edgequant.evaluation.statistics.verdicts import difference_of_intervals, holm, side, word

SHARES = st.lists(st.floats(0, 1), min_size=1, max_size=8)


def test_holms_example_by_hand():
    """Four p-values: 0.01 x 4, 0.013 x 3, 0.03 x 2, 0.04 x 1, never below one before."""
    assert holm([0.03, 0.01, 0.04, 0.013]) == pytest.approx([0.06, 0.04, 0.06, 0.04])
    assert holm([]) == [] and holm([0.2]) == [0.2]


@given(SHARES)
def test_holm_rejects_what_its_closed_test_rejects(p_values):
    """By definition: a hypothesis falls where Bonferroni rejects every set of hypotheses that it is in."""
    adjusted = holm(p_values)
    count = len(p_values)
    sets = [[at for at in range(count) if chosen >> at & 1] for chosen in range(1, 2**count)]
    for at in range(count):
        closed = max(min(1.0, len(chosen) * min(p_values[one] for one in chosen)) for chosen in sets if at in chosen)
        assert adjusted[at] == pytest.approx(closed)


@pytest.mark.parametrize(
    ("low", "high", "bound", "p", "found"),
    [
        (0.1, 2.0, 0.0, None, "above"),
        (-2.0, -0.1, 0.0, None, "below"),
        (-0.1, 2.0, 0.0, None, "undecided"),
        (0.0, 2.0, 0.0, None, "undecided"),
        (0.1, 2.0, 1.0, None, "undecided"),
        (0.1, 2.0, 0.0, 0.2, "undecided"),
        (0.1, 2.0, 0.0, 0.01, "above"),
        (-0.1, 2.0, 0.0, 0.01, "undecided"),
        (None, None, 0.0, None, "no interval"),
    ],
)
def test_which_side_a_difference_is_shown_to_lie_on(low, high, bound, p, found):
    assert side(low, high, bound, p=p) == found


@pytest.mark.parametrize(
    ("found", "higher_is_better", "said"),
    [
        ("above", True, "better"),
        ("above", False, "worse"),
        ("below", False, "better"),
        ("undecided", True, "undecided"),
    ],
)
def test_the_words_for_it(found, higher_is_better, said):
    assert word(found, 1.0, higher_is_better=higher_is_better) == said
    assert [word("no interval", each, higher_is_better=True) for each in (0.0, 1.0)] == ["the same", "no interval"]


def test_independent_intervals_make_one_of_the_difference():
    assert difference_of_intervals((20.0, 17.0, 24.0), (30.0, 28.0, 33.0)) == pytest.approx(
        (10 - math.hypot(2, 4), 10 + math.hypot(3, 3))
    )


def loss(metric, p, low=0.1, **changes):
    told = {"loss": 1.0, "low": low, "high": 2.0, "margin": 0.0, "unit": "points", "items": 9, "p": p}
    return Loss(metric=metric, **(told | changes))


def test_a_loss_that_is_shown_alone_is_undecided_among_many():
    found = family([loss(name, p) for name, p in (("a/x", 0.03), ("b/x", 0.02), ("c/x", 0.001))])
    assert [each.p_holm for each in found] == pytest.approx([0.04, 0.04, 0.003])
    assert {each.outcome for each in found} == {"worse"} and all(each.harmed for each in found)
    found = family([loss(f"{name}/x", 0.02) for name in "abcde"])
    assert {each.outcome for each in found} == {"undecided"} and found[0].p_holm == pytest.approx(0.1)
    assert not any(each.shown or each.harmed for each in found)


def answers(right, gold, margins=None):
    margins = np.where(right, 1.0, -1.0) if margins is None else margins
    return [
        {"id": f"q{at}", "correct": float(r), "gold": bool(g), "margin": float(m), "cluster": f"p{at}"}
        for at, (r, g, m) in enumerate(zip(right, gold, margins, strict=True))
    ]


def compared(a, b, margin=0.0):
    found = losses({"boolq": a}, {"boolq": b}, perplexity_margin=margin, task_margin=margin)
    return {each.metric.removeprefix("boolq/"): each for each in found}


def test_a_task_at_chance_gives_no_verdict_and_its_margin_does():
    """Both answer one thing whatever is asked: 40 and 60 % right, a difference of 20 points that says nothing."""
    gold = np.arange(400) % 5 < 3
    random = np.random.default_rng(0)
    told = random.normal(0.5, 1, 400)
    always_no, always_yes = answers(~gold, gold, told), answers(gold, gold, told - 0.6 + 0.1 * random.normal(size=400))
    found = compared(always_no, always_yes, margin=2.0)
    accuracy, margin = found["accuracy"], found["balanced_log_odds_margin"]
    assert accuracy.chance == accuracy.outcome == "at chance" and not accuracy.harmed and accuracy.p_holm is None
    assert margin.decides and margin.harmed and margin.unit == "nats" and margin.margin == pytest.approx(0.08)
    assert margin.loss == pytest.approx(0.6, abs=0.03) and "fell by 0.6" in margin.reason


def test_above_chance_the_answers_decide_and_their_margin_only_stands_beside_them():
    gold = np.arange(400) % 2 == 0
    random = np.random.default_rng(0)
    good, bad = random.random(400) < 0.9, random.random(400) < 0.6
    found = compared(answers(good, gold), answers(bad, gold), margin=2.0)
    assert found["accuracy"].harmed and found["accuracy"].chance == ""
    margin = found["balanced_log_odds_margin"]
    assert margin.shown and not margin.decides and not margin.harmed


def test_a_leaning_towards_one_answer_moves_no_balanced_margin():
    gold = np.arange(300) % 4 == 0
    told = np.random.default_rng(1).normal(0.4, 1, 300)
    leaning = np.where(gold, told + 2.0, told - 2.0)  # yes is likelier by 2 nats, whatever is asked
    found = compared(answers(told > 0, gold, told), answers(leaning > 0, gold, leaning))["balanced_log_odds_margin"]
    assert found.loss == pytest.approx(0.0, abs=1e-9) and found.outcome in ("undecided", "the same")


def test_a_reference_at_chance_may_be_beaten_by_a_model_that_is_not():
    gold = np.arange(400) % 2 == 0
    found = compared(answers(np.ones(400) > 0, np.ones(400) > 0), answers(np.ones(400) > 0, np.ones(400) > 0))
    assert found["accuracy"].outcome == "at chance"
    good = np.random.default_rng(0).random(400) < 0.9
    assert compared(answers(gold, gold), answers(good, gold))["accuracy"].outcome == "better"


def test_items_of_a_version_that_kept_no_margins_are_compared_by_their_answers():
    old = [{"id": f"q{at}", "correct": float(at % 3 > 0)} for at in range(30)]
    assert list(compared(old, old)) == ["accuracy"]


def test_questions_that_fit_neither_models_context_have_no_margin():
    gold = np.arange(60) % 2 == 0
    told = np.random.default_rng(4).normal(1, 1, 60)
    told[:5] = math.nan
    a, b = answers(told > 0, gold, told), answers(told > 0, gold, told - 0.5)
    found = compared(a, b)["balanced_log_odds_margin"]
    assert found.items == 55 and found.loss == pytest.approx(0.5) and found.low is None  # all alike: no spread
