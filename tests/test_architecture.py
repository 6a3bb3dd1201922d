"""The packages and who may look at whom, as docs/architecture.md draws them; read from the sources' syntax trees."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("corpora", "quantization", "training", "evaluation", "export", "reporting")
BASE = {"errors", "files", "extensions"}
BELOW = BASE | {"models", "tracking"}
# package or module: what it may import of edgequant, beside itself
ALLOWED = {
    "errors": set(),
    "extensions": {"errors"},
    "files": BASE,
    "tracking": BASE,
    "models": BASE | {"tracking"},
    "corpora": BELOW,
    "quantization": BASE | {"models"},  # knows torch and nothing of MLflow
    "training": BELOW,
    "evaluation": BELOW,
    "export": BELOW | {"quantization"},
    "reporting": BELOW | {"evaluation"},  # of which the tasks alone, which say how their metrics are shown
    "workflows": {*PACKAGES, *BELOW},
    "__main__": {*BASE, "workflows"},
    "api": {*PACKAGES, *BELOW, "workflows"},
    "__init__": {"quantization", "api"},
}
HEAVY = (
    "torch",
    "transformers",
    "mlflow",
    "datasets",
    "ray",
    "peft",
    "pandas",
    "sklearn",
    "accelerate",
    "bitsandbytes",
)


def modules(folder: str) -> list[Path]:
    return sorted((ROOT / folder).rglob("*.py"))


def imported(path: Path) -> Iterator[str]:
    """Full names of everything that a file imports, anywhere in it."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            yield node.module or ""
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def package_of(path: Path) -> str:
    return path.relative_to(ROOT / "platform" / "edgequant").parts[0].removesuffix(".py")


def packages_imported(path: Path) -> set[str]:
    found = {name.split(".")[1] for name in imported(path) if name.startswith("edgequant.")}
    existing = {package_of(module) for module in modules("platform/edgequant")}
    return found & existing


@pytest.mark.parametrize("path", modules("platform/edgequant"), ids=lambda path: str(path.relative_to(ROOT)))
def test_a_module_imports_only_what_its_package_may_look_at(path):
    package = package_of(path)
    assert packages_imported(path) - ALLOWED[package] - {package} == set()


@pytest.mark.parametrize("path", modules("platform/edgequant/reporting"), ids=lambda path: path.name)
def test_reporting_knows_of_evaluation_only_what_a_task_says(path):
    names = {name for name in imported(path) if name.startswith("edgequant.evaluation")}
    assert not [name for name in names if not name.startswith("edgequant.evaluation.tasks.")]


def test_nothing_in_the_platform_imports_the_search_or_the_registry():
    found = {
        str(path): name
        for path in modules("platform/edgequant")
        for name in imported(path)
        if name.split(".")[0] in ("edgequant_tune", "edgequant_registry")
    }
    assert found == {}


@pytest.mark.parametrize(("folder", "other"), [("tune", "edgequant_registry"), ("registry", "edgequant_tune")])
def test_search_and_registry_do_not_know_each_other(folder, other):
    assert not [path for path in modules(folder) if other in {name.split(".")[0] for name in imported(path)}]


def importers_of(package: str) -> set[str]:
    files = [path for folder in ("platform", "tune", "registry") for path in modules(folder)]
    found = [path for path in files if package in {name.split(".")[0] for name in imported(path)}]
    return {str(path.relative_to(ROOT)) for path in found}


def test_mlflow_is_imported_by_tracking_the_searchs_callback_and_the_registry_alone():
    outside = {path for path in importers_of("mlflow") if not path.startswith("registry/")}
    elsewhere = {path for path in outside if not path.startswith("platform/edgequant/tracking/")}
    assert elsewhere <= {"tune/edgequant_tune/callbacks.py"}


def test_ray_stays_in_the_search_and_in_the_corpus_engine():
    outside = {path for path in importers_of("ray") if not path.startswith("tune/")}
    assert outside <= {"platform/edgequant/corpora/processing/ray_engine.py"}


