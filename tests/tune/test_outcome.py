"""What a search comes to: the front on test data beside the untuned recipe, and a recipe that gives it again."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from search_specs import search_spec

from edgequant.evaluation.settings import EvaluationSettings
from edgequant.quantization.qat.settings import QatSettings
from edgequant.training.settings import TrainingSettings
from edgequant.workflows.settings import RunSettings
from edgequant_tune.objectives import read_objectives
from edgequant_tune.outcome.front import measured_trials
from edgequant_tune.trial_records import TrialRecord, pareto_front, prune_dominated, ranked
from edgequant_tune.workflow import tune

SHORT = TrainingSettings(steps=4, batch_size=2, sequence_length=64, learning_rate=1e-3)
QUICK = EvaluationSettings(tasks=("domain_perplexity",), limit=100, window=64, bootstrap_resamples=50)
OBJECTIVES = ("domain/perplexity", "size/checkpoint_gb")


@pytest.fixture(scope="module")
def searched(tmp_path_factory, ray_here):
    """A search of three trials, with its run's artifacts."""
    from edgequant import tracking

    patch = pytest.MonkeyPatch()
    patch.chdir(folder := tmp_path_factory.mktemp("search"))
    patch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{folder}/mlflow.db")
    space = {"weight_bits": {"choice": [3, 4]}, "learning_rate": {"log_uniform": [1e-4, 1e-2]}}
    result = tune(
        model="tiny", space=space, objectives=OBJECTIVES, trials=2,
        training=SHORT, qat=QatSettings(init_from="rtn"), evaluation=QUICK, run=RunSettings(device="cpu"),
    )  # fmt: skip
    yield result, tracking.client(), folder
    patch.undo()


def artifact(searched, name: str) -> str:
    result, client, _ = searched
    return Path(client.download_artifacts(result.run_id, name)).read_text()


@pytest.mark.long
def test_the_front_is_measured_on_test_data_with_intervals_beside_recipe_and_baseline(searched):
    table = json.loads(artifact(searched, "front.json"))
    rows = [dict(zip(table["columns"], row, strict=True)) for row in table["data"]]
    variants = [row["variant"] for row in rows]
    assert variants[0] == "baseline" and "tuned" in variants
    assert "recipe" in variants or rows[variants.index("tuned")]["trial"] == 1
    assert {row["scheme"] for row in rows} >= {"none", "w3a8-g32+emb4"}, "small and good are both on the front"
    for row in rows:
        assert row["domain/perplexity_ci_low"] < row["domain/perplexity"] < row["domain/perplexity_ci_high"]
    tuned = rows[variants.index("tuned")]
    assert tuned["domain/perplexity"] != tuned["as a trial: domain/perplexity"]


@pytest.mark.long
def test_the_recipe_of_the_winner_gives_the_same_numbers_again(searched, monkeypatch, tmp_path):
    """`edgequant qat --config recipe.yaml`, read as the command line reads it."""
    from edgequant.__main__ import main

    result, client, _ = searched
    monkeypatch.chdir(tmp_path)
    (tmp_path / "recipe.yaml").write_text(artifact(searched, "recipe.yaml"))
    assert yaml.safe_load(artifact(searched, "recipe.yaml"))["training"]["steps"] == 4
    main(["qat", "--config", "recipe.yaml", "--register", "false"])
    (experiment,) = [one for one in client.search_experiments() if one.name == "edgequant"]
    runs = client.search_runs([experiment.experiment_id], "tags.`edgequant.variant` = 'qat'")
    again = runs[0].data.metrics
    names = [name for name in again if name.startswith(("domain", "size/bits")) and name in result.metrics]
    assert {"domain/perplexity", "size/bits_per_parameter"} <= {*names}
    assert {name: again[name] for name in names} == {name: result.metrics[name] for name in names}


def test_the_recipe_of_a_fine_tuning_replays_nothing_as_its_trials_did():
    from edgequant_tune.outcome.recipe import recipe

    assert recipe(search_spec(method="finetune"), record(1, 9.0, 2.0))["replay"] is None
    assert "replay" not in recipe(search_spec(objectives=OBJECTIVES), record(1, 9.0, 2.0))


