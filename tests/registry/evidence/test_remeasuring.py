"""Before an alias moves, figures are measured again; those that are not found again fail their gates."""

from __future__ import annotations

import json
import math
import shutil
import subprocess
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from edgequant.evaluation.evidence_file import FILE, Evidence, Scores
from edgequant.files import sha256_of
from edgequant.models.manifest import list_file
from edgequant_registry.evidence import remeasure
from edgequant_registry.evidence.remeasuring import main, remeasured
from edgequant_registry.workflow import PromotionRefusedError, promote

NAME = "edgequant-tiny"


@pytest.fixture
def policy(store, tmp_path) -> str:
    """One that any figures would pass."""
    gates = "gates: [{metric: domain/perplexity, max: 1.0e+6}, {metric: size/checkpoint_gb, max: 1}]"
    (tmp_path / "policy.yaml").write_text(gates)
    return "policy.yaml"


@pytest.fixture
def found_of(measured, checkpoint, tmp_path):
    """What is found again of a checkpoint with such evidence, in this process; by figures."""

    def found(*tasks, **changed):
        given = measured | changed
        if tasks:
            given["conditions"] = replace(given["conditions"], tasks=tasks)
        names = {"model": "tiny", "scheme": "w4a8-g32+emb4", "variant": "ptq", "run": "r"}
        folder = shutil.copytree(checkpoint, tmp_path / "version")
        (folder / FILE).write_text(Evidence(**names, files={}, settings={}, **given).to_json())
        list_file(folder, FILE, sha256_of(folder / FILE))
        return {finding.figures: finding for finding in remeasured(folder, None)}

    return found


@pytest.fixture
def in_this_process(monkeypatch, fresh_process):
    """What a fresh process would find, without the seconds that it takes to start."""

    def run(_module, asked):
        found = [asdict(each) for each in remeasured(Path(asked["folder"]), asked["data_dir"])]
        return subprocess.CompletedProcess([], 0, json.dumps(found), "")

    monkeypatch.setattr(remeasure, "run_alone", run)


def changed(scores: Scores, table: str, **columns) -> Scores:
    rows = [row | {name: change(row[name]) for name, change in columns.items()} for row in scores.items[table]]
    return Scores(scores.metrics, {**scores.items, table: rows})


def test_an_honest_version_is_measured_again_in_a_fresh_process(store, register, measured, fresh_process, policy):
    register(**measured)
    promote(policy=policy)
    version = store.get_model_version_by_alias(NAME, "champion")
    told = version.tags["edgequant.remeasured"]
    assert "size as filed" in told and "domain/perplexity of 1 of the same items: moved by" in told
    files = {file.path for file in store.list_artifacts(version.tags["edgequant.promoted_by"])}
    assert "remeasured.json" in files


@pytest.mark.long
def test_figures_of_another_model_are_not_found_again_and_their_gates_fail(
    store, register, measured, in_this_process, policy, capsys
):
    """What was measured on the model in floating point, filed with the quantised checkpoint: every hash is in order."""
    register(**(measured | {"measured": measured["baseline"]}))
    with pytest.raises(PromotionRefusedError):
        promote(policy=policy)
    told = " ".join(capsys.readouterr().out.split())
    assert "FAILED size/checkpoint_gb" in told and "not reproduced: size/checkpoint_gb is" in told
    version = store.get_model_version(NAME, "1")
    assert version.tags["edgequant.remeasured"].startswith("not reproduced: size/")
    assert store.get_registered_model(NAME).aliases == {}


def test_what_was_not_measured_again_says_so_on_the_version(store, register, measured, fresh_process, policy):
    register(**(measured | {"measured": measured["baseline"]}))
    promote(policy=policy, remeasure=False)
    version = store.get_model_version_by_alias(NAME, "champion")
    assert version.tags["edgequant.remeasured"] == "no: --remeasure false"


def test_every_figure_of_an_honest_checkpoint_is_found_again(found_of):
    found = found_of()
    assert {name for name, each in found.items() if each.holds} == {"size/", "domain/", "domain_qa/", "guard/"}, found
    assert "guard/perplexity of 4 of the same items" in found["guard/"].reason


