"""`pipeline` (also `main`): the whole methodology in one parent run, each phase a workflow of its own under it.

mlflow run .
edgequant pipeline --model tiny
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from edgequant.errors import UserError
from edgequant.evaluation.settings import EvaluationSettings
from edgequant.folders import CHECKPOINT, share_folder
from edgequant.outputs import Place, check_output, places
from edgequant.quantization.qat.settings import QatSettings
from edgequant.training.settings import TrainingSettings
from edgequant.workflows.settings import RunSettings, WorkflowResult, configuration
from edgequant.workflows.shipping import plan_timing
from edgequant.workflows.steps.measure import COMPARISON
from edgequant.workflows.validate import places_read, validate

if TYPE_CHECKING:
    from edgequant.quantization.scheme import Scheme

PHASES = ("corpus", "baseline", "ptq", "qat", "finetune", "evaluate", "report")
PEERS = ("bnb-int8", "bnb-nf4")  # schemes that PTQ puts beside the pipeline's own
PIPELINE = "pipeline"  # kind of the folder that the phases' folders share


def pipeline(
    *,
    model: str = "smollm2-135m",
    scheme: str = "w4a8-g32+emb4",
    source: str | None = None,
    phases: tuple[str, ...] = PHASES,
    training: TrainingSettings = TrainingSettings(distillation_weight=1.0),
    evaluation: EvaluationSettings = COMPARISON,
    output: str = "outputs/pipeline",
    device_profile: str | None = None,
    register: bool = True,
    run: RunSettings = RunSettings(),
) -> WorkflowResult:
    """Corpus, baseline, PTQ, QAT, fine-tuning, evaluation and report, in this order, under one parent run.

    Args:
        model: short name, hub id, folder, .gguf file or MLflow URI of a floating-point model.
        scheme: what PTQ and QAT quantise and how.
        source: folder of documents for the domain corpus (default: the bundled one).
        phases: which phases to run, in this order.
        training: of QAT; fine-tuning takes its steps, batch and sequence length.
        evaluation: what every phase measures and how.
        output: folder that receives corpus/, ptq/, qat/, finetune/ and report/, new, empty or of an earlier pipeline.
        device_profile: device that the shipped files of PTQ and QAT are to fit: raspberry-pi-5, phone-4gb, edge-2c-1g
            or a YAML file with threads, memory_gb and disk_gb; null: they are timed without limits.
        register: register the QAT checkpoint as edgequant-<model> in the MLflow registry.
        run: data, device, seed and experiment of every phase; resume goes on with the phase that was interrupted.
    """
    config = configuration(locals())
    check_phases(phases)
    plan_timing(device_profile, evaluation=evaluation)
    checked = validate(
        model,
        "disaster",
        schemes=scheme,
        training=training,
        qat=QatSettings(),
        evaluation=evaluation,
        device=run.device,
    )
    reads = [*places_read(checked.source, data_dir=run.data_dir), *places({"source": source})]
    folder = check_output(output, PIPELINE, reads=reads, shared=True)
    check_phase_folders(output, phases, Subject(model, checked.schemes, source), reads)

    from edgequant import tracking
    from edgequant.workflows.evaluate import resolved_settings
    from edgequant.workflows.steps.data import check_data
    from edgequant.workflows.steps.summary import print_summary

    notes = check_data(evaluation.tasks, run.data_dir)
    # Three phases measure the same floating-point model: score it once.
    evaluation = resolved_settings(evaluation, limit=None, cache=True)
    with tracking.workflow_run("pipeline", config, experiment=run.experiment, resume=run.resume) as tracked:
        share_folder(folder, PIPELINE)
        plan = Plan(model, scheme, source, training, evaluation, folder, device_profile, register, run, tracked.id)
        rows = [_done(phase, plan, resumed=tracked.resumed) for phase in PHASES if phase in phases]
        metrics = _metrics_of_qat(tracked.id)
        tracking.log_metrics(metrics)
        following = f"open {folder / 'report' / 'report.html'}"
        print_summary(f"pipeline: {model}, {scheme}", rows, tracked, following, notes=notes)
    return WorkflowResult(tracked.id, metrics, str(plan.checkpoint) if plan.checkpoint.is_dir() else None, rows)


def check_phases(phases: Sequence[str]) -> None:
    """Refuse a phase that does not exist.

    Raises:
        UserError: names it and those that do.
    """
    if not phases:
        raise UserError(f"phases must be some of {', '.join(PHASES)}, got none; leave them out for all")
    for phase in phases:
        if phase not in PHASES:
            raise UserError(f"phases must be some of {', '.join(PHASES)}, got {phase!r}")


class Subject(NamedTuple):
    """What a pipeline is about: the model as it was named, the schemes, and the documents."""

    model: str
    schemes: list[Scheme]
    source: str | None


def check_phase_folders(output: str, phases: Sequence[str], subject: Subject, reads: Sequence[Place]) -> None:
    """Refuse an output in which one of the phases could not write its own folder.

    Raises:
        UserError: as the phase would say it.
    """
    from edgequant.quantization.scheme import parse_scheme
    from edgequant.workflows import corpus, finetune, ptq, report

    schemes = [*subject.schemes, *map(parse_scheme, PEERS)]
    checks: dict[str, Callable[[str], object]] = {
        "corpus": lambda folder: corpus.check_folders(subject.source, folder, subject.model),
        "ptq": lambda folder: ptq.check_folders(folder, schemes, reads),
        "qat": lambda folder: check_output(folder, CHECKPOINT, reads=reads),
        "finetune": lambda folder: finetune.check_folders(folder, "float", reads),
        "report": report.check_folder,
    }
    for phase in phases:
        if phase in checks:
            checks[phase](str(Path(output, phase)))


class Plan(NamedTuple):
    """What the phases share; what one writes below `folder` is where the next one reads."""

    model: str
    scheme: str
    source: str | None
    training: TrainingSettings
    evaluation: EvaluationSettings
    folder: Path
    device_profile: str | None
    register: bool
    run: RunSettings
    parent: str

    @property
    def dataset(self) -> str:
        """The corpus that the first phase built, else the bundled one."""
        built = self.folder / "corpus"
        return str(built) if (built / "dataset_dict.json").is_file() else "disaster"

    @property
    def checkpoint(self) -> Path:
        """What QAT writes."""
        return self.folder / "qat"

    def corpus(self) -> None:
        from edgequant.workflows.corpus import corpus

        target = str(self.folder / "corpus")
        corpus(source=self.source, output=target, model=self.model, experiment=self.run.experiment)

    def baseline(self) -> None:
        from edgequant.workflows.baseline import baseline

        baseline(model=self.model, evaluation=self.evaluation, limit=self.evaluation.limit, run=self.run)

    def ptq(self) -> None:
        from edgequant.workflows.ptq import ptq

        schemes = ",".join(dict.fromkeys((self.scheme, *PEERS)))
        target = str(self.folder / "ptq")
        ptq(
            model=self.model, scheme=schemes, dataset=self.dataset, evaluation=self.evaluation, output=target,
            device_profile=self.device_profile, run=self.run,
        )  # fmt: skip

    def qat(self) -> None:
        from edgequant.workflows.qat import qat

        qat(
            model=self.model, scheme=self.scheme, dataset=f"{self.dataset},self-generated", training=self.training,
            evaluation=self.evaluation, output=str(self.checkpoint), device_profile=self.device_profile,
            register=self.register, run=self.run,
        )  # fmt: skip

    def finetune(self) -> None:
        from edgequant.workflows.finetune import finetune

        names = ("steps", "epochs", "max_tokens", "max_minutes", "batch_size", "sequence_length", "save_steps")
        training = TrainingSettings(learning_rate=5e-4, **{name: getattr(self.training, name) for name in names})
        target = str(self.folder / "finetune")
        finetune(
            model=self.model, dataset=self.dataset, training=training, evaluation=self.evaluation, output=target,
            run=self.run,
        )  # fmt: skip

    def evaluate(self) -> None:
        from edgequant.workflows.evaluate import evaluate

        measured = str(self.checkpoint) if self.checkpoint.is_dir() else self.model
        evaluate(model=measured, evaluation=self.evaluation, limit=self.evaluation.limit, run=self.run)

    def report(self) -> None:
        from edgequant import tracking
        from edgequant.workflows.report import report

        runs = [found.id for found in tracking.find_runs(parent=self.parent) if found.status == "FINISHED"]
        report(runs=",".join(runs), output=str(self.folder / "report"), experiment=self.run.experiment)


def _done(phase: str, plan: Plan, *, resumed: bool) -> dict[str, Any]:
    """Run a phase, unless the interrupted pipeline had finished it; its row names the nested run that it made."""
    from edgequant import tracking

    started = time.perf_counter()
    if not (resumed and phase != "report" and _finished(phase, plan.parent)):
        getattr(plan, phase)()
    made = tracking.find_runs(workflow=phase, parent=plan.parent)
    return {"phase": phase, "run": made[0].id if made else None, "minutes": (time.perf_counter() - started) / 60}


def _finished(phase: str, parent: str) -> bool:
    from edgequant import tracking

    return any(found.status == "FINISHED" for found in tracking.find_runs(workflow=phase, parent=parent))


def _metrics_of_qat(parent: str) -> dict[str, float]:
    """The metrics of the model that the pipeline delivers: the QAT checkpoint's."""
    from edgequant import tracking

    found = tracking.find_runs(workflow="qat", parent=parent)
    return tracking.details_of(found[0].id) | found[0].metrics if found else {}
