"""The search space: which hyperparameters are searched, over which values; read from YAML, checked before Ray starts.

learning_rate: {log_uniform: [1.0e-5, 3.0e-4]}
warmup_fraction: {uniform: [0.0, 0.2], step: 0.05}
steps: {integers: [50, 200], step: 50}
scheme: {choice: [w4a8-g32+emb4, w3-g64+emb4]}
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from difflib import get_close_matches
from importlib.resources import files
from typing import TYPE_CHECKING, Any, get_args, get_type_hints

from edgequant.errors import UserError
from edgequant.quantization.calibration import CalibrationSettings
from edgequant.yaml_files import parse_yaml, read_yaml

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution

KINDS = ("uniform", "log_uniform", "integers", "log_integers", "choice")
SCHEME = "scheme"
FIXED = frozenset({"save_steps"})  # changes what a crash costs, never the result
# Of calibration: its other fields are named as training's, and decide what it costs rather than what comes of it.
CALIBRATION = frozenset({"num_calibration_samples", "observer"})


@dataclass(frozen=True)
class Hyperparameter:
    """One searched hyperparameter; `values` are the two ends (both included) or all there is to choose."""

    name: str
    kind: str
    values: tuple[Any, ...]
    step: float | None = None

    def distribution(self) -> BaseDistribution:
        """The same range in Optuna's terms."""
        from optuna import distributions

        if self.kind == "choice":
            return distributions.CategoricalDistribution(self.values)
        low, high = self.values
        logarithmic = self.kind.startswith("log_")
        if self.kind.endswith("integers"):
            return distributions.IntDistribution(low, high, log=logarithmic, step=int(self.step or 1))
        return distributions.FloatDistribution(low, high, log=logarithmic, step=self.step)

    def contains(self, value: Any) -> bool:
        """Whether the search could come to this value."""
        if self.kind == "choice":
            return value in self.values
        low, high = self.values
        if not isinstance(value, int | float) or not low <= value <= high:
            return False
        return self.step is None or math.isclose(
            (value - low) / self.step, round((value - low) / self.step), abs_tol=1e-9
        )


Space = tuple[Hyperparameter, ...]


def bundled_spaces() -> list[str]:
    """Names of the spaces that come with the package."""
    folder = files("edgequant_tune") / "spaces"
    return sorted(item.name.removesuffix(".yaml") for item in folder.iterdir() if item.name.endswith(".yaml"))


def read_space(source: str | Mapping[str, Any], settings: Sequence[type], *, with_scheme: bool = True) -> Space:
    """Read and check a search space.

    Args:
        source: name of a bundled space, path of a YAML file, or the mapping itself.
        settings: dataclasses whose fields may be searched.
        with_scheme: whether the quantisation `scheme` may be searched as well.

    Raises:
        UserError: no such file, an unknown hyperparameter (the valid ones are named), a malformed range.
    """
    if isinstance(source, Mapping):
        return _checked(source, "the search space", settings, with_scheme)
    return _checked(_read_yaml(source), f"search space {source!r}", settings, with_scheme)


def with_values(settings: Any, values: Mapping[str, Any]) -> Any:
    """A settings dataclass with those hyperparameters that are its fields."""
    own = searchable(type(settings))
    return replace(settings, **{name: value for name, value in values.items() if name in own})


def _read_yaml(source: str) -> Any:
    bundled = files("edgequant_tune") / "spaces" / f"{source}.yaml"
    if source in bundled_spaces():
        return parse_yaml(bundled.read_text(encoding="utf-8"), f"search space {source!r}", _LINE)
    if not os.path.lexists(os.path.expanduser(source)):
        raise UserError(f"search space {source!r} not found; give a YAML file or one of {', '.join(bundled_spaces())}")
    return read_yaml(source, "search space", _LINE)


def _checked(found: Any, where: str, settings: Sequence[type], with_scheme: bool) -> Space:
    if not isinstance(found, Mapping) or not found:
        raise UserError(f"{where} must hold lines such as `{_LINE}`, got {found!r}")
    types = {SCHEME: str} if with_scheme else {}
    types |= {name: kind for each in settings for name, kind in searchable(each).items()}
    return tuple(_hyperparameter(str(name), spec, types) for name, spec in found.items())


def searchable(settings: type) -> dict[str, Any]:
    """The fields of a settings dataclass that may be searched, and their types."""
    hints = get_type_hints(settings)
    names = [item.name for item in fields(settings) if item.name not in FIXED]
    return {name: hints[name] for name in names if settings is not CalibrationSettings or name in CALIBRATION}


