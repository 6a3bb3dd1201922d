import pickle
from pathlib import Path

import fake_candidates
import pytest
from search_specs import search_spec

from edgequant.errors import UserError
from edgequant.workflows.settings import RunSettings


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


@pytest.mark.parametrize(
    ("option", "wrong", "expected"),
    [
        ("trials", 0, "at least 1"),
        ("concurrent_trials", 0, "at least 1, or none"),
        ("time_budget_minutes", 0.0, "above 0, or none"),
        ("cpus_per_trial", 0.0, "above 0"),
        ("gpus_per_trial", -0.5, "0 or more"),
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


def test_the_first_trial_takes_the_recipe_only_where_the_search_could_come_to_it():
    assert search_spec().recipe == {"learning_rate": 1e-3}
    assert search_spec(space={"learning_rate": {"log_uniform": [1e-6, 1e-5]}}).recipe is None
