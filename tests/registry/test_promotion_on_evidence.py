"""From training to rollback: the better of two is promoted, the worse refused with reasons; no alias moves wrongly."""

from __future__ import annotations

import json
import multiprocessing
import os
from pathlib import Path

import pytest
from racing import promote_each

from edgequant import tracking
from edgequant.__main__ import main
from edgequant.evaluation.settings import EvaluationSettings
from edgequant.training.settings import TrainingSettings
from edgequant.workflows.finetune import finetune
from edgequant.workflows.settings import RunSettings
from edgequant_registry import packaging
from edgequant_registry.aliases.claims import PREFIX as CLAIM
from edgequant_registry.aliases.journal import standing

NAME = "edgequant-tiny"
QUICK = EvaluationSettings(tasks=("domain_perplexity",), limit=10, window=256, bootstrap_resamples=20)
POLICY = """name: text
gates:
- {metric: size/checkpoint_gb, max: 1}
- {metric: domain/perplexity, against: baseline, max_loss_percent: 1}
- {metric: domain/perplexity, against: champion, max_loss_percent: 2}
- {metric: boolq/accuracy, against: baseline, max_loss: 2, optional: true}
"""
ROUNDS = 20


def trained(steps):
    training = TrainingSettings(steps=steps, batch_size=2, sequence_length=64, learning_rate=2e-3, precision="float32")
    run = RunSettings(device="cpu", dtype="float32")
    return finetune(model="tiny", training=training, evaluation=QUICK, register=True, run=run).metrics


def aliases(store, name=NAME):
    return {alias: str(version) for alias, version in store.get_registered_model(name).aliases.items()}


def edgequant(*arguments):
    """Exit status of a command."""
    try:
        return main([*arguments])
    except SystemExit as ended:
        return ended.code


@pytest.mark.long
def test_the_better_of_two_trainings_is_promoted_the_worse_refused_and_all_of_it_rolled_back_and_told(store, capsys):
    Path("policy.yaml").write_text(POLICY)
    promote = ("promote", "--model", "tiny", "--policy", "policy.yaml")
    weak, strong = trained(2), trained(30)
    assert strong["domain/perplexity"] < 0.9 * weak["domain/perplexity"]

    assert edgequant(*promote, "--version", "1") == 0
    assert edgequant(*promote, "--alias", "challenger") == 0
    assert aliases(store) == {"champion": "1", "challenger": "2"}
    assert edgequant(*promote) == 0
    assert aliases(store) == {"champion": "2", "previous_champion": "1"}  # no challenger any more

    capsys.readouterr()
    assert edgequant(*promote, "--version", "1") == 1
    said = capsys.readouterr().out
    assert "1 of 4 gates failed; champion is version 2" in " ".join(said.split())
    assert "worse than version 2" in said and "not asked for, and so not judged: boolq/accuracy" in said
    refused = store.get_model_version(NAME, "1")
    assert refused.tags["edgequant.promotion"] == "refused" and "worse than version 2" in refused.description
    assert refused.description.startswith("Refused as champion under policy text")

    assert edgequant("promote", "--model", "tiny", "--rollback", "true") == 0
    assert aliases(store) == {"champion": "1"}
    assert edgequant("promote", "--model", "tiny", "--rollback", "true") == 2
    assert edgequant(*promote) == 2  # the newest was rolled back: not again by itself
    assert "was rolled back" in capsys.readouterr().err
    assert aliases(store) == {"champion": "1"}

    capsys.readouterr()
    assert edgequant("promote", "--model", "tiny", "--history", "true") == 0
    said = capsys.readouterr().out
    run = tracking.find_runs(workflow="promote")[0]
    rows = json.loads(Path(store.download_artifacts(run.id, "summary.json")).read_text())
    assert [(row["alias"], row["version"], row["how"]) for row in rows] == [
        ("champion", "1", "promoted"),
        ("challenger", "2", "challenger"),
        ("champion", "2", "promoted"),
        ("champion", "1", "rolled back to"),
    ]
    assert all(row["policy"].startswith("text@") and store.get_run(row["run"]) for row in rows)
    assert rows[1]["until"] == rows[2]["since"]  # no challenger any more
    assert rows[0]["until"] == rows[2]["since"] < rows[2]["until"] == rows[3]["since"] and rows[3]["until"] == ""
    assert "4 gates: 3 passed, 1 not asked for" in rows[2]["why"] and rows[3]["why"] == "1 back from version 2"
    assert "champion: version 1; challenger: nobody" in said and "rolled back to" in said


