"""`finetune`: adapt a model to the domain with LoRA, or with QLoRA over bitsandbytes weights.

mlflow run . -e finetune
edgequant finetune --model FOLDER --base bnb-nf4 --dataset FOLDER_OF_DOCUMENTS
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from edgequant.errors import UserError
from edgequant.evaluation.settings import EvaluationSettings
from edgequant.training.settings import LoraSettings, TrainingSettings
from edgequant.workflows.settings import RunSettings, WorkflowResult, configuration
from edgequant.workflows.steps.measure import COMPARISON, headline
from edgequant.workflows.validate import validate

if TYPE_CHECKING:
    from edgequant.models.sources import ModelSource


def finetune(
    *,
    model: str = "smollm2-135m",
    dataset: str = "disaster",
    base: Literal["float", "bnb-int8", "bnb-nf4", "bnb-fp4"] = "float",
    training: TrainingSettings = TrainingSettings(learning_rate=5e-4),
    lora: LoraSettings = LoraSettings(),
    evaluation: EvaluationSettings = COMPARISON,
    output: str | None = None,
    register: bool = False,
    run: RunSettings = RunSettings(),
) -> WorkflowResult:
    """Domain adaptation: LoRA on the text, the model before and after side by side.

    Writes the adapter, and over a floating-point base also the merged model, which `qat` and `ptq` take as --model.

    Args:
        model: short name, hub id, folder, .gguf file or MLflow URI of a floating-point model.
        dataset: text to train on: disaster, disaster-multilingual, wikitext-2, or a folder or file.
        base: weights under the adapters: float, or bitsandbytes' bnb-int8, bnb-nf4, bnb-fp4 (QLoRA).
        training: length, batch, learning rate.
        lora: rank, scale, dropout and targets of the adapters.
        evaluation: what is measured and how.
        output: folder that receives adapter/ and merged/ (default: outputs/finetune/<run id>).
        register: register the merged model as edgequant-<model> in the MLflow registry; needs base float.
        run: data, device, seed, resuming and experiment.
    """
    config = configuration(locals())
    check_base(base, register)
    training.known_rate  # noqa: B018 - refuses `auto`
    source = validate(model, dataset, self_generated=False).source

    from edgequant import models, tracking
    from edgequant.workflows.steps.data import check_data, evaluation_data
    from edgequant.workflows.steps.measure import measure
    from edgequant.workflows.steps.register import promote_command, register_version
    from edgequant.workflows.steps.sequences import training_sequences
    from edgequant.workflows.steps.summary import print_summary

    notes = check_data(evaluation.tasks, run.data_dir, dataset=dataset)
    with tracking.workflow_run("finetune", config, experiment=run.experiment, resume=run.resume) as tracked:
        folder = Path(output).expanduser().resolve() if output else tracking.run_folder("finetune", tracked.id)
        loaded = load_base(source, base, device=run.device, dtype=run.dtype)
        name, tokenizer, scheme = loaded.source.name, loaded.tokenizer, "none" if base == "float" else base
        data = evaluation_data(evaluation.tasks, run.data_dir)
        sequences = training_sequences(dataset, tokenizer, training.sequence_length, data, run.data_dir, seed=run.seed)
        training = training.for_text(len(sequences), str(loaded.model.device).partition(":")[0])
        with tracking.variant_run("baseline", model=name, scheme=scheme, phase="finetune"):
            before = models.load(source, dtype=run.dtype, device=run.device) if base == "float" else loaded
            rows = {"baseline": measure(before.model, tokenizer, data, evaluation)}
        with tracking.variant_run("finetuned", model=name, scheme=scheme, phase="finetune"):
            adapted = adapt(
                loaded.model, model, sequences, training, lora, folder, seed=run.seed, resume=tracked.resumed
            )
            after = save_result(adapted, tokenizer, folder, base, dtype=run.dtype, device=run.device)
            merged = folder / "merged" if base == "float" else None
            rows["finetuned"] = measure(after, tokenizer, data, evaluation, checkpoint=merged if register else None)
        tracking.log_metrics(rows["finetuned"])
        tracking.log_folder(folder / "adapter", "adapter")
        following = next_command(folder, base)
        if register and merged:
            names = {"model": name, "scheme": scheme, "variant": "finetuned"}
            version = register_version(merged, **names, metrics=rows["finetuned"], baseline=rows["baseline"])
            following = promote_command(version)
        table = [{"model": name, "variant": v, "scheme": scheme, **headline(row)} for v, row in rows.items()]
        print_summary(f"finetune: {name}, LoRA rank {lora.rank}", table, tracked, following, notes=notes)
    return WorkflowResult(tracked.id, rows["finetuned"], str(merged or folder / "adapter"), table)


def check_base(base: str, register: bool) -> None:
    """Refuse to register what is not a model of its own: adapters over quantised weights are not merged.

    Raises:
        UserError: names both settings.
    """
    if register and base != "float":
        raise UserError(
            f"register true needs base float, got base {base}: adapters over quantised weights are not merged into a "
            "model that could be registered; use base float, or register false"
        )


def load_base(source: ModelSource, base: str, *, device: str, dtype: str) -> Any:
    """The model to put adapters on: float32 master weights, or bitsandbytes' integers."""
    from edgequant import models
    from edgequant.workflows.ptq import bitsandbytes_config

    if base == "float":
        return models.load(source, dtype="float32", device=device)
    compute = models.pick_dtype(dtype, models.pick_device(device))
    return models.load(
        source, dtype=compute, device=device, load_options={"quantization_config": bitsandbytes_config(base, compute)}
    )


def adapt(
    model: Any,
    made_from: str,
    sequences: Any,
    training: TrainingSettings,
    lora: LoraSettings,
    folder: Path,
    *,
    seed: int,
    resume: bool,
) -> Any:
    """Attach adapters and train them; returns the peft model."""
    import torch

    from edgequant import tracking
    from edgequant.training.loop import train
    from edgequant.training.lora import attach

    torch.manual_seed(seed)
    adapted = attach(model, lora, made_from=made_from)
    result = train(
        adapted,
        sequences,
        training,
        folder / "training",
        seed=seed,
        resume=resume,
        title=f"finetune {made_from}",
        on_log=lambda step, metrics: tracking.log_metrics(metrics, step=step),
    )
    tracking.log_metrics({"train/loss": result.loss, "train/tokens_per_second": result.tokens_per_second})
    return adapted.eval()


def save_result(adapted: Any, tokenizer: Any, folder: Path, base: str, *, dtype: str, device: str) -> Any:
    """Save the adapter, and the merged model where the base is floating point; returns the model to measure."""
    import shutil

    from edgequant import models
    from edgequant.training.lora import merge

    adapted.save_pretrained(folder / "adapter", save_embedding_layers=False)  # else peft asks the hub about the base
    tokenizer.save_pretrained(folder / "adapter")
    shutil.rmtree(folder / "training", ignore_errors=True)
    if base != "float":
        return adapted
    merged = merge(adapted)
    merged.save_pretrained(folder / "merged")
    tokenizer.save_pretrained(folder / "merged")
    return models.load(str(folder / "merged"), dtype=dtype, device=device).model


def next_command(folder: Path, base: str) -> str:
    """Quantise the adapted model, or look at how it compares."""
    return (
        f"edgequant qat --model {folder / 'merged'}"
        if base == "float"
        else f"edgequant evaluate --model {folder / 'adapter'}"
    )
