"""A teacher's most probable tokens, computed once for the sequences that training will draw, and kept on disk.

A teacher that runs at every step costs a forward pass each time; trials of a search and variants of a comparison ask it
the same questions again. Kept are, for each position, the k most probable tokens and what the others have together;
`distillation.top_k_divergence` says what is lost.
"""

from __future__ import annotations

import hashlib
import itertools
from pathlib import Path

import torch
from accelerate.data_loader import SeedableRandomSampler
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from edgequant.errors import UserError
from edgequant.files import atomic_path, cache_dir
from edgequant.models.devices import pick_dtype
from edgequant.models.digest import weights_digest
from edgequant.progress import Progress
from edgequant.training.distillation import CHUNK, taught, top_k_divergence
from edgequant.training.settings import TrainingSettings


class CachedTeacher:
    """Answers for the sequences that it was asked about beforehand.

    Args:
        log_probabilities: [sequences, length, k + 1] float16; the last is that of all other tokens together.
        indices: [sequences, length, k] int32, token ids.
        drawn: [sequences] int64, sorted: which of the training sequences these are.
        temperature: under which the probabilities were taken.
    """

    def __init__(self, log_probabilities: Tensor, indices: Tensor, drawn: Tensor, temperature: float) -> None:
        self.log_probabilities, self.indices = log_probabilities, indices
        self.drawn, self.temperature = drawn, temperature

    def divergence(self, student: Tensor, sequences: Tensor) -> Tensor:
        """`top_k_divergence` of logits [batch * length, vocabulary] on the training sequences of these numbers [batch].

        Raises:
            ValueError: a sequence that was not asked about.
        """
        rows = torch.searchsorted(self.drawn, sequences.cpu()).clamp(max=len(self.drawn) - 1)
        if not torch.equal(self.drawn[rows], sequences.cpu()):
            raise ValueError(f"the teacher's predictions lack some of the sequences {sequences.tolist()}")
        log_probabilities, indices = (
            kept[rows].flatten(0, 1).to(student.device, non_blocking=True)
            for kept in (self.log_probabilities, self.indices)
        )
        return top_k_divergence(student, log_probabilities, indices, self.temperature)


def cached_teacher(
    teacher: nn.Module, tokens: Tensor, settings: TrainingSettings, *, seed: int, folder: Path | None = None,
    among: Tensor | None = None, document_end: int | None = None,
) -> CachedTeacher:  # fmt: skip
    """Read a teacher's predictions for the sequences that training draws, or compute and keep them.

    Args:
        teacher: causal language model in evaluation mode.
        tokens: [sequences, length] int64, as `train` gets them.
        settings: steps, batch and `teacher_top_k` = k; 6 bytes times k a token are kept in memory and on disk.
        seed: of the order in which sequences are drawn.
        folder: default: `teacher` in the cache folder.
        among: [sequences] bool, those that it is asked about (default: all).
        document_end: as `distillation.reading`.

    Raises:
        UserError: as `check_top_k`.
    """
    check_top_k(teacher, settings.teacher_top_k)
    device = str(next(teacher.parameters()).device)
    precision = pick_dtype(settings.precision, device)
    drawn = drawn_sequences(len(tokens), settings, seed)
    drawn = drawn if among is None else drawn[among[drawn]]
    asked = tokens.cpu()[drawn]
    key = _key(teacher, asked, settings, precision, document_end)
    path = (folder or cache_dir() / "teacher") / f"{key}.safetensors"
    if path.is_file():
        print(f"teacher: reused its predictions on {len(drawn)} sequences from {path}", flush=True)
        kept = load_file(path)
    else:
        kept = _predictions(teacher, asked, settings, precision, document_end)
        with atomic_path(path) as temporary:
            save_file(kept, temporary)
        print(f"teacher: kept its predictions on {len(drawn)} sequences in {path}", flush=True)
    return CachedTeacher(kept["log_probabilities"], kept["indices"], drawn, settings.temperature)


def check_top_k(teacher: nn.Module, k: int) -> None:
    """Refuse more tokens than there are.

    Raises:
        UserError: k exceeds the vocabulary.
    """
    vocabulary = int(teacher.config.vocab_size)  # type: ignore[union-attr, arg-type]
    if k > vocabulary:
        raise UserError(
            f"training.teacher_top_k must be at most the model's vocabulary of {vocabulary}, got {k}; use 32 to 256, "
            "or 0 to run the teacher at every step"
        )


def drawn_sequences(sequences: int, settings: TrainingSettings, seed: int) -> Tensor:
    """Numbers of the sequences that training will draw, sorted: the first of transformers' seeded order, or all."""
    order = SeedableRandomSampler(range(sequences), data_seed=seed)
    return torch.tensor(sorted(itertools.islice(order, settings.sequences)), dtype=torch.int64)


def _key(
    teacher: nn.Module, tokens: Tensor, settings: TrainingSettings, precision: str, document_end: int | None
) -> str:
    digest = hashlib.sha256(weights_digest(teacher).encode())
    digest.update(repr((settings.teacher_top_k, settings.temperature, precision, tuple(tokens.shape))).encode())
    digest.update(b"" if document_end is None else f"apart behind {document_end}".encode())
    digest.update(tokens.contiguous().numpy().tobytes())
    return digest.hexdigest()[:32]


@torch.no_grad()
def _predictions(
    teacher: nn.Module, tokens: Tensor, settings: TrainingSettings, precision: str, document_end: int | None
) -> dict[str, Tensor]:
    count, length = tokens.shape
    k, device = settings.teacher_top_k, next(teacher.parameters()).device
    log_probabilities = torch.empty(count, length, k + 1, dtype=torch.float16)
    indices = torch.empty(count, length, k, dtype=torch.int32)
    with Progress(count, "teacher", "sequence") as bar:
        for start in range(0, count, settings.batch_size):
            batch = tokens[start : start + settings.batch_size].to(device)
            logits = taught(teacher, batch, document_end, bfloat16=precision == "bfloat16")
            parts = [top_predictions(part, k, settings.temperature) for part in logits.split(CHUNK)]
            for kept, found in zip((log_probabilities, indices), zip(*parts, strict=True), strict=True):
                kept[start : start + len(batch)] = torch.cat(found).unflatten(0, (len(batch), length)).cpu()
            bar.update(len(batch))
    return {"log_probabilities": log_probabilities, "indices": indices}


def top_predictions(logits: Tensor, k: int, temperature: float) -> tuple[Tensor, Tensor]:
    """The k most probable tokens of each position: log-probabilities [positions, k + 1] float16 and ids [.., k] int32.

    The last log-probability is that of all other tokens together, minus infinity where there are none.
    """
    log_probabilities = torch.log_softmax(logits.float() / temperature, -1)
    top, indices = log_probabilities.topk(k)
    rest = log_probabilities.scatter(-1, indices, -torch.inf).logsumexp(-1, keepdim=True)
    return torch.cat([top, rest], -1).half(), indices.int()