@pytest.mark.parametrize(
    ("whose", "table", "columns", "task"),
    [
        ("measured", "guard", {"nats": lambda value: 0.9 * value}, "guard"),
        ("measured", "guard", {"tokens": lambda value: value + 1}, "guard"),
        ("measured", "domain_boolean", {"correct": lambda value: 1 - value}, "domain_qa"),
        ("baseline", "guard", {"nats": lambda value: 1.1 * value}, "guard"),
    ],
)
def test_a_figure_that_its_own_items_contradict_is_not_found_again(found_of, measured, whose, table, columns, task):
    finding = found_of(task, **{whose: changed(measured[whose], table, **columns)})[f"{task}/"]
    assert not finding.holds and " by its items" in finding.reason
    assert ("the baseline's" in finding.reason) is (whose == "baseline")


def test_items_that_score_otherwise_are_seen_where_the_figure_is_that_of_the_items(found_of, measured):
    scores = measured["measured"]
    turned = [row | {"correct": 1 - row["correct"]} for row in scores.items["domain_boolean"]]
    value = 100 * sum(row["correct"] for row in turned) / len(turned)
    forged = Scores({**scores.metrics, "domain_qa/boolean_accuracy": value}, {**scores.items, "domain_boolean": turned})
    finding = found_of("domain_qa", measured=forged)["domain_qa/"]
    assert not finding.holds and "16 scored otherwise (at most 3)" in finding.reason


@pytest.mark.parametrize(("factor", "holds"), [(1.0001, True), (1.03, False)])
def test_a_perplexity_that_moved_by_more_than_numerics_do_is_not_found_again(found_of, measured, factor, holds):
    scores = measured["measured"]
    rows = [row | {"nats": row["nats"] + row["tokens"] * math.log(factor)} for row in scores.items["guard"]]
    metrics = {**scores.metrics, "guard/perplexity": factor * scores.metrics["guard/perplexity"]}
    finding = found_of("guard", measured=Scores(metrics, {**scores.items, "guard": rows}))["guard/"]
    assert finding.holds is holds, finding


def test_other_data_fail_the_figures_that_rest_on_them(found_of, measured):
    conditions = measured["conditions"]
    other = replace(conditions, data={**conditions.data, "domain": "0" * 64})
    finding = found_of("domain_perplexity", conditions=other)["domain/"]
    assert not finding.holds and "is not what was measured on; pass --data_dir DATA" in finding.reason


def test_data_that_are_gone_fail_the_figures_that_rest_on_them(found_of, measured):
    scores, conditions = measured["measured"], measured["conditions"]
    boolq = Scores({**scores.metrics, "boolq/accuracy": 60.0}, scores.items)
    gone = replace(conditions, data={**conditions.data, "boolq": "0" * 64}, data_dir="/no/such/folder")
    finding = found_of("boolq", measured=boolq, conditions=gone)["boolq/"]
    assert not finding.holds and "boolq cannot be measured on again: it was not found in" in finding.reason


def test_figures_filed_without_their_conditions_cannot_be_measured_again(found_of):
    (finding,) = found_of(conditions=None).values()
    assert not finding.holds and finding.figures == "" and "nobody filed how it was measured" in finding.reason


def test_a_checkpoint_that_a_fresh_process_cannot_load_fails_every_gate(
    store, register, fresh_process, policy, monkeypatch, capsys
):
    register({"domain/perplexity": 25.0, "size/checkpoint_gb": 0.1})
    ended = subprocess.CompletedProcess([], 1, "", "Traceback\nKeyError: 'no_such_architecture'\n")
    monkeypatch.setattr(remeasure, "run_alone", lambda *_: ended)
    with pytest.raises(PromotionRefusedError):
        promote(policy=policy)
    assert "2 of 2 gates failed" in " ".join(capsys.readouterr().out.split())
    assert "KeyError: 'no_such_architecture'" in store.get_model_version(NAME, "1").tags["edgequant.remeasured"]


def test_the_fresh_process_ends_with_one_line_where_nothing_can_be_measured(tmp_path):
    (tmp_path / FILE).write_text("{}")
    with pytest.raises(SystemExit, match="is not evidence of edgequant"):
        main({"folder": str(tmp_path), "data_dir": None})
