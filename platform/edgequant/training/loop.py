"""`train`: a model, packed token sequences, settings; through transformers.Trainer, resumable to the same numbers."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments
from transformers.utils.logging import disable_progress_bar, enable_progress_bar, is_progress_bar_enabled

from edgequant.errors import UserError
from edgequant.models.devices import pick_dtype
from edgequant.training.callbacks import Looking, OnLog, OnStep, Stepping
from edgequant.training.checkpointing import checkpointed_blocks
from edgequant.training.compilation import compiled_blocks, should_compile
from edgequant.training.distillation import divergence, next_token_loss
from edgequant.training.processes import launched_processes, on_its_devices, pass_of_each_process
from edgequant.training.settings import TrainingSettings
from edgequant.training.teacher_cache import CachedTeacher, cached_teacher
from edgequant.training.watch import CURVE, Look, Watch, Watching

Teacher = nn.Module | CachedTeacher


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
        found = {"loss": self.loss, "tokens_per_second": self.tokens_per_second, "steps": float(self.steps)}
        return {f"train/{name}": value for name, value in found.items()} | {"train/best_step": float(self.best_step)}

    @property
    def notes(self) -> dict[str, str]:
        """In words: the best step, why training ended, and the looks as JSON."""
        curve = {str(look.step): {name: round(loss, 4) for name, loss in look.losses.items()} for look in self.looks}
        best = f"step {self.best_step} of {self.steps}"
        return {"best_step": best, "ended": self.ended, "looks": json.dumps(curve)}


class _Sequences(torch.utils.data.Dataset):
    def __init__(self, tokens: Tensor) -> None:
        self.tokens = tokens

    def __len__(self) -> int:
        return len(self.tokens)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {"input_ids": self.tokens[index], "sequence": torch.tensor(index)}


class _Trainer(Trainer):
    """transformers.Trainer with our loss: cross-entropy on the text, mixed with the divergence from a teacher."""

    def __init__(
        self, *, teacher: Teacher | None, settings: TrainingSettings, watching: Watching | None, **arguments: Any
    ) -> None:
        super().__init__(**arguments)
        self.teacher, self.settings, self.watching = teacher, settings, watching
        self.model_accepts_loss_kwargs = False  # our loss is a mean already: accumulate means

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """AdamW; a parameter may carry `learning_rate_factor`, and `is_scale`, which no weight decay touches."""
        if self.optimizer is None:
            self.optimizer = torch.optim.AdamW(
                _parameter_groups(cast(nn.Module, self.model), self.settings), fused=self.args.device.type == "cuda"
            )
        return self.optimizer

    def compute_loss(
        self, model: nn.Module, inputs: dict[str, Tensor], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        tokens = inputs["input_ids"]
        logits = model(input_ids=tokens, use_cache=False).logits
        share = self.settings.distillation_weight if self.teacher is not None else 0.0
        loss = logits.new_zeros((), dtype=torch.float32)
        if share < 1:
            loss = loss + (1 - share) * next_token_loss(logits, tokens)
        if share > 0:
            loss = loss + share * self._divergence(logits.flatten(0, 1), inputs)
        return (loss, {"logits": logits}) if return_outputs else loss

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        model: Any = self.model
        if self.watching is not None and output_dir is not None:
            self.watching.save(Path(output_dir))
        if not hasattr(model, "peft_config"):
            super()._save(output_dir, state_dict)
            return
        # Said outright that embeddings stay out: peft would ask the hub about the base model at every checkpoint.
        model.save_pretrained(output_dir, state_dict=state_dict, save_embedding_layers=False)

    def _issue_warnings_after_load(self, load_result: Any) -> None:
        """A tied head is stored once; that it is missing in a checkpoint is nothing to warn of."""
        tied = set(getattr(self.model, "all_tied_weights_keys", None) or {})
        if not set(load_result.missing_keys) <= tied or load_result.unexpected_keys:
            raise UserError(
                f"the training checkpoint is another model's (missing {sorted(load_result.missing_keys)[:3]}, "
                f"unexpected {sorted(load_result.unexpected_keys)[:3]}); start again without resume"
            )

    def _divergence(self, logits: Tensor, inputs: dict[str, Tensor]) -> Tensor:
        if isinstance(self.teacher, CachedTeacher):
            return self.teacher.divergence(logits, inputs["sequence"])
        assert self.teacher is not None
        with torch.no_grad(), self.compute_loss_context_manager():
            taught = self.teacher(input_ids=inputs["input_ids"], use_cache=False).logits.flatten(0, 1)
        return divergence(logits, taught, self.settings.temperature)


def _parameter_groups(model: nn.Module, settings: TrainingSettings) -> list[dict[str, Any]]:
    """Matrices decay, vectors do not, and parameters with a learning rate of their own do not either."""
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for parameter in model.parameters():
        if parameter.requires_grad:
            factor = float(getattr(parameter, "learning_rate_factor", 1.0))
            decay = settings.weight_decay if parameter.ndim > 1 and not getattr(parameter, "is_scale", False) else 0.0
            groups.setdefault((settings.known_rate * factor, decay), []).append(parameter)
    return [{"params": params, "lr": rate, "weight_decay": decay} for (rate, decay), params in groups.items()]


def train(
    model: nn.Module,
    tokens: Tensor,
    settings: TrainingSettings,
    folder: Path,
    *,
    teacher: nn.Module | None = None,
    watch: Watch | None = None,
    seed: int = 0,
    resume: bool = False,
    title: str = "training",
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
        settings: see TrainingSettings; steps and learning rate are settled.
        folder: where checkpoints for `resume` go.
        teacher: floating-point model whose predictions count by the distillation weight.
        watch: held-out text; a training that diverges then ends instead of failing.
        seed: order of the sequences, dropout.
        resume: continue from the newest checkpoint in `folder`; the end result is that of an uninterrupted run.
        title: of the progress bar.
        on_step: called with (steps done, steps in all) before each step.
        on_log: called with (step, metrics) after each step.
        on_look: called with (step, `held_out/<text>_loss` of each watched text) after each look.

    Raises:
        UserError: the loss is no longer finite, there is nothing to train, or `teacher_top_k` exceeds the vocabulary.
    """
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise UserError("nothing to train: no parameter of the model requires gradients")
    taught_by: Teacher | None = teacher
    if teacher is not None and settings.distillation_weight and settings.teacher_top_k:
        taught_by = cached_teacher(teacher, tokens, settings, seed=seed)
    device = next(model.parameters()).device
    progress = Stepping(settings, title, on_step, on_log, rows=len(tokens), keeps_best=watch is not None)
    callbacks: list[TrainerCallback] = [progress]
    watching = None
    if watch is not None:
        watching = Watching(watch, model, pick_dtype(settings.precision, str(device)))
        interval = watch.interval(settings, taught=isinstance(taught_by, nn.Module))
        callbacks.append(Looking(watching, interval, progress, on_look))
    trainer = _Trainer(
        model=model,
        args=_arguments(settings, folder, device, seed),
        train_dataset=_Sequences(tokens.cpu()),
        data_collator=lambda rows: {name: torch.stack([row[name] for row in rows]) for name in rows[0]},
        callbacks=callbacks,
        teacher=taught_by,
        settings=settings,
        watching=watching,
    )
    trainer.remove_callback(PrinterCallback)
    checkpoint = _newest_whole_checkpoint(folder, watched=watch is not None) if resume else None
    if watching is not None and checkpoint is not None:
        watching.load(Path(checkpoint))
    with _one_bar_and_mode_restored(model), _compiled_where_asked(model, taught_by, settings):
        trainer.train(resume_from_checkpoint=checkpoint)
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
        save_total_limit=1,  # the one before goes when a new one is whole
        report_to=[],
        disable_tqdm=True,
        dataloader_pin_memory=device.type == "cuda",
        remove_unused_columns=False,
    )
    return on_its_devices(arguments, device)


