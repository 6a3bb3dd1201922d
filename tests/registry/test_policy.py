import pytest
import yaml

from edgequant.errors import UserError
from edgequant_registry.gates import judge_gate
from edgequant_registry.policy import bundled_policies, read_policy


def policy(tmp_path, *gates):
    file = tmp_path / "policy.yaml"
    file.write_text(yaml.safe_dump({"name": "mine", "gates": list(gates)}))
    return read_policy(str(file))


def test_the_default_policy_asks_for_seventy_per_cent_and_for_quality_against_baseline_and_champion():
    assert "default" in bundled_policies()
    gates = read_policy("default").gates
    assert ("min", 70.0) in [gate.bound for gate in gates if gate.metric == "size/reduction_vs_fp16"]
    assert {gate.against for gate in gates if gate.metric == "domain/perplexity"} == {"baseline", "champion"}
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
        ({"metric": "my/own", "max_loss": 2, "against": "champion"}, "better: higher"),
        ({"metric": "squad/f1", "max_loss": 2, "against": "champion", "better": "lower"}, "contradicts"),
    ],
)
def test_a_gate_that_cannot_be_meant_is_refused_with_its_number_and_the_fix(tmp_path, gate, said):
    with pytest.raises(UserError) as refused:
        policy(tmp_path, gate)
    assert said in str(refused.value) and "gate 1" in str(refused.value)


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
