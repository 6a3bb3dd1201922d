import math
from dataclasses import replace

import pytest

from edgequant.evaluation.tasks.registry import COMPARISON_TASKS
from edgequant_registry.asked import Asked
from edgequant_registry.gates import Reference, allowed, judge, judge_gate
from edgequant_registry.policy import Gate, read_policy


def champion(**metrics):
    return Reference(name="version 1", metrics={key.replace("__", "/"): value for key, value in metrics.items()})


def verdict(gate, value, reference=None, **interval):
    metrics = {gate["metric"]: value} | {f"{gate['metric']}_ci_{end}": bound for end, bound in interval.items()}
    return judge_gate(Gate(**gate), {key: bound for key, bound in metrics.items() if bound is not None}, reference)


@pytest.mark.parametrize(
    ("value", "passed"), [(70.0, True), (71.0, True), (69.9, False), (math.nan, False), (None, False)]
)
def test_an_absolute_bound_includes_its_own_value_and_excludes_what_is_missing_or_not_a_number(value, passed):
    assert verdict({"metric": "size/reduction_vs_fp16", "min": 70}, value).passed is passed


@pytest.mark.parametrize(
    ("metrics", "verdicts"),
    [
        ({}, ["not asked for", "not asked for"]),
        ({"deploy/fits": 1.0, "deploy/size_gb": 0.125}, ["passed", "passed"]),
        ({"deploy/fits": 0.0, "deploy/size_gb": 0.1251}, ["FAILED", "FAILED"]),
        ({"deploy/fits": 0.5, "deploy/size_gb": 0.0}, ["FAILED", "FAILED"]),  # no file has no bytes
    ],
)
def test_what_does_not_fit_a_device_fails_and_what_was_not_asked_for_is_told_as_such(metrics, verdicts):
    gates = [gate for gate in read_policy("default").gates if gate.metric in ("deploy/fits", "deploy/size_gb")]
    references = {"champion": Reference(name="version 1", metrics={"deploy/size_gb": 0.1})}
    found = {verdict.gate.metric: verdict.to_row() for verdict in judge(gates, metrics, references)}
    assert [found[name]["verdict"] for name in ("deploy/fits", "deploy/size_gb")] == verdicts
    if not metrics:
        assert "the version has no such metric, and nothing asked for it (optional)" in found["deploy/fits"]["reason"]


@pytest.mark.parametrize(("value", "passed"), [(71.0, True), (67.8, True), (46.0, False), (math.nan, False)])
def test_the_reduction_of_the_file_that_ships_is_gated(value, passed):
    (gate,) = [gate for gate in read_policy("default").gates if gate.metric == "deploy/reduction_vs_fp16"]
    assert judge_gate(gate, {"deploy/reduction_vs_fp16": value}, None).passed is passed


def test_at_most_works_the_other_way_round():
    gate = {"metric": "size/checkpoint_gb", "max": 0.5}
    assert verdict(gate, 0.5).passed and not verdict(gate, 0.51).passed


@pytest.mark.parametrize(
    ("metric", "bound", "before", "after", "passed"),
    [
        ("domain/perplexity", {"max_loss_percent": 10}, 20.0, 22.0, True),
        ("domain/perplexity", {"max_loss_percent": 10}, 20.0, 22.1, False),
        ("domain/perplexity", {"max_loss_percent": 10}, 20.0, 1.0, True),  # better is never a loss
        ("domain/perplexity", {"max_loss": 1}, 20.0, 21.5, False),
        ("squad/f1", {"max_loss": 2}, 60.0, 58.0, True),
        ("squad/f1", {"max_loss": 2}, 60.0, 57.9, False),
        ("squad/f1", {"max_loss_percent": 5}, 60.0, 57.0, True),
        ("squad/f1", {"max_loss_percent": 5}, 60.0, 56.9, False),
    ],
)
def test_a_loss_counts_in_the_direction_in_which_the_metric_is_worse(metric, bound, before, after, passed):
    reference = Reference(name="version 1", metrics={metric: before})
    assert verdict({"metric": metric, "against": "champion", **bound}, after, reference).passed is passed


def test_a_verdict_says_value_bound_and_reason():
    reference = Reference(name="version 4", metrics={"squad/f1": 60.0})
    row = verdict({"metric": "squad/f1", "against": "champion", "max_loss": 2}, 57.0, reference).to_row()
    assert (row["verdict"], row["value"], row["limit"]) == ("FAILED", 57.0, 58.0)
    assert row["reason"] == "squad/f1 3 points worse than version 4 (60 %), beyond the 2 points accepted"


