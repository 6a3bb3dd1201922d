"""What a version's run was asked to measure is read from the run, or from the workflow that it is a part of."""

from __future__ import annotations

import pytest

from edgequant import tracking
from edgequant.evaluation.evidence_file import Scores
from edgequant.workflows.steps.register import register_version
from edgequant_registry.asked import asked_of_run
from edgequant_registry.workflow import PromotionRefusedError, promote

GOOD = {"size/reduction_vs_fp16": 71.5, "domain/perplexity": 25.0}
NAME = "edgequant-tiny"
ASKED = {"evaluation": {"tasks": ("domain_perplexity", "boolq")}, "export": "gguf", "device_profile": None}


@pytest.fixture
def asked(store, checkpoint):
    """Register a version in a part of a run with settings; returns the version's run."""

    def filed(settings, metrics=GOOD):
        names = {"model": "tiny", "scheme": "w4a8-g32+emb4", "variant": "ptq"}
        with tracking.workflow_run("ptq", settings):
            tracking.log_dataset("domain", "0" * 36, "bundled", rows=1, context="evaluation")
            with tracking.variant_run("ptq", model="tiny", scheme="w4a8-g32+emb4", phase="ptq"):
                baseline = Scores({"domain/perplexity": 24.0})
                uri = register_version(checkpoint, **names, measured=Scores(metrics), baseline=baseline)
        return store.get_model_version(NAME, uri.rpartition("/")[2]).run_id

    return filed


def test_the_workflow_of_a_part_says_what_was_asked_for(asked):
    found = asked_of_run(asked(ASKED), "ptq")
    assert found.why("boolq/accuracy") == "evaluation.tasks has boolq"
    assert found.why("deploy/size_gb") == "export gguf"
    assert (found.why("squad/f1"), found.why("deploy/fits"), found.why("parity/argmax_agreement")) == ("", "", "")


def test_a_version_that_lacks_what_its_run_was_asked_for_is_refused_by_the_default_policy(store, asked, capsys):
    asked(ASKED)
    with pytest.raises(PromotionRefusedError):
        promote()
    said = " ".join(capsys.readouterr().out.split())
    lacks = "the version has no such metric, and its run was asked for it"
    assert f"boolq/accuracy {lacks} (evaluation.tasks has boolq)" in said
    assert f"deploy/size_gb {lacks} (export gguf)" in said
    assert store.get_registered_model(NAME).aliases == {}


def test_what_a_run_without_a_data_folder_leaves_out_was_not_asked_for(store, asked):
    from edgequant.workflows.steps.measure import COMPARISON

    asked({"evaluation": COMPARISON, "data_dir": None}, GOOD | {"latency/decode_ms_per_token": 5.0})
    with pytest.raises(PromotionRefusedError):  # the baseline lacks the latency, which needs no data
        promote()
    found = asked_of_run(store.get_model_version(NAME, "1").run_id)
    assert [found.why(metric) for metric in ("wikitext2/perplexity", "boolq/accuracy", "squad/f1")] == ["", "", ""]
    assert found.why("latency/decode_ms_per_token") == "evaluation.tasks has latency"


@pytest.mark.parametrize("gone", ["deleted", "never there", "not named"])
def test_where_the_run_is_gone_nothing_is_passed_over(store, asked, gone):
    run = asked({"evaluation": {"tasks": ("domain_perplexity",)}})
    assert asked_of_run(run).why("boolq/accuracy") == ""
    if gone == "deleted":
        store.delete_run(run)
    found = asked_of_run({"deleted": run, "never there": "0" * 32, "not named": None}[gone])
    assert "nobody knows" in found.why("boolq/accuracy")


def test_a_script_that_registers_by_itself_was_asked_for_nothing(store):
    import mlflow

    with mlflow.start_run(experiment_id="0") as run:
        pass
    assert asked_of_run(run.info.run_id).why("boolq/accuracy") == ""
