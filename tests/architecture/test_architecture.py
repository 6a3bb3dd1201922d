"""The packages and who may import whom, as docs/architecture.md draws them; read from the sources' syntax trees."""

from __future__ import annotations

import ast
import subprocess
import sys

import pytest
from source_trees import ROOT, all_sources, import_graph, modules, top

IMPORTS = import_graph(all_sources())
PLATFORM = sorted(name for name in IMPORTS if name.startswith("edgequant."))

FILES = {"disk", "files", "folders", "outputs"}
BASE = FILES | {"commands", "errors", "extensions", "interruption", "progress", "ray_signals", "redaction"}
BASE |= {"machine", "settings_checks", "yaml_files"}
BELOW = BASE | {"models", "tracking"}
PACKAGES = {"corpora", "quantization", "training", "evaluation", "export", "reporting"}
# package or module of edgequant: what it may import of edgequant, beside itself
ALLOWED = {
    "commands": set(),
    "machine": set(),
    "progress": set(),
    "errors": set(),
    "extensions": {"errors"},
    "interruption": set(),
    "ray_signals": set(),
    "disk": {"errors"},
    "redaction": set(),
    "files": {"disk"},
    "folders": {"disk", "errors", "files"},
    "outputs": {"disk", "errors", "files", "folders"},
    "settings_checks": {"errors"},
    "yaml_files": {"errors"},
    "tracking": BASE,
    "models": BASE | {"tracking"},
    "corpora": BELOW,
    "quantization": BASE | {"models"},  # knows torch and nothing of MLflow
    "training": BELOW,
    "evaluation": BELOW,
    # whose packed weights it writes
    "export": BELOW | {"quantization.scheme", "quantization.weight_spec", "quantization.layers"},
    # how a task's metrics are shown, what they are evidence of, how two models differ item by item
    "reporting": BELOW
    | {"evaluation.tasks.task", "evaluation.tasks.registry", "evaluation.evidence", "evaluation.harm"}
    | {"evaluation.ranking", "evaluation.statistics.verdicts"},
    "workflows": BELOW | PACKAGES,
    "api_checks": {"errors", "settings_checks"},
    "api": BELOW | PACKAGES | {"workflows", "api_checks"},
    "command_line": BASE | {"workflows", "tracking"},
    "__main__": BASE | {"workflows", "command_line"},
}

SCHEME = {"scheme", "weight_spec", "calibration"}
CORPUS = {"documents", "text"}
# package: its subpackages and modules, each with what it may import of that package, beside itself
WITHIN = {
    "quantization": {
        "calibration": set(),
        "size_budget": set(),
        "group_sizes": set(),
        "weight_spec": set(),
        "scheme": {"size_budget", "group_sizes", "weight_spec"},
        "arithmetic": {"scheme", "weight_spec"},
        "layers": SCHEME | {"arithmetic"},
        "ptq": SCHEME | {"arithmetic", "layers"},
        "qat": SCHEME | {"arithmetic", "layers", "ptq"},
        "adapters": SCHEME | {"arithmetic", "layers"},
        "checkpoint": {"scheme"},
        "mixed_precision": {"scheme", "arithmetic", "layers", "checkpoint"},
        "transformers_quantizer": {"scheme", "layers", "checkpoint"},
    },
    "evaluation": {
        "scoring_settings": set(),
        "backends": set(),
        "statistics": {"scoring_settings"},
        "devices": set(),
        "efficiency": {"backends", "statistics"},
        "tasks": {"scoring_settings", "backends", "statistics", "efficiency"},
        "settings": {"scoring_settings", "tasks"},
        "harm": {"statistics", "tasks"},
        "evidence_file": {"settings", "tasks"},
        "pairing": {"evidence_file", "harm", "statistics", "tasks"},
        "ranking": {"harm", "pairing", "statistics", "tasks"},
        "reproduction": {"backends", "evidence_file", "pairing", "tasks"},
        "evidence": {"tasks"},
        "suite": {"settings", "backends", "tasks", "evidence"},
    },
    "corpora": {
        **{name: set() for name in ("text", "settings", "sources", "kept_results")},
        "packing": {"kept_results"},
        "contamination": {"kept_results"},
        "documents": {"text"},
        "training_files": {"text", "extraction"},
        "instruction_rows": {"text"},
        "benchmark_rows": {"text"},
        "benchmarks": {"text", "benchmark_rows"},
        "processed_file": {"text"},
        "extraction": CORPUS,
        "disaster": CORPUS | {"contamination"},
        "curation": CORPUS | {"contamination", "processed_file", "disaster"},
        "processing": CORPUS | {"settings", "sources", "processed_file", "extraction", "disaster", "curation"},
        "output": CORPUS | {"settings", "contamination", "processing"},
    },
    "export": {
        "formats": set(),
        "choice": {"formats", "onnx"},
        "onnx": {"formats"},
        "tensors_folder": {"formats"},
        "gptq": {"formats", "tensors_folder"},
        "parity": {"formats", "onnx", "gptq"},  # to run what it wrote
        "gguf": {"choice", "formats"},
        "compressed_tensors": {"formats", "tensors_folder"},
        "shipped": {"choice", "formats", "gguf", "onnx", "compressed_tensors"},
    },
}
# steps that several workflows take, and the checks of doctor, know none of the workflows
WORKFLOW_PARTS = {
    "steps": {"settings"},
    "adaptation": {"settings", "steps", "validate"},
    "checks": set(),
    "settings": set(),
    "shipping": {"validate"},
    "validate": {"settings", "steps"},
}


