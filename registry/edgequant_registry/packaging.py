"""Make a registered version servable: MLmodel, the served model's code and its requirements, beside the checkpoint."""

from __future__ import annotations

import logging
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path

import mlflow
from mlflow.models import Model, ModelSignature
from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository
from mlflow.types import ColSpec, DataType, ParamSchema, ParamSpec, Schema

import edgequant
from edgequant import tracking

REQUIREMENTS = ("mlflow", "torch", "transformers", "safetensors", "numpy")
SIGNATURE = ModelSignature(
    inputs=Schema([ColSpec(DataType.string)]),
    outputs=Schema([ColSpec(DataType.string)]),
    params=ParamSchema(
        [
            ParamSpec("max_new_tokens", DataType.long, 64),
            ParamSpec("temperature", DataType.double, 0.0),
        ]
    ),
)


def make_servable(name: str, version: str) -> None:
    """Add to a version's files what `mlflow.pyfunc.load_model` and `mlflow models serve` need.

    The checkpoint itself is neither copied nor changed. Edgequant's own code goes along, so that a server needs no
    checkout and serves with the code that promoted.
    """
    source = tracking.client().get_model_version_download_uri(name, version)
    with tempfile.TemporaryDirectory(prefix="edgequant-") as temporary:
        folder = Path(temporary) / "model"
        with _quiet_save():
            mlflow.pyfunc.save_model(
                path=str(folder),
                python_model=str(Path(__file__).with_name("served_model.py")),
                code_paths=[str(Path(edgequant.__file__).parent)],
                pip_requirements=[f"{package}=={metadata.version(package)}" for package in REQUIREMENTS],
                signature=SIGNATURE,
            )
        _point_at_the_checkpoint(folder / "MLmodel", source)
        get_artifact_repository(source).log_artifacts(str(folder))


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
