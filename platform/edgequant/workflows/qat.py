"""`qat`: make a model small by quantisation-aware training, and measure it beside what it came from.

mlflow run . -e qat
mlflow run . -e qat -P model=tiny                       # a minute on a laptop
edgequant qat --model FOLDER --scheme w8a8-static --training.steps 400
edgequant qat --adapt true --dataset FOLDER             # learn the text as well
"""

from __future__ import annotations

from typing import Any

from edgequant.evaluation.evidence_file import Scores
from edgequant.evaluation.settings import EvaluationSettings
from edgequant.export.choice import check_export
from edgequant.folders import CHECKPOINT
from edgequant.outputs import check_output, check_own_folder
from edgequant.quantization.calibration import CalibrationSettings
from edgequant.quantization.qat.settings import QatSettings
from edgequant.training.settings import TrainingSettings
from edgequant.workflows.settings import RunSettings, WorkflowResult, configuration
from edgequant.workflows.shipping import deploy_folder, plan_timing
from edgequant.workflows.steps.measure import COMPARISON, measure_variant, with_guard
from edgequant.workflows.validate import places_read, validate


def qat(
    *,
    model: str = "smollm2-135m",
    scheme: str = "w4a8-g32+emb4",
    size_budget: str | None = None,
    dataset: str = "disaster,self-generated",
    adapt: bool = False,
    guard: str = "self-generated",
    training: TrainingSettings = TrainingSettings(batch_size=8, distillation_weight=1.0),
    qat: QatSettings = QatSettings(),
    calibration: CalibrationSettings = CalibrationSettings(num_calibration_samples=32),
    evaluation: EvaluationSettings = COMPARISON,
    output: str | None = None,
    export: str | None = None,
    device_profile: str | None = None,
    threads: int | None = None,
    register: bool = True,
    run: RunSettings = RunSettings(),
) -> WorkflowResult:
    """Quantisation-aware training: baseline, PTQ and QAT of one scheme side by side; delivers and registers the best.

    QAT starts from PTQ, is kept at the step where it predicts held-out text best, and only if no worse than PTQ does.

    Args:
        model: short name, hub id, folder, .gguf file or MLflow URI of a floating-point model.
        scheme: what is quantised and how, e.g. w4a8-g32+emb4 or w8a8-static.
        size_budget: mixed precision: choose bits layer by layer so that a checkpoint fits, e.g. bits_per_parameter=4.5
            or megabytes=80.
        dataset: text to train on: disaster, disaster-multilingual, wikitext-2, a folder or file, or self-generated:
            what the model itself writes; or a mix with shares of the tokens: disaster,wikitext-2:0.3. A tenth of it is
            set apart as validation text.
        adapt: learn the text too: a control is trained on it without the quantiser, until held-out text no longer
            gains, and QAT learns from that control. Otherwise QAT learns from the model as it came, and only
            repairs what quantisation did to it.
        guard: general text that shows what is lost or forgotten, not trained on: self-generated (by the model as it
            came), or a text by name or path.
        training: length, batch, learning rate, distillation.
        qat: what QAT starts from, learns from and how fast, when activations are quantised, which losses are accepted.
        calibration: how PTQ, and QAT before its first step, look at activations.
        evaluation: what is measured and how; the guard text always.
        output: folder that the checkpoint becomes, new, empty or of an earlier one (default:
            outputs/qat/<run id>/checkpoint).
        export: gguf puts the file that llama.cpp runs, onnx the folder of onnxruntime-genai, gguf,onnx both, with the
            same integers, beside the checkpoint's weights; null: neither.
        device_profile: device that the shipped file is to fit: raspberry-pi-5, phone-4gb, edge-2c-1g or a YAML file
            with threads, memory_gb and disk_gb; null: it is timed without limits.
        threads: CPU threads with which the shipped file is timed; null takes the physical cores, or the profile's.
        register: register the checkpoint as edgequant-<model> in the MLflow registry.
        run: data, device, seed, resuming and experiment.
    """
    config = configuration(locals())
    source, (parsed,) = validate(
        model, dataset, schemes=scheme, size_budget=size_budget, training=training, qat=qat, calibration=calibration,
        guard=guard, evaluation=evaluation, device=run.device,
    )  # fmt: skip
    check_export(export, [parsed])
    timing = plan_timing(device_profile, threads, evaluation=evaluation)
    reads = places_read(source, dataset, guard, data_dir=run.data_dir, teacher=qat.distill_from)
    check_own_folder("qat")
    target = None if output is None else check_output(output, CHECKPOINT, reads=reads)

    from edgequant import tracking
    from edgequant.export.shipped import check_can_ship
    from edgequant.models.manifest import record_baseline
    from edgequant.workflows.adaptation.floating import baseline_of
    from edgequant.workflows.steps import qat_experiment, qat_variants, verdict
    from edgequant.workflows.steps.data import check_data, evaluation_data
    from edgequant.workflows.steps.layer_bits import log_layer_bits
    from edgequant.workflows.steps.register import conditions_of, promote_command, register_version
    from edgequant.workflows.steps.summary import print_summary

    notes = check_data(evaluation.tasks, run.data_dir, apart=("guard",), dataset=dataset, guard=guard)
    options: dict[str, Any] = {"experiment": run.experiment, "resume": run.resume, "registers": [source.family]}
    with tracking.workflow_run("qat", config, reads, **options) as tracked:
        experiment = qat_experiment.load(
            source, parsed, dataset, training=training, qat=qat, calibration=calibration, evaluation=evaluation,
            data=evaluation_data(evaluation.tasks, run.data_dir, dataset), run=run, adapt=adapt, guard=guard,
            folder=tracking.run_folder("qat", tracked.id), resume=tracked.resumed,
        )  # fmt: skip
        check_can_ship(experiment.floating.config, experiment.tokenizer, export)
        log_layer_bits(experiment.layer_bits)
        rows = {
            name: measure_variant(name, make, experiment)
            for name, make in qat_variants.variants(adapt=experiment.adapt).items()
        }
        found = verdict.judge(rows, experiment, dataset)
        checkpoint = qat_variants.save_result(experiment, found.delivered, target)
        record_baseline(checkpoint, baseline_of(experiment.floating, source, str(model)))
        shipped = deploy_folder(checkpoint, export, timing)
        metrics = rows[found.delivered].metrics | found.metrics | shipped.metrics
        verdict.log(found, metrics)
        tracking.set_tags(shipped.tags)
        following = "edgequant report"
        if register:
            names: dict[str, Any] = {"model": experiment.name, "scheme": parsed.name, "variant": found.delivered}
            version = register_version(
                checkpoint, **names, measured=Scores(metrics, rows[found.delivered].items),
                baseline=Scores(rows["baseline"].metrics, rows["baseline"].items), tags=found.tags | shipped.tags,
                conditions=conditions_of(with_guard(evaluation), experiment.data, run, dataset),
            )  # fmt: skip
            following = following if found.harm else promote_command(version)
        table = verdict.summary_rows(rows, found, experiment.name, parsed.name, shipped.cells)
        title = f"qat: {experiment.name}, {parsed.name}"
        lead, notes = [*found.lines, *shipped.lead], [*notes, *shipped.notes]
        print_summary(
            title, table, tracked, following, lead=lead, notes=notes, talk=shipped.talk(checkpoint),
            items=[row.items for row in rows.values()],
        )  # fmt: skip
    return WorkflowResult(tracked.id, metrics, str(checkpoint), table)
