"""How far an exported file or folder is from the model that it was made of: both read the same text."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import transformers
from packaging.version import Version
from torch import Tensor
from torch.nn import functional

from edgequant import models
from edgequant.errors import UserError
from edgequant.export.formats import QUANTIZE_CONFIG
from edgequant.models.onnx.folder import is_onnx_folder
from edgequant.quantization.layers.integer import integer_layers

READS_EMBEDDINGS = "5.23"  # of transformers, in compressed-tensors folders


class NotCompared(UserError):
    """What was written is read by nothing here, or not as the same text: the reader's fault, not a broken file's."""


def export_parity(model: Any, tokenizer: Any, file: Path, text: str, length: int = 512) -> dict[str, float]:
    """Read the file back and compare its predictions with the model's on the start of a text.

    Args:
        model: what was exported, in floating point or quantised.
        file: the GGUF file, or the folder; an onnx folder is run by ONNX Runtime.
        text: any text; its first `length` tokens, or as many as the model's context has, are read once by both.

    Returns:
        `parity/max_logit_error` (largest absolute difference of a log-probability), `parity/argmax_agreement` (share of
        positions with the same most likely next token) and `parity/perplexity_delta` (the file's minus the model's).

    Raises:
        NotCompared: nothing that is installed reads it, or its tokenizer, read back, splits the text otherwise.
        UserError: the file cannot be read back.
    """
    if why := _unread_here(model, file):
        raise NotCompared(why)
    read_back = _read_back(file)
    length = min(length, getattr(model.config, "max_position_embeddings", None) or length)
    text = text[: 32 * length]  # more characters than tokens take, and not a whole corpus to tokenise
    ids = tokenizer(text)["input_ids"][:length]
    if read_back.tokenizer(text)["input_ids"][:length] != ids:
        raise NotCompared(f"{file}: its tokenizer, read back, splits the text differently; parity was not measured")
    tokens = torch.tensor([ids])
    return _compare(_log_probabilities(model, tokens), _log_probabilities(read_back.model, tokens), tokens[0])


def _unread_here(model: Any, file: Path) -> str | None:
    """Why nothing that is installed reads what was written, though it is right; None where it is to be read back."""
    in_integers = any(layer.kind == "embedding" for layer in integer_layers(model).values())
    is_others = file.is_file() or is_onnx_folder(file) or (file / QUANTIZE_CONFIG).is_file()
    if is_others or not in_integers or Version(transformers.__version__) >= Version(READS_EMBEDDINGS):
        return None
    return (
        f"distance from the model not measured: transformers {transformers.__version__} reads no quantised embedding "
        f"in compressed-tensors, {READS_EMBEDDINGS} does"
    )


def _read_back(file: Path) -> Any:
    """Something with a model, called with `input_ids`, and a tokenizer.

    Raises:
        UserError: it cannot be read.
    """
    try:
        return _reader(file)
    except UserError as error:
        reason = str(error).rpartition("; ")[0] or str(error)  # the rest advises to copy it again
        raise UserError(
            f"{file} was written but cannot be read back: {reason}; do not use it, choose another format"
        ) from error


def _reader(file: Path) -> Any:
    if is_onnx_folder(file):
        from edgequant.export.onnx.reader import read_onnx

        return read_onnx(file)
    if (file / QUANTIZE_CONFIG).is_file():
        from edgequant.export.gptq.reader import read_gptq

        return read_gptq(file)
    return models.load(str(file), dtype="float32", device="cpu")


@torch.no_grad()
def _log_probabilities(model: Any, tokens: Tensor) -> Tensor:
    """[length, vocabulary], float32, on the CPU."""
    logits = model(input_ids=tokens.to(model.device)).logits[0]
    return functional.log_softmax(logits.float().cpu(), dim=-1)


def _compare(model: Tensor, file: Tensor, tokens: Tensor) -> dict[str, float]:
    perplexities = [float(functional.nll_loss(predictions[:-1], tokens[1:]).exp()) for predictions in (model, file)]
    return {
        "parity/max_logit_error": float((model - file).abs().max()),
        "parity/argmax_agreement": float((model.argmax(-1) == file.argmax(-1)).float().mean()),
        "parity/perplexity_delta": perplexities[1] - perplexities[0],
    }
