"""GGUF files, loaded as floating-point weights through transformers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from edgequant.errors import UserError


def load_gguf(file: Path, options: dict[str, Any]) -> tuple[Any, Any]:
    """Load a GGUF file as floating-point weights through transformers.

    Raises:
        UserError: the architecture or the file cannot be read.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer

    try:
        model = AutoModelForCausalLM.from_pretrained(str(file.parent), gguf_file=file.name, **options)
        tokenizer = AutoTokenizer.from_pretrained(str(file.parent), gguf_file=file.name)
    except (ValueError, KeyError, OSError, ImportError) as error:
        raise UserError(f"GGUF file {str(file)!r} could not be read by transformers: {error}") from error
    _forget_gguf(model)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return model, tokenizer


def _forget_gguf(model: Any) -> None:
    """The weights are plain floats now; without this, save_pretrained refuses."""
    model.hf_quantizer = None
    model.is_quantized = False
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
