"""Which files a source folder holds: sorted, each once, none outside the folder, and no name that breaks a table."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import NamedTuple

from edgequant.errors import UserError


class SourceFile(NamedTuple):
    """A file to process, by its name relative to the source folder; `refused` says why it is not opened."""

    path: str
    name: str
    refused: str = ""


def list_files(source: Path) -> list[SourceFile]:
    """All files under `source` (or the one file it is), in the order of their names.

    Symbolic links are followed inside the folder; loops, broken links, links that leave the folder, and what is no
    regular file are listed with a reason. Hidden files and folders (.git, .DS_Store) are not looked at.

    Raises:
        UserError: `source` does not exist or holds no file.
    """
    if not source.exists():
        raise UserError(f"source {str(source)!r} not found; give a folder of documents, or leave it out")
    if source.is_file():
        return [SourceFile(str(source), printable(source.name))]
    root = os.path.realpath(source)
    files = sorted(_walk(root, "", {root}), key=lambda file: os.fsencode(file.name))
    if not files:
        raise UserError(
            f"source must hold PDF, HTML, Markdown, text, DOCX, JSON or JSONL, got {str(source)!r} without any file"
        )
    return files


def printable(name: str) -> str:
    """A name on one line: control characters, line ends and undecodable bytes are written as escapes."""
    name = os.fsencode(name).decode("utf-8", errors="backslashreplace")
    return "".join(character if character.isprintable() else repr(character)[1:-1] for character in name)


def _walk(root: str, relative: str, seen: set[str]) -> list[SourceFile]:
    """`seen` holds the real paths of the folders above: entering one of them again would be a loop."""
    found: list[SourceFile] = []
    folder = os.path.join(root, relative)
    try:
        entries = sorted(os.scandir(folder), key=lambda entry: os.fsencode(entry.name))
    except OSError as error:
        return [SourceFile(folder, printable(relative), f"folder not readable: {error.strerror}")]
    for entry in entries:
        if entry.name.startswith("."):
            continue
        name = os.path.join(relative, entry.name)
        refused, is_folder = _look(root, entry, seen)
        if refused:
            found.append(SourceFile(entry.path, printable(name), refused))
        elif is_folder:
            found.extend(_walk(root, name, seen | {os.path.realpath(entry.path)}))
        else:
            found.append(SourceFile(entry.path, printable(name)))
    return found


def _look(root: str, entry: os.DirEntry[str], above: set[str]) -> tuple[str, bool]:
    try:
        mode = entry.stat().st_mode
        real = os.path.realpath(entry.path)
    except OSError as error:
        return f"broken link or loop: {error.strerror}" if entry.is_symlink() else f"{error.strerror}", False
    if entry.is_symlink() and os.path.commonpath([root, real]) != root:
        return "link leaves the source folder", False
    if stat.S_ISDIR(mode):
        return ("symbolic link loop" if real in above else ""), True
    return ("" if stat.S_ISREG(mode) else "no regular file (device, pipe or socket)"), False