@pytest.mark.parametrize(
    ("metric", "after", "reason"),
    [
        ("squad/f1", 60.0, "as good as version 1 (60 %), within the 1 point accepted"),
        ("domain/perplexity", 59.0, "1 better than version 1 (60), within the 1 accepted"),
        ("deploy/size_gb", 60.5, "0.5 GB worse than version 1 (60 GB), within the 1 GB accepted"),
        ("latency/decode_ms_per_token", 62.0, "2 ms worse than version 1 (60 ms), beyond the 1 ms accepted"),
    ],
)
def test_a_reason_has_the_unit_in_which_a_policy_states_its_bound(metric, after, reason):
    gate = {"metric": metric, "against": "champion", "max_loss": 1}
    assert verdict(gate, after, Reference(name="version 1", metrics={metric: 60.0})).reason == reason
    assert verdict({"metric": "parity/argmax_agreement", "min": 0.95}, 0.98).reason == "0.98 is at least 0.95"


# f1 1 point lower, both +-1.5 points: the difference is -1 +- sqrt(1.5^2 + 1.5^2) = -1 +- 2.1213
@pytest.mark.parametrize(("margin", "not_worse", "worse"), [(2.0, False, True), (3.2, True, True), (3.1, False, True)])
def test_intervals_decide_when_the_gate_says_so(margin, not_worse, worse):
    reference = Reference(name="v1", metrics={"squad/f1": 60.0, "squad/f1_ci_low": 58.5, "squad/f1_ci_high": 61.5})
    for test, passed in (("not_worse", not_worse), ("worse", worse), ("values", True)):
        gate = {"metric": "squad/f1", "against": "champion", "max_loss": margin, "test": test}
        assert verdict(gate, 59.0, reference, low=57.5, high=60.5).passed is passed, test


def test_a_loss_that_the_intervals_show_fails_the_lenient_test_too():
    reference = Reference(name="v1", metrics={"squad/f1": 60.0, "squad/f1_ci_low": 59.5, "squad/f1_ci_high": 60.5})
    gate = {"metric": "squad/f1", "against": "champion", "max_loss": 2, "test": "worse"}
    assert not verdict(gate, 55.0, reference, low=54.5, high=55.5).passed


def test_intervals_work_for_metrics_where_lower_is_better():
    # 1 higher is worse: -1 in goodness; from 20 (19 to 22) to 21 (20.5 to 21.2)
    # worse end: -1 - sqrt(0.2^2 + 1^2) = -2.0198; better end: -1 + sqrt(0.5^2 + 2^2) = 1.0616
    metrics = {"domain/perplexity": 20.0, "domain/perplexity_ci_low": 19.0, "domain/perplexity_ci_high": 22.0}
    reference = Reference(name="v1", metrics=metrics)
    for bound, passed in ((2.01, False), (2.03, True)):
        gate = {"metric": "domain/perplexity", "against": "champion", "max_loss": bound, "test": "not_worse"}
        assert verdict(gate, 21.0, reference, low=20.5, high=21.2).passed is passed


NOTHING = {}
NO_WIDTH = {"low": 59.0, "high": 59.0}


@pytest.mark.parametrize("interval", [NOTHING, NO_WIDTH])
@pytest.mark.parametrize(("test", "passed"), [("values", True), ("worse", True), ("not_worse", False)])
def test_without_an_interval_nothing_is_shown_to_be_good_enough(test, passed, interval):
    """Of one question, or of an interval without width, which is of one question too."""
    gate = {"metric": "squad/f1", "against": "champion", "max_loss": 2, "test": test}
    found = verdict(gate, 59.0, champion(squad__f1=60.0, squad__f1_ci_low=55.0, squad__f1_ci_high=65.0), **interval)
    assert found.passed is passed
    assert ("not shown to be within the 2 points" in found.reason) is not passed
    absolute = verdict({"metric": "squad/f1", "min": 50, "test": test}, 59.0, **interval)
    assert absolute.passed is passed and ("59 % is not shown to be at least 50 %" in absolute.reason) is not passed


def test_what_is_no_sample_needs_no_interval():
    gate = {"metric": "size/checkpoint_gb", "against": "champion", "max_loss": 0.2, "test": "not_worse"}
    found = verdict(gate, 0.5, champion(size__checkpoint_gb=0.4))
    assert found.passed and "no intervals" in found.reason


