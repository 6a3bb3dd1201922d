import pickle
from dataclasses import replace
from pathlib import Path

import fake_candidates
import pytest
from search_specs import search_spec

from edgequant import models, tracking
from edgequant.errors import UserError
from edgequant.models.origin import origin
from edgequant.quantization.checkpoint import ensure_manifest
from edgequant.training.settings import TrainingSettings
from edgequant.workflows.settings import RunSettings
from edgequant_tune.outcome.range_ends import at_the_ends
from edgequant_tune.train_candidate import finetune_candidate
from edgequant_tune.trial_records import TrialRecord

SHORT = TrainingSettings(steps=8, learning_rate=1e-3)


def test_more_than_the_machine_has_is_refused_not_waited_for():
    spec = search_spec(cpus_per_trial=64.0, gpus_per_trial=1.0, run=RunSettings())
    with pytest.raises(UserError, match="cpus_per_trial must be at most the 2 CPUs that there are, got 64"):
        spec.on({"CPU": 2.0}, "run")
    with pytest.raises(UserError, match="device cuda"):
        search_spec(gpus_per_trial=1.0, run=RunSettings(device="cuda")).on({"CPU": 64.0}, "run")
    with pytest.raises(UserError, match="gpus_per_trial must be at most the 1 GPUs that there are, got 2"):
        search_spec(gpus_per_trial=2.0, run=RunSettings()).on({"CPU": 64.0, "GPU": 1.0}, "run")
    assert spec.on({"CPU": 64.0}, "run").gpus_per_trial == 0
    assert spec.on({"CPU": 64.0, "GPU": 1.0}, "run").trial.run.device == "cuda"


def test_a_trial_has_to_fit_one_node_not_all_of_them_together():
    two = [{"CPU": 1.0, "memory": 4e9}, {"CPU": 1.0, "GPU": 1.0, "memory": 8e9}]
    with pytest.raises(UserError, match=r"at most the 1 CPUs of one node \(2 nodes have 2 together\), got 2"):
        search_spec(cpus_per_trial=2.0).on(two, "run")
    apart = [{"CPU": 4.0}, {"CPU": 1.0, "GPU": 1.0}]
    with pytest.raises(UserError, match="4 CPUs and 1 GPUs of one node, which none of 2 has"):
        search_spec(cpus_per_trial=4.0, gpus_per_trial=1.0, run=RunSettings()).on(apart, "run")
    assert search_spec(gpus_per_trial=1.0, run=RunSettings()).on(two, "run").gpus_per_trial == 1.0


def test_memory_is_estimated_from_the_model_and_the_largest_batch_and_asked_of_ray(capsys):
    node = {"CPU": 2.0, "memory": 64e9}
    small, large = (
        search_spec(model="smollm2-135m", training=replace(SHORT, batch_size=size)).on(node, "run").memory
        for size in (1, 8)
    )
    searched = search_spec(
        model="smollm2-135m", space={"batch_size": {"choice": [1, 8]}},
        training=replace(SHORT, batch_size=1),
    ).on(node, "run").memory  # fmt: skip
    weights = 135e6 * 4
    assert 5 * weights < small < large == searched < 64e9
    assert search_spec(memory_per_trial_gb=3.0).on(node, "run").memory == 3e9
    with pytest.raises(UserError, match=r"memory_per_trial_gb must be at most the 64.0 GB that Ray gives.*got 65"):
        search_spec(memory_per_trial_gb=65.0).on(node, "run")
    tight = {"CPU": 2.0, "memory": 2e9}
    assert search_spec(model="smollm2-135m").on(tight, "run").memory == 2e9  # an estimate refuses nothing
    assert "trials run one at a time" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("option", "wrong", "expected"),
    [
        ("trials", 0, "at least 1"),
        ("concurrent_trials", 0, "at least 1, or none"),
        ("time_budget_minutes", 0.0, "above 0, or none"),
        ("cpus_per_trial", 0.0, "above 0"),
        ("gpus_per_trial", -0.5, "0 or more"),
        ("gpus_per_trial", 1.5, "a whole number, or a share below 1"),
        ("memory_per_trial_gb", 0.0, "above 0, or none"),
        ("run", RunSettings(device="cuda:1"), "device must be one of auto, cpu, cuda, got 'cuda:1'"),
        ("scheme", "w44", "w44"),
        ("dataset", "no-such-text", "disaster"),
        ("objectives", ("max:my/metric",), "domain/..."),
    ],
)
def test_an_impossible_option_is_refused_by_its_name_when_the_spec_is_made(option, wrong, expected):
    with pytest.raises(UserError) as refused:
        search_spec(**{option: wrong})
    said = str(refused.value)
    assert expected in said
    if option == "run":
        return
    assert option.rstrip("s") in said
    assert str(wrong[0] if isinstance(wrong, tuple) else wrong).removeprefix("max:") in said


