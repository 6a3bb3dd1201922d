"""A search in a process of its own, to be killed: python interrupted_search.py FOLDER [resume]."""

import sys
from pathlib import Path

import fake_candidates
import mlflow
from search_specs import search_spec

from edgequant import tracking
from edgequant.training.settings import TrainingSettings
from edgequant_tune.driver import ray_cluster, run_search

folder, resume = Path(sys.argv[1]), sys.argv[2:] == ["resume"]
mlflow.set_tracking_uri(f"sqlite:///{folder}/mlflow.db")
spec = search_spec(
    fake_candidates.bowl,
    output=str(folder / "out"),
    trials=4,
    concurrent_trials=1,
    training=TrainingSettings(steps=20, learning_rate=1e-3),
)
with tracking.workflow_run("tune", {"of": "a test"}, resume=resume) as run, ray_cluster() as resources:
    run_search(spec.on(resources, run.id), run)