def test_equal_scores_on_20_questions_are_not_shown_to_be_as_good():
    """0 of 20 on both sides: Wilson's 0 to 16.1 each, the difference within 16.1 either way."""
    both = {"squad/f1": 0.0, "squad/f1_ci_low": 0.0, "squad/f1_ci_high": 16.1}
    gate = {"metric": "squad/f1", "against": "champion", "max_loss": 2}
    for test, outcome in (("not_worse", "failed"), ("worse", "says nothing"), ("values", "says nothing")):
        found = judge_gate(Gate(**gate, test=test), both, Reference(name="version 1", metrics=both))
        assert found.outcome == outcome and "version 1: at the floor" in found.reason


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 1.7976931348623157e308])
@pytest.mark.parametrize("optional", [False, True])
def test_a_number_that_is_none_passes_no_gate_on_either_side(value, optional):
    """MLflow's database keeps infinity as the greatest float."""
    for gate in ({"metric": "domain/perplexity", "max": 1e309}, {"metric": "size/reduction_vs_fp16", "min": 1}):
        assert not verdict(gate | {"optional": optional}, value).passed
    gate = {"metric": "domain/perplexity", "against": "champion", "max_loss_percent": 10, "optional": optional}
    assert not verdict(gate, value, champion(domain__perplexity=20.0)).passed
    assert "of version 1 is" in verdict(gate, 20.0, champion(domain__perplexity=value)).reason
    assert not verdict(gate, 20.0, champion(domain__perplexity=value)).passed


def test_no_time_at_all_passes_no_gate():
    assert not verdict({"metric": "latency/decode_ms_per_token", "max": 20}, 0.0).passed


def test_an_absolute_bound_can_ask_for_certainty_too():
    gate = {"metric": "boolq/accuracy", "min": 60}
    for test, passed in (("values", True), ("not_worse", False), ("worse", True)):
        assert verdict(gate | {"test": test}, 61.0, low=58.0, high=64.0).passed is passed


def test_missing_metrics_fail_unless_the_gate_is_optional_and_both_say_so():
    gate = {"metric": "squad/f1", "against": "champion", "max_loss": 2}
    for reference, value in ((champion(squad__f1=60.0), None), (champion(other__metric=1.0), 60.0)):
        strict, lenient = verdict(gate, value, reference), verdict(gate | {"optional": True}, value, reference)
        assert not strict.passed and "optional: true" in strict.reason
        assert lenient.outcome == "not asked for" and "not compared" in lenient.reason


def test_without_a_champion_there_is_nothing_to_lose_but_without_a_baseline_the_gate_fails():
    nobody = Reference(name="there is no champion yet", metrics=None)
    found = verdict({"metric": "squad/f1", "against": "champion", "max_loss": 2}, 60.0, nobody)
    assert (found.outcome, found.passed, found.blocks) == ("nothing to compare", False, False)
    assert allowed([found]), "a policy of such gates alone has to begin with some version"
    assert not verdict({"metric": "squad/f1", "against": "baseline", "max_loss": 2}, 60.0, nobody).passed


BOOLQ = {"metric": "boolq/accuracy", "against": "baseline", "max_loss": 2, "test": "worse", "optional": True}
QAT = {"qat.max_task_loss": "2.0"}


@pytest.mark.parametrize(
    ("asked", "metric", "why"),
    [
        (Asked(tasks=("boolq",), data=("boolq",)), "boolq/accuracy", "evaluation.tasks has boolq"),
        (Asked(tasks=("boolq", "latency")), "boolq/accuracy", "evaluation.tasks has boolq"),  # named one by one
        (Asked(tasks=COMPARISON_TASKS), "boolq/accuracy", ""),  # measured unasked: left out without data
        (Asked(tasks=COMPARISON_TASKS, data=("boolq",)), "boolq/accuracy", "evaluation.tasks has boolq"),
        (Asked(tasks=COMPARISON_TASKS, settings={"data_dir": "DATA"}), "squad/f1", "evaluation.tasks has squad"),
        (Asked(tasks=COMPARISON_TASKS), "latency/decode_ms_per_token", "evaluation.tasks has latency"),  # needs no data
        (Asked(tasks=("boolq",), data=("boolq",)), "squad/f1", ""),
        (Asked(settings={"export": "gguf"}), "deploy/size_gb", "export gguf"),
        (Asked(settings={"export": "None"}), "deploy/size_gb", ""),
        (Asked(settings={"export": "gguf"}), "deploy/fits", ""),
        (Asked(settings={"device_profile": "phone-4gb"}), "deploy/fits", "device_profile phone-4gb"),
        (Asked(settings=QAT), "against_baseline/harmed", "qat.max_task_loss 2.0"),
        (Asked(settings=QAT, variant="ptq"), "parity/argmax_agreement", ""),
        (Asked(settings=QAT, variant="qat"), "parity/argmax_agreement", "qat.max_task_loss 2.0"),
    ],
)  # fmt: skip
def test_an_optional_gate_fails_where_the_run_was_asked_for_its_metric_and_lacks_it(asked, metric, why):
    found = judge_gate(Gate(metric=metric, min=1, optional=True), {}, None, asked)
    assert found.outcome == ("failed" if why else "not asked for")
    assert (f"its run was asked for it ({why})" in found.reason) is bool(why)


