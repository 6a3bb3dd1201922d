import os
import shutil
from pathlib import Path

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")
HERE = Path(__file__).parent


@pytest.fixture(scope="session")
def ray_here():
    """One small Ray for all tests of the search; its workers can import fake_candidates."""
    from edgequant_tune.delivery import worker_environment
    from edgequant_tune.search import ray_cluster

    before = os.environ.get("PYTHONPATH", "")
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(HERE), before]))
    try:
        with ray_cluster(worker_environment()) as resources:
            yield resources
    finally:
        os.environ["PYTHONPATH"] = before


@pytest.fixture(scope="session")
def empty_store(tmp_path_factory):
    """A store with its tables made once: that takes seconds."""
    import mlflow

    file = tmp_path_factory.mktemp("store") / "mlflow.db"
    mlflow.MlflowClient(f"sqlite:///{file}").search_experiments()
    return file


@pytest.fixture
def store(tmp_path, monkeypatch, empty_store):
    """An empty store in the test's folder, which is the working directory."""
    import mlflow

    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_RUN_ID", raising=False)
    shutil.copy(empty_store, tmp_path / "mlflow.db")
    before = mlflow.get_tracking_uri()
    mlflow.set_tracking_uri(f"sqlite:///{tmp_path}/mlflow.db")
    mlflow.create_experiment("edgequant", artifact_location=str(tmp_path / "mlruns"))
    yield mlflow.MlflowClient()
    mlflow.set_tracking_uri(before)
