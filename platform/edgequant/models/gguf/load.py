"""Load a GGUF file as floating-point weights: `load_gguf(Path("model.gguf"), {"dtype": "float32"})`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgequant.errors import UserError, first_line

if TYPE_CHECKING:
    from edgequant.models.gguf.contents import Contents


def check_gguf(file: Path) -> None:
    """Everything that `load_gguf` refuses, found without reading the weights.

    Raises:
        UserError: see `load_gguf`.
    """
    _planned(file)


def load_gguf(file: Path, options: dict[str, Any]) -> tuple[Any, Any]:
    """Load a GGUF file as floating-point weights.

    Args:
        options: for `from_pretrained`: dtype, quantization_config, device_map.

    Returns:
        The model, of transformers' class for the architecture, and its tokenizer.

    Raises:
        UserError: the file is not a whole GGUF model, or holds an architecture, a field, a tensor or a tokenizer that
            would make another model of it in transformers; the message names it.
    """
    import torch

    from edgequant.models.gguf.tensors import state_dict

    contents, model, tokenizer, weights = _planned(file)
    wanted = options.get("dtype")
    dtype = getattr(torch, wanted) if isinstance(wanted, str) and wanted != "auto" else wanted
    dtype = dtype if isinstance(dtype, torch.dtype) else torch.float32
    loaded, report = type(model).from_pretrained(
        None, config=model.config, state_dict=state_dict(contents, weights, dtype), output_loading_info=True, **options
    )
    odd = [name for kind in ("missing_keys", "unexpected_keys", "mismatched_keys") for name in report[kind]]
    if odd:
        raise contents.refused(f"transformers did not take weight {odd[0]} as it is")
    loaded.name_or_path = loaded.config.name_or_path = str(file)  # an adapter trained on it names its base by this
    return loaded, tokenizer


def load_gguf_tokenizer(file: Path) -> Any:
    """The tokenizer alone.

    Raises:
        UserError: see `load_gguf`.
    """
    from edgequant.models.gguf.configuration import vocabulary_size
    from edgequant.models.gguf.contents import read_contents
    from edgequant.models.gguf.tokenizer import read_tokenizer

    contents = read_contents(file)
    vocabulary_size(contents)
    return read_tokenizer(contents)


def _planned(file: Path) -> tuple[Contents, Any, Any, list[Any]]:
    from edgequant.models.gguf.contents import read_contents

    contents = read_contents(file)
    try:
        return _plan(contents)
    except UserError:
        raise
    except Exception as error:  # a number where a text should be, a head of no features: as many errors as fields
        reason = f"{type(error).__name__}: {first_line(error)}"
        raise contents.refused(f"its fields do not go together ({reason}); copy or convert it again") from error


def _plan(contents: Contents) -> tuple[Contents, Any, Any, list[Any]]:
    import torch
    from transformers import AutoModelForCausalLM

    from edgequant.models.gguf.configuration import architecture_of, read_configuration
    from edgequant.models.gguf.tensors import plan_weights
    from edgequant.models.gguf.tokenizer import read_tokenizer

    config = read_configuration(contents)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    weights = plan_weights(contents, architecture_of(contents), model)
    return contents, model, read_tokenizer(contents), weights
