"""Registered versions as promotion sees them: which one is meant, its evidence, what it is compared with."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cached_property

from mlflow.entities.model_registry import ModelVersion

from edgequant import tracking
from edgequant.errors import UserError
from edgequant.evaluation.evidence_file import FILE, Evidence
from edgequant.evaluation.pairing import Pairing
from edgequant.models import resolve
from edgequant.tracking import REGISTERED
from edgequant_registry.evidence.filed import evidence_of
from edgequant_registry.gates import Reference


@dataclass(frozen=True)
class Registered:
    """A version of a registered model. Its tags are for people, who can change them; figures come from its evidence."""

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

    @cached_property
    def evidence(self) -> Evidence | None:
        """What it is judged by; None of a version that was registered before there was any.

        Raises:
            UserError: it is not what the run that registered the version wrote down, or that run was deleted.
        """
        return evidence_of(self.name, self.version, self.run_id)

    @property
    def variant(self) -> str:
        """What made it, such as `qat`."""
        return self.tags.get("edgequant.variant", "") if self.evidence is None else self.evidence.variant

    @property
    def metrics(self) -> dict[str, float]:
        """As its evidence has them; of a version without, those of its run, which anybody can change."""
        if self.evidence is not None:
            return dict(self.evidence.measured.metrics)
        return tracking.all_metrics(self.run_id) if self.run_id else {}


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
        listed = sorted(versions, key=lambda one: (one.name, int(one.version)))
        there = ", ".join(f"{one.name}/{one.version}" for one in listed) or "none"
        which = "" if version is None else f"{version} "
        raise UserError(f"version {which}of {model or 'any model'} not found; there are: {there}")
    return _registered(max(wanted, key=lambda one: (one.creation_timestamp, int(one.version))))


def _registered_name(model: str) -> str:
    """`tiny` and `edgequant-tiny` both mean `edgequant-tiny`, unless a model of the given name is registered itself.

    A hub id or a folder means the model that is registered of it.
    """
    if model.startswith("models:/"):
        raise UserError(f"model {model!r}: give the registered name alone, and --version for the version")
    names = _names()
    for name in (model, f"{REGISTERED}{model}", *_made_from(model)):
        if name in names:
            return name
    ours = sorted(name for name in names if name.startswith(REGISTERED))
    wanted = REGISTERED + model.removeprefix(REGISTERED)
    near = get_close_matches(wanted, ours, n=1, cutoff=0.8)
    hint = f"did you mean {near[0]}? " if near else ""
    there, source = ", ".join(ours) or "none", wanted.removeprefix(REGISTERED)
    named = shlex.quote(source) if _made_from(source) else "FOLDER"  # of whose last part the name is made
    raise UserError(
        f"registered model {wanted!r} not found in {tracking.shown_store()}; {hint}there are: {there}. "
        f"`edgequant qat --model {named}` registers one"
    )


def _made_from(model: str) -> list[str]:
    try:
        return [f"{REGISTERED}{resolve(model).name}"]
    except UserError:
        return []


def _names() -> set[str]:
    return {str(found.name) for found in tracking.all_pages(tracking.client().search_registered_models)}


def _versions_of(name: str) -> list[ModelVersion]:
    return list(tracking.client().search_model_versions(f"name = '{name}'"))


def _all_versions() -> list[ModelVersion]:
    wanted = f"name LIKE '{REGISTERED}%'"
    found = tracking.all_pages(tracking.client().search_model_versions, filter_string=wanted)
    if not found:
        raise UserError(
            f"no {REGISTERED}* model is registered in {tracking.shown_store()}; "
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


def check_has_evidence(version: Registered) -> None:
    """Refuse a version whose figures nothing vouches for.

    Raises:
        UserError: it was registered before versions carried evidence; or as `Registered.evidence`.
    """
    if version.evidence is None:
        raise UserError(
            f"{version.label} was registered without evidence ({FILE}), and figures that anybody can change promote "
            "nothing; make and register it again, or look at it with --dry_run true"
        )


def references(candidate: Registered, champion: Registered | None) -> dict[str, Reference]:
    """What losses are measured from: the model that the version was made from, and the champion.

    Raises:
        UserError: the champion's evidence is not what was filed.
    """
    return {"baseline": _baseline(candidate.evidence), "champion": _champion(candidate, champion)}


def _baseline(found: Evidence | None) -> Reference:
    if found is None:
        return Reference(name="a version without evidence has no baseline", metrics=None)
    if found.uncompared:
        return Reference(name=found.uncompared, metrics=None)
    pairs = Pairing(found.baseline, found.measured, found.conditions, found.conditions)
    return Reference(name="the baseline", metrics=found.baseline.metrics, pairs=pairs)


def _champion(candidate: Registered, champion: Registered | None) -> Reference:
    if champion is None:
        return Reference(name="there is no champion yet", metrics=None)
    if champion.version == candidate.version:
        return Reference(name="it is the champion already", metrics=None)
    try:
        name, theirs, ours = f"version {champion.version}", champion.evidence, candidate.evidence
    except UserError as error:
        raise UserError(f"the champion cannot be compared with: {error}; or roll it back first") from error
    if theirs is None or ours is None:
        return Reference(name=f"{name} (without evidence, by its run's metrics)", metrics=champion.metrics)
    pairs = Pairing(theirs.measured, ours.measured, theirs.conditions, ours.conditions)
    return Reference(name=name, metrics=theirs.measured.metrics, pairs=pairs)
