"""What others do alone: a script with MLflow's own runs; a training of transformers.Trainer that goes on."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

from faults.forking import Child, fork_function
from faults.outcome import Outcome, ended_processes, last_line, runs_between
from faults.places import Place

STEPS, SAVED_EACH = 24, 6
WAYS = ("SIGKILL", "SIGINT", "SIGTERM", "SIGHUP")


def mlflow_script() -> int:
    """Metrics of a loop and a text in the end, as MLflow's documentation shows it."""
    import mlflow

    with mlflow.start_run(run_name="alone"):
        for step in range(STEPS):
            mlflow.log_metric("loss", 1 / (step + 1), step=step)
            time.sleep(0.02)
        mlflow.log_text("done", "result.txt")
    return 0


def trainer_script() -> int:
    """A training of `tiny` with checkpoints, from the last one where there is one, as transformers' pages show it."""
    import torch
    from transformers import Trainer, TrainingArguments

    from edgequant.models.tiny import tiny_model

    rows = torch.randint(0, 256, (64, 64), generator=torch.Generator().manual_seed(0))
    arguments = TrainingArguments(
        output_dir="training", max_steps=STEPS, per_device_train_batch_size=2, save_steps=SAVED_EACH,
        save_total_limit=1, logging_steps=1, report_to=[], disable_tqdm=True, use_cpu=True, seed=0, learning_rate=1e-3,
    )  # fmt: skip
    data: Any = [{"input_ids": row, "labels": row} for row in rows]
    trainer = Trainer(model=tiny_model("float32"), args=arguments, train_dataset=data)
    trainer.train(resume_from_checkpoint=any(Path("training").glob("checkpoint-*")))
    trainer.save_model("made")
    return 0


SCRIPTS: dict[str, Callable[[], int]] = {"MLflow alone": mlflow_script, "transformers.Trainer alone": trainer_script}


def tried(name: str, place: Place, template: Path, draw: Random, mark: str, whole: dict[str, Any]) -> dict[str, Any]:
    """One try: interrupted at a random moment, then run again.

    Args:
        whole: what the script leaves undisturbed, and its seconds; filled by the first try.
    """
    begin = _begin(SCRIPTS[name], place, mark)
    if not whole:
        place.like(template)
        child = begin()
        ended = child.wait(120)
        assert ended is not None and ended.status == 0, ended
        whole |= {"made": _made(place), "seconds": ended.seconds}
    place.like(template)
    way = draw.choice(WAYS) if name == "MLflow alone" else "SIGKILL"
    child, number = begin(), signal.Signals[way]
    child.wait(draw.uniform(0.05, 0.95) * whole["seconds"])
    child.send(number)
    ended = child.wait(10) or child.end()
    lost = [] if way == "SIGKILL" or ended.as_shell == 128 + number else [f"exit status {ended.as_shell} after {way}"]
    again = begin().wait(120)
    if again is None or again.status != 0:
        lost.append(f"run again it fails: {last_line(again.said if again else '')}")
    lost += ["a run is still RUNNING" for run in runs_between(place) if run.status == "RUNNING"][:1]
    lost += [] if not whole["made"] or _made(place) == whole["made"] else ["its result is another"]
    return {"way": way} | Outcome(lost, ended_processes(mark))._asdict()


def _begin(script: Callable[[], int], place: Place, mark: str) -> Callable[[], Child]:
    return lambda: fork_function(script, place.work, place.said(), place.environment(mark))


def _made(place: Place) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in sorted((place.work / "made").glob("*.safetensors"))}
