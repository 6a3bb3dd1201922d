"""`finetune`: adapt a model to the domain with LoRA, or with QLoRA over bitsandbytes weights.

mlflow run . -e finetune
edgequant finetune --model FOLDER --base bnb-nf4 --dataset FOLDER_OF_DOCUMENTS
"""

from __future__ import annotations

import contextlib
import shlex
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from edgequant.errors import UserError
from edgequant.evaluation.evidence_file import Scores
from edgequant.evaluation.settings import EvaluationSettings
from edgequant.folders import CHECKPOINT, atomic_folder, refusal, share_folder
from edgequant.outputs import Place, check_output, check_own_folder
from edgequant.training.settings import UNTRAINED, LoraSettings, TrainingSettings
from edgequant.workflows.settings import RunSettings, WorkflowResult, configuration
from edgequant.workflows.steps.measure import COMPARISON, headline
from edgequant.workflows.validate import places_read, validate

if TYPE_CHECKING:
    from edgequant.models.sources import ModelSource

FINETUNED = "finetune"  # kind of the folder that adapter/ and merged/ share


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
        output: folder that receives adapter/ and merged/, new, empty or of an earlier fine-tuning (default:
            outputs/finetune/<run id>).
        register: register the merged model as edgequant-<model> in the MLflow registry; needs base float.
        run: data, device, seed, resuming and experiment.
    """
    config = configuration(locals())
    check_base(base, register)
    training.known_rate  # noqa: B018 - refuses `auto`
    source = validate(
        model, dataset, training=training, evaluation=evaluation, self_generated=False, device=run.device
    ).source
    target = check_folders(output, base, places_read(source, dataset, data_dir=run.data_dir))

    from edgequant import models, tracking
    from edgequant.workflows.steps.data import check_data, evaluation_data
    from edgequant.workflows.steps.measure import measure_items
    from edgequant.workflows.steps.register import conditions_of, promote_command, register_version
    from edgequant.workflows.steps.sequences import training_sequences
    from edgequant.workflows.steps.summary import print_summary

    notes = check_data(evaluation.tasks, run.data_dir, dataset=dataset)
    with tracking.workflow_run("finetune", config, experiment=run.experiment, resume=run.resume) as tracked:
        work = tracking.run_folder("finetune", tracked.id) / "training"
        folder = target or work.parent
        loaded = load_base(source, base, device=run.device, dtype=run.dtype)
        name, tokenizer, scheme = loaded.source.name, loaded.tokenizer, "none" if base == "float" else base
        data = evaluation_data(evaluation.tasks, run.data_dir)
        sequences = training_sequences(dataset, tokenizer, training.sequence_length, data, run.data_dir, seed=run.seed)
        training = training.for_text(len(sequences), str(loaded.model.device).partition(":")[0])
        names: dict[str, Any] = {"model": name, "scheme": scheme}
        with tracking.variant_run("baseline", **names, phase="finetune", parameters=UNTRAINED):
            before = models.load(source, dtype=run.dtype, device=run.device) if base == "float" else loaded
            found = {"baseline": measure_items(before.model, tokenizer, data, evaluation)}
        made = training.parameters | {"lora_rank": lora.rank}
        with tracking.variant_run("finetuned", **names, phase="finetune", parameters=made):
            adapted = adapt(loaded.model, model, sequences, training, lora, work, seed=run.seed, resume=tracked.resumed)
            after = save_result(adapted, tokenizer, folder, base, dtype=run.dtype, device=run.device)
            shutil.rmtree(work, ignore_errors=True)
            merged = folder / "merged" if base == "float" else None
            measured_folder = merged if register else None
            found["finetuned"] = measure_items(after, tokenizer, data, evaluation, checkpoint=measured_folder)
        rows = {variant: each.metrics for variant, each in found.items()}
        tracking.log_metrics(rows["finetuned"])
        tracking.log_folder(folder / "adapter", "adapter")
        following = next_command(folder, base)
        if register and merged:
            measured, baseline = (Scores(found[name].metrics, found[name].items) for name in ("finetuned", "baseline"))
            conditions = conditions_of(evaluation, data, run)
            version = register_version(
                merged, **names, variant="finetuned", measured=measured, baseline=baseline, conditions=conditions
            )
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


def check_folders(output: str | None, base: str, reads: Sequence[Place]) -> Path | None:
    """Refuse an output that is no place for adapter/ and merged/; returns it, resolved.

    Raises:
        UserError: as `outputs.check_output`; or there is a merged model and this one will not be merged.
    """
    check_own_folder("finetune")
    if output is None:
        return None
    folder = check_output(output, FINETUNED, reads=reads, shared=True)
    for name in ("adapter", "merged"):
        check_output(Path(output, name), CHECKPOINT, reads=reads)
    if base != "float" and (folder / "merged").exists():
        raise refusal(output, FINETUNED, f"holds 'merged', which an adapter over base {base} has none of")
    return folder


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
    work: Path,
    *,
    seed: int,
    resume: bool,
) -> Any:
    """Attach adapters and train them, with `work` for training's checkpoints; returns the peft model."""
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
        work,
        seed=seed,
        resume=resume,
        title=f"finetune {made_from}",
        on_log=lambda step, metrics: tracking.log_metrics(metrics, step=step),
    )
    tracking.log_metrics({"train/loss": result.loss, "train/tokens_per_second": result.tokens_per_second})
    return adapted.eval()


def save_result(adapted: Any, tokenizer: Any, folder: Path, base: str, *, dtype: str, device: str) -> Any:
    """Save the adapter, and the merged model where the base is floating point; returns the model to measure."""
    from edgequant.models.same_function.integers_of_bitsandbytes import release_layout
    from edgequant.models.same_function.written import load_written
    from edgequant.training.lora import merge

    share_folder(folder, FINETUNED)
    with contextlib.ExitStack() as both:  # neither takes its place before both are written
        adapter = both.enter_context(atomic_folder(folder / "adapter"))
        adapted.save_pretrained(adapter, save_embedding_layers=False)  # else peft asks the hub about the base
        _complete(adapter, tokenizer)
        if base != "float":
            release_layout(adapted)
            return adapted
        merged, target = merge(adapted, tokenizer), both.enter_context(atomic_folder(folder / "merged"))
        merged.save_pretrained(target)
        _complete(target, tokenizer)
    place: dict[str, Any] = {"dtype": dtype, "device": device}
    return load_written(folder / "merged", merged, tokenizer, **place, rounded_activations=False).model


def _complete(folder: Path, tokenizer: Any) -> None:
    from edgequant.quantization.checkpoint import ensure_manifest

    tokenizer.save_pretrained(folder)
    ensure_manifest(folder)


def next_command(folder: Path, base: str) -> str:
    """Quantise the adapted model, or look at how it compares."""
    return (
        f"edgequant qat --model {shlex.quote(str(folder / 'merged'))}"
        if base == "float"
        else f"edgequant evaluate --model {shlex.quote(str(folder / 'adapter'))}"
    )