def test_a_policy_with_an_unknown_metric_is_refused_by_name_before_anything(store, register, capsys):
    register()
    Path("policy.yaml").write_text("gates:\n- {metric: squad/f11, min: 1, optional: true}\n")
    runs = len(tracking.find_runs())
    assert edgequant("promote", "--policy", "policy.yaml") == 2
    said = capsys.readouterr().err
    assert "gate 1 (squad/f11): metric 'squad/f11' is unknown; did you mean squad/f1?" in said
    assert aliases(store) == {} and len(tracking.find_runs()) == runs
    assert "edgequant.promotion" not in store.get_model_version(NAME, "1").tags


@pytest.mark.long
def test_of_two_promoters_at_once_one_wins_and_the_other_is_told_who_did(store, models):
    names = [models(versions=3) for _ in range(ROUNDS)]
    for name in names:
        store.set_registered_model_alias(name, "champion", "1")
    context = multiprocessing.get_context("spawn")
    start, told = context.Barrier(2), context.Queue()
    promoters = [context.Process(target=promote_each, args=(names, version, start, told)) for version in ("2", "3")]
    for promoter in promoters:
        promoter.start()
    results = [told.get(timeout=120) for _ in range(2 * ROUNDS)]
    for promoter in promoters:
        promoter.join(60)
    for name in names:
        mine = {version: (outcome, said) for of, version, outcome, said in results if of == name}
        assert sorted(outcome for outcome, _ in mine.values()) == ["overtaken", "promoted"]
        (winner,) = [version for version, (outcome, _) in mine.items() if outcome == "promoted"]
        (loser,) = {"2", "3"} - {winner}
        assert f"version {winner} became champion (promoted by run promoter of {winner} at 20" in mine[loser][1]
        assert mine[loser][1].endswith(f"while version {loser} was compared with version 1")
        assert aliases(store, name) == {"champion": winner, "previous_champion": "1", "challenger": loser}
        found = standing(name, "champion")
        assert [entry.version for entry in found.line("champion")] == ["1", winner] and not found.unwritten
        assert not [key for key in store.get_registered_model(name).tags if key.startswith(CLAIM)]


def test_a_promoter_that_was_overtaken_ends_with_its_own_exit_status(store, register, monkeypatch, capsys):
    from edgequant_registry import promotion

    for _ in range(2):
        register()
    judged = promotion.promote_version

    def late(judgement):
        store.set_registered_model_alias(NAME, "champion", "1")
        return judged(judgement)

    monkeypatch.setattr(promotion, "promote_version", late)
    assert edgequant("promote") == 3
    said = " ".join(capsys.readouterr().out.split())
    assert "version 1 became champion" in said and "while version 2 was compared with nobody" in said
    assert aliases(store) == {"champion": "1", "challenger": "2"}
    run = tracking.find_runs(workflow="promote")[0]
    assert (run.status, run.tags["edgequant.promotion"]) == ("FINISHED", "overtaken")


def test_code_that_another_promotion_files_at_the_same_moment_is_filed_all_the_same(tmp_path, monkeypatch):
    (tmp_path / "model" / "code" / "deep").mkdir(parents=True)
    (tmp_path / "model" / "code" / "deep" / "a.py").write_text("a = 1")
    mkdir = os.mkdir

    def second(path, *rest):
        mkdir(path, *rest)
        raise FileExistsError(path)

    (tmp_path / "filed").mkdir()
    with monkeypatch.context() as race:
        race.setattr(os, "mkdir", second)
        packaging._file(tmp_path / "model", str(tmp_path / "filed"))
    assert (tmp_path / "filed" / "code" / "deep" / "a.py").read_text() == "a = 1"
