"""Make a registered version servable: MLmodel, the served model's code and its requirements, beside the checkpoint."""

from __future__ import annotations

import contextlib
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from importlib import metadata
from pathlib import Path

import mlflow
from mlflow.models import Model
from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository
from packaging.version import Version

import edgequant
import edgequant_registry
from edgequant import tracking
from edgequant.disk.leftovers import Scratch
from edgequant.evaluation.backends.llama_cpp.library import version as llama_cpp_version
from edgequant_registry.serving.limits import Limits

REQUIREMENTS = ("mlflow", "torch", "transformers", "safetensors", "numpy", "psutil")
LLAMA_CPP = "xllamacpp"
LLAMA_CPP_RUNS_ON = 'sys_platform == "linux"'  # of a version with a GGUF file; elsewhere torch serves it


def make_servable(name: str, version: str) -> None:
    """Add to a version's files what `mlflow.pyfunc.load_model` and `mlflow models serve` need.

    The checkpoint itself is neither copied nor changed. Edgequant's own code goes along, so that a server needs no
    checkout and serves with the code that promoted.
    """
    source = tracking.client().get_model_version_download_uri(name, version)
    files = [Path(file.path).name for file in get_artifact_repository(source).list_artifacts()]
    with Scratch() as temporary:
        folder = Path(temporary) / "model"
        with _quiet_save():
            mlflow.pyfunc.save_model(
                path=str(folder),
                python_model=str(Path(__file__).with_name("served_model.py")),
                code_paths=[str(Path(str(package.__file__)).parent) for package in (edgequant, edgequant_registry)],
                pip_requirements=requirements(has_gguf=any(file.endswith(".gguf") for file in files)),
                model_config={"model": f"{name}/{version}", **asdict(Limits())},
            )
        _point_at_the_checkpoint(folder / "MLmodel", source)
        _file(folder, source)


def _file(folder: Path, source: str) -> None:
    """MLflow's copy stops where another promotion makes the same folder just then: it is copied on."""
    repository = get_artifact_repository(source)
    for _ in (path for path in folder.rglob("*") if path.is_dir()):
        with contextlib.suppress(FileExistsError):
            repository.log_artifacts(str(folder))
            return
    repository.log_artifacts(str(folder))


def requirements(*, has_gguf: bool) -> list[str]:
    """What a server installs: the versions of here, without the label of a local build, which no index has."""
    pinned = [f"{package}=={Version(metadata.version(package)).public}" for package in REQUIREMENTS]
    if has_gguf and (found := llama_cpp_version()) is not None:
        pinned.append(f"{LLAMA_CPP}=={found}; {LLAMA_CPP_RUNS_ON}")
    return pinned


def _point_at_the_checkpoint(file: Path, source: str) -> None:
    """The one artifact is the folder that MLmodel will lie in; the code lies in it too, wherever it came from."""
    model = Model.load(str(file))
    flavor = model.flavors["python_function"]
    flavor["artifacts"] = {"checkpoint": {"path": ".", "uri": source}}
    flavor["model_code_path"] = Path(flavor["model_code_path"]).name
    model.save(str(file))


@contextmanager
def _quiet_save() -> Iterator[None]:
    """MLflow asks for an input example to try the model out on; there is no checkpoint beside it yet."""
    logger = logging.getLogger("mlflow")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
