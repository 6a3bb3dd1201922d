"""The promotion policy: gates as data, read from YAML and checked when read. Light: no mlflow."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from difflib import get_close_matches
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal, get_args

import yaml

from edgequant.errors import UserError
from edgequant.evaluation.tasks.registry import paired_metrics
from edgequant.files import sha256_of_bytes
from edgequant.settings_checks import fits
from edgequant.tracking.details import HIGH, LOW
from edgequant.yaml_files import parse_yaml, read_yaml
from edgequant_registry.metric_names import check_metric

Bound = Literal["min", "max", "max_loss", "max_loss_percent"]
BOUNDS: tuple[Bound, ...] = get_args(Bound)
LOSSES = ("max_loss", "max_loss_percent")
TESTS = ("values", "not_worse", "worse")
REFERENCES = ("baseline", "champion")
SEVERITIES = ("fail", "warn")


@dataclass(frozen=True, kw_only=True)
class Gate:
    """One condition on one metric."""

    metric: str
    """Name of the metric, such as squad/f1."""

    min: float | None = None
    """Least absolute value."""

    max: float | None = None
    """Greatest absolute value."""

    max_loss: float | None = None
    """How much worse than the reference, in the metric's unit."""

    max_loss_percent: float | None = None
    """How much worse than the reference, in per cent of it."""

    against: Literal["baseline", "champion"] | None = None
    """The reference of a loss."""

    test: Literal["values", "not_worse", "worse"] = "values"
    """Whether the measured values decide, or the confidence intervals where both sides have them: `not_worse` passes
    only what they show to keep the bound, `worse` fails only what they show to break it."""

    better: Literal["higher", "lower"] | None = None
    """Which end of the metric is better, where the project does not know."""

    instead_of: str | None = None
    """Judge only where this metric of right-or-wrong answers is at chance, by the items of both."""

    severity: Literal["fail", "warn"] = "fail"
    """Whether a broken bound refuses the version, or is only told."""

    optional: bool = False
    """A metric that the version's run was not asked to measure may be missing."""

    why: str = ""
    """For the reader."""

    @property
    def bound(self) -> tuple[Bound, float]:
        """Kind and value of the gate's one bound."""
        return next((name, getattr(self, name)) for name in BOUNDS if getattr(self, name) is not None)

    @property
    def higher_is_better(self) -> bool:
        from edgequant.reporting.columns import metric

        return (self.better or metric(self.metric).better) == "higher"


@dataclass(frozen=True, kw_only=True)
class Policy:
    """Gates that must all pass."""

    name: str
    gates: tuple[Gate, ...]

    @property
    def digest(self) -> str:
        """Changes whenever a gate does."""
        return sha256_of_bytes(json.dumps(asdict(self), sort_keys=True))[:12]

    def to_yaml(self) -> str:
        """What `read_policy` reads back."""
        gates = [{key: value for key, value in asdict(gate).items() if value not in (None, "")} for gate in self.gates]
        return yaml.safe_dump({"name": self.name, "gates": gates}, sort_keys=False)


def bundled_policies() -> list[str]:
    """Names of the policies that come with the package."""
    folder = files("edgequant_registry") / "policies"
    return sorted(item.name.removesuffix(".yaml") for item in folder.iterdir() if item.name.endswith(".yaml"))


def read_policy(source: str) -> Policy:
    """Read and check a policy: the name of a bundled one, or a YAML file.

    Raises:
        UserError: no such file, no YAML, a gate that cannot be meant, or a metric that nobody measures; names the gate
            and the fix.
    """
    bundled = files("edgequant_registry") / "policies" / f"{source}.yaml"
    if source in bundled_policies():
        found = parse_yaml(bundled.read_text(encoding="utf-8"), f"policy {source!r}", _LINE)
    elif not os.path.lexists(os.path.expanduser(source)):
        near = get_close_matches(source, bundled_policies(), n=1)
        said = f"did you mean {near[0]}? Else give" if near else "give"
        raise UserError(f"policy {source!r} not found; {said} a YAML file or one of {', '.join(bundled_policies())}")
    else:
        found = read_yaml(source, "policy", _LINE)
    if not isinstance(found.get("gates"), list) or not found["gates"]:
        raise UserError(
            f"gates not found in policy {source!r}; it must have `gates:` with lines such as `- {_EXAMPLE}`"
        )
    if unknown := set(found) - {"name", "gates"}:
        raise UserError(f"policy {source!r}: keys must be name and gates, got {sorted(unknown)[0]!r}")
    gates = tuple(_gate(i + 1, gate) for i, gate in enumerate(found["gates"]))
    return Policy(name=str(found.get("name") or Path(source).stem), gates=gates)


