"""`train`: a model, packed token sequences, settings; through transformers.Trainer, resumable to the same numbers."""

from __future__ import annotations

import contextlib
import gc
import json
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers import PrinterCallback, TrainerCallback, TrainingArguments
from transformers.utils.logging import disable_progress_bar, enable_progress_bar, is_progress_bar_enabled

from edgequant.errors import UserError
from edgequant.models.devices import pick_dtype
from edgequant.training.callbacks import Looking, OnLog, OnStep, Stepping
from edgequant.training.checkpointing import checkpointed_blocks
from edgequant.training.checkpoints import newest_whole, text_digest
from edgequant.training.compilation import compiled_blocks, should_compile
from edgequant.training.disk_room import checkpoints_in
from edgequant.training.processes import launched_processes, on_its_devices, pass_of_each_process
from edgequant.training.settings import TrainingSettings
from edgequant.training.teacher_cache import cached_teacher
from edgequant.training.trainer import Anchor, LanguageModelTrainer, Sequences, Teacher, collate
from edgequant.training.watch import Look, Watch, Watching


class TrainingResult(NamedTuple):
    """How a training went.

    Attributes:
        steps: optimiser steps that were made.
        loss: mean over the last tenth of them.
        tokens_per_second: without loading and saving.
        looks: held-out losses by step, from before the first one on; empty where nothing is watched.
        best_step: after how many steps the model was as it is now: the best look's, or all.
        ended: why training ended before its last step; empty where it did not.
    """

    steps: int
    loss: float
    tokens_per_second: float
    looks: tuple[Look, ...] = ()
    best_step: int = 0
    ended: str = ""

    @property
    def metrics(self) -> dict[str, float]:
        """In numbers, under the project's names."""
        found = {"loss": self.loss, "steps": float(self.steps)}
        found |= {"tokens_per_second": self.tokens_per_second} if self.tokens_per_second else {}  # all done before
        return {f"train/{name}": value for name, value in found.items()} | {"train/best_step": float(self.best_step)}

    @property
    def notes(self) -> dict[str, str]:
        """In words: the best step, why training ended, and the looks as JSON."""
        curve = {str(look.step): {name: round(loss, 4) for name, loss in look.losses.items()} for look in self.looks}
        best = f"step {self.best_step} of {self.steps}"
        return {"best_step": best, "ended": self.ended, "looks": json.dumps(curve)}


