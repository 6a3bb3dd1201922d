"""`tune`: search hyperparameters; measure the best trial beside the model it came from, and register it.

mlflow run . -e tune -P model=tiny                      # under a minute on a laptop
edgequant tune --trials 30 --training.steps 200 --space my-space.yaml
edgequant tune --space qat-schemes --objectives '[domain/perplexity, size/checkpoint_gb]'
"""

from __future__ import annotations

from typing import Any, Literal

from edgequant.evaluation.settings import EvaluationSettings
from edgequant.evaluation.tasks.registry import QUALITY_TASKS
from edgequant.quantization.settings import QuantizationSettings
from edgequant.training.settings import LoraSettings, TrainingSettings


def tune(
    *,
    model: str = "smollm2-135m",
    method: Literal["qat", "finetune"] = "qat",
    scheme: str = "w4a8-g32+emb4",
    text: str = "disaster",
    space: str | dict[str, Any] | None = None,
    objectives: tuple[str, ...] = ("domain/perplexity",),
    trials: int = 5,
    time_budget_minutes: float | None = None,
    scheduler: Literal["auto", "asha", "none"] = "auto",
    concurrent_trials: int | None = None,
    cpus_per_trial: float = 1.0,
    gpus_per_trial: float = 1.0,
    training: TrainingSettings = TrainingSettings(learning_rate=2e-4, save_steps=0),
    quantization: QuantizationSettings = QuantizationSettings(),
    lora: LoraSettings = LoraSettings(),
    evaluation: EvaluationSettings = EvaluationSettings(tasks=QUALITY_TASKS, limit=200),
    data_dir: str | None = None,
    output: str = "outputs/tune",
    register: bool = True,
    device: str = "auto",
    seed: int = 0,
    resume: bool = False,
    experiment: str = "edgequant",
) -> None:
    """Hyperparameter search with Ray Tune and Optuna: trials nested under one run, the best one registered.

    Args:
        model: short name, hub id, folder, .gguf file or MLflow URI of a floating-point model.
        method: what a trial trains: qat, or finetune (LoRA, merged into a floating-point model).
        scheme: quantisation scheme of every qat trial, unless the space searches it.
        text: what to train on: disaster, wikitext-2, a folder or file, or (qat) generated: by the model itself.
        space: what is searched: a bundled space (qat, qat-schemes, finetune), a YAML file, or the space itself; None:
            the bundled one of the method.
        objectives: metrics to optimise. The first decides which trial is best; several are searched for trade-offs.
            min: or max: in front says the direction of a metric that edgequant does not know.
        trials: number of trials; the first takes the settings below as they are.
        time_budget_minutes: end the search after this time and stop the trials that still run; None for no limit.
        scheduler: asha stops trials that lag behind others at equal steps; none stops nothing; auto is asha for 8 or
            more trials that can be compared in training (one objective, and equal sequence lengths).
        concurrent_trials: trials at a time at most; None for as many as the resources hold.
        cpus_per_trial: CPU cores of a trial.
        gpus_per_trial: GPUs of a trial where there are any; 0.25 lets four trials share one.
        training: settings of every trial; the searched ones are replaced.
        quantization: settings of every qat trial; the searched ones are replaced.
        lora: settings of every finetune trial; the searched ones are replaced.
        evaluation: what the best trial is measured on; the trials themselves only on what the objectives need.
        data_dir: folder with WikiText-2, BoolQ and SQuAD in their official formats (default: $EDGEQUANT_DATA).
        output: folder that receives a folder per search: its state, and the checkpoints of its best trials.
        register: register the best qat checkpoint as edgequant-<model>; a finetuned model is filed with the run.
        device: auto, cpu, cuda.
        seed: draws the hyperparameters; every trial trains with this seed, so that only hyperparameters differ.
        resume: continue the newest interrupted search of this configuration; its finished trials are kept.
        experiment: MLflow experiment, unless `mlflow run` names one.

    Raises:
        UserError: bad configuration, before Ray starts.
        RuntimeError: no trial finished; says how the first one failed.
    """
    config = dict(locals())

    from edgequant_tune.plan import check_plan, make_search

    plan = check_plan(
        model=model, method=method, scheme=scheme, text=text, space=space, objectives=objectives, trials=trials,
        training=training, quantization=quantization, lora=lora, minutes=time_budget_minutes, scheduler=scheduler,
        concurrent=concurrent_trials, cpus=cpus_per_trial, gpus=gpus_per_trial,
    )  # fmt: skip

    from edgequant import tracking
    from edgequant.workflows.closing import closing_console, print_closing, print_table
    from edgequant_tune import delivery
    from edgequant_tune.search import ray_cluster, run_search

    with tracking.workflow_run("tune", config, experiment=experiment, resume=resume) as run:
        with ray_cluster(delivery.worker_environment()) as resources:
            search = make_search(plan, run.id, resources, evaluation, data_dir, output, device, seed)
            with delivery.trials_closed(run):
                outcomes = run_search(search, delivery.callbacks(search, run))
        best = delivery.log_search(search, outcomes)
        rows = delivery.measure_best(search, best, evaluation)
        checkpoint = delivery.file_checkpoint(search, best, rows, run, register=register and method == "qat")
        print_table(
            f"{len(outcomes)} trials, scored on validation data", delivery.table(search, outcomes), closing_console()
        )
        title = f"tune: {plan.name}, {best.name} measured in full"
        print_closing(title, list(rows.values()), run, delivery.next_command(checkpoint, method))
