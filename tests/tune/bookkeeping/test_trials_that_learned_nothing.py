"""A trial whose training was given up or changed nothing says so in its row and its line, beside PTQ's figures."""

from __future__ import annotations

from dataclasses import replace

import pytest
from search_specs import search_spec
from test_train_candidate import SHORT, candidate_of

from edgequant_tune.bookkeeping.ledger import Ledger
from edgequant_tune.objectives import read_objectives
from edgequant_tune.progress import Progress
from edgequant_tune.trial_records import TrialRecord, table

OBJECTIVES = read_objectives(["domain/perplexity"])


def record(**metrics: float) -> TrialRecord:
    found = {name.replace("_", "/", 1): value for name, value in metrics.items()}
    return TrialRecord(number=2, id="b", values={"learning_rate": 1e30}, status="finished", metrics=found)


def test_a_rate_that_is_far_too_high_is_told_from_one_that_trains(tmp_path, capsys):
    candidate = candidate_of("w8", tmp_path / "trial", training=replace(SHORT, learning_rate=1e30))
    trial = replace(record(), metrics=dict(candidate.metrics))
    (row,) = table([trial], OBJECTIVES, model="tiny", scheme="w8")
    said = "its loss was not finite; no trained state was better than PTQ, which is what was measured"
    assert row["note"].startswith("training given up at step ") and row["note"].endswith(said)
    spec = search_spec(objectives=["domain/perplexity"])
    Progress(2, spec.objectives[0]).ended(trial, Ledger(tmp_path / "search", spec.objectives, tmp_path / "trials"))
    assert said in capsys.readouterr().out


@pytest.mark.parametrize(
    ("metrics", "note"),
    [
        ({"train_loss": 2.0, "train_steps": 6.0, "train_best_step": 6.0}, ""),
        ({"train_loss": 2.0}, ""),  # of finetune, which watches nothing in a search
        (
            {"train_loss": 2.0, "train_steps": 6.0, "train_best_step": 0.0},
            "no trained state was better than PTQ, which is what was measured",
        ),
        (
            {"train_loss": float("inf"), "train_steps": 5.0, "train_best_step": 3.0},
            "training given up at step 5, its loss was not finite; what was measured is its state of step 3",
        ),
    ],
)
def test_only_what_was_given_up_or_changed_nothing_has_a_note(metrics, note):
    (row,) = table([record(**metrics)], OBJECTIVES, model="tiny", scheme="w8")
    assert row.get("note", "") == note