def train(
    model: nn.Module,
    tokens: Tensor,
    settings: TrainingSettings,
    folder: Path,
    *,
    teacher: nn.Module | None = None,
    anchor: Anchor | None = None,
    watch: Watch | None = None,
    seed: int = 0,
    resume: bool = False,
    title: str = "training",
    document_end: int | None = None,
    on_step: OnStep | None = None,
    on_log: OnLog | None = None,
    on_look: OnLog | None = None,
) -> TrainingResult:
    """Train a causal language model in place on packed sequences.

    float32 master weights, bfloat16 autocast, AdamW, cosine schedule with warm-up, gradient clipping. With `watch` the
    model ends as it was at its best look, the one before the first step included.

    Args:
        model: parameters in float32; those that require gradients are trained.
        tokens: [sequences, sequence_length] int64; drawn in a seeded order, again from the start when they run out.
            Those below 0 are read and not learnt (`as_read`); a teacher needs rows without any.
        settings: see TrainingSettings; steps and learning rate are settled.
        folder: where checkpoints for `resume` go.
        teacher: floating-point model whose predictions count by the distillation weight.
        anchor: another, whose predictions alone count on some of the sequences.
        watch: held-out text; a training that diverges then ends instead of failing.
        seed: order of the sequences, dropout.
        resume: continue from the newest whole checkpoint in `folder`; the end result is that of an uninterrupted run.
        title: of the progress bar.
        document_end: token with which a document ends, for `block_masks`.
        on_step: called with (steps done, steps in all) before each step.
        on_log: called with (step, metrics) after each step.
        on_look: called with (step, `watched/<text>_loss` of each watched text) after each look.

    Raises:
        UserError: the loss is no longer finite, there is nothing to train, nothing ends the documents that are to be
            kept apart, `teacher_top_k` exceeds the vocabulary, or the checkpoint to continue from was trained on
            another text.
    """
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise UserError("nothing to train: no parameter of the model requires gradients")
    if settings.block_masks and document_end is None:
        raise UserError("training.block_masks needs a tokenizer with an end-of-sequence token; leave it false")
    apart = document_end if settings.block_masks else None
    taught_by: Teacher | None = teacher
    if teacher is not None and settings.distillation_weight and settings.teacher_top_k:
        taught_by = cached_teacher(teacher, tokens, settings, seed=seed, document_end=apart)
    anchor = anchor if anchor is not None and bool(anchor.rows.any()) else None
    anchored = None if anchor is None else anchor.rows.cpu()
    anchored_by: Teacher | None = None if anchor is None else anchor.model
    if anchor is not None and settings.teacher_top_k:
        anchored_by = cached_teacher(anchor.model, tokens, settings, seed=seed, among=anchored, document_end=apart)
    device = next(model.parameters()).device
    progress = Stepping(settings, title, on_step, on_log, rows=len(tokens), keeps_best=watch is not None)
    callbacks: list[TrainerCallback] = [progress]
    watching = None
    if watch is not None:
        watching = Watching(watch, model, pick_dtype(settings.precision, str(device)))
        interval = watch.interval(settings, taught=_is_live(taught_by) or _is_live(anchored_by))
        callbacks.append(Looking(watching, interval, progress, on_look))
    text = text_digest(tokens)
    trainer = LanguageModelTrainer(
        model=model,
        args=_arguments(settings, folder, device, seed),
        train_dataset=Sequences(tokens.cpu()),
        data_collator=partial(collate, anchored=anchored),
        callbacks=callbacks,
        teacher=taught_by,
        anchor=anchored_by,
        settings=settings,
        watching=watching,
        text=text,
        document_end=apart,
    )
    trainer.remove_callback(PrinterCallback)
    checkpoint = newest_whole(folder, text, title, resume=resume)
    if watching is not None and checkpoint is not None:
        watching.load(checkpoint.folder)
    room, compiled_by = checkpoints_in(folder, model, settings), None if anchor else taught_by
    compiled = _compiled_where_asked(model, compiled_by, settings)
    with room, _one_bar_and_mode_restored(model), compiled, _earlier_objects_spared(device):
        trainer.go_on(checkpoint)
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]  # those before a resumption too
    tail = losses[-max(1, len(losses) // 10) :]
    loss = sum(tail) / len(tail) if tail else float("nan")
    steps = trainer.state.global_step
    result = TrainingResult(steps, loss, progress.tokens_per_second(steps), best_step=steps, ended=progress.ended)
    if watching is None or watching.best is None:
        return result
    watching.restore_best()
    return result._replace(looks=tuple(watching.looks), best_step=watching.best.step)


def _arguments(settings: TrainingSettings, folder: Path, device: torch.device, seed: int) -> TrainingArguments:
    batch_size, passes = pass_of_each_process(settings, launched_processes())
    arguments = TrainingArguments(
        output_dir=str(folder),
        max_steps=settings.known_steps,
        per_device_train_batch_size=batch_size,
        gradient_accumulation_steps=passes,
        learning_rate=settings.known_rate,
        lr_scheduler_type="cosine",
        warmup_steps=round(settings.warmup_fraction * settings.known_steps),
        weight_decay=settings.weight_decay,
        max_grad_norm=settings.max_grad_norm,
        bf16=pick_dtype(settings.precision, str(device)) == "bfloat16",
        use_cpu=device.type == "cpu",
        seed=seed,
        data_seed=seed,
        logging_steps=1,
        logging_nan_inf_filter=False,
        save_strategy="steps" if settings.checkpoint_interval else "no",
        save_steps=settings.checkpoint_interval or 500,
        report_to=[],
        disable_tqdm=True,
        dataloader_pin_memory=device.type == "cuda",
        remove_unused_columns=False,
    )
    return on_its_devices(arguments, device)


def _is_live(teacher: Teacher | None) -> bool:
    return isinstance(teacher, nn.Module)


def _compiled_where_asked(
    model: nn.Module, teacher: Teacher | None, settings: TrainingSettings
) -> contextlib.AbstractContextManager[Any]:
    device = next(model.parameters()).device
    contexts = contextlib.ExitStack()
    if should_compile(device, settings.passes) if settings.compile is None else settings.compile:
        run = teacher if isinstance(teacher, nn.Module) and settings.distillation_weight else None
        contexts.enter_context(compiled_blocks(model, run, tolerant=settings.compile is None))
    if settings.gradient_checkpointing:
        contexts.enter_context(checkpointed_blocks(model))
    return contexts


@contextlib.contextmanager
def _earlier_objects_spared(device: torch.device) -> Iterator[None]:
    """Trainer begins by looking for garbage, to free a GPU's memory; on a CPU it looks at what is made from here on
    alone: going through all of torch and MLflow takes most of a second."""
    if device.type != "cpu" or gc.get_freeze_count():
        yield
        return
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


@contextlib.contextmanager
def _one_bar_and_mode_restored(model: nn.Module) -> Iterator[None]:
    """Trainer leaves a model whose forward pass is in bfloat16 for good, whatever its weights are in: undone too.

    So is accelerate's mark that it need not be prepared again: a second training would go on in float32.
    """
    was_training, forward = model.training, model.__dict__.get("forward")
    bars = is_progress_bar_enabled()
    disable_progress_bar()  # of the checkpoints that Trainer writes: ours is the one bar
    try:
        yield
    finally:
        if bars:
            enable_progress_bar()
        model.train(was_training)
        for name in ("forward", "_original_forward", "_is_accelerate_prepared"):
            model.__dict__.pop(name, None)
        if forward is not None:
            model.__dict__["forward"] = forward
