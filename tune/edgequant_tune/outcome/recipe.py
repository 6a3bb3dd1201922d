"""The winner as a recipe: `edgequant qat --config recipe.yaml` trains it again, to the same numbers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import yaml

from edgequant_tune.search_spec import SearchSpec
from edgequant_tune.trial_records import TrialRecord

FILE = "recipe.yaml"
OF_THE_RUN = ("resume", "experiment")  # of the run settings: no part of what is trained


def recipe(spec: SearchSpec, record: TrialRecord) -> dict[str, Any]:
    """A trial's settings as the method's workflow takes them."""
    trial = spec.trial.with_values(record.values | record.as_trained)
    quantized = spec.method == "qat"
    groups = ("training", "qat", "calibration") if quantized else ("training", "lora")
    run = {name: value for name, value in asdict(trial.run).items() if name not in OF_THE_RUN}
    kind = {"scheme": trial.scheme} if quantized else {"base": trial.base, "replay": None}
    settings = {name: asdict(getattr(trial, name)) for name in groups}
    evaluation = {"evaluation": asdict(spec.evaluation)}
    return _plain({"model": trial.model, **kind, "dataset": trial.dataset, **settings, **evaluation, **run})


def recipe_text(spec: SearchSpec, record: TrialRecord, run_id: str) -> str:
    """The same as YAML, headed by what it is and the command that runs it."""
    variant = VARIANT[spec.method]
    head = f"# {record.name} of search {run_id}, to be trained again to the same numbers (variant {variant}):\n"
    command = f"#   edgequant {spec.method} --config {FILE}\n"
    return head + command + yaml.safe_dump(recipe(spec, record), sort_keys=False)


VARIANT: Mapping[str, str] = {"qat": "qat", "finetune": "finetuned"}


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: _plain(one) for name, one in value.items()}
    return list(value) if isinstance(value, tuple) else value