def test_an_optional_gate_fails_where_nobody_can_say_what_the_run_was_asked_for():
    found = judge_gate(
        Gate(metric="deploy/fits", min=1, optional=True), {}, None, Asked(unknown="its evidence does not say")
    )
    assert found.outcome == "failed" and "its evidence does not say whether its run was asked for it" in found.reason


def test_a_baseline_that_lacks_what_was_asked_for_fails_the_gate_too():
    bare = Reference(name="the baseline", metrics={"domain/perplexity": 20.0})
    asked = Asked(tasks=("boolq",), data=("boolq",))
    found = judge_gate(Gate(**BOOLQ), {"boolq/accuracy": 60.0}, bare, asked)
    assert found.outcome == "failed" and "the baseline has no such metric" in found.reason
    assert judge_gate(Gate(**BOOLQ), {"boolq/accuracy": 60.0}, bare).outcome == "not asked for"


# The commoner answer alone scores 62.17 %: with 2 points accepted a baseline of 64 has just no room for a loss.
@pytest.mark.parametrize(
    ("baseline", "value", "outcome"),
    [
        (62.17, 62.0, "says nothing"),
        (50.0, 49.0, "says nothing"),
        (64.0, 63.0, "says nothing"),
        (64.3, 63.0, "passed"),
        (62.17, 40.0, "failed"),  # worse than knowing nothing can be seen
    ],
)
def test_a_baseline_without_room_for_a_loss_passes_nobody(baseline, value, outcome):
    metrics = {"boolq/accuracy": baseline, "boolq/majority": 62.17}
    found = judge_gate(Gate(**BOOLQ), {"boolq/accuracy": value}, Reference(name="the baseline", metrics=metrics))
    assert found.outcome == outcome and not (outcome == "says nothing" and found.passed)
    assert ("this gate says nothing" in found.reason) is (outcome != "passed")


@pytest.mark.parametrize(("f1", "outcome"), [(0.0, "says nothing"), (1.5, "says nothing"), (14.6, "passed")])
def test_an_f1_near_zero_cannot_fall_by_two_points(f1, outcome):
    gate = Gate(metric="squad/f1", against="baseline", max_loss=2)
    assert (
        judge_gate(gate, {"squad/f1": f1}, Reference(name="the baseline", metrics={"squad/f1": f1})).outcome == outcome
    )


def test_an_interval_that_reaches_the_floor_says_nothing_either():
    metrics = {"boolq/accuracy": 70.0, "boolq/accuracy_ci_low": 60.0, "boolq/accuracy_ci_high": 80.0}
    reference = Reference(name="the baseline", metrics=metrics | {"boolq/majority": 62.17})
    assert judge_gate(Gate(**BOOLQ), {"boolq/accuracy": 70.0}, reference).outcome == "says nothing"


def test_gates_of_which_none_could_judge_promote_nobody():
    baseline = {"baseline": champion(boolq__accuracy=50.0, boolq__majority=62.0)}
    nothing = judge([Gate(**BOOLQ)], {"boolq/accuracy": 50.0}, baseline)
    absent = judge([Gate(**BOOLQ)], {}, baseline)
    passed = judge([Gate(metric="size/checkpoint_gb", max=1)], {"size/checkpoint_gb": 0.5}, {})
    assert not allowed(nothing) and not allowed(absent)
    assert allowed(passed) and allowed([*nothing, *absent, *passed])


def test_the_default_policy_warns_of_a_version_that_is_slower_than_its_baseline_and_a_stricter_one_refuses_it():
    (gate,) = [gate for gate in read_policy("default").gates if gate.metric.startswith("latency/")]
    name = gate.metric
    slower = {name: 8.0, f"{name}_ci_low": 7.6, f"{name}_ci_high": 8.7}
    reference = Reference(name="the baseline", metrics={name: 4.6, f"{name}_ci_low": 3.9, f"{name}_ci_high": 6.2})
    found = judge_gate(gate, slower, reference)
    assert (found.outcome, found.blocks, found.passed, found.to_row()["verdict"]) == ("warned", False, False, "WARNING")
    assert "3.4 ms worse than the baseline" in found.reason
    assert judge_gate(replace(gate, severity="fail"), slower, reference).blocks
    assert judge_gate(gate, slower | {name: 4.0}, reference).passed
    assert judge_gate(gate, {name: 0.0}, reference).blocks  # no measurement is no warning
