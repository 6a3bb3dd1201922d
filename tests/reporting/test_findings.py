"""What a report says of differences: better, worse, undecided by paired items; fractions where they mean something."""

from __future__ import annotations

import json
from math import expm1

import pytest
from stored_items import store_adapted

from edgequant import tracking
from edgequant.evaluation.harm import Loss
from edgequant.reporting.findings.domains import breakdowns
from edgequant.reporting.findings.in_words import change, in_words, signed
from edgequant.reporting.findings.recovered import FRACTION
from edgequant.reporting.gathering import compare
from edgequant.reporting.pages.html_report import html_report
from edgequant.reporting.pages.markdown_report import markdown_report

LEVELS = {"baseline": 3.0, "ptq": 3.3, "control": 2.8, "control-ptq": 3.1, "qat": 2.9}


@pytest.fixture(autouse=True, scope="module")
def one_store(tmp_path_factory):
    """For all tests, each of which looks at its own runs."""
    folder = tmp_path_factory.mktemp("store")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{folder / 'store.db'}")
        yield


@pytest.fixture(scope="module")
def adapted(one_store):
    """QAT is better than PTQ, and the control better still."""
    return compare([store_adapted(LEVELS)])


def outcomes(compared) -> dict[tuple[str, str], str]:
    return {
        (compared.rows[pair.row]["variant"], pair.reference): pair.losses[0].outcome
        for pair in compared.pairs
        if pair.losses
    }


def reasons(compared) -> dict[tuple[str, str], str]:
    return {(compared.rows[pair.row]["variant"], pair.reference): pair.reason for pair in compared.pairs}


def words(compared) -> str:
    return " ".join(text for told in in_words(compared) for text in (told.lead, *told.sentences))


def test_every_row_is_compared_with_the_baseline_and_qat_with_ptq_and_the_control(adapted):
    assert outcomes(adapted) == {
        ("ptq", "baseline"): "worse",
        ("control", "baseline"): "better",
        ("control-ptq", "baseline"): "worse",
        ("qat", "baseline"): "better",
        ("qat", "ptq"): "better",
        ("qat", "control-ptq"): "better",
        ("qat", "control"): "worse",
    }
    (loss,) = next(pair for pair in adapted.pairs if pair.reference == "ptq").losses
    assert loss.loss == pytest.approx(100 * expm1(2.9 - 3.3), abs=1.0)


def test_a_paired_interval_that_includes_zero_is_called_undecided_on_every_page():
    compared = compare([store_adapted(LEVELS | {"qat": 3.305}, noise={"qat": 8.0})])
    assert outcomes(compared)["qat", "ptq"] == "undecided"
    for page in (words(compared), html_report(compared), markdown_report(compared)):
        assert "undecided" in page
    assert (
        "Against PTQ, it is undecided, as the data do not show a difference, in perplexity (domain) on 8 documents, −"
        in words(compared)
    )


@pytest.mark.parametrize(
    ("low", "high", "loss", "said"),
    [(0.1, 2.0, 1.0, "worse"), (-2.0, -0.1, -1.0, "better"), (-0.1, 2.0, 1.0, "undecided"),
     (0.0, 2.0, 1.0, "undecided"), (None, None, 0.0, "the same"), (None, None, 1.0, "no interval")],
)  # fmt: skip
def test_what_an_interval_says(low, high, loss, said):
    found = Loss(metric="squad/f1", loss=loss, low=low, high=high, margin=0, unit="points", items=9)
    assert found.outcome == said


def test_a_change_has_the_sign_of_the_metric_and_not_of_the_loss():
    lost = {"loss": 1.0, "low": 0.5, "high": 1.5, "margin": 0.0, "items": 9}
    assert change(Loss(metric="squad/f1", unit="points", **lost)) == "−1.5 to −0.5 points"
    assert change(Loss(metric="domain/perplexity", unit="%", **lost)) == "+0.5 to +1.5 %"
    assert [signed(value) for value in (0.0, -0.0004, 0.06, -4.44, 12345.6)] == [
        "0",
        "0.00",
        "+0.06",
        "−4.4",
        "+12,346",
    ]