def _hyperparameter(name: str, spec: Any, types: Mapping[str, Any]) -> Hyperparameter:
    if name not in types:
        near = get_close_matches(name, types, n=1)
        hint = f"did you mean {near[0]}? " if near else ""
        raise UserError(f"hyperparameter {name!r} is unknown; {hint}Valid: {', '.join(types)}")
    kinds = [key for key in spec if key != "step"] if isinstance(spec, Mapping) else []
    if len(kinds) != 1 or kinds[0] not in KINDS:
        raise UserError(f"hyperparameter {name} must be one of {', '.join(KINDS)}, got {spec!r}; e.g. {_EXAMPLE}")
    kind = kinds[0]
    if not isinstance(spec[kind], list) or not spec[kind]:
        raise UserError(f"hyperparameter {name}: {kind} must be a list, got {spec[kind]!r}; e.g. {_EXAMPLE}")
    values = tuple(_number(name, value, kind) for value in spec[kind]) if kind != "choice" else tuple(spec[kind])
    _check_range(name, kind, values, spec.get("step"), types[name])
    return Hyperparameter(name, kind, values, spec.get("step"))


_LINE = "learning_rate: {log_uniform: [1.0e-5, 3.0e-4]}"
_EXAMPLE = "{log_uniform: [1.0e-5, 3.0e-4]}, {integers: [50, 200], step: 50} or {choice: [4, 8]}"


def _number(name: str, value: Any, kind: str) -> float:
    """YAML 1.1 reads 1e-5 (no point) as text; people write it all the same."""
    try:
        number = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if not math.isfinite(number):
        raise UserError(f"hyperparameter {name}: {kind} must be finite numbers, got {value!r}; e.g. {_EXAMPLE}")
    if kind.endswith("integers"):
        if number != int(number):
            raise UserError(f"hyperparameter {name}: {kind} must be whole numbers, got {value!r}")
        return int(number)
    return number


def _check_range(name: str, kind: str, values: tuple[Any, ...], step: Any, declared: Any) -> None:
    if kind == "choice":
        return _check_choices(name, values, declared)
    if len(values) != 2 or not values[0] < values[1]:
        raise UserError(f"hyperparameter {name}: {kind} must be [low, high] with low < high, got {list(values)}")
    if kind.startswith("log_") and values[0] <= 0:
        raise UserError(f"hyperparameter {name}: {kind} must begin above 0, got {values[0]}")
    if float not in _members(declared) and int in _members(declared) and not kind.endswith("integers"):
        raise UserError(f"hyperparameter {name} is a whole number and must be integers: [low, high], got {kind}")
    if not _is_number(declared):
        raise UserError(f"hyperparameter {name} is not a number and must be choice: [...], got {kind}")
    if step is not None:
        _check_step(name, kind, values, step)


def _check_step(name: str, kind: str, values: tuple[Any, ...], step: Any) -> None:
    is_number = isinstance(step, int | float) and not isinstance(step, bool) and math.isfinite(step)
    if not is_number or step <= 0 or kind.startswith("log_"):
        raise UserError(
            f"hyperparameter {name}: step must be above 0, for uniform and integers, got {step!r} for {kind}"
        )
    if kind == "integers" and step != int(step):
        raise UserError(f"hyperparameter {name}: step of integers must be a whole number, got {step!r}")
    if step > values[1] - values[0]:
        raise UserError(
            f"hyperparameter {name}: step must be at most {values[1] - values[0]:g}, from {values[0]:g} to "
            f"{values[1]:g}, got {step!r}"
        )


def _check_choices(name: str, values: tuple[Any, ...], declared: Any) -> None:
    if len(set(map(repr, values))) != len(values):
        raise UserError(f"hyperparameter {name}: choice must name different values, got {list(values)}")
    if name == SCHEME:
        from edgequant.quantization.scheme import parse_scheme

        for value in values:
            parse_scheme(str(value))
    wrong = [value for value in values if not _fits(value, declared)]
    if wrong:
        raise UserError(f"hyperparameter {name}: choice must be of {_type_name(declared)}, got {wrong[0]!r}")


def _fits(value: Any, declared: Any) -> bool:
    members = _members(declared)
    kinds = [member for member in members if isinstance(member, type)]
    if isinstance(value, bool):
        return bool in kinds
    whole_as_float = isinstance(value, int) and float in kinds
    return any(isinstance(value, kind) for kind in kinds) or whole_as_float or value in members


def _is_number(declared: Any) -> bool:
    return int in _members(declared) or float in _members(declared)


def _members(declared: Any) -> tuple[Any, ...]:
    """`int | None` to (int, NoneType); `Literal['a', 'b']` to the values, also in a union; a plain type to itself."""
    members = get_args(declared)
    if not members:
        return (declared,)
    return tuple(part for member in members for part in (_members(member) if get_args(member) else (member,)))


def _type_name(declared: Any) -> str:
    return " or ".join(getattr(member, "__name__", repr(member)) for member in _members(declared))
