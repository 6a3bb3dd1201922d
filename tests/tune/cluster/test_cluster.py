"""A search on a cluster: code is shipped, storage is looked at from every node before the first trial."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from search_specs import search_spec

from edgequant.errors import UserError
from edgequant_tune.cluster import storage
from edgequant_tune.cluster.addresses import running_cluster
from edgequant_tune.cluster.node_checks import check_nodes

HERE = Path(__file__).parent
ROOT = HERE.parents[2]


@pytest.mark.long
def test_a_search_and_a_corpus_use_a_node_that_has_no_checkout(tmp_path):
    paths = [HERE.parent, *(ROOT / name for name in ("platform", "tune", "registry"))]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(map(str, paths))}
    command = [sys.executable, str(HERE / "search_on_two_nodes.py"), str(tmp_path)]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    told = json.loads(done.stdout.rpartition("TOLD ")[2])
    for place in ("folder", "store"):
        assert told[place]["status"] == ["finished"] * 4, told[place]["error"]
        assert told[place]["shipped"] == 4
        # beaten ones are deleted, but for the recipe's; the store's are brought here
        kept = {Path(file).parts[-3] for file in told[place]["checkpoints"]}
        assert kept == {told[place]["best"], "0001"}
    assert told["folder"]["nodes"] == 2
    assert {Path(file).parts[-3] for file in told["store"]["stored"]} == {told["store"]["best"], "0001"}
    assert told["folder"]["folder"].startswith(str(tmp_path / "shared"))
    assert told["corpus"] == [True, True]


@pytest.mark.long
def test_every_node_is_asked_before_the_first_trial(tmp_path, ray_here, monkeypatch):
    check_nodes(str(tmp_path / "shared"), [str(tmp_path)])
    check_nodes(f"file://{tmp_path}/store", [])
    assert not list((tmp_path / "shared").iterdir())  # nothing is left of it
    with pytest.raises(UserError, match=r"node \S+ \(\w{8}\) cannot run a trial: '.*absent' not found there"):
        check_nodes(str(tmp_path / "shared"), [str(tmp_path / "absent")])
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(UserError, match=r"storage_path '.*file/below' cannot be written to"):
        check_nodes(str(tmp_path / "file" / "below"), [])
    monkeypatch.setattr(storage, "read_text", lambda *_: "another folder's")
    with pytest.raises(UserError, match="is not seen here; use a folder that all nodes mount, or s3://bucket/folder"):
        check_nodes(str(tmp_path / "shared"), [])


def test_an_address_of_no_store_and_of_rays_client_are_refused(monkeypatch):
    with pytest.raises(UserError, match=r"storage_path must be a folder or an address such as s3://.*'bucket://x'"):
        search_spec(storage_path="bucket://x")
    with pytest.raises(UserError, match=r"storage_path must name a bucket or a folder.*got 'file:///'"):
        search_spec(storage_path="file:///")
    with pytest.raises(UserError, match="address must be that of Ray's head node"):
        running_cluster("ray://head:10001")
    monkeypatch.setenv("RAY_ADDRESS", "head:6379")
    assert running_cluster(None) == "head:6379" and running_cluster("auto") == "auto"
    monkeypatch.delenv("RAY_ADDRESS")
    assert running_cluster(None) is None


def test_a_folder_as_storage_takes_the_place_of_output(tmp_path):
    spec = search_spec(output=str(tmp_path / "out"), storage_path=str(tmp_path / "shared")).on({"CPU": 1.0}, "run")
    assert (spec.trial.folder, spec.trial.storage) == (tmp_path / "shared" / "run", None)
    spec = search_spec(output=str(tmp_path / "out"), storage_path="s3://models/tune/").on({"CPU": 1.0}, "run")
    assert (spec.trial.folder, spec.trial.storage) == (tmp_path / "out" / "run", "s3://models/tune/run")
    assert spec.trial.work_folder != spec.trial.trials_folder
