"""What trials of one node share: made by the first, found by the others, and with the same outcome as each its own."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from search_specs import search_spec

from edgequant import models
from edgequant.evaluation.settings import EvaluationSettings
from edgequant.models.digest import stored_digest
from edgequant.quantization.qat.settings import QatSettings
from edgequant.training import shared_parts
from edgequant.training.settings import TrainingSettings
from edgequant.training.shared_parts import UNSHARED, SharedParts, shared_digest, shared_model
from edgequant_tune.cluster.node_folder import delete_on_nodes

QUICK = EvaluationSettings(tasks=("domain_perplexity",), limit=20, window=256, bootstrap_resamples=20)
TAUGHT = TrainingSettings(
    steps=2, batch_size=2, sequence_length=64, learning_rate=2e-3, distillation_weight=1.0, precision="float32"
)


PARTS = ("model", "tokens", "control", "start")


@pytest.mark.long
@pytest.mark.parametrize("method", ["auto", "mse_clip"])
def test_model_tokens_start_and_control_are_made_once_and_change_no_outcome(tmp_path, monkeypatch, method):
    from edgequant.workflows.steps import held_out, qat_experiment, qat_variants
    from edgequant.workflows.steps.qat_experiment import QatExperiment
    from edgequant_tune.train_candidate import qat_candidate

    made: list[str] = []

    def counted(name, function):
        return lambda *args, **options: made.append(name) or function(*args, **options)

    monkeypatch.setattr(shared_parts.models, "load", counted("model", shared_parts.models.load))
    monkeypatch.setattr(held_out, "split_sequences", counted("tokens", held_out.split_sequences))
    monkeypatch.setattr(QatExperiment, "_train_control", counted("control", QatExperiment._train_control))
    one_way = qat_experiment if method == "auto" else qat_variants  # tried beside others, or the only one
    rounds = "choose_method" if method == "auto" else "choose_integers"
    monkeypatch.setattr(one_way, rounds, counted("start", getattr(one_way, rounds)))
    space = {"distillation_weight": {"uniform": [0.5, 1.0]}}
    spec = search_spec(
        space=space, training=TAUGHT, evaluation=QUICK, qat=QatSettings(init_from=method, distill_from="control")
    )
    trial = spec.on({"CPU": 1.0}, "run").trial
    assert trial.own == ()

    def outcome(name, node):
        made.clear()
        found = qat_candidate(replace(trial, node_folder=node), tmp_path / name, lambda *_: None)
        return found.metrics["domain/perplexity"], {part: made.count(part) for part in PARTS}

    alone, _ = outcome("alone", None)
    first, by_first = outcome("first", tmp_path / "node")
    second, by_second = outcome("second", tmp_path / "node")
    assert alone == first == second
    assert [by_first[part] for part in PARTS[1:]] == [1, 1, 1] and [by_second[part] for part in PARTS[1:]] == [0, 0, 0]
    assert by_second["model"] == by_first["model"] - 1  # all but the base: the checkpoint is loaded again by each


def test_the_models_weights_are_loaded_and_their_digest_is_computed_once_wherever_an_address_was_fetched_to(
    tmp_path, monkeypatch
):
    made: list[str] = []

    def counted(name, function):
        return lambda *args, **options: made.append(name) or function(*args, **options)

    tiny = models.load("tiny", device="cpu")
    monkeypatch.setattr(shared_parts.models, "load", counted("model", lambda *_, **__: tiny))
    monkeypatch.setattr(shared_parts, "stored_digest", counted("digest", stored_digest))
    place: dict[str, Any] = {"seed": 0, "device": "cpu"}
    shared, digests = SharedParts(tmp_path / "node"), []
    for folder in ("of one process", "of another"):
        source = models.ModelSource("folder", "0123abcd-merged", str(tmp_path / folder), version_of="tiny")
        loaded = shared_model(shared, source, **place).model
        state = torch.get_rng_state()
        digests.append(shared_digest(shared, source, loaded, **place))
        assert torch.equal(state, torch.get_rng_state())
    assert made == ["model", "digest"] and digests == [stored_digest(loaded)] * 2
    shared_digest(UNSHARED, source, loaded, **place)
    shared_digest(SharedParts(tmp_path / "of another search"), source, loaded, **place)
    assert made.count("digest") == 3


def own(**options) -> tuple[str, ...]:
    return search_spec(**options).on({"CPU": 1.0}, "run").trial.own


def test_what_trials_make_differently_is_each_ones_own():
    start, rates = ("ptq-choice", "rounded"), {"learning_rate": {"uniform": [1e-4, 1e-3]}}
    schemes = {"scheme": {"choice": ["w8", "w4-g32"]}}
    assert own(space=rates) == ("control",)
    assert own(space=schemes, trials=4) == ()
    assert own(space=schemes, trials=3) == start  # hardly two would begin alike
    assert own(space=rates | {"sparsity": {"uniform": [0.0, 0.5]}}, trials=40) == ("control", *start)
    assert own(space={"num_calibration_samples": {"integers": [16, 24]}}, trials=90) == start  # nine are too many
    assert own(space=rates | {"seed": {"replicates": 3}}, trials=9) == ("control",)
    assert own(space=schemes | {"seed": {"replicates": 3}}, trials=9) == ("control", *start)


def test_what_was_shared_is_gone_behind_the_search(tmp_path, ray_here):
    (tmp_path / "node").mkdir()
    delete_on_nodes(tmp_path / "node")
    assert not (tmp_path / "node").exists()
