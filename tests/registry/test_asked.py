"""What a version was asked to measure stands in its evidence, as the workflow around its run was asked for it."""

from __future__ import annotations

import pytest

from edgequant import tracking
from edgequant.evaluation.evidence_file import Conditions, Scores, read
from edgequant.evaluation.settings import EvaluationSettings
from edgequant.workflows.steps.measure import COMPARISON
from edgequant.workflows.steps.register import register_version
from edgequant_registry.asked import asked_of
from edgequant_registry.versions import get_version
from edgequant_registry.workflow import PromotionRefusedError, promote

GOOD = {"size/reduction_vs_fp16": 71.5, "domain/perplexity": 25.0}
NAME = "edgequant-tiny"
NAMES = {"model": "tiny", "scheme": "w4a8-g32+emb4"}
ASKED = {"evaluation": {"tasks": ("domain_perplexity", "boolq")}, "export": "gguf", "device_profile": None}


@pytest.fixture
def asked(store, checkpoint):
    """Register a version in a part of a run with settings; returns its evidence."""

    def filed(settings, metrics=GOOD, data=("domain",)):
        rows = {name: [{"text": "water"}] for name in data}
        conditions = Conditions.of(EvaluationSettings(), rows, data_dir=None, device="cpu", dtype="float32")
        scores = {"measured": Scores(metrics), "baseline": Scores({"domain/perplexity": 24.0})}
        with (
            tracking.workflow_run("ptq", settings),
            tracking.variant_run("ptq", **NAMES, phase="ptq"),
        ):
            register_version(checkpoint, **NAMES, variant="ptq", conditions=conditions, **scores)
        return get_version(NAME, "1").evidence

    return filed


def test_the_workflow_around_a_part_says_what_was_asked_for(asked):
    found = asked_of(asked(ASKED))
    assert found.why("boolq/accuracy") == "evaluation.tasks has boolq"
    assert found.why("deploy/size_gb") == "export gguf"
    assert (found.why("squad/f1"), found.why("deploy/fits"), found.why("parity/argmax_agreement")) == ("", "", "")


def test_only_what_decides_is_filed_and_nothing_that_only_this_machine_knows(asked):
    found = asked(ASKED | {"training": {"steps": 4}, "output": "/home/ana/secret"})
    assert dict(found.asked) == {
        "workflow": "ptq", "evaluation.tasks": "('domain_perplexity', 'boolq')", "export": "gguf",
        "device_profile": "None",
    }  # fmt: skip
    assert read(found.to_json(), "a copy").asked == found.asked


def test_a_version_that_lacks_what_its_run_was_asked_for_is_refused_by_the_default_policy(store, asked, capsys):
    asked(ASKED)
    with pytest.raises(PromotionRefusedError):
        promote()
    said = " ".join(capsys.readouterr().out.split())
    lacks = "the version has no such metric, and its run was asked for it"
    assert f"boolq/accuracy {lacks} (evaluation.tasks has boolq)" in said
    assert f"deploy/size_gb {lacks} (export gguf)" in said
    assert store.get_registered_model(NAME).aliases == {}


def test_what_a_run_without_a_data_folder_leaves_out_was_not_asked_for(asked):
    found = asked({"evaluation": COMPARISON, "data_dir": None}, GOOD | {"latency/decode_ms_per_token": 5.0})
    with pytest.raises(PromotionRefusedError):  # the baseline lacks the latency, which needs no data
        promote()
    told = asked_of(found)
    assert [told.why(metric) for metric in ("wikitext2/perplexity", "boolq/accuracy", "squad/f1")] == ["", "", ""]
    assert told.why("latency/decode_ms_per_token") == "evaluation.tasks has latency"


def test_data_that_were_there_make_a_default_task_one_that_was_asked_for(asked):
    found = asked_of(asked({"evaluation": COMPARISON, "data_dir": None}, data=("domain", "boolq")))
    assert found.why("boolq/accuracy") == "evaluation.tasks has boolq" and found.why("squad/f1") == ""


def test_where_the_evidence_does_not_say_nothing_is_passed_over(asked):
    found = asked({"evaluation": {"tasks": ("domain_perplexity",)}})
    assert asked_of(found).why("boolq/accuracy") == ""
    before_it_was_filed = read(found.to_json().replace('"asked"', '"asked_before"'), "evidence of an earlier version")
    for unknown in (None, before_it_was_filed):
        assert "evidence does not say" in asked_of(unknown).why("boolq/accuracy")


def test_a_script_that_registers_by_itself_was_asked_for_nothing(store, checkpoint):
    import mlflow

    scores = {"measured": Scores(GOOD), "baseline": Scores({"domain/perplexity": 24.0})}
    with mlflow.start_run(experiment_id="0"):
        register_version(checkpoint, **NAMES, variant="ptq", **scores)
    assert asked_of(get_version(NAME, "1").evidence).why("boolq/accuracy") == ""
