"""What scripts and notebooks hand over is checked before anything is changed: models, tokens, paths, by type."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import fields
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgequant.errors import UserError
from edgequant.settings_checks import shown

if TYPE_CHECKING:
    from torch import Tensor


def check_model(model: Any) -> None:
    """Refuse what is no transformers model, such as its name.

    Raises:
        UserError: says how to load one.
    """
    if not hasattr(getattr(model, "config", None), "to_dict") or not hasattr(model, "named_modules"):
        call = f"edgequant.load({model!r})" if isinstance(model, str) else "edgequant.load"
        raise UserError(f"model must be a causal language model of transformers, got {shown(model)}; {call} gives one")


def check_tokenizer(tokenizer: Any) -> None:
    """Refuse what is no tokenizer.

    Raises:
        UserError: names what it is.
    """
    if not callable(tokenizer) or not hasattr(tokenizer, "save_pretrained"):
        raise UserError(f"tokenizer must be one of transformers, got {shown(tokenizer)}; edgequant.load gives it")


def check_kind(name: str, value: Any, kind: type) -> None:
    """Refuse a value of another class.

    Raises:
        UserError: names the argument, the class and the value.
    """
    if not isinstance(value, kind):
        raise UserError(f"{name} must be a {kind.__name__}, got {shown(value)}")


def checked_path(name: str, path: Any) -> Path:
    """A path of a script as a Path; an empty one would mean the working folder.

    Raises:
        UserError: it is none, or empty.
    """
    if not isinstance(path, str | os.PathLike) or not os.fspath(path):
        raise UserError(f"{name} must be a path, got {path!r}")
    return Path(path).expanduser()


def checked_folder(name: str, folder: Any) -> Path:
    """A folder that exists or can be made.

    Raises:
        UserError: no path, or one at or below a file.
    """
    path = checked_path(name, folder)
    there = next((part for part in (path, *path.absolute().parents) if part.exists()), path)
    if there.exists() and not there.is_dir():
        raise UserError(f"{name} must be a folder, got {str(path)!r}, where {str(there)!r} is a file; name another")
    return path


def checked_batches(calibration: Any, model: Any) -> list[Tensor]:
    """Token batches that the model can read.

    Raises:
        UserError: no sequence of tensors [batch, length], an empty one, or tokens that the model does not have.
    """
    import torch

    if calibration is not None and not hasattr(calibration, "__iter__"):
        raise UserError(f"calibration must be a list of token batches [batch, length], got {shown(calibration)}")
    batches = list(calibration) if calibration is not None else []
    for batch in batches:
        if not isinstance(batch, torch.Tensor) or batch.ndim != 2 or batch.dtype != torch.int64 or not batch.numel():
            found = f"{batch.dtype} {list(batch.shape)}" if isinstance(batch, torch.Tensor) else type(batch).__name__
            raise UserError(
                f"calibration must be a list of token batches [batch, length] of int64, got one of {found}; "
                "corpora.packing.pack makes them of texts"
            )
        _check_tokens(batch, model)
    return batches


def _check_tokens(batch: Tensor, model: Any) -> None:
    if batch.device != model.device:
        raise UserError(
            f"calibration must be on the model's device {model.device}, got a batch on {batch.device}; call "
            "batch.to(model.device)"
        )
    low, high, tokens = int(batch.min()), int(batch.max()), model.get_input_embeddings().weight.shape[0]
    if low < 0 or high >= tokens:
        raise UserError(
            f"calibration must hold the model's tokens, 0 to {tokens - 1}, got {low if low < 0 else high}; tokenise "
            "the texts with the model's own tokenizer"
        )


def check_names(given: Mapping[str, Any], settings: type) -> None:
    """Refuse keyword arguments that are no fields of a settings dataclass.

    Raises:
        UserError: names the nearest field.
    """
    known = [item.name for item in fields(settings)]
    for name in given:
        if name not in known:
            near = get_close_matches(name, known, n=1)
            hint = f" Did you mean {near[0]}?" if near else ""
            raise UserError(f"{name} is no setting of {settings.__name__}.{hint} There are: {', '.join(known)}")