def test_a_spec_is_the_same_after_pickling_and_its_function_goes_by_reference():
    from edgequant_tune.train_candidate import qat_candidate

    spec = search_spec()
    assert pickle.loads(pickle.dumps(spec)) == spec
    assert pickle.loads(pickle.dumps(spec.trial)).train is qat_candidate
    assert pickle.loads(pickle.dumps(search_spec(fake_candidates.bowl))).trial.train is fake_candidates.bowl


def test_workers_in_other_folders_get_absolute_paths(tmp_path, monkeypatch, tiny_folder):
    (tmp_path / "texts").mkdir()
    (tmp_path / "model").symlink_to(tiny_folder)
    monkeypatch.chdir(tmp_path)
    where = {"model": "model", "dataset": "disaster:0.5,texts:0.5", "run": RunSettings(data_dir="data", device="cpu")}
    spec = search_spec(**where, output="out").on({"CPU": 1.0}, "run")
    assert spec.trial.model == str(tiny_folder.resolve())
    assert spec.trial.dataset == f"disaster:0.5,{tmp_path}/texts:0.5"
    assert (spec.trial.run.data_dir, spec.trial.folder) == (f"{tmp_path}/data", Path(tmp_path) / "out" / "run")


def test_trials_are_measured_on_what_the_objectives_need_and_the_winner_on_what_was_asked():
    spec = search_spec(objectives=["boolq/accuracy", "size/checkpoint_gb"])
    assert set(spec.trial.evaluation.tasks) == {"domain_perplexity", "boolq"}
    assert spec.evaluation.tasks != spec.trial.evaluation.tasks


def test_a_misspelt_metric_is_refused_before_ray_starts():
    with pytest.raises(
        UserError, match=r"objective 'domain/perplexty' is not measured; did you mean domain/perplexity\?"
    ):
        search_spec(objectives=["min:domain/perplexty"])
    with pytest.raises(UserError, match="constraint 'size/reduction_vs_fp17' is not measured"):
        search_spec(constraints=["size/reduction_vs_fp17>=70"])
    assert search_spec(objectives=["min:train/loss", "min:domain/perplexity_ci_high"])


def test_the_policys_absolute_gates_are_constraints_unless_one_is_given_for_the_metric(tmp_path):
    def bounds(**options):
        return [str(one) for one in search_spec(**options).trial.constraints]

    gates = ["size/reduction_vs_fp16>=70", "deploy/reduction_vs_fp16>=65", "parity/argmax_agreement>=0.95"]
    assert bounds(policy="default") == gates
    own = "size/reduction_vs_fp16>=50"
    assert bounds(policy="default", constraints=[own]) == [own, *gates[1:]]
    assert bounds(policy=None) == bounds(policy="default", method="finetune", space="finetune") == []
    policy = tmp_path / "policy.yaml"
    policy.write_text(
        "gates:\n- {metric: size/checkpoint_gb, max: 0.1}\n- {metric: size/resident_gb, max: 4, severity: warn}\n"
        "- {metric: domain/perplexity, max_loss_percent: 10, against: baseline}\n- {metric: boolq/accuracy, min: 60}\n"
    )
    assert bounds(policy=str(policy)) == ["size/checkpoint_gb<=0.1"], "others are no trial's, or no reason to refuse"


@pytest.mark.parametrize(
    ("space", "said"),
    [
        ({"lora_rank": {"choice": [0, 8]}, "trainable": {"choice": ["all", "scales"]}},
         "lora_rank 8, trainable scales, which do not go together"),
        ({"sparsity": {"choice": [0.0, 0.3]}, "sparsity_pattern": {"choice": ["unstructured", "2:4"]},
          "steps": {"integers": [2, 4]}}, "qat.sparsity must be 0.5 with sparsity_pattern 2:4"),
        ({"weight_bits": {"choice": [3, 4]}, "group_size": {"choice": [32, 96]}}, "group_size 96 of scheme w"),
        ({"weight_bits": {"integers": [4, 9]}}, "weight_bits must be from 2 to 8, got 9"),
        ({"distill_from": {"choice": ["base", "control"]}, "distillation_weight": {"uniform": [0.0, 1.0]}},
         "distill_from"),
    ],
)  # fmt: skip
def test_settings_that_do_not_go_together_are_refused_by_their_names(space, said):
    with pytest.raises(UserError) as refused:
        search_spec(space=space)
    assert said in str(refused.value)


def test_conditions_keep_apart_what_does_not_go_together():
    space = {
        "trainable": {"choice": ["auto", "scales"]},
        "lora_rank": {"choice": [0, 8], "when": {"trainable": "auto"}},
        "sparsity": {"choice": [0.0, 0.5]},
        "sparsity_pattern": {"choice": ["unstructured", "2:4"], "when": {"sparsity": 0.5, "trainable": "auto"}},
    }
    with pytest.raises(UserError, match=r"sparsity 0\.5, which do not go together"):
        search_spec(space=space)
    space["sparsity"]["when"] = {"trainable": "auto"}
    assert search_spec(space=space).recipe["trainable"] == "auto"


