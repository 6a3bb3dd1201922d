"""What all tests share: a model that trains in seconds, data where they are, a store and a cache of their own.

Each test process computes on one thread (so that `pytest -n 2` suits two cores), stays off the network, and writes to
temporary folders only.
"""

from __future__ import annotations

import contextlib
import copy
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest import mock

import pytest

# Before torch and the hub's client are imported: they read these once. Processes that tests start inherit them.
os.environ |= {
    "OMP_NUM_THREADS": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "HF_HUB_OFFLINE": "1",
    "HF_DATASETS_OFFLINE": "1",
    "MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING": "false",
    "CUBLAS_WORKSPACE_CONFIG": ":4096:8",
    # as in an activated environment, so that printed commands are the same wherever the tests run
    "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)]),
}
os.environ.pop("MAKELEVEL", None)
# What a background shell or nohup starts ignores these, and processes that tests stop would inherit that.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
DATA = os.environ.pop("EDGEQUANT_DATA", None)  # no workflow finds benchmarks unless its test asks for `data_dir`
for name in [name for name in os.environ if name.startswith("MLFLOW_") and name.endswith(("_ID", "_URI", "_NAME"))]:
    del os.environ[name]

if TYPE_CHECKING:
    from edgequant.models.loading import LoadedModel

ROOT = Path(__file__).resolve().parent.parent
SOURCES = [str(ROOT / folder) for folder in ("platform", "tune", "registry")]


LONGEST = (
    "benchmarks",
    "tune",
    "workflows",
    "training",
    "command_line",
    "examples",
    "registry",
    "server",
    "quantization/qat",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests marked `gpu` are skipped where torch sees no CUDA device; no worker begins a long file last."""
    if "PYTEST_XDIST_WORKER" in os.environ:
        items.sort(key=_rank)
    marked = [item for item in items if item.get_closest_marker("gpu")]
    if not marked:
        return
    import torch

    if not torch.cuda.is_available():
        for item in marked:
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))


def _rank(item: pytest.Item) -> int:
    folder = item.path.relative_to(ROOT / "tests").parent.as_posix()
    ranks = [rank for rank, name in enumerate(LONGEST) if folder == name or folder.startswith(f"{name}/")]
    return min(ranks, default=len(LONGEST))


@pytest.fixture(scope="session")
def root() -> Path:
    """The repository."""
    return ROOT


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """WikiText-2, BoolQ and SQuAD in their official formats: $EDGEQUANT_DATA, else ../shared/data."""
    folder = Path(DATA) if DATA else ROOT.parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip(f"no data: {folder} is not a folder; set EDGEQUANT_DATA")
    return folder


@pytest.fixture(scope="session", autouse=True)
def own_places(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Caches and tracking store in the session's temporary folder: no test touches the user's."""
    folder = tmp_path_factory.mktemp("session")
    of_all_workers = tmp_path_factory.getbasetemp().parent if "PYTEST_XDIST_WORKER" in os.environ else folder
    places = {
        "EDGEQUANT_CACHE": str(folder / "cache"),
        "MLFLOW_TRACKING_URI": f"sqlite:///{folder}/mlflow.db",
        # Inductor's own folder would give code that was generated for another ISA setting to this one.
        "TORCHINDUCTOR_CACHE_DIR": str(of_all_workers / "inductor"),
    }
    with mock.patch.dict(os.environ, places):
        yield


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty edgequant cache."""
    folder = tmp_path / "cache"
    monkeypatch.setenv("EDGEQUANT_CACHE", str(folder))
    return folder


# ------------------------------------------------------------------------------------------------------------- models


@pytest.fixture(scope="session")
def _tiny() -> LoadedModel:
    from edgequant import models

    return models.load("tiny", dtype="float32", device="cpu")


@pytest.fixture
def tiny(_tiny: LoadedModel) -> LoadedModel:
    """(model, tokenizer, source): a random 2-layer Qwen2, float32, with a byte-level tokenizer; the test's own copy."""
    return copy.deepcopy(_tiny)


@pytest.fixture(scope="session")
def tiny_folder(_tiny: LoadedModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`tiny` as a plain transformers folder; not to be written to."""
    folder = tmp_path_factory.mktemp("models") / "tiny"
    _tiny.model.save_pretrained(folder)
    _tiny.tokenizer.save_pretrained(folder)
    return folder


# ----------------------------------------------------------------------------------------------------------- tracking


@pytest.fixture(scope="session")
def _empty_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with its tables: making them takes seconds, copying the file does not."""
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

    folder = tmp_path_factory.mktemp("store")
    SqlAlchemyStore(f"sqlite:///{folder}/mlflow.db", str(folder / "artifacts")).engine.dispose()
    return folder / "mlflow.db"


@pytest.fixture(scope="session")
def open_store(_empty_store: Path) -> Callable[[Path], contextlib.AbstractContextManager[Any]]:
    """`with open_store(folder) as client`: an empty store in a folder, which is the working directory meanwhile."""

    @contextlib.contextmanager
    def opened(folder: Path) -> Iterator[Any]:
        import mlflow
        from mlflow.tracking import fluent
        from mlflow.tracking._tracking_service import utils as service

        shutil.copy(_empty_store, folder / "mlflow.db")
        with (
            contextlib.chdir(folder),
            # Not by mlflow.set_tracking_uri, which outlives the test and overrules the variable in later ones.
            mock.patch.dict(os.environ, {"MLFLOW_TRACKING_URI": f"sqlite:///{folder}/mlflow.db"}),
            mock.patch.object(service, "_tracking_uri", None),
            mock.patch.object(fluent, "_active_experiment_id", None),
        ):
            try:
                yield mlflow.MlflowClient()
            finally:
                while mlflow.active_run() is not None:
                    mlflow.end_run()

    return opened


@pytest.fixture
def store(tmp_path: Path, open_store: Callable[[Path], contextlib.AbstractContextManager[Any]]) -> Iterator[Any]:
    """An MLflow client of an empty store in the test's folder, which becomes the working directory."""
    with open_store(tmp_path) as client:
        yield client


# ------------------------------------------------------------------------------------------------------- command line


@pytest.fixture
def environment(tmp_path: Path, own_places: None) -> dict[str, str]:
    """Environment of a process that tests start: our sources importable, its tracking store in the test's folder."""
    paths = os.pathsep.join([*SOURCES, *filter(None, [os.environ.get("PYTHONPATH")])])
    return {**os.environ, "PYTHONPATH": paths, "MLFLOW_TRACKING_URI": f"sqlite:///{tmp_path}/mlflow.db"}


@pytest.fixture
def edgequant(tmp_path: Path, environment: dict[str, str]) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run the command line in a process of its own: edgequant("qat", "--model", "tiny")."""

    def run(*arguments: str, timeout: float = 120, **changed: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "edgequant", *arguments]
        everything = {"cwd": tmp_path, "env": environment | changed, "capture_output": True, "text": True}
        return subprocess.run(command, timeout=timeout, check=False, **everything)  # type: ignore[call-overload]

    return run
