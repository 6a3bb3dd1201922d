"""The project's sources as syntax trees: which modules there are, and what each imports."""

from __future__ import annotations

import ast
from collections.abc import Container, Iterator, Mapping
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SOURCES = ("platform", "tune", "registry")
Graph = Mapping[str, set[str]]


def modules(folder: str) -> list[Path]:
    """The Python files of a folder of the project and below."""
    return sorted((ROOT / folder).rglob("*.py"))


def named(folder: Path) -> dict[str, Path]:
    """Files below a source root by the names of their modules; a package is the name of its folder."""
    names = {path: path.relative_to(folder).with_suffix("").parts for path in sorted(folder.rglob("*.py"))}
    return {".".join(parts[:-1] if parts[-1] == "__init__" else parts): path for path, parts in names.items()}


def all_sources() -> dict[str, Path]:
    """The files of the three source roots by the names of their modules."""
    return {name: path for folder in SOURCES for name, path in named(ROOT / folder).items()}


def statements(tree: ast.Module, *, typing: bool = True, functions: bool = True) -> Iterator[ast.stmt]:
    """Import statements: those that run when the module is imported, those for type checkers, those in functions."""
    pending: list[ast.AST] = [tree]
    while pending:
        node = pending.pop()
        if isinstance(node, ast.Import | ast.ImportFrom):
            yield node
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test) and not typing:
            pending += node.orelse
        elif functions or not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            pending += ast.iter_child_nodes(node)


def imported(statement: ast.stmt, known: Container[str]) -> set[str]:
    """Modules that a statement imports; `from package import module`, if known, means the module, not its package."""
    if isinstance(statement, ast.Import):
        return {alias.name for alias in statement.names}
    assert isinstance(statement, ast.ImportFrom)
    assert statement.level == 0 and statement.module, f"relative import: {ast.unparse(statement)}"
    names = [f"{statement.module}.{alias.name}" for alias in statement.names]
    return {name if name in known else statement.module for name in names}


def import_graph(files: Mapping[str, Path], *, typing: bool = True, functions: bool = True) -> Graph:
    """Which module imports which, of these and of others."""
    trees = {name: ast.parse(path.read_text()) for name, path in files.items()}
    lines = {name: statements(tree, typing=typing, functions=functions) for name, tree in trees.items()}
    return {name: {other for line in lines[name] for other in imported(line, files)} - {name} for name in files}


def top(name: str) -> str:
    """The package of a module's full name: numpy of numpy.linalg."""
    return name.partition(".")[0]