def reaches(names: set[str], allowed: set[str], within: str) -> set[str]:
    """Of the modules named, those within a package that are not among, or below, what is allowed there."""
    inside = {name.removeprefix(f"{within}.") for name in names if name.startswith(f"{within}.")}
    return {name for name in inside if not any(f"{name}.".startswith(f"{other}.") for other in allowed)}


@pytest.mark.parametrize("name", PLATFORM)
def test_a_module_imports_only_what_its_package_may(name):
    package = name.split(".")[1]
    assert reaches(IMPORTS[name], ALLOWED[package] | {package}, "edgequant") == set()


def test_importing_edgequant_offers_the_api_and_registers_the_quantizer_alone():
    assert reaches(IMPORTS["edgequant"], {"api", "quantization.transformers_quantizer"}, "edgequant") == set()


def parts(package: str) -> set[str]:
    """Subpackages and modules that stand in a package."""
    return {name.split(".")[2] for name in PLATFORM if name.startswith(f"edgequant.{package}.")}


@pytest.mark.parametrize("package", WITHIN)
def test_a_subpackage_imports_only_what_it_may_of_its_package(package):
    assert parts(package) == set(WITHIN[package])
    within = f"edgequant.{package}"
    for name in (name for name in PLATFORM if name.startswith(f"{within}.")):
        part = name.split(".")[2]
        assert reaches(IMPORTS[name], WITHIN[package][part] | {part}, within) == set(), name


@pytest.mark.parametrize("part", WORKFLOW_PARTS)
def test_what_workflows_share_knows_no_workflow(part):
    own = [name for name in PLATFORM if name.split(".")[1:3] == ["workflows", part]]
    assert own
    for name in own:
        assert reaches(IMPORTS[name], WORKFLOW_PARTS[part] | {part}, "edgequant.workflows") == set(), name


def test_an_arrow_that_is_not_drawn_is_seen():
    names = {"edgequant.tracking", "edgequant.quantization.scheme", "edgequant.quantization.ptq.gptq", "torch"}
    allowed = {"tracking", "quantization.scheme"}
    assert reaches(names, allowed, "edgequant") == {"quantization.ptq.gptq"}
    assert reaches(names, {"schemes", "ptq"}, "edgequant.quantization") == {"scheme"}


# ----------------------------------------------------------------------------------------------------- source roots


def users(package: str) -> set[str]:
    """Modules that import a package or something in it."""
    return {name for name, found in IMPORTS.items() if package in map(top, found) and top(name) != package}


def test_search_and_registry_are_imported_by_nobody_but_the_policy_by_the_search_that_keeps_it():
    assert users("edgequant_tune") == set()
    assert users("edgequant_registry") == {"edgequant_tune.scoring.policy_gates"}
    imported = IMPORTS["edgequant_tune.scoring.policy_gates"]
    assert {name for name in imported if top(name) == "edgequant_registry"} == {"edgequant_registry.policy"}


def test_search_and_registry_use_the_platform():
    assert {top(name) for name in users("edgequant")} == {"edgequant_tune", "edgequant_registry"}


# -------------------------------------------------------------------------------------------------- other libraries


def test_mlflow_is_imported_by_tracking_the_searchs_bookkeeping_and_the_registry_alone():
    outside = {name for name in users("mlflow") if top(name) != "edgequant_registry"}
    homes = ("edgequant.tracking.", "edgequant_tune.bookkeeping.")
    assert {name for name in outside if not name.startswith(homes)} == set()


def test_ray_stays_in_the_search_and_in_the_corpus_engine():
    outside = {name for name in users("ray") if top(name) != "edgequant_tune"}
    allowed = {"corpora.processing.ray_engine", "ray_signals", "workflows.phases.side_by_side"}
    assert outside <= {f"edgequant.{module}" for module in allowed}


def test_quantization_knows_neither_trackers_nor_data_sets_nor_model_classes():
    own = {name: IMPORTS[name] for name in PLATFORM if name.startswith("edgequant.quantization")}
    assert len(own) > 30
    for name, found in own.items():
        assert not set(map(top, found)) & {"mlflow", "ray", "datasets", "peft"}, name
        if name == "edgequant.quantization.transformers_quantizer":
            assert not [other for other in found if other.startswith("transformers.models")]
        else:
            assert "transformers" not in map(top, found), name


def test_scheme_parsing_knows_no_torch():
    assert "torch" not in map(top, IMPORTS["edgequant.quantization.scheme"])


# ------------------------------------------------------------------------------------------------------- __init__.py

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
