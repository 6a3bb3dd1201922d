"""`tune`: search hyperparameters; measure the best trial beside the model it came from, and register it.

mlflow run . -e tune -P model=tiny                      # under a minute on a laptop
edgequant tune --trials 30 --training.steps 200 --space my-space.yaml
edgequant tune --space qat-schemes --objectives '[domain/perplexity, size/checkpoint_gb]'
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from edgequant.evaluation.settings import EvaluationSettings
from edgequant.evaluation.tasks.registry import QUALITY_TASKS
from edgequant.folders import share_folder
from edgequant.outputs import Place, check_output, places
from edgequant.quantization.calibration import CalibrationSettings
from edgequant.quantization.qat.settings import QatSettings
from edgequant.training.settings import LoraSettings, TrainingSettings
from edgequant.workflows.settings import RunSettings, WorkflowResult, configuration
from edgequant.workflows.validate import places_read

if TYPE_CHECKING:
    from edgequant_tune.search_spec import SearchSpec

MAY_GROW = ("trials", "time_budget_minutes")  # what a resumed search may have more of
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
    policy: str | None = "default",
    device_profile: str | None = None,
    trials: int = 5,
    time_budget_minutes: float | None = None,
    scheduler: Literal["auto", "asha", "none"] = "auto",
    concurrent_trials: int | None = None,
    cpus_per_trial: float = 1.0,
    gpus_per_trial: float = 1.0,
    memory_per_trial_gb: float | None = None,
    address: str | None = None,
    storage_path: str | None = None,
    warm_start: str | None = None,
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
        policy: promotion policy whose absolute gates are constraints of qat trials too, by name or YAML file: promotion
            would refuse what breaks them. A constraint on the same metric takes a gate's place; None: no gates.
        device_profile: device that what ships of a qat trial has to fit: raspberry-pi-5, phone-4gb, edge-2c-1g or a
            YAML file with threads, memory_gb and disk_gb; deploy/fits>=1 is a constraint then.
        trials: number of trials; the first takes the settings below as they are.
        time_budget_minutes: end the search after this time and stop the trials that still run; None for no limit.
        scheduler: asha stops trials that lag behind others at equal steps, by their loss on the text whose perplexity
            is optimised; none stops nothing; auto is asha for 8 or more trials where such a loss predicts that.
        concurrent_trials: trials at a time at most; None for as many as the resources hold.
        cpus_per_trial: CPU cores of a trial.
        gpus_per_trial: GPUs of a trial where there are any; 0.25 lets four trials share one.
        memory_per_trial_gb: memory that a trial asks of its node; None: as estimated from the model's parameters and
            the largest batch.
        address: of a running Ray's head node, HOST:6379, or auto for the one that runs here; None: what $RAY_ADDRESS
            names, else a Ray of this machine's own, for the search alone.
        storage_path: folder that all nodes of a cluster have, which then takes the place of output, or an address
            such as s3://bucket/folder, which receives the checkpoints of trials; None: output, on one machine.
        warm_start: run of an earlier search of the same model, or several, separated by commas: the searcher knows
            their trials from the start.
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
            search of this configuration that was interrupted, or that has fewer trials: all that ended are kept.

    Raises:
        UserError: bad configuration, before Ray starts.
        RuntimeError: no trial finished; says how the first one failed.
    """
    config = configuration(locals())

    from edgequant_tune.cluster.storage import is_object_store
    from edgequant_tune.search_spec import SearchSpec

    spec = SearchSpec.from_options(
        model=model, method=method, scheme=scheme, dataset=dataset, space=space, objectives=objectives, trials=trials,
        constraints=constraints, policy=policy, device_profile=device_profile,
        time_budget_minutes=time_budget_minutes, scheduler=scheduler, concurrent_trials=concurrent_trials,
        cpus_per_trial=cpus_per_trial, gpus_per_trial=gpus_per_trial,
        memory_per_trial_gb=memory_per_trial_gb, storage_path=storage_path, training=training, qat=qat,
        calibration=calibration, lora=lora, evaluation=evaluation, output=output, run=run,
    )  # fmt: skip
    spec.check_machine(address)
    reads = check_folder(output if storage_path is None or is_object_store(storage_path) else storage_path, spec)
    reads += settings_read(space=space, policy=policy, device_profile=device_profile)

    from edgequant import tracking
    from edgequant.workflows.steps.data import check_data
    from edgequant.workflows.steps.register import numbers
    from edgequant_tune import results, trial_records
    from edgequant_tune.bookkeeping.warm_start import earlier_trials
    from edgequant_tune.driver import ray_cluster, run_search
    from edgequant_tune.outcome import front
    from edgequant_tune.scoring.selection import check_scored, told_splits

    data_dir, needed = spec.trial.run.data_dir, spec.trial.evaluation.tasks
    names = [item.name for item in spec.space]
    notes = check_data(evaluation.tasks, data_dir, needed=needed, dataset=spec.trial.dataset)
    check_scored(needed, spec.trial.dataset, data_dir)
    earlier: list[trial_records.TrialRecord] = []
    if warm_start is not None:
        scored_on = told_splits(needed, spec.trial.dataset, data_dir)
        earlier = earlier_trials(warm_start, config, names, spec.objectives, scored_on)
    begun = tracking.workflow_run(
        "tune", config, reads, experiment=run.experiment, resume=run.resume, grows=MAY_GROW, registers=[spec.model_name]
    )
    with begun as tracked:
        share_folder(spec.trial.folder, SEARCHES)
        with ray_cluster(address) as resources:
            spec = spec.on(resources, tracked.id)
            records = run_search(spec, tracked, earlier)
        best = results.log_search(spec, records, tracked)
        measured = front.measure_front(spec, records, best)
        registered = register and method == "qat" and not trial_records.broken(best)
        checkpoint = results.file_checkpoint(spec, best, measured, tracked, register=registered)
        results.print_results(spec, records, best, measured, tracked, checkpoint, notes)
    return WorkflowResult(tracked.id, numbers(measured.rows[front.BEST]), checkpoint, list(measured.rows.values()))


def settings_read(**named: Any) -> list[Place]:
    """Files of settings, which decide what is searched as much as options do: a resumed search has to have the same."""
    texts = {option: given for option, given in named.items() if isinstance(given, str)}
    return places({option: text for option, text in texts.items() if Path(text).expanduser().is_file()})


def check_folder(output: str, spec: SearchSpec) -> list[Place]:
    """Refuse an output that is no place for searches; returns what a search reads from this machine's disk.

    Raises:
        UserError: as `outputs.check_output`.
    """
    from edgequant import models

    trial = spec.trial
    reads = places_read(
        models.resolve(trial.model), trial.dataset, data_dir=trial.run.data_dir, teacher=trial.qat.distill_from
    )
    check_output(output, SEARCHES, reads=reads, shared=True)
    return reads
