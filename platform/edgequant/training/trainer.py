"""transformers.Trainer with our loss: the text's words, a teacher's predictions on them, an anchor's on some of it."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import Trainer, TrainerState

from edgequant.errors import UserError
from edgequant.training.checkpoints import STATE, Checkpoint, write_manifest
from edgequant.training.distillation import divergence, next_token_loss, reading, taught
from edgequant.training.settings import TrainingSettings
from edgequant.training.teacher_cache import CachedTeacher
from edgequant.training.watch import Watching

Teacher = nn.Module | CachedTeacher


def unshared(state: Mapping[str, Tensor], *, but: Collection[str] = ()) -> dict[str, Tensor]:
    """A state in which no tensor lies in another one's memory, for transformers saves no two that do.

    A head that is trained on the integers of the embedding that it is tied to has them in its own state as well.

    Args:
        but: names of tensors that transformers knows to be tied, and leaves out.
    """
    seen: set[int] = set()
    found = dict(state)
    for name in found.keys() - {*but}:
        place = found[name].untyped_storage().data_ptr()
        found[name] = found[name].clone() if place and place in seen else found[name]
        seen.add(place)
    return found


@dataclass(frozen=True)
class Anchor:
    """Text on which a model goes on predicting what another one does while it learns other text.

    Learning without Forgetting, Li and Hoiem 2016, arXiv 1606.09282, on text that the other model wrote: with its whole
    distributions to follow, nothing pulls a model anywhere that still is that other one, as the words alone would.

    Attributes:
        model: whose predictions count, in evaluation mode.
        rows: [sequences] bool, the training sequences on which nothing else does.
    """

    model: nn.Module
    rows: Tensor


def collate(rows: Sequence[dict[str, Any]], anchored: Tensor | None = None) -> dict[str, Any]:
    """A batch of sequences, anchored ones first; `anchored` [sequences] becomes their number in the batch."""
    if anchored is not None:
        rows = sorted(rows, key=lambda row: not anchored[row["sequence"]])
    batch: dict[str, Any] = {name: torch.stack([row[name] for row in rows]) for name in rows[0]}
    if anchored is not None:
        batch["anchored"] = sum(bool(anchored[row["sequence"]]) for row in rows)  # a number: a GPU need not be asked
    return batch


class Sequences(torch.utils.data.Dataset):
    """Token sequences [n, length], each with its number."""

    def __init__(self, tokens: Tensor) -> None:
        self.tokens = tokens

    def __len__(self) -> int:
        return len(self.tokens)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {"input_ids": self.tokens[index], "sequence": torch.tensor(index)}


class LanguageModelTrainer(Trainer):
    """transformers.Trainer with our loss: cross-entropy on the text, mixed with the divergence from a teacher.

    Args:
        anchor: whose predictions alone count on a batch's first sequences, as many as its `anchored` says.
        text: digest of the training text, for the checkpoints.
        document_end: as `distillation.reading`.
    """

    def __init__(
        self, *, teacher: Teacher | None, anchor: Teacher | None, settings: TrainingSettings,
        watching: Watching | None, text: str, document_end: int | None, **arguments: Any,
    ) -> None:  # fmt: skip
        super().__init__(**arguments)
        self.teacher, self.anchor, self.settings, self.watching = teacher, anchor, settings, watching
        self.text, self.document_end = text, document_end
        self.model_accepts_loss_kwargs = False  # our loss is a mean already: accumulate means

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """AdamW; a parameter may carry `learning_rate_factor`, and `is_scale`, which no weight decay touches."""
        if self.optimizer is None:
            self.optimizer = torch.optim.AdamW(
                _parameter_groups(cast(nn.Module, self.model), self.settings),
                fused=self.args.device.type in ("cuda", "cpu"),  # one pass over the weights instead of a dozen
            )
        return self.optimizer

    def compute_loss(
        self, model: nn.Module, inputs: dict[str, Tensor], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        tokens, sequences, anchored = inputs["input_ids"], inputs["sequence"], inputs.get("anchored", 0)
        logits = model(**reading(tokens, self.document_end), use_cache=False).logits
        if not anchored:
            loss = self._learned(logits, tokens, sequences)
        else:
            kept, learned = logits.split([anchored, len(tokens) - anchored])
            share = anchored / len(tokens)
            loss = share * self._divergence(self.anchor, kept, tokens[:anchored], sequences[:anchored])
            if share < 1:
                loss = loss + (1 - share) * self._learned(learned, tokens[anchored:], sequences[anchored:])
        return (loss, {"logits": logits}) if return_outputs else loss

    def _learned(self, logits: Tensor, tokens: Tensor, sequences: Tensor) -> Tensor:
        share = self.settings.distillation_weight if self.teacher is not None else 0.0
        loss = logits.new_zeros((), dtype=torch.float32)
        if share < 1:
            loss = loss + (1 - share) * next_token_loss(logits, tokens)
        if share > 0:
            loss = loss + share * self._divergence(self.teacher, logits, tokens, sequences)
        return loss

    def floating_point_ops(self, inputs: dict[str, Any]) -> int:
        """Nobody reads Trainer's estimate, for which it would go through all modules at every step."""
        return 0

    def go_on(self, checkpoint: Checkpoint | None) -> None:
        """Train from a checkpoint on; Trainer would do one step more behind that of the last step."""
        if checkpoint is None or checkpoint.step < self.args.max_steps:
            self.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint.folder))
            return
        self._load_from_checkpoint(str(checkpoint.folder))
        self.state = TrainerState.load_from_json(str(checkpoint.folder / STATE))

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        super()._save_checkpoint(model, trial)
        self.accelerator.wait_for_everyone()  # each process has written its own part
        if self.args.should_save:
            write_manifest(Path(str(self.args.output_dir), f"checkpoint-{self.state.global_step}"), self.text)

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        model: Any = self.model
        if self.watching is not None and output_dir is not None:
            self.watching.save(Path(output_dir))
        if not hasattr(model, "peft_config"):
            tied = set(getattr(model, "all_tied_weights_keys", None) or {})
            super()._save(output_dir, unshared(model.state_dict() if state_dict is None else state_dict, but=tied))
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

    def _divergence(self, teacher: Teacher | None, logits: Tensor, tokens: Tensor, sequences: Tensor) -> Tensor:
        if isinstance(teacher, CachedTeacher):
            return teacher.divergence(logits.flatten(0, 1), sequences)
        assert teacher is not None
        theirs = taught(teacher, tokens, self.document_end, bfloat16=self.args.bf16)
        return divergence(logits.flatten(0, 1), theirs, self.settings.temperature)


def _parameter_groups(model: nn.Module, settings: TrainingSettings) -> list[dict[str, Any]]:
    """Matrices decay, vectors do not, and parameters with a learning rate of their own do not either."""
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for parameter in model.parameters():
        if parameter.requires_grad:
            factor = float(getattr(parameter, "learning_rate_factor", 1.0))
            decay = settings.weight_decay if parameter.ndim > 1 and not getattr(parameter, "is_scale", False) else 0.0
            groups.setdefault((settings.known_rate * factor, decay), []).append(parameter)
    return [{"params": params, "lr": rate, "weight_decay": decay} for (rate, decay), params in groups.items()]