def test_the_recovered_fraction_is_shown_where_loss_and_gain_lie_outside_the_noise(adapted):
    compared = adapted
    row = next(row for row in compared.rows if row["variant"] == "qat")
    values = {each["variant"]: each["domain/perplexity"] for each in compared.rows}
    share = (values["control-ptq"] - values["qat"]) / (values["control-ptq"] - values["control"])
    assert row[FRACTION] == pytest.approx(share) and f"QAT recovered {100 * share:.1f} % of what PTQ costs" in words(
        compared
    )


@pytest.mark.parametrize(
    ("levels", "noise", "why"),
    [
        ({"control-ptq": 2.8001}, {"control-ptq": 8.0}, "loses no perplexity"),
        ({"qat": 2.999}, {"qat": 8.0}, "recovered nothing of PTQ's loss"),
        ({"qat": 3.2}, {}, "recovered nothing of PTQ's loss"),
    ],
    ids=["PTQ loses nothing", "QAT gains nothing that shows", "QAT is worse"],
)
def test_no_fraction_is_shown_of_what_lies_in_the_noise(levels, noise, why):
    run = store_adapted(LEVELS | levels, noise=noise)
    qat = next(found for found in tracking.find_runs(parent=run) if found.tags["edgequant.variant"] == "qat")
    tracking.client().log_metric(qat.id, FRACTION, 0.5)  # as runs of an earlier version have it
    compared = compare([run])
    assert why in words(compared) and not any(FRACTION in row for row in compared.rows)


def test_what_the_run_itself_calls_not_defined_stays_so():
    run = store_adapted(LEVELS)
    told = {"edgequant.recovered_fraction": "not defined, because the control learned nothing"}
    tracking.client().log_text(run, json.dumps(told), "verdict.json")
    compared = compare([run])
    assert "because the control learned nothing" in words(compared)
    assert not any(FRACTION in row for row in compared.rows)


def test_other_items_and_damaged_ones_are_no_comparison_and_say_so():
    run = store_adapted(LEVELS)
    ptq = next(found for found in tracking.find_runs(parent=run) if found.tags["edgequant.variant"] == "ptq")
    other = {"columns": ["id", "nats", "tokens"], "data": [["elsewhere", 1.0, None]]}
    tracking.client().log_text(ptq.id, json.dumps(other), "items/domain.json")
    found = reasons(compare([run]))
    assert found["ptq", "baseline"] == found["qat", "ptq"] == "not scored on the same items"
    tracking.client().log_text(ptq.id, "{", "items/domain.json")
    found = reasons(compare([run]))
    assert found["ptq", "baseline"] == "scores by item were not kept" and found["qat", "baseline"] == ""


def test_a_baseline_of_the_own_run_is_the_reference_though_a_newer_one_is_shown():
    store_adapted(LEVELS, model="twice")
    with tracking.workflow_run("baseline", {}), tracking.variant_run("baseline", model="twice", scheme="", phase="p"):
        tracking.log_metrics({"domain/perplexity": 19.0})
    compared = compare()
    assert compared.rows[0]["variant"] == "baseline"
    assert outcomes(compared)["qat", "baseline"] == "better"


def test_the_words_name_what_was_delivered_its_size_and_its_harm_first():
    run = store_adapted(LEVELS, delivered="ptq", tags={"edgequant.harm": "guard/perplexity rose by 17%"})
    (told,) = in_words(compare([run]))
    assert told.lead == "ptq w4-g32 was delivered: 80.0 MB, 70.4 % smaller than fp16."
    assert told.sentences[0] == "It is not offered for promotion, because it is harmed: guard/perplexity rose by 17%."
    assert "Against PTQ, QAT is better in perplexity (domain) on 8 documents, 3" in " ".join(told.sentences)


def test_without_a_quantised_model_the_words_say_so():
    assert in_words(compare([store_adapted({"baseline": 3.0}, delivered="")]))[0].sentences == [
        "No quantised model is among them."
    ]


def test_domains_are_broken_down_where_there_are_two_and_differences_are_none(adapted):
    row = {"domain/perplexity": 2.0, "domain/perplexity_shelter": 2.0, "domain/perplexity_wash": 3.0}
    bounds = {"domain/perplexity_wash_ci_low": 1.0, "parity/perplexity_delta": 0.1, "wikitext2/perplexity_x": 1.0}
    (found,) = breakdowns([row | bounds])
    assert found.metric == "domain/perplexity"
    assert found.parts == {"Shelter": "domain/perplexity_shelter", "Wash": "domain/perplexity_wash"}
    assert "By domain: perplexity (domain)" in html_report(adapted)
