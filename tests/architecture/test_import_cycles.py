"""No circle of imports: read from the sources' syntax trees, so that it holds whatever is imported first."""

from __future__ import annotations

import pytest
from source_trees import Graph, all_sources, import_graph, named


def cycles(graph: Graph) -> list[list[str]]:
    """Groups of modules that reach each other (strongly connected components of more than one)."""
    reach = {name: reachable(graph, name) for name in graph}
    groups = {frozenset(other for other in reach[name] if name in reach.get(other, ())) for name in graph}
    return sorted(sorted(group) for group in groups if group)


def reachable(graph: Graph, start: str) -> set[str]:
    """What a module imports, directly or through others."""
    found: set[str] = set()
    pending = [start]
    while pending:
        new = graph.get(pending.pop(), set()) - found
        found |= new
        pending += new
    return found


LEVELS = {
    "when_they_are_imported": {"typing": False, "functions": False},
    "for_type_checkers": {"functions": False},
    "by_imports_within_functions": {"typing": False},
    "by_any_import": {},
}


@pytest.mark.parametrize("level", LEVELS.values(), ids=LEVELS)
def test_no_modules_import_each_other_in_a_circle(level):
    graph = import_graph(all_sources(), **level)
    assert len(graph) > 100 and cycles(graph) == []


FACADES = ("edgequant.models", "edgequant.tracking")  # their __init__ re-export what their modules define


@pytest.mark.parametrize("package", FACADES)
def test_a_module_of_a_package_that_re_exports_imports_its_siblings_by_full_name(package):
    """`from edgequant import models` within `models` asks for names of an __init__ that has not run to its end."""
    graph = import_graph(all_sources())
    own = {name for name in graph if name.startswith(f"{package}.")}
    assert len(own) >= 5 and {name for name in own if package in graph[name]} == set()


@pytest.mark.parametrize(
    ("level", "found"),
    [
        ("when_they_are_imported", [["a", "b.c"]]),
        ("for_type_checkers", [["a", "b.c", "e"]]),
        ("by_imports_within_functions", [["a", "b.c", "d"]]),
        ("by_any_import", [["a", "b.c", "d", "e"]]),
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
    assert cycles(import_graph(named(tmp_path), **LEVELS[level])) == found
