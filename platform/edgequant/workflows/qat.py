"""`qat`: make a model small by quantisation-aware training, and measure it beside what it came from.

mlflow run . -e qat
mlflow run . -e qat -P model=tiny                       # a minute on a laptop
edgequant qat --model FOLDER --scheme w8a8-static --training.steps 400
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from edgequant.evaluation.settings import EvaluationSettings
from edgequant.quantization.settings import QuantizationSettings
from edgequant.training.settings import TrainingSettings
from edgequant.workflows.inputs import check_text
from edgequant.workflows.layer_bits import log_layer_bits, with_size_budget
from edgequant.workflows.measuring import COMPARISON, headline

if TYPE_CHECKING:
    from edgequant.quantization.scheme import Scheme

Metrics = dict[str, float]
LEAST_LOSS = 1e-3  # of the control's perplexity: where PTQ loses less, there is nothing to recover


def qat(
    *,
    model: str = "smollm2-135m",
    scheme: str = "w4a8-g32+emb4",
    size_budget: str | None = None,
    text: str = "disaster",
    control: bool = True,
    training: TrainingSettings = TrainingSettings(learning_rate=2e-4),
    quantization: QuantizationSettings = QuantizationSettings(),
    evaluation: EvaluationSettings = COMPARISON,
    data_dir: str | None = None,
    output: str | None = None,
    register: bool = True,
    device: str = "auto",
    dtype: str = "auto",
    seed: int = 0,
    resume: bool = False,
    experiment: str = "edgequant",
) -> None:
    """Quantisation-aware training: baseline, PTQ and QAT of one scheme side by side; registers the QAT checkpoint.

    Args:
        model: short name, hub id, folder, .gguf file or MLflow URI of a floating-point model.
        scheme: what is quantised and how, e.g. w4a8-g32+emb4 or w8a8-static.
        size_budget: mixed precision: choose bits layer by layer so that a checkpoint fits, e.g. bits_per_parameter=4.5
            or megabytes=80.
        text: what to train on: disaster, disaster-multilingual, wikitext-2, a folder or file, or generated: what the
            model itself writes, where no text may be used; or a mix with shares of the tokens: disaster,wikitext-2:0.3.
        control: also fine-tune without the quantiser and apply PTQ to that: the fair comparison for QAT.
        training: length, batch, learning rate, distillation.
        quantization: what QAT learns from and how fast, when activations are quantised, how static ranges are found.
        evaluation: what is measured and how.
        data_dir: folder with WikiText-2, BoolQ and SQuAD in their official formats (default: $EDGEQUANT_DATA).
        output: folder that receives the checkpoint (default: outputs/qat/<run id>/checkpoint).
        register: register the checkpoint as edgequant-<model> in the MLflow registry.
        device: auto, cpu, cuda or cuda:N.
        dtype: compute type while measuring: auto, float32, bfloat16 or float16.
        seed: order of the text, initial values, draws of questions.
        resume: continue the newest interrupted run of this configuration.
        experiment: MLflow experiment, unless `mlflow run` names one.
    """
    config = dict(locals())
    parsed = check_configuration(model, scheme, text, size_budget)
    scheme = parsed.name
    quantization.check_scheme(parsed)
    quantization.check_distillation(training.distillation)

    from edgequant import tracking
    from edgequant.workflows.closing import print_closing
    from edgequant.workflows.quantized_training import QuantizedTraining, run_folder
    from edgequant.workflows.steps.register import promote_command, register_version

    with tracking.workflow_run("qat", config, experiment=experiment, resume=resume) as run:
        job = QuantizedTraining(
            parsed, training, quantization, evaluation, run_folder("qat", run.id), seed=seed, dtype=dtype
        )
        job.load(model, text, data_dir, device=device, resume=run.resumed)
        log_layer_bits(job.layer_bits)
        rows = {"baseline": job.measured("baseline", job.baseline), "ptq": job.measured("ptq", job.rounded)}
        if control:
            rows["control"] = job.measured("control", job.control)
            rows["control-ptq"] = job.measured("control-ptq", job.rounded_control)
        rows["qat"] = job.measured("qat", job.quantized)
        warnings = compare(rows, text)
        checkpoint = job.deliver(output)
        tracking.log_metrics(rows["qat"])
        version = None
        if register:
            names = {"model": job.name, "scheme": scheme, "variant": "qat"}
            version = register_version(checkpoint, **names, metrics=rows["qat"], baseline=rows["baseline"])
        print_closing(
            f"qat: {job.name}, {scheme}",
            closing_rows(rows, job.name, scheme, warnings),
            run,
            promote_command(version) if version else "edgequant report",
        )


def check_configuration(model: str, scheme: str, text: str, size_budget: str | None = None) -> Scheme:
    """Refuse what cannot work before anything heavy is imported: unknown names, group sizes that do not divide.

    Raises:
        UserError: names the value and what was expected.
    """
    from edgequant import models
    from edgequant.errors import UserError
    from edgequant.quantization.scheme import check_group_sizes, parse_scheme

    parsed = parse_scheme(scheme)
    if parsed.backend != "edgequant":
        raise UserError(
            f"scheme {scheme!r} is bitsandbytes' own and cannot be trained; use `ptq`, or a scheme "
            "such as w4a8-g32+emb4"
        )
    check_text(text, generated=True)
    models.check_available(model)
    check_group_sizes(parsed, models.layer_inputs(model))
    return with_size_budget([parsed], size_budget)[0]


def compare(rows: dict[str, Metrics], text: str) -> list[str]:
    """Add `qat/recovered_fraction` to QAT's metrics and say which task QAT lost beyond its interval.

    Recovered fraction = (PTQ(control) - QAT) / (PTQ(control) - control), on perplexity; none where PTQ loses next to
    nothing.

    Returns:
        One warning per lost task; they become the run's tag `edgequant.warnings` too.
    """
    from edgequant import tracking

    qat_metrics, reference = rows["qat"], rows.get("control", rows["baseline"])
    metric = "wikitext2/perplexity" if text == "wikitext-2" else "domain/perplexity"
    if "control-ptq" in rows and metric in qat_metrics:
        rounded, floating = rows["control-ptq"][metric], reference[metric]
        if rounded > (1 + LEAST_LOSS) * floating:
            qat_metrics["qat/recovered_fraction"] = (rounded - qat_metrics[metric]) / (rounded - floating)
    warnings = [
        f"{task} fell from {reference[task]:.3f} to {qat_metrics[task]:.3f}, beyond the reference's interval"
        for task in ("boolq/accuracy", "squad/f1")
        if task in qat_metrics and qat_metrics[task] < reference.get(f"{task}_ci_low", float("-inf"))
    ]
    if warnings:
        tracking.set_tags({"edgequant.warnings": "; ".join(warnings)})
    return warnings


def closing_rows(rows: dict[str, Metrics], model: str, scheme: str, warnings: list[str]) -> list[dict[str, Any]]:
    """The closing table: one row per variant, the warnings on QAT's."""
    names = {"baseline": "none", "control": "none"}
    table = [
        {"model": model, "variant": v, "scheme": names.get(v, scheme), **headline(metrics)}
        for v, metrics in rows.items()
    ]
    if warnings:
        table[-1]["warning"] = "; ".join(warnings)
    return table
