"""The search space: which hyperparameters are searched, over which values; read from YAML, checked before Ray starts.

learning_rate: {log_uniform: [1.0e-5, 3.0e-4]}
warmup_fraction: {uniform: [0.0, 0.2], step: 0.05}
lora_rank: {choice: [0, 8, 32]}
lora_alpha: {log_uniform: [4, 64], when: {lora_rank: ">0"}}
scheme: {choice: [w4a8-g32+emb4, w3-g64+emb4]}
seed: {replicates: 3}
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from difflib import get_close_matches
from importlib.resources import files
from typing import Any, Literal, NamedTuple, get_type_hints

from edgequant.errors import UserError
from edgequant.quantization.calibration import CalibrationSettings
from edgequant.yaml_files import parse_yaml, read_yaml
from edgequant_tune.space.composed_scheme import PARTS, check_parts
from edgequant_tune.space.conditions import read_conditions
from edgequant_tune.space.hyperparameter import KINDS, Hyperparameter, Space
from edgequant_tune.space.ranges import EXAMPLE, check_range, number

SCHEME, SEED, BASE = "scheme", "seed", "base"
FIXED = frozenset({"save_steps"})  # changes what a crash costs, never the result
# Of calibration: its other fields are named as training's, and decide what it costs rather than what comes of it.
CALIBRATION = frozenset({"num_calibration_samples", "observer"})
QUANTIZED: Mapping[str, Any] = {SCHEME: str, **PARTS}  # searched beside settings, of qat
FINETUNED: Mapping[str, Any] = {BASE: Literal["float", "bnb-int8", "bnb-nf4", "bnb-fp4"]}  # of finetune


def bundled_spaces() -> list[str]:
    """Names of the spaces that come with the package."""
    folder = files("edgequant_tune") / "spaces"
    return sorted(item.name.removesuffix(".yaml") for item in folder.iterdir() if item.name.endswith(".yaml"))


class SpaceFile(NamedTuple):
    """What a search space says: the hyperparameters, and with how many seeds each configuration is trained."""

    space: Space
    replicates: int = 1


def read_space(
    source: str | Mapping[str, Any], settings: Sequence[type], *, others: Mapping[str, Any] = QUANTIZED
) -> SpaceFile:
    """Read and check a search space.

    Args:
        source: name of a bundled space, path of a YAML file, or the mapping itself.
        settings: dataclasses whose fields may be searched.
        others: what else may be searched, and its type: of a quantised model, the scheme and its parts.

    Raises:
        UserError: no such file, an unknown hyperparameter (the valid ones are named), a malformed range, a condition on
            what is not searched, a scheme beside parts of one.
    """
    if isinstance(source, Mapping):
        return _checked(source, "the search space", settings, others)
    return _checked(_read_yaml(source), f"search space {source!r}", settings, others)


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


def _checked(found: Any, where: str, settings: Sequence[type], others: Mapping[str, Any]) -> SpaceFile:
    if not isinstance(found, Mapping) or not found:
        raise UserError(f"{where} must hold lines such as `{_LINE}`, got {found!r}")
    types = dict(others) | {name: kind for each in settings for name, kind in searchable(each).items()}
    space = tuple(_hyperparameter(str(name), spec, types) for name, spec in found.items() if name != SEED)
    if not space:
        raise UserError(f"{where} must hold a hyperparameter beside {SEED}, such as `{_LINE}`")
    _check_conditions(space)
    check_parts({item.name for item in space})
    return SpaceFile(space, _replicates(found[SEED]) if SEED in found else 1)


def _replicates(spec: Any) -> int:
    count = spec.get("replicates") if isinstance(spec, Mapping) and len(spec) == 1 else None
    if not isinstance(count, int) or isinstance(count, bool) or count < 1:
        raise UserError(
            f"hyperparameter seed must be {{replicates: 3}}: with how many seeds each configuration is trained, got "
            f"{spec!r}; the best of several seeds would be luck"
        )
    return count


def _check_conditions(space: Space) -> None:
    """Conditions must be on what is searched and stands above, so that none waits for itself."""
    above: dict[str, Hyperparameter] = {}
    for item in space:
        for one in item.when:
            if one.other not in above:
                known = ", ".join(above) or "nothing"
                raise UserError(
                    f"hyperparameter {item.name}: when must name hyperparameters that stand above it ({known}), got "
                    f"{one.other!r}; write that one first"
                )
            if not any(one.holds(value) for value in above[one.other].listed() or above[one.other].values):
                raise UserError(
                    f"hyperparameter {item.name}: when {one.other} must hold for some of its values, "
                    f"{list(above[one.other].values)}, got {one.sign} {', '.join(map(str, one.values))}"
                )
        above[item.name] = item


def searchable(settings: type) -> dict[str, Any]:
    """The fields of a settings dataclass that may be searched, and their types."""
    hints = get_type_hints(settings)
    names = [item.name for item in fields(settings) if item.name not in FIXED]
    return {name: hints[name] for name in names if settings is not CalibrationSettings or name in CALIBRATION}


def _hyperparameter(name: str, spec: Any, types: Mapping[str, Any]) -> Hyperparameter:
    if name not in types:
        near = get_close_matches(name, types, n=1)
        hint = f"did you mean {near[0]}? " if near else ""
        raise UserError(f"hyperparameter {name!r} is unknown; {hint}Valid: {', '.join([*types, SEED])}")
    kinds = [key for key in spec if key not in ("step", "when")] if isinstance(spec, Mapping) else []
    if len(kinds) != 1 or kinds[0] not in KINDS:
        raise UserError(f"hyperparameter {name} must be one of {', '.join(KINDS)}, got {spec!r}; e.g. {EXAMPLE}")
    kind = kinds[0]
    if not isinstance(spec[kind], list) or not spec[kind]:
        raise UserError(f"hyperparameter {name}: {kind} must be a list, got {spec[kind]!r}; e.g. {EXAMPLE}")
    values = tuple(number(name, value, kind) for value in spec[kind]) if kind != "choice" else tuple(spec[kind])
    check_range(name, kind, values, spec.get("step"), types[name])
    if name == SCHEME:
        from edgequant.quantization.scheme import parse_scheme

        for value in values:
            parse_scheme(str(value))
    return Hyperparameter(name, kind, values, spec.get("step"), read_conditions(name, spec.get("when")))


_LINE = "learning_rate: {log_uniform: [1.0e-5, 3.0e-4]}"
