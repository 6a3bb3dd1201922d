"""What the quantised layers are is known to their own files alone; read from the sources' syntax trees."""

from __future__ import annotations

import ast

import pytest
from source_trees import all_sources

QUANTIZED_LAYERS = {
    *("FakeQuantizedLayer", "FakeQuantizedLinear", "FakeQuantizedEmbedding"),
    *("IntegerLayer", "IntegerLinear", "IntegerEmbedding", "PackedWeight"),
    *("InputQuantizer", "DynamicInputQuantizer", "StaticInputQuantizer"),
    *("WeightQuantizer", "FixedCodesQuantizer", "IdentityQuantizer"),
}


def defined_classes(tree: ast.AST) -> set[str]:
    return {node.name for node in ast.walk(tree) if isinstance(node, ast.ClassDef)}


def classes_asked_for(tree: ast.AST) -> set[str]:
    """Names in the second argument of isinstance and issubclass, in class patterns, and beside `type(...)`."""
    found: list[ast.AST] = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") in ("isinstance", "issubclass"):
            found += node.args[1:]
        elif isinstance(node, ast.MatchClass):
            found.append(node.cls)
        elif isinstance(node, ast.Compare) and getattr(getattr(node.left, "func", None), "id", "") == "type":
            found += node.comparators
    names = [part for node in found for part in ast.walk(node)]
    return {getattr(part, "id", None) or getattr(part, "attr", None) or "" for part in names}


def private_references(tree: ast.AST) -> list[int]:
    """Lines that reach for another object's `_reference`, which ties a head to the embedding."""
    nodes = [node for node in ast.walk(tree) if isinstance(node, ast.Attribute) and node.attr == "_reference"]
    return [node.lineno for node in nodes]


def test_quantized_layers_are_told_apart_in_their_own_files_alone():
    """Others ask a layer for its `kind`, `quantizer`, `packed`, `is_tied`, or a finder for all layers of a model."""
    trees = {path: ast.parse(path.read_text()) for path in all_sources().values()}
    assert set().union(*map(defined_classes, trees.values())) >= QUANTIZED_LAYERS
    asked = {path: (classes_asked_for(tree) & QUANTIZED_LAYERS) - defined_classes(tree) for path, tree in trees.items()}
    assert {str(path): names for path, names in asked.items() if names} == {}


def test_how_a_head_is_tied_is_known_to_the_layers_alone():
    trees = {path: ast.parse(path.read_text()) for path in all_sources().values()}
    homes = {"FakeQuantizedLayer", "IntegerLayer"}
    outside = {path: tree for path, tree in trees.items() if not defined_classes(tree) & homes}
    assert {str(path): lines for path, tree in outside.items() if (lines := private_references(tree))} == {}


@pytest.mark.parametrize(
    "line",
    [
        "isinstance(layer, IntegerLinear)", "isinstance(m, (int, integer.IntegerLinear))",
        "isinstance(m, IntegerEmbedding | IntegerLinear)", "issubclass(t, IntegerLinear)", "type(m) is IntegerLinear",
        "match layer:\n    case IntegerLinear():\n        pass",
    ],
)  # fmt: skip
def test_every_way_of_asking_for_a_class_is_seen(line):
    assert "IntegerLinear" in classes_asked_for(ast.parse(line))


def test_making_a_layer_is_not_asking_for_its_class():
    tree = ast.parse("layer: IntegerLinear = IntegerLinear(packed)\nassert isinstance(layer.bias, Tensor)")
    assert "IntegerLinear" not in classes_asked_for(tree)
