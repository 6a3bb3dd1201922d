"""The per-file function on Ray Data: past one machine, the same results in the same order."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from edgequant.corpora.processed_file import ProcessedFile
from edgequant.corpora.settings import CorpusSettings
from edgequant.corpora.sources import SourceFile
from edgequant.ray_signals import same_code, sigterm_kept


class ProcessOnActor:
    """A Ray Data actor. It keeps a worker process of the local engine, so that time and memory limits hold here too.

    Files are read by path: on a cluster the source lies on storage that every node mounts.
    """

    def __init__(self, tokenizer: bytes, settings: dict[str, Any]) -> None:
        from edgequant.files import cache_dir, sha256_of_bytes, write_atomically

        self._settings = CorpusSettings(**{**settings, "workers": 1})
        self._tokenizer = cache_dir() / "corpus" / "tokenizers" / f"{sha256_of_bytes(tokenizer)[:16]}.json"
        if not self._tokenizer.exists():
            write_atomically(self._tokenizer, tokenizer)

    def __call__(self, batch: dict[str, Any]) -> dict[str, list[Any]]:
        from edgequant.corpora.processing.sandbox import process_in_workers

        if absent := [str(path) for path in batch["path"] if not Path(path).exists()]:
            raise FileNotFoundError(f"{absent[0]} is not on this node; put the source on storage that all nodes mount")
        files = [SourceFile(str(path), str(name)) for path, name in zip(batch["path"], batch["name"], strict=True)]
        found: list[tuple[int, str]] = []
        process_in_workers(
            files,
            self._tokenizer,
            self._settings,
            lambda index, result: found.append((int(batch["position"][index]), json.dumps(result.to_json()))),
        )
        return {"position": [position for position, _ in found], "result": [result for _, result in found]}


def process_on_ray(
    files: Sequence[SourceFile],
    tokenizer: Path,
    settings: CorpusSettings,
    on_result: Callable[[int, ProcessedFile], None],
) -> None:
    """As `sandbox.process_in_workers`, on the Ray that this process uses, else on the cluster that $RAY_ADDRESS names,
    to which the code is shipped, else on one started here with settings.workers CPUs."""
    import ray

    started = not ray.is_initialized()
    if started:
        elsewhere = os.environ.get("RAY_ADDRESS") not in (None, "", "local")
        own: dict[str, Any] = {"address": "local", "num_cpus": settings.workers, "include_dashboard": False}
        with sigterm_kept():
            ray.init(runtime_env=same_code(elsewhere=elsewhere), log_to_driver=False, **({} if elsewhere else own))
    ray.data.DataContext.get_current().enable_progress_bars = False
    try:
        actors = max(1, min(int(ray.cluster_resources().get("CPU", 1)), len(files)))
        rows = [{"position": index, "path": file.path, "name": file.name} for index, file in enumerate(files)]
        results = ray.data.from_items(rows, override_num_blocks=len(rows)).map_batches(
            ProcessOnActor,
            fn_constructor_args=(tokenizer.read_bytes(), asdict(settings)),
            batch_size=1,
            compute=ray.data.ActorPoolStrategy(size=actors),
            num_cpus=1,
        )
        for row in sorted(results.iter_rows(), key=lambda row: row["position"]):
            on_result(int(row["position"]), ProcessedFile.from_json(json.loads(row["result"])))
    finally:
        if started:
            ray.shutdown()
