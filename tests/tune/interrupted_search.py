"""A search in a process of its own, to be killed: python interrupted_search.py FOLDER [resume]."""

import sys
from pathlib import Path

import mlflow

from edgequant import tracking
from edgequant.evaluation.settings import EvaluationSettings
from edgequant.quantization.settings import QuantizationSettings
from edgequant.training.settings import LoraSettings, TrainingSettings
from edgequant_tune import plan, results
from edgequant_tune.driver import ray_cluster, run_search

folder, resume = Path(sys.argv[1]), sys.argv[2:] == ["resume"]
mlflow.set_tracking_uri(f"sqlite:///{folder}/mlflow.db")
plan.CANDIDATES["qat"] = "fake_candidates:bowl"
checked = plan.check_plan(
    model="tiny", method="qat", lora=LoraSettings(), scheme="w4a8-g32+emb4", text="disaster",
    objectives=["domain/perplexity"], trials=4,
    space={"learning_rate": {"log_uniform": [1e-6, 1e-2]}}, training=TrainingSettings(steps=20, learning_rate=1e-3),
    quantization=QuantizationSettings(), minutes=None, scheduler="none", concurrent=1, cpus=1.0, gpus=0.0,
)  # fmt: skip
with (
    tracking.workflow_run("tune", {"of": "a test"}, resume=resume) as run,
    ray_cluster(results.worker_environment()) as resources,
    results.trials_closed(run),
):
    search = plan.make_search(checked, run.id, resources, EvaluationSettings(), None, str(folder / "out"), "cpu", 0)
    run_search(search, results.callbacks(search, run))
