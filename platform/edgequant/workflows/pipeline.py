"""`pipeline` (also `main`): the whole methodology in one parent run, each phase a workflow of its own under it.

mlflow run .
edgequant pipeline --model tiny
edgequant pipeline --models tiny,FOLDER                  # one on each GPU; what fails does not stop the others
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from edgequant.errors import UserError, first_line
from edgequant.evaluation.settings import EvaluationSettings
from edgequant.folders import share_folder
from edgequant.outputs import check_output, places
from edgequant.quantization.ptq.methods import AUTO
from edgequant.training.settings import TrainingSettings
from edgequant.workflows.phases.checks import (
    PHASES,
    Subject,
    check_phase_folders,
    check_phases,
    folder_of,
    model_names,
    places_of,
    validate_models,
)
from edgequant.workflows.phases.ledger import Ledger
from edgequant.workflows.phases.plan import ORDERS, Order, Plan
from edgequant.workflows.phases.running import delivered_metrics, has_run, reported, run_phases, said_of_orders
from edgequant.workflows.phases.side_by_side import EARLIER, Outcome, check_at_once, models_at_once_of, run_side_by_side
from edgequant.workflows.settings import RunSettings, WorkflowResult, configuration
from edgequant.workflows.shipping import plan_timing
from edgequant.workflows.steps.measure import COMPARISON
from edgequant.workflows.steps.text_mix import check_replay

PIPELINE = "pipeline"  # kind of the folder that the phases' folders share


def pipeline(
    *,
    model: str = "smollm2-135m",
    models: str | None = None,
    models_at_once: int | None = None,
    scheme: str = "w4a8-g32+emb4",
    method: str = AUTO,
    source: str | None = None,
    phases: tuple[str, ...] = PHASES,
    adapt: tuple[Order, ...] = ORDERS,
    replay: str | None = "self-generated:0.5",
    training: TrainingSettings = TrainingSettings(distillation_weight=1.0),
    evaluation: EvaluationSettings = COMPARISON,
    output: str = "outputs/pipeline",
    device_profile: str | None = None,
    register: bool = True,
    run: RunSettings = RunSettings(),
) -> WorkflowResult:
    """Corpus, baseline, PTQ, QAT, fine-tuning, both in several orders, their table, evaluation, export and report.

    All under one parent run. A phase whose inputs are what they were is not done again.

    Args:
        model: short name, hub id, folder, .gguf file or MLflow URI of a floating-point model.
        models: several of them instead, separated by commas: each goes through all phases in a folder of its own name.
        models_at_once: how many of them to work on side by side, each in a process of its own; null: as many as there
            are GPUs, which get one each, and one after the other without. Orders are compared one model at a time.
        scheme: what PTQ and QAT quantise and how.
        method: how PTQ chooses integers, for `ptq` and where QAT starts: ptq.yaml says what each does; auto: of
            those that fit the machine's time the one that predicts held-out text best.
        source: folder of documents for the domain corpus (default: the bundled one).
        phases: which phases to run, in this order.
        adapt: orders of adapting and quantising that phase `adapt` tries: before (the adapted model is quantised),
            after (the quantised one is adapted within its integers), joint (QAT that learns the text).
        replay: general text and its share, mixed into what adaptation reads so that less is forgotten; null: none.
        training: of QAT; fine-tuning takes its steps, batch and sequence length.
        evaluation: what every phase measures and how.
        output: folder that receives corpus/, ptq/, qat/, finetune/, adapt-ORDER/, export/, report/ and the table
            orders.md, of several models below their names; new, empty or of an earlier pipeline.
        device_profile: device that the shipped files of PTQ and QAT are to fit: raspberry-pi-5, phone-4gb, edge-2c-1g
            or a YAML file with threads, memory_gb and disk_gb; null: they are timed without limits.
        register: register what QAT and the orders make as edgequant-<model> in the MLflow registry.
        run: data, device, seed and experiment of every phase; resume goes on within the phase that was interrupted.
    """
    config = configuration(locals())
    check_phases(phases, adapt)
    check_replay(replay)
    check_at_once(models_at_once)
    timing = plan_timing(device_profile, evaluation=evaluation)
    named = model_names(model, models)
    schemes = validate_models(named, scheme, method, training, evaluation, run)
    reads = [*(place for name in named.values() for place in places_of(name, run)), *places({"source": source})]
    folder = check_output(output, PIPELINE, reads=reads, shared=True)
    for name, given in named.items():
        place = folder_of(Path(output), name, named)
        if place != Path(output):
            check_output(place, PIPELINE, reads=reads, shared=True)
        check_phase_folders(str(place), phases, adapt, Subject(given, schemes, source), reads)

    from edgequant import tracking
    from edgequant.models import resolve
    from edgequant.workflows.evaluate import resolved_settings
    from edgequant.workflows.steps.data import check_data
    from edgequant.workflows.steps.summary import print_summary

    notes = check_data(evaluation.tasks, run.data_dir)
    at_once = models_at_once_of(models_at_once, len(named), run.device)
    # Several phases measure the same models: score each once.
    evaluation = resolved_settings(evaluation, limit=None, cache=True)
    options: dict[str, Any] = {"experiment": run.experiment, "resume": run.resume}
    options["registers"] = [resolve(given).family for given in named.values()] if register else ()
    with tracking.workflow_run("pipeline", config, **options) as tracked:
        rows, failed, made = list[dict[str, Any]](), dict[str, Exception](), dict[str, Plan]()
        share_folder(folder, PIPELINE)
        for name, given in named.items():
            place = folder_of(folder, name, named)
            share_folder(place, PIPELINE)
            plan = made[name] = Plan(
                model=given, scheme=scheme, method=method, source=source,
                adapt=adapt if "adapt" in phases else (), replay=replay, phases=tuple(phases),
                training=training, evaluation=evaluation, folder=place, device_profile=device_profile,
                register=register, run=run,
            )  # fmt: skip
        begun: dict[str, Outcome] = {}
        if at_once > 1:
            begun = run_side_by_side(made, at_once, tracked.id, timing, resumed=tracked.resumed)
        for name, plan in made.items():
            done_rows, error = begun.get(name, Outcome([], None))
            rows.extend(done_rows)
            try:
                if error is not None:
                    raise error
                run_phases(name, plan, Ledger(plan.folder, has_run), timing, rows, but=EARLIER if begun else ())
            except Exception as error:
                failed[name] = error
                if len(named) == 1:
                    raise
                rows.append({"model": name, "phase": f"failed: {first_line(error)}", "run": None, "minutes": None})
        runs = [row["run"] for row in rows if row["run"]]
        if "report" in phases and runs:
            rows.append(reported(runs, folder, run.experiment))
        metrics = delivered_metrics(runs)
        tracking.log_metrics(metrics)
        following = f"open {folder / 'report' / 'report.html'}" if "report" in phases else "edgequant report"
        title = f"pipeline: {', '.join(named)}, {scheme}"
        if begun:
            notes = [*notes, f"{at_once} models at once: only the orders' table times each alone"]
        lead = [line for plan in made.values() for line in said_of_orders(plan)]
        print_summary(title, rows, tracked, following, lead=lead, notes=notes)
        if failed:
            told = "; ".join(f"{name}: {first_line(error)}" for name, error in failed.items())
            raise UserError(f"{len(failed)} of {len(named)} models failed: {told}; correct it and run the same again")
    first = next(iter(made.values()))
    return WorkflowResult(tracked.id, metrics, str(first.quantized) if first.quantized.is_dir() else None, rows)
