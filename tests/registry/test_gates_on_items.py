"""Gates that compare item by item: by clusters, corrected for their number, silent where answers are at chance."""

from __future__ import annotations

import math

import numpy as np
import pytest

from edgequant.errors import UserError
from edgequant.evaluation.evidence_file import Conditions, Scores
from edgequant.evaluation.pairing import Pairing
from edgequant.evaluation.settings import EvaluationSettings
from edgequant.evaluation.statistics.intervals import Bootstrap
from edgequant.evaluation.tasks.boolq import boolq_metrics
from edgequant_registry.gates import Reference, judge, judge_gate
from edgequant_registry.policy import Gate, read_policy

CONDITIONS = Conditions.of(EvaluationSettings(tasks=("boolq",)), {}, data_dir=None, device="cpu", dtype="float32")
ACCURACY = Gate(metric="boolq/accuracy", against="baseline", max_loss=2, test="worse")
MARGIN = Gate(
    metric="boolq/balanced_log_odds_margin",
    against="baseline",
    max_loss=0.08,
    test="worse",
    instead_of="boolq/accuracy",
)


def scores(right, margins, gold=None, per_passage=1) -> Scores:
    gold = np.arange(len(right)) % 2 == 0 if gold is None else gold
    rows = [
        {"id": f"q{at}", "cluster": f"p{at // per_passage}", "correct": float(r), "margin": float(m), "gold": bool(g)}
        for at, (r, m, g) in enumerate(zip(right, margins, gold, strict=True))
    ]
    return Scores(
        boolq_metrics("boolq/", [row | {"over_long": False} for row in rows], Bootstrap(100)), {"boolq": rows}
    )


def baseline(before: Scores, after: Scores) -> dict[str, Reference]:
    pairs = Pairing(before, after, CONDITIONS, CONDITIONS)
    return {"baseline": Reference(name="the baseline", metrics=before.metrics, pairs=pairs)}


@pytest.fixture(scope="module")
def guessing() -> tuple[Scores, Scores]:
    """Both answer at random; one has lost half of what its margins told."""
    random = np.random.default_rng(0)
    margins, noise = random.normal(0.6, 1, 400), random.normal(0, 0.1, 400)
    right = random.random((2, 400)) < 0.5
    return scores(right[0], margins), scores(right[1], margins - 0.3 + noise)


def test_where_answers_are_at_chance_their_margin_is_gated_instead(guessing):
    before, after = guessing
    accuracy, margin = judge([ACCURACY, MARGIN], after.metrics, baseline(before, after))
    assert accuracy.outcome == "says nothing" and "at chance" in accuracy.reason
    assert margin.outcome == "failed" and "0.3" in margin.reason and "400 questions of 400 passages" in margin.reason


def test_where_answers_tell_their_margin_is_not_asked():
    random = np.random.default_rng(1)
    right = random.random(400) < 0.9
    before, after = scores(right, np.where(right, 1.0, -1.0)), scores(right, np.where(right, 0.5, -0.5))
    accuracy, margin = judge([ACCURACY, MARGIN], after.metrics, baseline(before, after))
    assert accuracy.outcome == "passed"
    assert margin.outcome == "says nothing" and "stands in for boolq/accuracy" in margin.reason and not margin.blocks


def test_a_breach_that_is_shown_by_one_gate_of_many_alone_is_told_and_refuses_nobody():
    """34 of 400 answers lost and 10 gained: 6 points, of which 2 are accepted, in the first or the 20th such gate."""
    right, lost = np.ones(400, dtype=bool), np.zeros(400, dtype=bool)
    right[:10], lost[10:44] = False, True
    right[200:260] = False
    before, after = scores(right, np.ones(400)), scores((right & ~lost) | (np.arange(400) < 10), np.ones(400))
    references = baseline(before, after)
    alone = judge([ACCURACY], after.metrics, references)[0]
    assert alone.outcome == "failed" and 0.01 < alone.p < 0.05
    many = judge([ACCURACY] * 20, after.metrics, references)
    assert {each.outcome for each in many} == {"passed"}
    assert "undecided" in many[0].reason and "Holm's correction for 20 such gates" in many[0].reason
    not_worse = judge(
        [Gate(metric="boolq/accuracy", against="baseline", max_loss=2, test="not_worse")], after.metrics, references
    )
    assert not_worse[0].outcome == "failed"  # what is not shown to be good passes no such gate


def test_answers_about_few_passages_show_no_breach():
    right = np.ones(400, dtype=bool)
    fallen = right & ~((np.arange(400) // 100) == 0)
    right[-4:] = fallen[-4:] = False
    by_question = scores(right, np.ones(400)), scores(fallen, np.ones(400))
    by_passage = scores(right, np.ones(400), per_passage=100), scores(fallen, np.ones(400), per_passage=100)
    assert judge_gate(ACCURACY, by_question[1].metrics, baseline(*by_question)["baseline"]).outcome == "failed"
    found = judge_gate(ACCURACY, by_passage[1].metrics, baseline(*by_passage)["baseline"])
    assert found.outcome != "failed" and "400 questions of 4 passages" in found.reason


def test_a_perplexitys_p_value_is_that_of_its_logarithm():
    random = np.random.default_rng(2)
    rows = [{"id": f"w{at}", "cluster": f"a{at}", "nats": 300 + random.normal(), "tokens": 100} for at in range(12)]
    after = [row | {"nats": row["nats"] + 6 + random.normal()} for row in rows]
    found = Pairing(
        Scores({}, {"wikitext2": rows}), Scores({}, {"wikitext2": after}), CONDITIONS, CONDITIONS
    ).difference("wikitext2/perplexity")
    assert found.p_value(found.difference) == pytest.approx(1.0)
    assert found.p_value(found.low) == pytest.approx(0.05) == found.p_value(found.high)
    assert found.p_value(-2 * found.reference) == 0.0 and math.isfinite(found.reference)


@pytest.mark.parametrize(
    ("gate", "said"),
    [
        ("{metric: squad/f1, against: baseline, max_loss: 1, instead_of: boolq/acuracy}", "instead_of must be one of"),
        ("{metric: squad/f1, min: 1, instead_of: boolq/accuracy}", "instead_of goes with"),
        ("{metric: squad/f1, against: baseline, max_loss: 1, instead_of: 3}", "instead_of must be one of"),
        (
            "{metric: squad/f1, against: baseline, max_loss: 1, instead_of: domain/perplexity}",
            "got 'domain/perplexity'",
        ),
    ],
)
def test_what_a_gate_may_stand_in_for(tmp_path, gate, said):
    (tmp_path / "policy.yaml").write_text(f"gates:\n- {gate}\n")
    with pytest.raises(UserError, match=said):
        read_policy(str(tmp_path / "policy.yaml"))


def test_the_default_policy_gates_the_margin_where_accuracy_is_at_chance():
    found = [gate for gate in read_policy("default").gates if gate.instead_of]
    assert [(gate.metric, gate.instead_of, gate.test) for gate in found] == [
        ("boolq/balanced_log_odds_margin", "boolq/accuracy", "worse")
    ]
