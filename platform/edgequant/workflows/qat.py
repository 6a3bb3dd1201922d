"""`qat`: make a model small by quantisation-aware training, and measure it beside what it came from.

mlflow run . -e qat
mlflow run . -e qat -P model=tiny                       # a minute on a laptop
edgequant qat --model FOLDER --scheme w8a8-static --training.steps 400
"""

from __future__ import annotations

from typing import Any

from edgequant.evaluation.settings import EvaluationSettings
from edgequant.quantization.calibration import CalibrationSettings
from edgequant.quantization.qat.settings import QatSettings
from edgequant.training.settings import TrainingSettings
from edgequant.workflows.settings import RunSettings, WorkflowResult, configuration
from edgequant.workflows.steps.measure import COMPARISON, headline, measure_variant
from edgequant.workflows.validate import validate

Metrics = dict[str, float]
MIN_LOSS = 1e-3  # of the control's perplexity: where PTQ loses less, there is nothing to recover


def qat(
    *,
    model: str = "smollm2-135m",
    scheme: str = "w4a8-g32+emb4",
    size_budget: str | None = None,
    dataset: str = "disaster",
    control: bool = True,
    training: TrainingSettings = TrainingSettings(learning_rate=2e-4),
    qat: QatSettings = QatSettings(),
    calibration: CalibrationSettings = CalibrationSettings(num_calibration_samples=32),
    evaluation: EvaluationSettings = COMPARISON,
    output: str | None = None,
    register: bool = True,
    run: RunSettings = RunSettings(),
) -> WorkflowResult:
    """Quantisation-aware training: baseline, PTQ and QAT of one scheme side by side; registers the QAT checkpoint.

    Args:
        model: short name, hub id, folder, .gguf file or MLflow URI of a floating-point model.
        scheme: what is quantised and how, e.g. w4a8-g32+emb4 or w8a8-static.
        size_budget: mixed precision: choose bits layer by layer so that a checkpoint fits, e.g. bits_per_parameter=4.5
            or megabytes=80.
        dataset: text to train on: disaster, disaster-multilingual, wikitext-2, a folder or file, or self-generated:
            what the model itself writes, where no text may be used; or a mix with shares of the tokens:
            disaster,wikitext-2:0.3.
        control: also fine-tune without the quantiser and apply PTQ to that: the fair comparison for QAT.
        training: length, batch, learning rate, distillation.
        qat: what QAT starts from, learns from and how fast, and when activations are quantised.
        calibration: how PTQ, and QAT before its first step, look at activations.
        evaluation: what is measured and how.
        output: folder that receives the checkpoint (default: outputs/qat/<run id>/checkpoint).
        register: register the checkpoint as edgequant-<model> in the MLflow registry.
        run: data, device, seed, resuming and experiment.
    """
    config = configuration(locals())
    source, (parsed,) = validate(
        model, dataset, schemes=scheme, size_budget=size_budget, training=training, qat=qat, calibration=calibration
    )

    from edgequant import tracking
    from edgequant.workflows.steps import qat_experiment
    from edgequant.workflows.steps.data import evaluation_data
    from edgequant.workflows.steps.layer_bits import log_layer_bits
    from edgequant.workflows.steps.qat_variants import VARIANTS, save_result
    from edgequant.workflows.steps.register import promote_command, register_version
    from edgequant.workflows.steps.summary import print_summary

    with tracking.workflow_run("qat", config, experiment=run.experiment, resume=run.resume) as tracked:
        experiment = qat_experiment.load(
            source, parsed, dataset, training=training, qat=qat, calibration=calibration, evaluation=evaluation,
            data=evaluation_data(evaluation.tasks, run.data_dir), folder=tracking.run_folder("qat", tracked.id),
            run=run, resume=tracked.resumed,
        )  # fmt: skip
        log_layer_bits(experiment.layer_bits)
        variants = [name for name in VARIANTS if control or not name.startswith("control")]
        rows = {name: measure_variant(name, VARIANTS[name], experiment) for name in variants}
        warnings = compare(rows, dataset)
        checkpoint = save_result(experiment, output)
        tracking.log_metrics(rows["qat"])
        following = "edgequant report"
        if register:
            names = {"model": experiment.name, "scheme": parsed.name, "variant": "qat"}
            version = register_version(checkpoint, **names, metrics=rows["qat"], baseline=rows["baseline"])
            following = promote_command(version)
        table = summary_rows(rows, experiment.name, parsed.name, warnings)
        print_summary(f"qat: {experiment.name}, {parsed.name}", table, tracked, following)
    return WorkflowResult(tracked.id, rows["qat"], str(checkpoint), table)


def compare(rows: dict[str, Metrics], dataset: str) -> list[str]:
    """Add `qat/recovered_fraction` to QAT's metrics and say which task QAT lost beyond its interval.

    Recovered fraction = (PTQ(control) - QAT) / (PTQ(control) - control), on perplexity; none where PTQ loses next to
    nothing.

    Returns:
        One warning per lost task; they become the run's tag `edgequant.warnings` too.
    """
    from edgequant import tracking

    qat_metrics, reference = rows["qat"], rows.get("control", rows["baseline"])
    metric = "wikitext2/perplexity" if dataset == "wikitext-2" else "domain/perplexity"
    if "control-ptq" in rows and metric in qat_metrics:
        rounded, floating = rows["control-ptq"][metric], reference[metric]
        if rounded > (1 + MIN_LOSS) * floating:
            qat_metrics["qat/recovered_fraction"] = (rounded - qat_metrics[metric]) / (rounded - floating)
    warnings = [
        f"{task} fell from {reference[task]:.3f} to {qat_metrics[task]:.3f}, beyond the reference's interval"
        for task in ("boolq/accuracy", "squad/f1")
        if task in qat_metrics and qat_metrics[task] < reference.get(f"{task}_ci_low", float("-inf"))
    ]
    if warnings:
        tracking.set_tags({"edgequant.warnings": "; ".join(warnings)})
    return warnings


def summary_rows(rows: dict[str, Metrics], model: str, scheme: str, warnings: list[str]) -> list[dict[str, Any]]:
    """The summary table: one row per variant, the warnings on QAT's."""
    names = {"baseline": "none", "control": "none"}
    table = [
        {"model": model, "variant": v, "scheme": names.get(v, scheme), **headline(metrics)}
        for v, metrics in rows.items()
    ]
    if warnings:
        table[-1]["warning"] = "; ".join(warnings)
    return table
