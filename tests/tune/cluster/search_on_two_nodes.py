"""Two raylets on one machine, the second without the checkout; a search on both: search_on_two_nodes.py FOLDER.

Prints a line of JSON: what became of the search on a shared folder, on an object store, and of a corpus.
"""

import json
import sys
import time
from pathlib import Path

import fake_candidates
import mlflow
import ray
from ray import cloudpickle
from ray.cluster_utils import Cluster
from search_specs import search_spec

from edgequant import tracking
from edgequant.corpora.processing.ray_engine import process_on_ray
from edgequant.corpora.settings import CorpusSettings
from edgequant.corpora.sources import list_files
from edgequant.models.tiny import tiny_folder
from edgequant.training.settings import TrainingSettings
from edgequant_tune.driver import ray_cluster, run_search

folder = Path(sys.argv[1])
hidden = folder / "no-checkout"
for package in ("edgequant", "edgequant_tune"):
    (hidden / package).mkdir(parents=True)
    (hidden / package / "__init__.py").write_text("raise ImportError('no checkout here')")
mlflow.set_tracking_uri(f"sqlite:///{folder}/mlflow.db")
cloudpickle.register_pickle_by_value(fake_candidates)  # stands for qat, which is shipped
told = {}


def where_trials_ran(trial, work_dir, on_report):
    import edgequant

    (trial.folder / f"ran-{work_dir.name}").write_text(
        f"{ray.get_runtime_context().get_node_id()} {edgequant.__file__}"
    )
    time.sleep(4 if trial.storage is None else 0)  # until the other node has begun too
    return fake_candidates.bowl(trial, work_dir, on_report)


cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
cluster.add_node(num_cpus=1, env_vars={"PYTHONPATH": str(hidden)})
for place in ("folder", "store"):
    shared = str(folder / "shared") if place == "folder" else f"file://{folder}/store"
    with tracking.workflow_run("tune", {"of": place}) as run, ray_cluster(cluster.address) as nodes:
        spec = search_spec(
            where_trials_ran, output=str(folder / "out"), storage_path=shared, trials=4,
            training=TrainingSettings(steps=2, learning_rate=1e-3),
        ).on(nodes, run.id)  # fmt: skip
        if place == "store":
            spec.trial.folder.mkdir(parents=True)
        records = run_search(spec, run)
        ran = [file.read_text().split() for file in spec.trial.folder.glob("ran-*")]
        told[place] = {
            "status": [record.status for record in records],
            "error": [record.error for record in records if record.error],
            "nodes": len({node for node, _ in ran}),
            "shipped": sum("py_modules" in file or "runtime_resources" in file for _, file in ran),
            "checkpoints": [str(path) for path in spec.trial.folder.glob("trials/*/checkpoint/config.json")],
            "stored": [str(path) for path in folder.glob("store/*/trials/*/checkpoint/config.json")],
            "best": min(records, key=lambda record: record.metrics["domain/perplexity"]).id,
            "folder": str(spec.trial.folder),
        }
        if place == "folder":
            texts = folder / "texts"
            texts.mkdir()
            for number in range(2):
                (texts / f"{number}.txt").write_text(
                    f"The river rose by {number} metres and the bridge was closed. " * 9
                )
            results = {}
            files = list_files(texts)
            process_on_ray(files, tiny_folder() / "tokenizer.json", CorpusSettings(engine="ray"), results.__setitem__)
            told["corpus"] = [bool(results[index].parts) for index in sorted(results)]
cluster.shutdown()
print("TOLD", json.dumps(told), flush=True)
