"""What a trial trains: QAT as `qat` does it, measured on validation data, without a tracking store."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import mlflow
import pytest
from search_specs import search_spec

from edgequant.evaluation.settings import EvaluationSettings
from edgequant.quantization import checkpoint
from edgequant.quantization.qat.settings import QatSettings
from edgequant.training.settings import TrainingSettings
from edgequant.workflows.settings import RunSettings
from edgequant_tune.train_candidate import Candidate, qat_candidate

SHORT = TrainingSettings(steps=6, batch_size=2, sequence_length=64, learning_rate=2e-3, precision="float32")
QUICK = EvaluationSettings(tasks=("domain_perplexity",), limit=20, window=256, bootstrap_resamples=20)


def candidate_of(
    scheme: str, work_dir: Path, on_report: Any = lambda _step, _metrics: None, **options: Any
) -> Candidate:
    """A trial's training of `tiny`, with what these tests do not vary."""
    spec = search_spec(scheme=scheme, **({"training": SHORT, "evaluation": QUICK} | options))
    return qat_candidate(spec.trial, work_dir, on_report)


@pytest.mark.long
def test_a_candidate_is_measured_without_tracking(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    seen: list[tuple[int, dict[str, float]]] = []
    candidate = candidate_of("w8a8", tmp_path / "trial", lambda step, metrics: seen.append((step, metrics)))
    assert [step for step, _ in seen] == list(range(1, 7)) and "train/loss" in seen[0][1]
    assert candidate.checkpoint == tmp_path / "trial" / "checkpoint"
    assert {"domain/perplexity", "size/bits_per_parameter", "parity/max_logit_error"} <= set(candidate.metrics)
    assert checkpoint.open_checkpoint(candidate.checkpoint).scheme.name == "w8a8"
    assert not (tmp_path / "mlflow.db").exists()


@pytest.mark.long
def test_the_control_that_teaches_a_candidate_is_not_in_its_curve(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    seen: list[int] = []
    candidate_of(
        "w8a8", tmp_path / "trial", lambda step, _: seen.append(step),
        training=replace(SHORT, steps=2, distillation_weight=1.0), qat=QatSettings(distill_from="control"),
    )  # fmt: skip
    assert seen == [1, 2]


@pytest.mark.long
def test_the_same_seed_gives_the_same_candidate(tmp_path):
    found = [
        candidate_of(
            "w8a8-static", tmp_path / str(number), training=replace(SHORT, steps=2),
            run=RunSettings(device="cpu", seed=seed),
        )
        for number, seed in enumerate((5, 5, 6))
    ]  # fmt: skip
    assert mlflow.active_run() is None  # nothing was logged, so nothing was started
    perplexity = [candidate.metrics["domain/perplexity"] for candidate in found]
    assert perplexity[0] == perplexity[1] != perplexity[2]


def test_the_held_out_loss_is_reported_on_rungs_alone(tmp_path):
    seen: dict[int, bool] = {}
    spec = search_spec(scheme="w8", training=replace(SHORT, steps=3), evaluation=QUICK)
    trial = replace(spec.trial, rungs=(2,))
    qat_candidate(trial, tmp_path / "trial", lambda step, metrics: seen.update({step: "validation/loss" in metrics}))
    assert seen == {1: False, 2: True, 3: False}