def test_a_search_that_chose_by_halves_says_so():
    from edgequant.corpora.disaster.corpus import boolean_questions
    from edgequant_tune.outcome.front import halved
    from edgequant_tune.scoring.selection import selection

    rows = boolean_questions()
    chosen = selection({"domain_boolean": rows}, ("domain_qa",), "disaster", None)
    assert "domain_boolean: trials were scored on one half of what is reported" in halved(chosen)[0]
    assert halved(selection({"domain_boolean": rows}, ("domain_perplexity",), "disaster", None)) == []


def test_a_version_of_a_search_by_halves_is_measured_again_on_its_half():
    from edgequant.corpora.disaster.corpus import boolean_questions
    from edgequant.evaluation.evidence_file import Conditions, rows_digest
    from edgequant.evaluation.tasks.halves import halves
    from edgequant_registry.evidence.remeasuring import _rows

    half = halves(boolean_questions()).report
    given = {"tasks": ("domain_qa",), "protocol": {}}
    assert _rows("domain_boolean", Conditions(**given, data={"domain_boolean": rows_digest(half)}), None) == half
    other = Conditions(**given, data={"domain_boolean": rows_digest(half[1:])})
    assert "is not what was measured on" in _rows("domain_boolean", other, None)


def test_so_is_one_of_a_search_by_halves_of_wikitexts_articles(tmp_path, monkeypatch):
    from edgequant.evaluation.evidence_file import Conditions, rows_digest
    from edgequant_registry.evidence import remeasuring
    from edgequant_tune.scoring.selection import parts_of

    lines = [line for at in range(20) for line in ("", f" = Article {at} = \n", "", f" of {at} \n")]
    monkeypatch.setattr(remeasuring, "rows_of", lambda *_: lines)
    reported = parts_of("wikitext2", lines, "wikitext-2", str(tmp_path)).report
    filed = Conditions(tasks=("perplexity",), protocol={}, data={"wikitext2": rows_digest(reported)})
    assert len(reported) < len(lines) and remeasuring._rows("wikitext2", filed, None) == reported


def record(number: int, perplexity: float, size: float, **values: object) -> TrialRecord:
    metrics = {"domain/perplexity": perplexity, "size/checkpoint_gb": size}
    return TrialRecord(
        number=number, id=str(number), values=dict(values), status="finished", metrics=metrics, checkpoint=f"/{number}"
    )


def test_seeds_are_averaged_where_configurations_are_ranked_and_the_front_is_drawn():
    lucky = [record(2, 9.0, 1.0, rate=1, seed=0), record(3, 13.0, 1.0, rate=1, seed=1)]
    steady = [record(4, 10.0, 1.0, rate=2, seed=0), record(5, 10.2, 1.0, rate=2, seed=1)]
    objectives = read_objectives(["domain/perplexity"])
    assert [one.number for one in ranked([*lucky, *steady], objectives)] == [4, 5, 2, 3]
    assert [one.number for one in pareto_front([*lucky, *steady], objectives)] == [4, 5]


def test_the_recipes_checkpoint_stays_and_is_measured_beside_the_winner_and_the_front(tmp_path):
    records = [record(1, 12.0, 2.0, learning_rate=1e-3), record(2, 9.0, 2.0), record(3, 10.0, 1.0), record(4, 9.5, 3.0)]
    spec = search_spec(objectives=OBJECTIVES)
    for one in records:
        (tmp_path / one.id).mkdir()
    prune_dominated(tmp_path, records, spec.objectives)
    assert {folder.name for folder in tmp_path.iterdir()} == {"1", "2", "3"}
    kept = [TrialRecord(**{**vars(one), "checkpoint": str(tmp_path / one.id)}) for one in records]
    found = measured_trials(spec, kept, kept[1])
    assert {variant: one.number for variant, one in found.items()} == {"recipe": 1, "tuned": 2, "trial 3": 3}
    assert "recipe" not in measured_trials(search_spec(space={"learning_rate": {"uniform": [0.1, 0.2]}}), kept, kept[1])
