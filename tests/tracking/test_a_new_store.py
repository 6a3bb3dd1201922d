"""The database of a new working folder is there whole or not at all."""

from __future__ import annotations

import os
from pathlib import Path

import mlflow
import pytest

from edgequant.tracking import store


@pytest.fixture
def database(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(mlflow, "get_tracking_uri", lambda: f"sqlite:///{tmp_path / 'mlflow.db'}")
    store._check.cache_clear()
    return tmp_path / "mlflow.db"


@pytest.mark.long
def test_ctrl_c_while_mlflow_makes_its_tables_leaves_nothing_and_the_next_run_begins(database, monkeypatch):
    def interrupted(_engine):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("mlflow.store.db.utils._upgrade_db", interrupted)
        with pytest.raises(KeyboardInterrupt):
            store.check_store()
    assert list(database.parent.iterdir()) == []
    store.check_store()
    assert [entry.name for entry in database.parent.iterdir()] == ["mlflow.db"]
    store.check_experiment("edgequant")


@pytest.mark.parametrize("links", [True, False])
def test_a_database_that_another_process_made_meanwhile_stays(tmp_path, monkeypatch, links):
    def no_links(_from, _to):
        raise PermissionError(1, "Operation not permitted")

    if not links:
        monkeypatch.setattr(os, "link", no_links)
    made, place = tmp_path / "made", tmp_path / "mlflow.db"
    made.write_text("new")
    store._put(made, place)
    assert place.read_text() == "new"
    made.unlink(missing_ok=True)
    made.write_text("second")
    store._put(made, place)
    assert place.read_text() == "new"
