"""Another model as the teacher: larger, of the same tokenizer, in the compute type of its device."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from edgequant import models
from edgequant.errors import UserError

if TYPE_CHECKING:
    from torch import nn

# Letters of several scripts, digits, spaces, a line end: what tokenizers of one vocabulary may still cut differently.
PROBE = "Vigdís's 1,024 naïve\n\tcafés  — 数据 দুর্যোগ ආපදා 🌊 x=3.14; don't"


def load_teacher(source: str, tokenizer: Any, student_model: Any, device: str) -> nn.Module:
    """Load a frozen model whose predictions another one can learn from.

    Rows of its vocabulary beyond the student's, which pad it and belong to no token, are cut off; where the student's
    is the longer one, `training.distillation.divergence` leaves the student's padding out.

    Args:
        source: any floating-point or quantised model that `models.load` knows.
        tokenizer: the student's.
        student_model: for its vocabulary's size and its name.
        device: where to put it. Weights are in bfloat16 where the device computes it natively: half the memory of the
            float32 that training needs.

    Raises:
        UserError: the tokenizers or vocabularies differ; names both models.
    """
    loaded = models.load(source, device=device)
    pair = f"teacher {loaded.source.name!r} and student {_name(student_model, tokenizer)!r}"
    _check_tokenizers(pair, loaded.tokenizer, tokenizer)
    teacher, size = loaded.model, int(student_model.config.vocab_size)
    shorter = min(size, int(teacher.config.vocab_size))
    longest = max(tokenizer.get_vocab().values()) + 1
    if longest > shorter:
        raise UserError(f"{pair} must both predict the {longest} tokens of their tokenizer, one predicts {shorter}")
    if shorter < int(teacher.config.vocab_size):
        teacher.resize_token_embeddings(shorter)
    return teacher.requires_grad_(False)


def _check_tokenizers(pair: str, theirs: Any, ours: Any) -> None:
    vocabularies = theirs.get_vocab(), ours.get_vocab()
    if vocabularies[0] != vocabularies[1]:
        differing = len(set(vocabularies[0].items()) ^ set(vocabularies[1].items()))
        raise UserError(
            f"{pair} must have one tokenizer, got vocabularies of {len(vocabularies[0])} and {len(vocabularies[1])} "
            f"tokens with {differing} differences; use a larger model of the student's family"
        )
    if theirs.encode(PROBE, add_special_tokens=False) != ours.encode(PROBE, add_special_tokens=False):
        raise UserError(
            f"{pair} must have one tokenizer, got two of one vocabulary that cut a text differently; use a larger "
            "model of the student's family"
        )


def _name(model: Any, tokenizer: Any) -> str:
    return str(getattr(model, "name_or_path", "") or getattr(tokenizer, "name_or_path", "") or type(model).__name__)
