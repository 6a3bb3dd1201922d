"""`tune`: search hyperparameters; measure the best trial beside the model it came from, and register it.

mlflow run . -e tune -P model=tiny                      # under a minute on a laptop
edgequant tune --trials 30 --training.steps 200 --space my-space.yaml
edgequant tune --space qat-schemes --objectives '[domain/perplexity, size/checkpoint_gb]'
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from edgequant.evaluation.settings import EvaluationSettings
from edgequant.evaluation.tasks.registry import QUALITY_TASKS
from edgequant.folders import share_folder
from edgequant.outputs import check_output
from edgequant.quantization.calibration import CalibrationSettings
from edgequant.quantization.qat.settings import QatSettings
from edgequant.training.settings import LoraSettings, TrainingSettings
from edgequant.workflows.settings import RunSettings, WorkflowResult, configuration
from edgequant.workflows.validate import places_read

if TYPE_CHECKING:
    from edgequant_tune.search_spec import SearchSpec

SEARCHES = "tune"  # kind of the folder that searches share


def tune(
    *,
    model: str = "smollm2-135m",
    method: Literal["qat", "finetune"] = "qat",
    scheme: str = "w4a8-g32+emb4",
    dataset: str = "disaster",
    space: str | dict[str, Any] | None = None,
    objectives: tuple[str, ...] = ("domain/perplexity",),
    constraints: tuple[str, ...] = (),
    device_profile: str | None = None,
    trials: int = 5,
    time_budget_minutes: float | None = None,
    scheduler: Literal["auto", "asha", "none"] = "auto",
    concurrent_trials: int | None = None,
    cpus_per_trial: float = 1.0,
    gpus_per_trial: float = 1.0,
    training: TrainingSettings = TrainingSettings(steps=32, learning_rate=2e-4, distillation_weight=1.0, save_steps=0),
    qat: QatSettings = QatSettings(),
    calibration: CalibrationSettings = CalibrationSettings(num_calibration_samples=32),
    lora: LoraSettings = LoraSettings(),
    evaluation: EvaluationSettings = EvaluationSettings(tasks=QUALITY_TASKS, limit=200),
    output: str = "outputs/tune",
    register: bool = True,
    run: RunSettings = RunSettings(),
) -> WorkflowResult:
    """Hyperparameter search with Ray Tune and Optuna: trials nested under one run, the best one registered.

    Args:
        model: short name, hub id, folder, .gguf file or MLflow URI of a floating-point model.
        method: what a trial trains: qat, or finetune (LoRA, merged into a floating-point model).
        scheme: quantisation scheme of every qat trial, unless the space searches it.
        dataset: text to train on: disaster, wikitext-2, a folder or file, or (qat) self-generated: by the model.
        space: what is searched: a bundled space (qat, qat-schemes, finetune), a YAML file, or the space itself; None:
            the bundled one of the method.
        objectives: metrics to optimise. The first decides which trial is best; several are searched for trade-offs.
            min: or max: in front says the direction of a metric that edgequant does not know.
        constraints: bounds that the best trial has to keep, such as [deploy/size_gb<=0.1]: METRIC<=NUMBER or
            METRIC>=NUMBER. The search turns to trials that keep them; a best one that breaks them is not registered.
        device_profile: device that what ships of a qat trial has to fit: raspberry-pi-5, phone-4gb, edge-2c-1g or a
            YAML file with threads, memory_gb and disk_gb; deploy/fits>=1 is a constraint then.
        trials: number of trials; the first takes the settings below as they are.
        time_budget_minutes: end the search after this time and stop the trials that still run; None for no limit.
        scheduler: asha stops trials that lag behind others at equal steps; none stops nothing; auto is asha for 8 or
            more trials that can be compared in training (one objective, and equal sequence lengths).
        concurrent_trials: trials at a time at most; None for as many as the resources hold.
        cpus_per_trial: CPU cores of a trial.
        gpus_per_trial: GPUs of a trial where there are any; 0.25 lets four trials share one.
        training: settings of every trial; the searched ones are replaced.
        qat: settings of every qat trial; the searched ones are replaced.
        calibration: how every qat trial looks at activations; the searched settings are replaced.
        lora: settings of every finetune trial; the searched ones are replaced.
        evaluation: what the best trial is measured on; the trials themselves only on what the objectives need.
        output: folder that receives a folder per search, its state and the checkpoints of its best trials: new, empty
            or of earlier searches.
        register: register the best qat checkpoint as edgequant-<model>; a finetuned model is filed with the run.
        run: data, device (auto, cpu or cuda: Ray gives each trial its own), experiment; the seed draws the
            hyperparameters and trains every trial, so that only hyperparameters differ; resume continues the newest
            interrupted search of this configuration, whose finished trials are kept.

    Raises:
        UserError: bad configuration, before Ray starts.
        RuntimeError: no trial finished; says how the first one failed.
    """
    config = configuration(locals())

    from edgequant_tune.search_spec import SearchSpec

    spec = SearchSpec.from_options(
        model=model, method=method, scheme=scheme, dataset=dataset, space=space, objectives=objectives, trials=trials,
        constraints=constraints, device_profile=device_profile,
        time_budget_minutes=time_budget_minutes, scheduler=scheduler, concurrent_trials=concurrent_trials,
        cpus_per_trial=cpus_per_trial, gpus_per_trial=gpus_per_trial, training=training, qat=qat,
        calibration=calibration, lora=lora, evaluation=evaluation, output=output, run=run,
    )  # fmt: skip
    spec.check_machine()
    check_folder(output, spec)

    from edgequant import tracking
    from edgequant.workflows.steps.data import check_data
    from edgequant.workflows.steps.register import numbers
    from edgequant_tune import results, trial_records
    from edgequant_tune.driver import ray_cluster, run_search

    data_dir, needed = spec.trial.run.data_dir, spec.trial.evaluation.tasks
    notes = check_data(evaluation.tasks, data_dir, needed=needed, dataset=spec.trial.dataset)
    with tracking.workflow_run("tune", config, experiment=run.experiment, resume=run.resume) as tracked:
        share_folder(spec.trial.folder, SEARCHES)
        with ray_cluster() as resources:
            spec = spec.on(resources, tracked.id)
            records = run_search(spec, tracked)
        best = results.log_search(spec, records)
        measured = results.measure_best(spec, best)
        registered = register and method == "qat" and not trial_records.broken(best)
        checkpoint = results.file_checkpoint(spec, best, measured, tracked, register=registered)
        results.print_results(spec, records, best, measured.rows, tracked, checkpoint, measured.ships, notes)
    return WorkflowResult(tracked.id, numbers(measured.rows[results.BEST]), checkpoint, list(measured.rows.values()))


def check_folder(output: str, spec: SearchSpec) -> None:
    """Refuse an output that is no place for searches.

    Raises:
        UserError: as `outputs.check_output`.
    """
    from edgequant import models

    trial = spec.trial
    reads = places_read(
        models.resolve(trial.model), trial.dataset, data_dir=trial.run.data_dir, teacher=trial.qat.distill_from
    )
    check_output(output, SEARCHES, reads=reads, shared=True)
