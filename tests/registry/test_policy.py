import pytest
import yaml

from edgequant.errors import UserError
from edgequant_registry.gates import judge_gate
from edgequant_registry.policy import bundled_policies, read_policy


def policy(tmp_path, *gates):
    file = tmp_path / "policy.yaml"
    file.write_text(yaml.safe_dump({"name": "mine", "gates": list(gates)}))
    return read_policy(str(file))


QUALITY = ("domain/perplexity", "wikitext2/perplexity", "boolq/accuracy", "squad/f1")


def test_the_default_policy_asks_for_seventy_per_cent_and_for_quality_against_baseline_and_champion():
    assert "default" in bundled_policies()
    gates = read_policy("default").gates
    assert ("min", 70.0) in [gate.bound for gate in gates if gate.metric == "size/reduction_vs_fp16"]
    for metric in QUALITY:
        assert {gate.against for gate in gates if gate.metric == metric} == {"baseline", "champion"}
    assert {"latency/decode_ms_per_token", "parity/argmax_agreement", "deploy/size_gb"} < {
        gate.metric for gate in gates
    }
    assert all(gate.optional for gate in gates if gate.metric.startswith(("boolq", "squad", "wikitext2")))


def test_a_policy_round_trips_and_its_digest_follows_its_content(tmp_path):
    first = policy(tmp_path, {"metric": "squad/f1", "against": "champion", "max_loss": 2, "test": "not_worse"})
    file = tmp_path / "again.yaml"
    file.write_text(first.to_yaml())
    assert read_policy(str(file)) == first and read_policy(str(file)).digest == first.digest
    assert policy(tmp_path, {"metric": "squad/f1", "against": "champion", "max_loss": 3}).digest != first.digest


@pytest.mark.parametrize(
    ("gate", "said"),
    [
        ({"min": 1}, "must have a metric"),
        ({"metric": "squad/f1"}, "exactly one of min, max, max_loss, max_loss_percent, got none"),
        ({"metric": "squad/f1", "min": 1, "max": 2}, "got min, max"),
        ({"metric": "squad/f1", "min": "high"}, "min must be a number, got 'high'"),
        ({"metric": "squad/f1", "max_loss": 2}, "against"),
        ({"metric": "squad/f1", "min": 2, "against": "champion"}, "against"),
        ({"metric": "squad/f1", "max_loss": -2, "against": "champion"}, "max_loss must be 0 or more, got -2"),
        ({"metric": "squad/f1", "max_loss": 2, "against": "champoin"}, "baseline, champion"),
        ({"metric": "squad/f1", "minimum": 2}, "did you mean min"),
        ({"metric": "squad/f1", "min": 2, "test": "maybe"}, "values, not_worse, worse"),
        ({"metric": "squad/f1", "min": 2, "severity": "note"}, "severity must be one of fail, warn, got 'note'"),
        ({"metric": "squad/f11", "min": 2, "optional": True}, "'squad/f11' is unknown; did you mean squad/f1?"),
        ({"metric": "squad/f11", "min": 2, "better": "higher"}, "'squad/f11' is unknown; did you mean squad/f1?"),
        ({"metric": "nothing/known", "min": 2}, "'nothing/known' is unknown"),
        ({"metric": "f1", "min": 2, "better": "higher"}, "'f1' is unknown"),
        ({"metric": "my/own", "max_loss": 2, "against": "champion"}, "better: higher"),
        ({"metric": "squad/f1", "max_loss": 2, "against": "champion", "better": "lower"}, "contradicts"),
    ],
)
def test_a_gate_that_cannot_be_meant_is_refused_with_its_number_and_the_fix(tmp_path, gate, said):
    with pytest.raises(UserError) as refused:
        policy(tmp_path, gate)
    assert said in str(refused.value) and "gate 1" in str(refused.value)


@pytest.mark.parametrize(
    ("gate", "said"),
    [
        (
            {"metric": "boolq/accuracy", "min": 0.7},
            "min 0.7 is 0.7 %, since boolq/accuracy is in per cent (0 to 100); give 70",
        ),
        ({"metric": "squad/f1_ci_low", "min": 0.4}, "squad/f1_ci_low is in per cent (0 to 100); give 40 for 40 %"),
        ({"metric": "size/reduction_vs_fp16", "min": 0.999}, "give 99.9 for 99.9 %"),
        (
            {"metric": "parity/argmax_agreement", "min": 95},
            "min 95 is 9500 %, since parity/argmax_agreement is a share",
        ),
        ({"metric": "parity/argmax_agreement", "max_loss": 2, "against": "champion"}, "give 0.02 for 2 points"),
        ({"metric": "parity/argmax_agreement", "max": 99}, "give 0.99 for 99 %"),
    ],
)
def test_a_share_of_a_metric_in_per_cent_and_per_cent_of_a_share_are_refused_with_what_to_give(tmp_path, gate, said):
    with pytest.raises(UserError) as refused:
        policy(tmp_path, gate)
    assert said in str(refused.value) and str(refused.value).startswith("gate 1") and "\n" not in str(refused.value)