def _newest_whole_checkpoint(folder: Path, *, watched: bool) -> str | None:
    """Trainer writes its state last: a checkpoint without one, or with a part of one, was cut short by a kill.

    One whose looks are to be continued must have them.
    """
    whole = [file.parent for file in folder.glob("checkpoint-*/trainer_state.json") if _is_whole_json(file)]
    whole = [path for path in whole if not watched or (path / CURVE).is_file()]
    return str(max(whole, key=lambda path: int(path.name.rpartition("-")[2]))) if whole else None


def _is_whole_json(file: Path) -> bool:
    try:
        json.loads(file.read_text())
    except ValueError:
        return False
    return True


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
def _one_bar_and_mode_restored(model: nn.Module) -> Iterator[None]:
    """Trainer leaves a model whose forward pass is in bfloat16 for good, whatever its weights are in: undone too."""
    was_training, forward = model.training, model.__dict__.get("forward")
    bars = is_progress_bar_enabled()
    disable_progress_bar()  # of the checkpoints that Trainer writes: ours is the one bar
    try:
        yield
    finally:
        if bars:
            enable_progress_bar()
        model.train(was_training)
        for name in ("forward", "_original_forward"):
            model.__dict__.pop(name, None)
        if forward is not None:
            model.__dict__["forward"] = forward
