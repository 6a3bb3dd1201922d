"""`pipeline` (also `main`): the whole methodology in one parent run, each phase a workflow of its own under it.

mlflow run .
edgequant pipeline --model tiny
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from edgequant.errors import UserError
from edgequant.evaluation.settings import EvaluationSettings
from edgequant.training.settings import TrainingSettings
from edgequant.workflows.measuring import COMPARISON

PHASES = ("corpus", "baseline", "ptq", "qat", "finetune", "evaluate", "report")


def pipeline(
    *,
    model: str = "smollm2-135m",
    scheme: str = "w4a8-g32+emb4",
    source: str | None = None,
    phases: tuple[str, ...] = PHASES,
    training: TrainingSettings = TrainingSettings(learning_rate=2e-4),
    evaluation: EvaluationSettings = COMPARISON,
    data_dir: str | None = None,
    output: str = "outputs/pipeline",
    register: bool = True,
    device: str = "auto",
    seed: int = 0,
    experiment: str = "edgequant",
) -> None:
    """Corpus, baseline, PTQ, QAT, fine-tuning, evaluation and report, in this order, under one parent run.

    Args:
        model: short name, hub id, folder, .gguf file or MLflow URI of a floating-point model.
        scheme: what PTQ and QAT quantise and how.
        source: folder of documents for the domain corpus (default: the bundled one).
        phases: which phases to run, in this order.
        training: of QAT; fine-tuning takes its steps, batch and sequence length.
        evaluation: what every phase measures and how.
        data_dir: folder with WikiText-2, BoolQ and SQuAD in their official formats (default: $EDGEQUANT_DATA).
        output: folder that receives corpus/, ptq/, qat/, finetune/ and report/.
        register: register the QAT checkpoint as edgequant-<model> in the MLflow registry.
        device: auto, cpu, cuda or cuda:N.
        seed: order of the text, initial values, draws of questions.
        experiment: MLflow experiment, unless `mlflow run` names one.
    """
    config = dict(locals())
    from edgequant.workflows.qat import check_configuration

    check_configuration(model, scheme, "disaster")
    for phase in phases:
        if phase not in PHASES:
            raise UserError(f"phases: {phase!r} is unknown; expected some of {', '.join(PHASES)}")

    from edgequant import tracking
    from edgequant.workflows.closing import print_closing
    from edgequant.workflows.evaluate import resolved_settings

    folder = Path(output).expanduser().resolve()
    # Three phases measure the same floating-point model: score it once.
    evaluation = resolved_settings(evaluation, limit=None, seed=None, cache=True)
    common = {"data_dir": data_dir, "device": device, "seed": seed, "experiment": experiment}
    with tracking.workflow_run("pipeline", config, experiment=experiment) as run:
        steps = _steps(model, scheme, source, training, evaluation, folder, register, common, run.id)
        rows = [_done(phase, steps[phase], run.id) for phase in PHASES if phase in phases]
        tracking.log_metrics(_delivered(run.id))
        print_closing(f"pipeline: {model}, {scheme}", rows, run, f"open {folder / 'report' / 'report.html'}")


def _steps(
    model: str,
    scheme: str,
    source: str | None,
    training: TrainingSettings,
    evaluation: EvaluationSettings,
    folder: Path,
    register: bool,
    common: dict[str, Any],
    parent: str,
) -> dict[str, Callable[[], Any]]:
    """Each phase as a call without arguments; what one writes is where the next one reads."""
    from edgequant import tracking
    from edgequant.workflows.baseline import baseline
    from edgequant.workflows.corpus import corpus
    from edgequant.workflows.evaluate import evaluate
    from edgequant.workflows.finetune import finetune
    from edgequant.workflows.ptq import ptq
    from edgequant.workflows.qat import qat
    from edgequant.workflows.report import report

    corpus_folder, checkpoint = folder / "corpus", folder / "qat"

    def text() -> str:
        return str(corpus_folder) if (corpus_folder / "dataset_dict.json").is_file() else "disaster"

    def run_qat() -> None:
        settings = {"training": training, "evaluation": evaluation, "register": register, **common}
        qat(model=model, scheme=scheme, text=text(), output=str(checkpoint), **settings)

    def run_finetune() -> None:
        shape = {name: getattr(training, name) for name in ("steps", "batch_size", "sequence_length", "save_steps")}
        settings = {"training": TrainingSettings(learning_rate=5e-4, **shape), "evaluation": evaluation, **common}
        finetune(model=model, text=text(), output=str(folder / "finetune"), **settings)

    def run_ptq() -> None:
        schemes = ",".join(dict.fromkeys((scheme, "bnb-int8", "bnb-nf4")))
        ptq(model=model, scheme=schemes, text=text(), evaluation=evaluation, output=str(folder / "ptq"), **common)

    def run_report() -> None:
        runs = [found.id for found in tracking.find_runs(parent=parent) if found.status == "FINISHED"]
        report(runs=",".join(runs), output=str(folder / "report"), experiment=common["experiment"])

    return {
        "corpus": lambda: corpus(
            source=source, output=str(corpus_folder), model=model, experiment=common["experiment"]
        ),
        "baseline": lambda: baseline(model=model, evaluation=evaluation, limit=evaluation.limit, **common),
        "ptq": run_ptq,
        "qat": run_qat,
        "finetune": run_finetune,
        "evaluate": lambda: evaluate(
            model=str(checkpoint) if checkpoint.is_dir() else model,
            evaluation=evaluation,
            limit=evaluation.limit,
            **common,
        ),
        "report": run_report,
    }


def _done(phase: str, step: Callable[[], Any], parent: str) -> dict[str, Any]:
    """Run a phase; its row names the nested run that it made."""
    import time

    from edgequant import tracking

    started = time.perf_counter()
    step()
    made = [found for found in tracking.find_runs(workflow=phase, parent=parent)]
    return {"phase": phase, "run": made[0].id if made else None, "minutes": (time.perf_counter() - started) / 60}


def _delivered(parent: str) -> dict[str, float]:
    """The metrics of the model that the pipeline delivers: the QAT checkpoint's."""
    from edgequant import tracking

    found = tracking.find_runs(workflow="qat", parent=parent)
    return found[0].metrics if found else {}
