"""No circle of imports: read from the sources' syntax trees, so that it holds whatever is imported first."""

from __future__ import annotations

import ast
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
SOURCES = ("platform", "tune", "registry")
Graph = Mapping[str, set[str]]


def sources(folder: Path) -> dict[str, Path]:
    """Files by the names of their modules."""
    names = {path: path.relative_to(folder).with_suffix("").parts for path in sorted(folder.rglob("*.py"))}
    return {".".join(parts[:-1] if parts[-1] == "__init__" else parts): path for path, parts in names.items()}


def statements(tree: ast.Module, *, typing: bool, functions: bool) -> Iterator[ast.stmt]:
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


def imported(statement: ast.stmt, known: Iterable[str]) -> set[str]:
    """Known modules that a statement imports; `from package import module` means the module, not its package."""
    if isinstance(statement, ast.Import):
        return {alias.name for alias in statement.names} & set(known)
    assert isinstance(statement, ast.ImportFrom) and statement.module
    return {
        name if name in known else statement.module
        for name in (f"{statement.module}.{alias.name}" for alias in statement.names)
    } & set(known)


def import_graph(files: Mapping[str, Path], *, typing: bool = False, functions: bool = False) -> Graph:
    """Which module imports which."""
    trees = {name: ast.parse(path.read_text()) for name, path in files.items()}
    found = {name: statements(tree, typing=typing, functions=functions) for name, tree in trees.items()}
    return {
        name: {other for line in lines for other in imported(line, files)} - {name} for name, lines in found.items()
    }


def cycles(graph: Graph) -> list[list[str]]:
    """Groups of modules that reach each other (strongly connected components of more than one)."""
    reach = {name: reachable(graph, name) for name in graph}
    groups = {frozenset(other for other in reach[name] if name in reach[other]) for name in graph}
    return sorted(sorted(group) for group in groups if group)


def reachable(graph: Graph, start: str) -> set[str]:
    """What a module imports, directly or through others."""
    found: set[str] = set()
    pending = [start]
    while pending:
        new = graph[pending.pop()] - found
        found |= new
        pending += new
    return found


def all_sources() -> dict[str, Path]:
    return {name: path for folder in SOURCES for name, path in sources(ROOT / folder).items()}


LEVELS = {
    "when_they_are_imported": {},
    "for_type_checkers": {"typing": True},
    "by_imports_within_functions": {"functions": True},
    "by_any_import": {"typing": True, "functions": True},
}


@pytest.mark.parametrize("level", LEVELS.values(), ids=LEVELS)
def test_no_modules_import_each_other_in_a_circle(level):
    graph = import_graph(all_sources(), **level)
    assert len(graph) > 100 and cycles(graph) == []


FACADES = ("edgequant.models", "edgequant.tracking")  # their __init__ re-export what their modules define


@pytest.mark.parametrize("package", FACADES)
def test_a_module_of_a_package_that_re_exports_imports_its_siblings_by_full_name(package):
    """`from edgequant import models` within `models` asks for names of an __init__ that has not run to its end."""
    graph = import_graph(all_sources(), typing=True, functions=True)
    own = {name for name in graph if name.startswith(f"{package}.")}
    assert len(own) >= 5 and {name for name in own if package in graph[name]} == set()


@pytest.mark.parametrize(
    ("level", "found"),
    [
        ({}, [["a", "b.c"]]),
        ({"typing": True}, [["a", "b.c", "e"]]),
        ({"functions": True}, [["a", "b.c", "d"]]),
        ({"typing": True, "functions": True}, [["a", "b.c", "d", "e"]]),
    ],
)
def test_circles_are_found_whatever_form_their_imports_have(tmp_path, level, found):
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "__init__.py").write_text("")
    (tmp_path / "a.py").write_text("try:\n    from b import c\nexcept ImportError:\n    pass\n")
    (tmp_path / "b" / "c.py").write_text(
        "from typing import TYPE_CHECKING\nimport a\nif TYPE_CHECKING:\n    import e\n"
    )
    (tmp_path / "d.py").write_text("import a\n")
    (tmp_path / "e.py").write_text("import b.c\n")
    with (tmp_path / "a.py").open("a") as file:
        file.write("def late():\n    import d\n")
    assert cycles(import_graph(sources(tmp_path), **level)) == found