def test_a_quantised_base_is_searched_in_fine_tuning_and_reaches_the_trial():
    space = {"base": {"choice": ["float", "bnb-nf4"]}, "rank": {"choice": [4, 8]}}
    spec = search_spec(method="finetune", space=space)
    assert spec.trial.with_values({"base": "bnb-nf4"}).base == "bnb-nf4" and spec.trial.base == "float"
    with pytest.raises(UserError, match="'bnb-nf3'"):
        search_spec(method="finetune", space={"base": {"choice": ["float", "bnb-nf3"]}})


def test_slots_are_what_the_resources_hold_and_no_trial_is_asked_for_ahead():
    assert search_spec().on({"CPU": 3.5}, "run").concurrent_trials == 3
    assert search_spec(concurrent_trials=2).on({"CPU": 64.0}, "run").concurrent_trials == 2
    assert search_spec().on({"CPU": 64.0}, "run").concurrent_trials == 5, "no more than trials"
    shared = search_spec(gpus_per_trial=0.25, run=RunSettings()).on({"CPU": 64.0, "GPU": 1.0}, "run")
    assert shared.concurrent_trials == 4


@pytest.mark.parametrize(
    ("space", "values", "said"),
    [
        ({"learning_rate": {"log_uniform": [1e-5, 1e-3]}}, {"learning_rate": 9.9e-4},
         "learning_rate 0.00099 of the best trial is at the upper end"),
        ({"learning_rate": {"log_uniform": [1e-5, 1e-3]}}, {"learning_rate": 1e-4}, ""),
        ({"distillation_weight": {"uniform": [0.0, 1.0]}}, {"distillation_weight": 1.0}, ""),
        ({"distillation_weight": {"uniform": [0.2, 0.8]}}, {"distillation_weight": 0.21}, "lower end"),
        ({"batch_size": {"choice": [2, 4, 8]}}, {"batch_size": 8}, "upper end"),
        ({"weight_bits": {"integers": [2, 8]}}, {"weight_bits": 8}, ""),
        ({"observer": {"choice": ["minmax", "mse", "percentile"]}}, {"observer": "minmax"}, ""),
    ],
)  # fmt: skip
def test_an_optimum_at_the_end_of_a_range_that_could_be_wider_is_told(space, values, said):
    spec = search_spec(space=space)
    best = TrialRecord(number=1, id="a", values=values, status="finished")
    assert said in "".join(at_the_ends(spec, best)) and bool(at_the_ends(spec, best)) == bool(said)


def test_the_first_trial_takes_the_recipe_only_where_the_search_could_come_to_it():
    assert search_spec().recipe == {"learning_rate": 1e-3}
    parts = {
        "weight_bits": {"integers": [2, 8]},
        "group_size": {"choice": [32, 64]},
        "embedding_bits": {"choice": [4, 16]},
    }
    assert search_spec(space=parts).recipe == {"weight_bits": 4, "group_size": 32, "embedding_bits": 4}
    assert search_spec(space=parts, scheme="w4a8-g128+emb4").recipe is None
    assert search_spec(space={"learning_rate": {"log_uniform": [1e-6, 1e-5]}}).recipe is None


@pytest.mark.parametrize(
    "address", ["runs:/{run}/checkpoint", "models:/edgequant-tiny/1", "models:/edgequant-tiny@best"]
)
def test_what_comes_of_a_registered_version_or_a_runs_model_goes_by_that_models_name(store, tmp_path, address):
    folder = merged("a folder", tmp_path)
    with tracking.workflow_run("finetune", {}) as run:
        version = tracking.register_checkpoint(folder, "edgequant-tiny", tags={})
    store.set_registered_model_alias("edgequant-tiny", "best", version)
    assert search_spec(model=address.format(run=run.id)).model_name == "tiny"
    assert search_spec(model=str(folder)).model_name == "tiny"
    assert origin(address.format(run=run.id)).base_model == "tiny"


def test_a_finetune_trial_of_a_runs_model_writes_a_model_of_that_name(store, tmp_path, monkeypatch):
    class Asked(Exception):
        pass

    def way_of(source, *_, **__):
        raise Asked(source.family)

    with tracking.workflow_run("finetune", {}) as run:
        tracking.log_folder(merged("a folder", tmp_path), "merged")
    spec = search_spec(model=f"runs:/{run.id}/merged", method="finetune")
    monkeypatch.setattr("edgequant.workflows.adaptation.ways.way_of", way_of)
    with pytest.raises(Asked, match=r"^tiny$"):
        finetune_candidate(spec.trial, tmp_path / "trial", lambda *_: None)


def merged(name: str, place: Path) -> Path:
    """A floating-point model of ours, as finetune merges it, whose config.json says which model it was made from."""
    loaded = models.load("tiny", device="cpu")
    loaded.model.config.update({"edgequant_base": "tiny"})
    loaded.model.save_pretrained(place / name)
    loaded.tokenizer.save_pretrained(place / name)
    ensure_manifest(place / name)
    return place / name
