"""Recipes, policies and search spaces: small YAML files that people write, read in one way. Light: no torch."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml

from edgequant.errors import UserError

LARGEST = 1_000_000  # bytes; a recipe has some thousand


def read_yaml(path: str | os.PathLike[str], what: str, example: str) -> dict[str, Any]:
    """Read a mapping from a YAML file.

    Args:
        what: what it is to be and how it was named, for messages: `recipe`, `policy`.
        example: a line that it could hold.

    Raises:
        UserError: no regular file, not readable, not UTF-8, not YAML, empty, no mapping, or a key that stands twice.
    """
    named = f"{what} {str(path)!r}"
    return parse_yaml(read_small_text(path, named), named, example)


def parse_yaml(text: str, named: str, example: str) -> dict[str, Any]:
    """The mapping that a text holds; errors as `read_yaml`, by its `named`."""
    try:
        found = yaml.load(text, Loader=_Loader)
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # ValueError: a number of thousands of digits
        raise UserError(f"{named} is not YAML: {_problem(error)}; it must hold lines such as `{example}`") from error
    if not isinstance(found, Mapping) or not found:
        what = "nothing" if found is None or found == {} else f"a {type(found).__name__}"
        raise UserError(f"{named} must hold lines such as `{example}`, got {what}")
    odd = next((key for key in found if not isinstance(key, str)), None)
    if odd is not None:
        raise UserError(f"{named} must hold keys that are names, got {odd!r}; write such as `{example}`")
    return dict(found)


def read_small_text(path: str | os.PathLike[str], named: str) -> str:
    """A UTF-8 file that a person wrote, of 10^6 bytes at most; a byte order mark is left out.

    Raises:
        UserError: no such file, a folder, a pipe, a broken link, not readable, or no UTF-8 text.
    """
    file = Path(path).expanduser()
    check_regular(file, named)
    try:
        with file.open("rb") as handle:
            content = handle.read(LARGEST + 1)
        if len(content) > LARGEST:
            raise UserError(f"{named} must be a text file of at most {LARGEST:,} bytes; it is larger: name another")
        text = content.decode("utf-8-sig")
    except OSError as error:
        raise UserError(f"{named} cannot be read: {error.strerror}; check its permissions") from error
    except UnicodeDecodeError as error:
        byte = f"0x{error.object[error.start]:02x} at byte {error.start}"
        raise UserError(f"{named} must be UTF-8 text, got {byte}; convert it with iconv, or name another") from error
    if "\0" in text:
        raise UserError(f"{named} must be a text file, got binary data; name another")
    return text


def check_regular(file: Path, named: str) -> None:
    """Refuse what is no regular file, which one would wait for or that a library stumbles over.

    Raises:
        UserError: says what is there instead.
    """
    try:
        if file.is_file():
            return
        there = "a folder" if file.is_dir() else "no regular file (a pipe or device)" if file.exists() else None
        link = f"a link to {os.readlink(file)}, which is not there" if there is None and file.is_symlink() else None
    except (OSError, ValueError) as error:  # a name that is too long; a folder that must not be entered; a NUL in it
        raise UserError(f"{named} cannot be read: {getattr(error, 'strerror', None) or error}") from error
    if found := there or link:
        raise UserError(f"{named} must be a file, got {found}; name a file")
    raise UserError(f"{named} not found; name a file that exists")


def _problem(error: Exception) -> str:
    mark, problem = getattr(error, "problem_mark", None), getattr(error, "problem", None)
    where = f"line {mark.line + 1}: " if mark else ""
    return where + " ".join(str(problem or error).split())[:200]


class _Loader(yaml.SafeLoader):
    """YAML without a key given twice, of which the first would be forgotten; and 1e-5 is a number, as in YAML 1.2."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value if key.tag != _MERGE]  # type: ignore[no-untyped-call]
        if (twice := _twice(keys)) is not None:
            raise yaml.constructor.ConstructorError(None, None, f"key {twice!r} stands there twice", node.start_mark)
        return super().construct_mapping(node, deep)


_MERGE = "tag:yaml.org,2002:merge"
_Loader.add_implicit_resolver(  # type: ignore[no-untyped-call]
    "tag:yaml.org,2002:float", re.compile(r"[-+]?(\d[\d_]*)(\.[\d_]*)?[eE][-+]?\d+"), list("-+0123456789")
)


def _twice(keys: Iterable[Any]) -> Any:
    seen: list[Any] = []
    for key in keys:
        if key in seen:
            return key
        seen.append(key)
    return None
