"""What a process makes cells with: the experiment of each seed, loaded once, and what is trained and measured in it."""

from __future__ import annotations

import argparse
import copy
import fcntl
import gc
import json
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from peers.ptq_rows import cast
from peers.torchao import qat_step

from edgequant import models
from edgequant.evaluation.settings import EvaluationSettings
from edgequant.files import write_atomically
from edgequant.quantization.calibration import CalibrationSettings
from edgequant.quantization.qat.settings import QatSettings
from edgequant.quantization.scheme import parse_scheme
from edgequant.training.settings import TrainingSettings
from edgequant.workflows.settings import RunSettings
from edgequant.workflows.steps import qat_experiment, qat_variants, verdict
from edgequant.workflows.steps.data import evaluation_data
from edgequant.workflows.steps.measure import Measured, Variant, measure_variant
from edgequant.workflows.steps.qat_experiment import LIMITS, START_BLOCKS, QatExperiment
from qat_quality.cells import AUTO, PEERS, Cell, Store
from qat_quality.peer_cells import peer_rows

RATE_TEST = "qat-learning-rate.json"  # where QatExperiment.train keeps what it found, and looks for it
Row = dict[str, Any]


class Comparison:
    """Makes the cells of one model and one set of options."""

    def __init__(self, options: argparse.Namespace, store: Store, work: Path) -> None:
        self.options, self.store, self.work = options, store, work
        self.loaded = lru_cache(maxsize=len(options.seeds))(self._load)
        self.floating: Any = None  # one for all seeds

    def make(self, cell: Cell) -> list[Row]:
        """The rows of a cell; goes on with what an interrupted try has left in the work folder."""
        try:
            return self._make(cell)
        finally:
            gc.collect()
            torch.cuda.empty_cache()  # for the other processes on the GPU

    def _make(self, cell: Cell) -> list[Row]:
        if cell.variant in PEERS:
            return peer_rows(cell.variant, cell.scheme, self.loaded(cell.seed), self.options)
        if cell.variant == "baseline":
            return [row_of(self._baseline(cell.seed))]
        if cell.variant.startswith("rate x "):
            return [self._at_rate(cell)]
        makers = {
            "ptq": self._ptq, "qat": self._qat, "qat-plain": self._qat_plain, "torchao-qat": self._torchao_qat,
            "qat-as-torchao": self._qat_as_torchao,
        }  # fmt: skip
        return [makers[cell.variant](cell)]

    def _load(self, seed: int) -> QatExperiment:
        options, folder = self.options, self.work / f"seed-{seed}"
        folder.mkdir(parents=True, exist_ok=True)
        with _alone(folder / "loading.lock"):  # one process writes the generated text, the others read it
            loaded = qat_experiment.load(
                options.model, parse_scheme(options.rate_grid or options.schemes[0]), options.dataset,
                training=training_settings(options), qat=QatSettings(init_from=options.ptq_method),
                calibration=CalibrationSettings(num_calibration_samples=options.calibration),
                evaluation=evaluation_settings(options, self.work), data=asked_data(options), folder=folder,
                run=RunSettings(data_dir=options.data_dir, device=options.device, dtype=options.dtype, seed=seed),
                guard=options.guard, resume=True,
            )  # fmt: skip
        self.floating = self.floating or loaded.floating
        return replace(loaded, floating=self.floating)

    def _of(self, cell: Cell, name: str, **changes: Any) -> QatExperiment:
        """The seed's experiment with a cell's scheme, in a folder of its own."""
        folder = self.work / f"seed-{cell.seed}" / cell.scheme / name
        folder.mkdir(parents=True, exist_ok=True)
        return replace(self.loaded(cell.seed), scheme=parse_scheme(cell.scheme), folder=folder, **changes)

    def _from_same_start(self, beside: QatExperiment, cell: Cell, name: str, **changes: Any) -> QatExperiment:
        """An experiment whose QAT starts from the blocks that another one's PTQ finished."""
        start = replace(beside.qat, init_from=beside.ptq_method)
        experiment = self._of(cell, name, qat=start, **changes)
        _reuse(beside, experiment, START_BLOCKS)
        return experiment

    def _baseline(self, seed: int) -> Measured:
        return measure_variant("baseline", timed(qat_variants.baseline), self.loaded(seed))

    def _rounded(self, cell: Cell) -> tuple[QatExperiment, Measured]:
        experiment = self._of(cell, "ours")
        return experiment, measure_variant("ptq", timed(qat_variants.rounded), experiment)

    def _ptq(self, cell: Cell) -> Row:
        experiment, measured = self._rounded(cell)
        return row_of(measured) | {"method": experiment.ptq_method}

    def _qat(self, cell: Cell) -> Row:
        experiment, rounded = self._rounded(cell)
        trained = self._trained(experiment)
        rows = {"baseline": self._baseline(cell.seed), "ptq": rounded, "qat": trained}
        found = verdict.judge(rows, experiment, self.options.dataset)
        return self._row(trained, experiment) | {
            "delivered": found.delivered, "because": found.because, "harm": found.harm,
            "delivered_metrics": rows[found.delivered].metrics | found.metrics,
        }  # fmt: skip

    def _qat_plain(self, cell: Cell) -> Row:
        """Ours, learning from the text alone: beside the peers' QAT, which has no teacher either."""
        beside, _ = self._rounded(cell)
        plain = replace(beside.training, distillation_weight=0.0)
        experiment = self._from_same_start(beside, cell, "plain", training=plain)
        if not (experiment.folder / LIMITS).is_file():  # without a teacher training looks at fewer rows
            experiment.keep_limits(models.load(str(beside.folder / "ptq"), device=experiment.device).model)
        return self._row(self._trained(experiment), experiment)

    def _at_rate(self, cell: Cell) -> Row:
        """QAT at the rate that `auto` finds, or at a multiple of it."""
        beside, _ = self._rounded(replace(cell, variant="ptq"))
        experiment = self._from_same_start(beside, cell, cell.variant.replace(" ", "-"))
        shutil.copy(beside.folder / LIMITS, experiment.folder / LIMITS)
        if cell.variant != AUTO:
            (automatic,) = self.store.rows(replace(cell, variant=AUTO)) or [{}]
            if "rate_test" not in automatic:
                raise RuntimeError(f"{AUTO} must be made first, and is not there")
            test = automatic["rate_test"]
            test = test | {"rate": test["rate"] * float(cell.variant.rpartition(" ")[2])}
            write_atomically(experiment.folder / RATE_TEST, json.dumps(test))
        return self._row(self._trained(experiment), experiment)

    def _qat_as_torchao(self, cell: Cell) -> Row:
        """Ours from where torchao starts: the weights as they came, of the linears alone."""
        experiment = self._of(cell, "as-torchao", qat=QatSettings(init_from="rtn"))
        return self._row(self._trained(experiment), experiment)

    def _torchao_qat(self, cell: Cell) -> Row:
        """torchao's QAT in our loop: same text, tokens, teacher, rate test and choice of the best state."""
        experiment = self._of(cell, "torchao")

        def make(experiment: QatExperiment) -> Variant:
            model = copy.deepcopy(experiment.floating)
            qat_step(model, experiment.scheme, "prepare")
            model.requires_grad_(True)
            result = experiment.train(model, "qat-peer", experiment.training, experiment.teacher)
            qat_step(model, experiment.scheme, "convert")
            losses = {f"held_out/{name}_loss": loss for name, loss in experiment.held_out.losses(model).items()}
            metrics = result.metrics | losses
            deployed = cast(model, getattr(torch, experiment.dtype))
            settings = replace(experiment.evaluation, cache_dir=None)  # what tells models apart is no plain tensor here
            return Variant(
                deployed, experiment.tokenizer, metrics=metrics, settings=settings,
                notes=result.notes,
            )  # fmt: skip

        measured = measure_variant("torchao", timed(make), experiment)
        affine = experiment.scheme.weight is not None and experiment.scheme.weight.zero_point != "none"
        note = {"note": "symmetric, as it can be no other; ours has zero points here"} if affine else {}
        row = self._row(measured, experiment, "qat-peer") | note
        # No checkpoint is written: what its tensors take in memory is not what a file would.
        return row | {"metrics": {name: value for name, value in row["metrics"].items() if name[:5] != "size/"}}

    def _trained(self, experiment: QatExperiment) -> Measured:
        return measure_variant("qat", timed(qat_variants.quantized), experiment)

    def _row(self, measured: Measured, experiment: QatExperiment, name: str = "qat") -> Row:
        """A trained cell's row; what training left on disk goes."""
        kept = experiment.folder / f"{name}-learning-rate.json"
        test = {"rate_test": json.loads(kept.read_text())} if kept.is_file() else {}
        for folder in (f"{name}-training", *(() if self.options.keep_checkpoints else ("qat",))):
            shutil.rmtree(experiment.folder / folder, ignore_errors=True)
        return row_of(measured) | test | {"training": asdict(experiment.training)}


