"""`pipeline --models`: one after the other, resumed after kill -9, and no model in the way of the others."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from dataclasses import replace

import pytest

from edgequant import tracking
from edgequant.errors import UserError
from edgequant.evaluation.harm import losses
from edgequant.evaluation.settings import EvaluationSettings
from edgequant.training.settings import TrainingSettings
from edgequant.workflows.phases import orders
from edgequant.workflows.phases.ledger import Ledger, digest_of, state_of
from edgequant.workflows.phases.orders import Row
from edgequant.workflows.phases.plan import Plan
from edgequant.workflows.pipeline import pipeline
from edgequant.workflows.settings import RunSettings

KILLED = """
import os, signal, sys
from edgequant.workflows import baseline
from edgequant.evaluation.settings import EvaluationSettings
from edgequant.workflows.pipeline import pipeline
from edgequant.workflows.settings import RunSettings
whole = baseline.baseline
def killed(**given):
    if given["model"] != "tiny":
        os.kill(os.getpid(), signal.SIGKILL)
    return whole(**given)
baseline.baseline = killed
pipeline(
    models=sys.argv[1], phases=("baseline",), output="made", run=RunSettings(device="cpu"),
    evaluation=EvaluationSettings(tasks=("domain_perplexity",), limit=20, window=256, bootstrap_resamples=20),
)
"""


@pytest.mark.long
def test_after_kill_9_between_two_models_the_second_goes_on_where_it_was(
    store, tmp_path, tiny_folder, environment, quick
):
    models = f"tiny,{shutil.copytree(tiny_folder, tmp_path / 'tiny2')}"
    environment |= {"MLFLOW_TRACKING_URI": os.environ["MLFLOW_TRACKING_URI"]}
    killed = subprocess.run([sys.executable, "-c", KILLED, models], cwd=tmp_path, env=environment, timeout=300)
    assert killed.returncode == -signal.SIGKILL
    done = json.loads((tmp_path / "made" / "tiny" / "phases.json").read_text())
    assert set(done) == {"baseline"}
    evaluation = replace(quick, tasks=("domain_perplexity",))
    settings = {"models": models, "phases": ("baseline",), "evaluation": evaluation}
    settings["evaluation"] = replace(evaluation, **{n: getattr(type(evaluation)(), n) for n in LATENCY})
    result = pipeline(**settings, output="made", run=RunSettings(device="cpu", resume=True))
    runs = {(row["model"], row["phase"]): row["run"] for row in result.rows}
    assert {phase: runs["tiny", phase] for phase in done} == {phase: note["run"] for phase, note in done.items()}
    assert set(runs) == {(name, phase) for name in ("tiny", "tiny2") for phase in done}
    (parent,) = tracking.find_runs(workflow="pipeline")
    assert (parent.id, parent.status) == (result.run_id, "FINISHED")


LATENCY = [
    *("latency_prompt_lengths", "latency_batch_sizes", "latency_methods", "latency_new_tokens"),
    *("latency_repetitions", "latency_warmup"),
]


def test_a_failed_model_does_not_stop_the_others(store, tmp_path, tiny_folder, quick, monkeypatch):
    from edgequant.workflows import baseline

    whole = baseline.baseline
    reason = f"weights must be finite, got 1 that is NaN in {'layer.' * 40}weight; take another copy of the model"

    def broken(**given):
        if given["model"] == "tiny":
            raise RuntimeError(reason)
        return whole(**given)

    monkeypatch.setattr(baseline, "baseline", broken)
    other = shutil.copytree(tiny_folder, tmp_path / "other")
    told = f"1 of 2 models failed: tiny: {reason}; correct it and run the same again"
    with pytest.raises(UserError, match=re.escape(told)):
        pipeline(
            models=f"tiny,{other}", phases=("baseline", "report"), run=RunSettings(device="cpu"),
            evaluation=replace(quick, tasks=("domain_perplexity",)), output=str(tmp_path / "made"),
        )  # fmt: skip
    assert list(json.loads((tmp_path / "made" / "other" / "phases.json").read_text())) == ["baseline"]
    assert (tmp_path / "made" / "report" / "report.html").is_file()
    assert tracking.find_runs(workflow="pipeline")[0].status == "FAILED"


# ---------------------------------------------------------------------------------------------------------- the ledger


def test_a_note_holds_as_long_as_inputs_result_and_run_are_there(tmp_path):
    there = {"run"}
    ledger, made = Ledger(tmp_path, there.__contains__), tmp_path / "made.txt"
    made.write_text("result")
    ledger.note("ptq", "a", run="run", result=str(made), minutes=1.0)
    assert Ledger(tmp_path, there.__contains__).done("ptq", "a") and ledger.done("ptq", "b") is None
    assert ledger.done("qat", "a") is None
    made.write_text("another")
    assert ledger.done("ptq", "a") is None
    made.write_text("result")
    assert ledger.done("ptq", "a")
    there.clear()
    assert ledger.done("ptq", "a") is None


@pytest.mark.parametrize("content", ["", "[", '{"ptq": 3}', '{"ptq": {"inputs": "a"}}'])
def test_notes_that_cannot_be_read_are_none(tmp_path, content):
    (tmp_path / "phases.json").write_text(content)
    assert Ledger(tmp_path, lambda _: True).done("ptq", "a") is None


def test_inputs_differ_by_settings_and_by_what_lies_in_a_folder(tmp_path):
    (tmp_path / "text.md").write_text("one")
    first = digest_of({"rate": 1}, [str(tmp_path), "tiny", None])
    assert digest_of({"rate": 1}, [str(tmp_path), "tiny", None]) == first
    assert digest_of({"rate": 2}, [str(tmp_path), "tiny", None]) != first
    (tmp_path / "text.md").write_text("three")
    assert digest_of({"rate": 1}, [str(tmp_path), "tiny", None]) != first
    assert state_of("tiny") == "tiny"


# ---------------------------------------------------------------------------------------------------------- the orders


def plan(tmp_path, **changes):
    settings = {
        "model": "tiny", "scheme": "w4", "method": "auto", "source": None, "adapt": (), "replay": None,
        "training": None, "evaluation": None, "folder": tmp_path, "device_profile": None, "register": False,
        "run": RunSettings(), "phases": ("ptq", "qat"),
    }  # fmt: skip
    return Plan(**{**settings, **changes})


def test_joint_is_qat_that_learns_the_text_and_before_rounds_as_the_base_was(tmp_path, monkeypatch):
    from edgequant.workflows import ptq, qat

    asked = []
    monkeypatch.setattr(qat, "qat", lambda **given: asked.append(("qat", given)))
    monkeypatch.setattr(ptq, "ptq", lambda **given: asked.append(("ptq", given)))
    plan(tmp_path, replay="wikitext-2:0.25").adapt_joint()
    plan(tmp_path).adapt_before()
    plan(tmp_path, phases=("ptq",)).adapt_before()
    (_, joint), (first, by_qat), (second, by_ptq) = asked
    assert joint["adapt"] and joint["model"] == "tiny" and joint["dataset"] == "disaster:0.75,wikitext-2:0.25"
    assert (first, second) == ("qat", "ptq") and not by_qat["adapt"]
    assert by_qat["model"] == by_ptq["model"] == str(tmp_path / "finetune" / "merged")


def test_the_method_of_ptq_is_that_of_every_phase_and_its_change_does_them_again(tmp_path, monkeypatch):
    from edgequant.workflows import ptq, qat

    asked = {}
    monkeypatch.setattr(qat, "qat", lambda **given: asked.update(qat=given["qat"].init_from))
    monkeypatch.setattr(ptq, "ptq", lambda **given: asked.update(ptq=given["method"]))
    made = plan(tmp_path, method="gptq", training=TrainingSettings(), evaluation=EvaluationSettings())
    made.ptq()
    made.qat()
    assert asked == {"ptq": "gptq", "qat": "gptq"}
    other = replace(made, method="mse_clip")
    differ = {phase for phase in ("ptq", "qat", "finetune", "adapt-joint") if made.inputs(phase) != other.inputs(phase)}
    assert differ == {"ptq", "qat", "adapt-joint"}


def row(name, *shift):
    """Domain perplexity of 30 windows, each `shift` nats from 100 with a little of its own."""
    items = [
        {"id": n, "tokens": 50, "nats": 100 + shift[n % len(shift)] + 0.01 * (n * ord(name[1]) % 7)} for n in range(30)
    ]
    return Row(name, "w4", {"domain/perplexity": 7.0 + sum(shift)}, {"domain": items})


def test_the_verdict_names_the_winner_or_says_that_orders_tie():
    won = orders.verdict([row("adapted->quantised", 3.0), row("quantised->adapted", 0.0), row("joint", 2.0)])
    assert won.startswith("quantised->adapted has the lowest domain perplexity") and "undecided" not in won
    tied = orders.verdict([row("adapted->quantised", 0.3, -0.2, 0.1, -0.3), row("quantised->adapted", 0.0)])
    assert tied.startswith("no order is told from the best")
    two = [row("adapted->quantised", 0.3, -0.2, 0.1, -0.3), row("quantised->adapted", 0.0), row("joint", 3.0)]
    assert orders.verdict(two).startswith("adapted->quantised is not told from quantised->adapted:")
    assert orders.verdict([row("joint", 0.0)]) == ""


def test_differences_are_those_of_paired_items():
    rows = [row("base", 0.0), row("adapted", -2.0), row("joint", -1.0)]
    found = orders.paired_with("adapted", rows)["joint"]
    (expected,) = losses(rows[1].items, rows[2].items, perplexity_margin=0.0, task_margin=0.0)
    assert found == [expected] and found[0].loss > 0
    table = orders.table(rows)
    assert f"| joint | {found[0].loss:+.1f} % (" in table and f"{found[0].interval}): worse |" in table


def test_what_was_scored_stands_in_the_tables_heading():
    rows = [row("base", 0.0), row("adapted", -2.0)]
    rows[0].metrics["domain/documents"] = rows[1].metrics["domain/documents"] = 30.0
    assert "| | perplexity (domain), 30 documents |" in orders.table(rows)
