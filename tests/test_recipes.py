"""Every entry point has a recipe whose values are the function's defaults and whose keys are all explained."""

from __future__ import annotations

import inspect
import re
from dataclasses import fields, is_dataclass
from pathlib import Path

import pytest
import yaml

from edgequant.__main__ import WORKFLOWS, parse, workflow
from edgequant.models import HUB_MODELS
from edgequant.quantization.ptq.methods import METHODS
from edgequant.workflows.settings import RunSettings

NAMES = [name for name in WORKFLOWS if name not in ("chat", "push", "sync", "doctor")]


def recipe_of(root: Path, name: str) -> Path:
    return root / "experiments" / f"{name}.yaml"


def test_there_is_one_recipe_for_each_entry_point_and_the_methodologys_and_nothing_else(root):
    names = {f"{name}.yaml" for name in (*NAMES, "methodology")}
    assert {path.name for path in (root / "experiments").iterdir()} == names


def test_the_methodologys_recipe_is_the_pipeline_of_its_four_models(root):
    given = parse("pipeline", workflow("pipeline"), ["--config", str(recipe_of(root, "methodology"))])
    assert tuple(given["models"].split(",")) == tuple(HUB_MODELS)
    defaults = {key: each.default for key, each in inspect.signature(workflow("pipeline")).parameters.items()}
    assert given | {"models": None} == defaults


@pytest.mark.parametrize("name", NAMES)
def test_a_recipes_values_are_the_functions_defaults(root, name):
    function = workflow(name)
    defaults = {key: parameter.default for key, parameter in inspect.signature(function).parameters.items()}
    assert parse(name, function, ["--config", str(recipe_of(root, name))]) == defaults


@pytest.mark.parametrize("name", NAMES)
def test_a_recipe_holds_every_key(root, name):
    """Of `evaluation` a recipe may show what matters there: evaluate.yaml holds them all."""
    given = yaml.safe_load(recipe_of(root, name).read_text())
    parameters = dict(inspect.signature(workflow(name)).parameters)
    flat = [item.name for item in fields(RunSettings)] if parameters.pop("run", None) else []
    assert set(given) == {*parameters, *flat}
    for key, parameter in parameters.items():
        if is_dataclass(parameter.default) and (key != "evaluation" or name == "evaluate"):
            assert set(given[key]) == {field.name for field in fields(parameter.default)}, key


@pytest.mark.parametrize("name", NAMES)
def test_every_key_of_a_recipe_has_a_comment_above_or_beside_it(root, name):
    lines = recipe_of(root, name).read_text().splitlines()
    keys = [place for place, line in enumerate(lines) if re.match(r"\s*[\w.]+:( |$)", line)]
    assert keys
    assert [lines[p] for p in keys if not lines[p - 1].strip().startswith("#") and " # " not in lines[p]] == []
    assert lines[0].startswith("# ") and any(f"mlflow run . -e {name}" in line for line in lines[:5])


@pytest.mark.parametrize("name", NAMES)
def test_a_recipe_names_what_help_looks_up(root, name):
    """A docstring's `{ptq_methods}` is filled in where help is asked for, and means nothing in a file."""
    text = recipe_of(root, name).read_text()
    assert re.findall(r"\{\w+\}", text) == []
    if "init_from" in text or name == "ptq":
        assert all(re.search(rf"# .*\b{method.name}\b", text) for method in METHODS)


@pytest.mark.parametrize("name", NAMES)
def test_parameters_are_keyword_only_typed_and_have_defaults(name):
    for key, parameter in inspect.signature(workflow(name)).parameters.items():
        assert parameter.kind is inspect.Parameter.KEYWORD_ONLY, key
        assert parameter.annotation is not inspect.Parameter.empty, key
        assert parameter.default is not inspect.Parameter.empty, key


@pytest.mark.parametrize("name", NAMES)
def test_every_parameter_is_described_in_the_docstring(name):
    documented = (workflow(name).__doc__ or "").partition("Args:")[2]
    described = set(re.findall(r"^\s+(\w+): \S", documented, re.MULTILINE))
    assert set(inspect.signature(workflow(name)).parameters) - described == set()
