"""Registered versions as promotion sees them: which one is meant, its metrics, what it is compared with."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass

from mlflow.entities.model_registry import ModelVersion

from edgequant import tracking
from edgequant.errors import UserError
from edgequant.workflows.steps.register import BASELINE_TAG, PREFIX
from edgequant_registry.gates import Reference


@dataclass(frozen=True)
class Registered:
    """A version of a registered model, with its metrics as they were filed."""

    name: str
    version: str
    tags: Mapping[str, str]
    run_id: str | None

    @property
    def uri(self) -> str:
        return f"models:/{self.name}/{self.version}"

    @property
    def label(self) -> str:
        return f"{self.name} version {self.version}"

    @property
    def metrics(self) -> dict[str, float]:
        """Tags with a slash in their name and a number in their value."""
        return {
            key: number for key, value in self.tags.items() if "/" in key and (number := _number(value)) is not None
        }


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def find_version(model: str | None, version: str | None) -> Registered:
    """The version that is meant: the newest of the newest `edgequant-*` model, of the named model, or the named one.

    Args:
        model: registered name, or the short name of the model it was made from.
        version: its number; None takes the newest.

    Raises:
        UserError: nothing is registered under that name; says what is.
    """
    versions = _versions_of(_registered_name(model)) if model else _all_versions()
    wanted = [one for one in versions if version is None or str(one.version) == str(version)]
    if not wanted:
        there = ", ".join(f"{one.name}/{one.version}" for one in versions) or "none"
        raise UserError(f"version {version} of {model or 'any model'} not found; there are: {there}")
    return _registered(max(wanted, key=lambda one: (one.creation_timestamp, int(one.version))))


def _registered_name(model: str) -> str:
    """`tiny` and `edgequant-tiny` both mean `edgequant-tiny`, unless a model of the given name is registered itself."""
    if model.startswith("models:/"):
        raise UserError(f"model {model!r}: give the registered name alone, and --version for the version")
    names = _names()
    for name in (model, f"{PREFIX}{model}"):
        if name in names:
            return name
    known = ", ".join(sorted(name for name in names if name.startswith(PREFIX))) or "none"
    raise UserError(
        f"registered model {model!r} or {PREFIX}{model} not found in {tracking.shown_store()}; there are: {known}. "
        f"`edgequant qat --model {model.removeprefix(PREFIX)}` registers one"
    )


def _names() -> set[str]:
    return {str(found.name) for found in tracking.client().search_registered_models()}


def _versions_of(name: str) -> list[ModelVersion]:
    return list(tracking.client().search_model_versions(f"name = '{name}'"))


def _all_versions() -> list[ModelVersion]:
    found = [one for one in tracking.client().search_model_versions() if one.name.startswith(PREFIX)]
    if not found:
        raise UserError(
            f"no {PREFIX}* model is registered in {tracking.shown_store()}; "
            "`edgequant qat` and `edgequant tune` register one, and $MLFLOW_TRACKING_URI names another store"
        )
    return found


def with_alias(name: str, alias: str) -> Registered | None:
    """The version that carries an alias, or None."""
    version = tracking.client().get_registered_model(name).aliases.get(alias)
    return None if version is None else get_version(name, str(version))


def get_version(name: str, version: str) -> Registered:
    """One version as it is now."""
    return _registered(tracking.client().get_model_version(name, version))


def _registered(found: ModelVersion) -> Registered:
    return Registered(str(found.name), str(found.version), dict(found.tags), found.run_id)


def references(candidate: Registered, champion: Registered | None) -> dict[str, Reference]:
    """What losses are measured from: the floating-point model's metrics filed with the version, and the champion's."""
    filed = candidate.tags.get(BASELINE_TAG)
    baseline = {key: float(value) for key, value in json.loads(filed).items()} if filed else None
    name = "the baseline" if filed else f"the version has no {BASELINE_TAG} tag"
    if champion is None:
        present = Reference(name="there is no champion yet", metrics=None)
    elif champion.version == candidate.version:
        present = Reference(name="it is the champion already", metrics=None)
    else:
        present = Reference(name=f"version {champion.version}", metrics=champion.metrics)
    return {"baseline": Reference(name=name, metrics=baseline), "champion": present}
