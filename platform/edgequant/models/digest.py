"""What a model is, as one number: under it answers, texts and predictions are kept for later runs."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from typing import Any

# Entries of a configuration that say where a model lies, what it was stored in or how it is run.
OF_THE_FOLDER = ("_name_or_path", "architectures", "dtype", "torch_dtype", "transformers_version", "use_cache")
SET_UP = ("edgequant.", "peft.")  # whose layers have settings that no configuration tells
AT_WORK = ("_disable_adapters", "_active_adapter")
PLAIN = (bool, int, float, str, type(None))


def weights_digest(model: Any) -> str:
    """SHA-256 over what decides a model's outputs: wherever it lies, the same model has the same digest.

    Its configuration and that of what it generates, its modules, the settings of adapters (their scales, whether they
    are at work) and of quantised layers (how they quantise their inputs), every weight and buffer (those too that are
    not saved) with its type, and the versions of torch and transformers.
    """
    import torch
    import transformers

    from edgequant.models.same_function.integers_of_bitsandbytes import layout_held

    generation = getattr(model, "generation_config", None)
    parts = (_stated(model.config.to_dict()), _stated(generation.to_dict()) if generation is not None else None)
    digest = hashlib.sha256(repr((torch.__version__, transformers.__version__, parts)).encode())
    of_all = {*vars(torch.nn.Module())}
    for name, module in model.named_modules():
        kept = vars(module) if type(module).__module__.startswith(SET_UP) else {}
        named = (key for key in kept if key in AT_WORK or not key.startswith("_"))  # others are notes of a call
        settings = {key: repr(kept[key]) for key in named if key not in of_all and _is_plain(kept[key])}
        digest.update(repr((name, type(module).__name__, sorted(settings.items()))).encode())
    with layout_held(model):
        _add({**dict(model.named_buffers()), **model.state_dict()}, digest)
    return digest.hexdigest()


def stored_digest(model: Any) -> str:
    """SHA-256 over the names, types and values of a model's stored weights: the same under later libraries too."""
    digest = hashlib.sha256()
    _add(model.state_dict(), digest)
    return digest.hexdigest()


def _add(state: Mapping[str, Any], digest: hashlib._Hash) -> None:
    import torch

    for name, tensor in sorted(state.items()):
        if isinstance(tensor, torch.Tensor):
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
            digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)


def _stated(config: Mapping[str, Any]) -> list[tuple[str, str]]:
    """A configuration and those within it, in the order of their names, without what is of the folder."""
    told = {name: value for name, value in config.items() if name not in OF_THE_FOLDER}
    inner = (name for name, value in told.items() if isinstance(value, Mapping) and name != "quantization_config")
    told |= {name: _stated(told[name]) for name in inner}
    return sorted((str(name), repr(value)) for name, value in told.items())


def _is_plain(value: Any) -> bool:
    """Whether a value is told in full by its `repr`."""
    if isinstance(value, Mapping):
        return all(_is_plain(key) and _is_plain(each) for key, each in value.items())
    if isinstance(value, list | tuple):
        return all(map(_is_plain, value))
    if is_dataclass(value) and not isinstance(value, type):
        return all(_is_plain(getattr(value, field.name, None)) for field in fields(value))
    return isinstance(value, PLAIN)