def test_quantization_knows_neither_trackers_nor_data_sets_nor_model_classes():
    for path in modules("platform/edgequant/quantization"):
        names = set(imported(path))
        assert not {name.split(".")[0] for name in names} & {"mlflow", "ray", "datasets", "peft"}, path
        assert not [name for name in names if name.startswith("transformers.models") or "AutoModel" in name], path
        if path.name != "transformers_quantizer.py":
            assert not [name for name in names if name.split(".")[0] == "transformers"], path


def test_scheme_parsing_knows_no_torch():
    assert "torch" not in {name.split(".")[0] for name in imported(ROOT / "platform/edgequant/quantization/scheme.py")}


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


def sources() -> list[Path]:
    return [path for folder in ("platform", "tune", "registry") for path in modules(folder)]


def test_quantized_layers_are_told_apart_in_their_own_files_alone():
    """Others ask a layer for its `kind`, `quantizer`, `packed`, `is_tied`, or a finder for all layers of a model."""
    trees = {path: ast.parse(path.read_text()) for path in sources()}
    assert set().union(*map(defined_classes, trees.values())) >= QUANTIZED_LAYERS
    asked = {path: (classes_asked_for(tree) & QUANTIZED_LAYERS) - defined_classes(tree) for path, tree in trees.items()}
    assert {str(path): names for path, names in asked.items() if names} == {}


def test_how_a_head_is_tied_is_known_to_the_layers_alone():
    trees = {path: ast.parse(path.read_text()) for path in sources()}
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


def test_there_is_no_package_for_what_has_no_name():
    files = [path for folder in ("platform", "tune", "registry", "tests") for path in modules(folder)]
    assert not [path for path in files if path.stem in ("utils", "util", "helpers", "common", "misc")]


FACADES = ("models", "tracking")  # `models.load`, `tracking.log_metrics`: their __init__ re-exports, and no more


def test_packages_are_empty_or_a_docstring_but_for_two_that_re_export_their_own():
    for path in modules("platform/edgequant"):
        if path.name != "__init__.py" or path.parent.name == "edgequant":
            continue
        body = [node for node in ast.parse(path.read_text()).body if not _is_docstring(node)]
        if path.parent.name in FACADES:
            *imports, exported = body
            own = ("__future__", f"edgequant.{path.parent.name}.")
            assert all(isinstance(node, ast.ImportFrom) and (node.module or "").startswith(own) for node in imports)
            assert isinstance(exported, ast.Assign) and exported.targets[0].id == "__all__"
        else:
            assert not body, path


def _is_docstring(node: ast.stmt) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)


def test_no_file_makes_a_package_of_the_folder_platform():
    """It would shadow Python's own module `platform` and break numpy, ray and pytest."""
    assert not (ROOT / "platform" / "__init__.py").exists()
    done = subprocess.run(
        [sys.executable, "-c", "import platform; print(platform.system())"], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0 and done.stdout.strip() in ("Linux", "Darwin", "Windows")


def dotted(path: Path) -> str:
    return ".".join(path.relative_to(ROOT / "platform").with_suffix("").parts).removesuffix(".__init__")


TRAINING_STEPS = {
    "edgequant.workflows.steps.qat_experiment",
    "edgequant.workflows.steps.qat_variants",
}  # they hold models
WORKFLOW_MODULES = {dotted(path) for path in modules("platform/edgequant/workflows")} - TRAINING_STEPS
SETTINGS = [dotted(path) for path in modules("platform/edgequant") if path.name == "settings.py"]
LIGHT = [
    *("edgequant", "edgequant.__main__", "edgequant.errors", "edgequant.files", "edgequant.models"),
    *("edgequant.quantization.scheme", "edgequant.quantization.ptq.methods"),
    *("edgequant_tune.workflow", "edgequant_registry.workflow"),
    *sorted(WORKFLOW_MODULES),
    *SETTINGS,
]
IMPORT_ALL = """
import importlib, json, sys
loaded = {}
for name in json.loads(sys.argv[1]):
    importlib.import_module(name)
    loaded[name] = [heavy for heavy in json.loads(sys.argv[2]) if heavy in sys.modules]
print(json.dumps(loaded))
"""


def test_modules_that_define_the_command_line_import_nothing_heavy(environment):
    command = [sys.executable, "-c", IMPORT_ALL, json.dumps(LIGHT), json.dumps(HEAVY)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert {name: heavy for name, heavy in json.loads(done.stdout).items() if heavy} == {}
