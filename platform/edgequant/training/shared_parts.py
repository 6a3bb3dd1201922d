"""What several experiments of one machine have in common, made once and mapped into the memory of each."""

from __future__ import annotations

import fcntl
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from edgequant import models
from edgequant.files import atomic_path, sha256_of_bytes
from edgequant.models.digest import stored_digest
from edgequant.training.settings import TrainingSettings

T = TypeVar("T")


@dataclass(frozen=True)
class SharedParts:
    """A folder in which processes of one machine find what another one has made; without one, each makes its own.

    Weights are mapped from the file into main memory, so that all processes together hold them once; who writes to
    them, or moves them to a device, gets a copy.
    Whoever finds a part goes on with the random state of who made it: results do not tell which of them it was.

    Attributes:
        folder: of this machine; None: there is nothing to share.
        own: kinds of which each makes its own, because hardly any two are the same.
    """

    folder: Path | None = None
    own: tuple[str, ...] = ()

    def once(self, kind: str, of: Mapping[str, Any], make: Callable[[], T]) -> T:
        """A part, made by the first who asks while the others wait.

        Args:
            kind: names the file.
            of: everything that decides what the part is.
            make: makes it; it must be picklable.
        """
        if self.folder is None or kind in self.own:
            return make()
        file = self.folder / f"{kind}-{sha256_of_bytes(json.dumps(of, sort_keys=True, default=str))[:24]}.pt"
        with _locked(file.with_suffix(".lock")):
            if not file.exists():
                made = make()
                with atomic_path(file) as temporary:
                    torch.save({"part": made, "random": torch.get_rng_state()}, temporary)
        found = torch.load(file, mmap=True, map_location="cpu", weights_only=False)  # written by this user's own trials
        torch.set_rng_state(found["random"].clone())
        return found["part"]


UNSHARED = SharedParts()


def shared_model(shared: SharedParts, model: str | models.ModelSource, *, seed: int, device: str) -> models.LoadedModel:
    """A floating-point model in float32 on the device, for its copies to be trained."""
    load = partial(models.load, model, dtype="float32", device=device)
    loaded = shared.once("model", _of_model(model, seed, device), load)
    if shared.folder is not None:
        placed: Any = loaded.model
        placed.to(models.pick_device(device))
    return loaded


def shared_digest(
    shared: SharedParts, model: str | models.ModelSource, loaded: nn.Module, *, seed: int, device: str
) -> str:
    """SHA-256 of the weights that `shared_model` gave of the same model (`digest.stored_digest`), computed once.

    It is of the part in the folder, which nobody writes again, and not of the files from which that was made: it cannot
    be another model's, whatever becomes of them. It leaves the random state as it is.
    """
    with torch.random.fork_rng(devices=()):
        return shared.once("weights", _of_model(model, seed, device), partial(stored_digest, loaded))


def _of_model(model: str | models.ModelSource, seed: int, device: str) -> dict[str, Any]:
    """What decides a part that is made of a model, of which those who share have but one: what an MLflow address names
    lies in another folder of each process."""
    source = model if isinstance(model, str) else f"{model.kind} {model.name} {model.family}"
    return {"model": source, "seed": seed, "device": device}


def control_key(
    model: str, training: TrainingSettings, rows: Sequence[Tensor], seed: int, device: str, also: Mapping[str, Any]
) -> dict[str, Any]:
    """What decides how a control of a training comes out; what is said of a teacher does only where it has an anchor.

    Args:
        rows: int64, that are trained on and looked at.
        also: what else decides; `anchored`: whether the model as it came is followed on some of the rows.
    """
    settings = asdict(training) | {"distillation_weight": also["anchored"]}
    if not also["anchored"]:
        settings |= {"temperature": 0, "teacher_top_k": 0}
    text = rows_digest(rows)
    return {"model": model, "training": settings, "text": text, "seed": seed, "device": device, **also}


def rows_digest(rows: Sequence[Tensor]) -> str:
    """Of token rows int64, wherever they lie."""
    return sha256_of_bytes(b"".join(one.cpu().numpy().tobytes() for one in rows))


@contextmanager
def _locked(file: Path) -> Iterator[None]:
    file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    with file.open("ab") as opened:
        fcntl.flock(opened, fcntl.LOCK_EX)
        yield
