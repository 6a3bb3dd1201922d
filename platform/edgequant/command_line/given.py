"""What a command line holds before it is parsed: options by their whole names, recipes with keys that exist."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import is_dataclass
from pathlib import Path
from types import NoneType
from typing import Any, NamedTuple

from edgequant.command_line.options import CONFIG, unknown
from edgequant.errors import UserError
from edgequant.settings_checks import alternatives, shown
from edgequant.yaml_files import check_regular, parse_yaml, read_yaml

EXAMPLE = "model: tiny"
OWN = ("help", "print_config")  # of the parser itself


class Given(NamedTuple):
    """Options with their texts, in order, and recipes by path; keys of recipes in full, `training.steps`."""

    options: list[tuple[str, str]]
    recipes: dict[str, dict[str, Any]]

    def value(self, name: str) -> Any:
        """What an option was given as: on the command line, else in a recipe; None where it was not."""
        texts = [text for option, text in self.options if option == name]
        keys = [keys[name] for keys in self.recipes.values() if name in keys]
        return texts[-1] if texts else keys[-1] if keys else None

    def place(self, name: str) -> str:
        """`recipe FILE: ` where an option's value stands in a recipe, else nothing."""
        if name in (option for option, _ in self.options):
            return ""
        return next((f"recipe {path}: " for path, keys in self.recipes.items() if name in keys), "")


def read_given(arguments: Sequence[str], known: Mapping[str, Any]) -> Given:
    """Read options and recipes.

    Args:
        known: options and their types.

    Raises:
        UserError: a word that is no option, an option without a value, a recipe that cannot be read.
    """
    options = list(_options(arguments, known))
    paths = [text for name, text in options if name == CONFIG]
    recipes = {path: dict(_flat(read_yaml(path, "recipe", EXAMPLE), known)) for path in paths}
    return Given(options, recipes)


def check_given(given: Given, known: Mapping[str, Any], owners: Callable[[Iterable[str]], list[str]]) -> None:
    """Refuse options and keys that do not exist; an option's beginning is not taken for the option.

    Args:
        owners: names of the entry points that have all of some options.

    Raises:
        UserError: names it, the nearest one and all that there are.
    """
    for name, text in given.options:
        if name not in known:
            raise UserError(unknown("option", name, known))
        _check_value(f"option --{name}", name, text, known)
        if is_dataclass(known[name]):
            _check_group(name, text, known)
    for path, keys in given.recipes.items():
        for name, value in keys.items():
            if name not in known or name == CONFIG:
                whose = owners(keys)
                hint = f"it is a recipe of {' or '.join(whose)}; " if whose else ""
                raise UserError(f"recipe {path}: {hint}{unknown('key', name, {*known} - {CONFIG})}")
            _check_value(f"recipe {path}: key {name}", name, value, known)


def _options(arguments: Sequence[str], known: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    words = list(arguments)
    while words:
        word = words.pop(0)
        if not re.match(r"--[^\W\d]", word):
            raise UserError(f"{word!r} is no option; options are given as --key value, such as --model tiny")
        name, equals, text = word[2:].partition("=")
        if name in OWN:
            continue
        if not equals and (not words or re.match(r"--[^\W\d]", words[0])):
            if name not in known:
                raise UserError(unknown("option", name, known))
            raise UserError(
                f"option --{name} has no value; write --{name} {'true' if known[name] is bool else 'VALUE'}"
            )
        yield name, text if equals else words.pop(0)


def _flat(found: Mapping[str, Any], known: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Keys in full; a group that is no group stands for itself."""
    for key, value in found.items():
        name = f"{prefix}{key}"
        is_leaf = name in known and not is_dataclass(known[name])
        if isinstance(value, Mapping) and value and not is_leaf:
            yield from _flat(value, known, f"{name}.")
        else:
            yield name, value


def _check_group(name: str, text: str, known: Mapping[str, Any]) -> None:
    """A group may be given whole: `--training '{steps: 3}'`, or a YAML file with its keys."""
    example = f"{{{next(key for key in known if key.startswith(f'{name}.')).partition('.')[2]}: ...}}"
    is_file = not text.lstrip().startswith("{")
    if is_file:
        check_regular(Path(text), f"option --{name} must be a mapping such as {example!r} or a YAML file; {text!r}")
    found = read_yaml(text, name, example) if is_file else parse_yaml(text, f"option --{name} {text!r}", example)
    for key in found:
        if f"{name}.{key}" not in known:
            raise UserError(unknown("option", f"{name}.{key}", known))


def _is_encodable(text: str) -> bool:
    """Not so are file names of another encoding than the locale's: nothing can store, log or hand them on."""
    return not any("\ud800" <= character <= "\udfff" for character in text)


def _check_value(where: str, name: str, value: Any, known: Mapping[str, Any]) -> None:
    """Refuse an empty text or `None`, which would be taken for a default or a file, what is no UTF-8, and no group."""
    if isinstance(value, str) and not value.strip():
        raise UserError(f"{where} must not be empty, got {value!r}; leave it out for its default")
    if isinstance(value, str) and not _is_encodable(value):
        raise UserError(
            f"{where} must be UTF-8 text, got {value!r}; rename the file or folder, or set LC_ALL=C.UTF-8 and "
            "PYTHONUTF8=1 if it is this shell that shows it otherwise"
        )
    is_optional_text = {str, NoneType} <= {*alternatives(known[name])}
    if is_optional_text and isinstance(value, str) and value.strip().lower() == "none":
        raise UserError(f"{where} must be text or null, got {value!r}; write null, or leave it out")
    if is_dataclass(known[name]) and not isinstance(value, str | Mapping):
        inside = ", ".join(key.partition(".")[2] for key in known if key.startswith(f"{name}."))
        raise UserError(f"{where} must hold keys of its own ({inside}), got {shown(value)}; leave it out for defaults")