def row_of(measured: Measured) -> Row:
    """Without the items behind the metrics."""
    return {"metrics": measured.metrics, "notes": measured.notes}


def training_settings(options: argparse.Namespace) -> TrainingSettings:
    """The same for every model: nothing in here is to be tuned to one."""
    return TrainingSettings(
        epochs=options.epochs, steps=options.steps, max_tokens=options.max_tokens, batch_size=options.batch,
        gradient_accumulation=options.accumulate, sequence_length=options.sequence, distillation_weight=1.0,
    )  # fmt: skip


def evaluation_settings(options: argparse.Namespace, work: Path) -> EvaluationSettings:
    limit = 20 * options.windows if options.windows else None
    return EvaluationSettings(tasks=tuple(options.tasks), limit=limit, cache_dir=str(work / "scores"))


def asked_data(options: argparse.Namespace) -> dict[str, Any]:
    """What the tasks are scored on; of questions `--limit`, spread evenly."""
    data = dict(evaluation_data(options.tasks, options.data_dir))
    for name in ("boolq", "squad"):
        rows = list(data.get(name) or ())
        if options.limit and rows:
            data[name] = rows[:: max(1, len(rows) // options.limit)][: options.limit]
    return data


def timed(make: Callable[[QatExperiment], Variant]) -> Callable[[QatExperiment], Variant]:
    """The same, with seconds and peak memory among its metrics, and without figures."""

    def made(experiment: QatExperiment) -> Variant:
        on_gpu = experiment.device.startswith("cuda")
        if on_gpu:
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
        resumed = any(experiment.folder.glob("*-training/checkpoint-*"))
        started = time.perf_counter()
        found = make(experiment)
        cost = {"cost/seconds": time.perf_counter() - started}
        if on_gpu:
            cost["cost/peak_gb"] = torch.cuda.max_memory_allocated() / 1e9
        notes = dict(found.notes) | ({"resumed": "seconds since it was resumed"} if resumed else {})
        return found._replace(metrics=dict(found.metrics) | cost, notes=notes, layer_errors=())

    return made


def _reuse(beside: QatExperiment, experiment: QatExperiment, name: str) -> None:
    """Let an experiment find the other's folder of that name."""
    link = experiment.folder / name
    if (beside.folder / name).is_dir() and not link.exists():
        link.symlink_to((beside.folder / name).resolve(), target_is_directory=True)


@contextmanager
def _alone(file: Path) -> Iterator[None]:
    with file.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