_EXAMPLE = "{metric: size/reduction_vs_fp16, min: 70}"
_LINE = f"gates: [{_EXAMPLE}]"


def _gate(number: int, found: Any) -> Gate:
    if not isinstance(found, Mapping) or not isinstance(found.get("metric"), str) or not found["metric"].strip():
        raise UserError(f"gate {number} of the policy must have a metric, such as {_EXAMPLE}, got {found!r}")
    where = f"gate {number} ({found['metric']})"
    known = [item.name for item in fields(Gate)]
    for key in found:
        if key not in known:
            near = get_close_matches(str(key), known, n=1)
            hint = f"did you mean {near[0]}? " if near else ""
            raise UserError(f"{where}: {key!r} is unknown; {hint}Known: {', '.join(known)}")
    _check_bound(where, found)
    _check_choices(where, found)
    values: dict[str, Any] = {key: float(value) if key in BOUNDS else value for key, value in found.items()}
    gate = Gate(**values)
    check_metric(where, gate.metric, is_described=gate.better is not None)
    _check_direction(where, gate)
    _check_unit(where, gate)
    _check_instead_of(where, gate)
    return gate


def _check_instead_of(where: str, gate: Gate) -> None:
    if gate.instead_of is None:
        return
    known = [paired.metric for paired in paired_metrics() if paired.unit == "points" and paired.value]
    if gate.instead_of not in known:
        raise UserError(f"{where}: instead_of must be one of {', '.join(known)}, got {gate.instead_of!r}")
    if gate.against is None:
        raise UserError(f"{where}: instead_of goes with `against: baseline` or `champion`, got none")


def _check_bound(where: str, found: Mapping[str, Any]) -> None:
    given = [name for name in BOUNDS if found.get(name) is not None]
    if len(given) != 1:
        raise UserError(f"{where} must have exactly one of {', '.join(BOUNDS)}, got {', '.join(given) or 'none'}")
    value = found[given[0]]
    if not fits(value, float):
        raise UserError(f"{where}: {given[0]} must be a number, got {value!r}")
    if given[0] in LOSSES and value < 0:
        raise UserError(f"{where}: {given[0]} must be 0 or more, got {value}")
    if (given[0] in LOSSES) != (found.get("against") is not None):
        raise UserError(
            f"{where}: max_loss and max_loss_percent go with `against: baseline` or `champion`, min and max without"
        )


def _check_choices(where: str, found: Mapping[str, Any]) -> None:
    choices = {
        "against": REFERENCES,
        "test": TESTS,
        "better": ("higher", "lower"),
        "severity": SEVERITIES,
        "optional": (True, False),
    }
    for key, allowed in choices.items():
        if key in found and not any(type(found[key]) is type(value) and found[key] == value for value in allowed):
            expected = ", ".join(str(value).lower() for value in allowed)
            raise UserError(f"{where}: {key} must be one of {expected}, got {found[key]!r}")


def _check_unit(where: str, gate: Gate) -> None:
    from edgequant.reporting.columns import metric

    kind, value = gate.bound
    bare = gate.metric.removesuffix(LOW).removesuffix(HIGH)  # an end of an interval is in its metric's unit
    if kind != "max_loss_percent" and (doubt := metric(bare).doubt(gate.metric, kind, value)):
        raise UserError(f"{where}: {doubt}")


def _check_direction(where: str, gate: Gate) -> None:
    from edgequant.reporting.columns import metric

    known = metric(gate.metric).better
    if gate.bound[0] in LOSSES and gate.better is None and known is None:
        raise UserError(
            f"{where}: which end of {gate.metric} is better is not known; add `better: higher` or `better: lower`"
        )
    if gate.better and known and gate.better != known:
        raise UserError(f"{where}: better {gate.better} contradicts what is known of {gate.metric}: {known} is better")