@pytest.mark.parametrize(
    "gate",
    [
        {"metric": "boolq/accuracy", "min": 0}, {"metric": "squad/exact_match", "min": 1},
        {"metric": "size/reduction_vs_fp16", "min": -0.5}, {"metric": "squad/exact_match", "max": 0.5},
        {"metric": "boolq/accuracy", "max_loss": 0.5, "against": "champion"},
        {"metric": "boolq/accuracy", "max_loss_percent": 0.5, "against": "champion"},
        {"metric": "parity/argmax_agreement", "min": 0.95}, {"metric": "parity/argmax_agreement", "min": 1},
        {"metric": "parity/argmax_agreement", "max_loss": 0.02, "against": "champion"},
        {"metric": "parity/argmax_agreement", "max_loss_percent": 2, "against": "champion"},
        {"metric": "deploy/size_gb", "min": 0.1}, {"metric": "qat/recovered_fraction", "min": 1.1},
        {"metric": "mine/rate", "min": 0.7, "better": "higher"}, {"metric": "against_baseline/harmed", "max": 0},
    ],
)  # fmt: skip
def test_a_bound_that_may_be_meant_is_taken_as_it_is(tmp_path, gate):
    assert policy(tmp_path, gate)


@pytest.mark.parametrize("text", ["", "gates: []", "gates: [", "name: x\ngates: [{metric: a/b, min: 1}]\nother: 1"])
def test_a_file_that_is_no_policy_is_refused(tmp_path, text):
    file = tmp_path / "policy.yaml"
    file.write_text(text)
    with pytest.raises(UserError, match="policy"):
        read_policy(str(file))


def test_an_absent_policy_names_the_bundled_ones():
    with pytest.raises(UserError, match="default"):
        read_policy("no-such-policy")


def test_a_policy_may_gate_what_ships(tmp_path):
    (tmp_path / "p.yaml").write_text(
        "gates:\n- {metric: deploy/reduction_vs_fp16, min: 70}\n"
        "- {metric: deploy/size_gb, max_loss_percent: 0, against: champion}\n"
    )
    least, relative = read_policy(str(tmp_path / "p.yaml")).gates
    assert (least.higher_is_better, relative.higher_is_better) == (True, False)
    assert judge_gate(least, {"deploy/reduction_vs_fp16": 71.2}, None).passed
    assert not judge_gate(least, {"deploy/reduction_vs_fp16": 68.0}, None).passed
    assert not judge_gate(least, {}, None).passed


@pytest.mark.parametrize(
    "metric",
    [
        "boolq/balanced_accuracy", "squad/items", "size/peak_rss_gb", "domain/bits_per_byte", "guard/perplexity",
        "domain/perplexity_shelter_housing", "wikitext2/perplexity_ci_high", "against_baseline/squad_f1_loss",
        "latency/decode_ms_per_token_p90", "latency/static_decode_ms_per_token_prompt512_batch8", "deploy/headroom_gb",
    ],
)  # fmt: skip
def test_what_is_measured_may_be_gated_whether_or_not_a_table_shows_it(tmp_path, metric):
    assert policy(tmp_path, {"metric": metric, "min": 1}).gates[0].metric == metric


def test_a_metric_of_ones_own_may_be_gated_where_the_policy_says_which_end_is_better(tmp_path):
    own = {"metric": "mine/toxicity", "max": 1, "better": "lower"}
    assert policy(tmp_path, own).gates[0].higher_is_better is False


def test_what_another_packages_task_measures_may_be_gated(tmp_path, monkeypatch):
    from edgequant.evaluation.tasks import registry
    from edgequant.evaluation.tasks.task import Evaluation, Task

    cloze = Task(name="cloze", score=lambda *_: Evaluation(), protocol="The likelier.", display={})
    with pytest.raises(UserError, match="'cloze/margin' is unknown"):
        policy(tmp_path, {"metric": "cloze/margin", "min": 1})
    monkeypatch.setitem(registry._of_this_process, "cloze", cloze)
    assert policy(tmp_path, {"metric": "cloze/margin", "min": 1})
