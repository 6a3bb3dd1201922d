"""The quantised base that adapters were trained over, recorded beside them: they are measured over that alone."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from edgequant.errors import UserError
from edgequant.files import write_atomically
from edgequant.folders import MANIFEST
from edgequant.models.configs import read_object

FILE = "quantized_base.json"
BITSANDBYTES = ("bnb-int8", "bnb-nf4", "bnb-fp4")


def record_base(folder: Path, scheme: str, checkpoint: Path | None = None) -> None:
    """Write beside an adapter how the weights under it are quantised.

    Args:
        folder: of the adapter.
        scheme: one of `BITSANDBYTES`, applied to the base that the adapter names, or the scheme of a checkpoint.
        checkpoint: the base, where it is one of our checkpoints: its files' hashes are recorded too.
    """
    hashes = None if checkpoint is None else _weight_hashes(checkpoint)
    write_atomically(folder / FILE, json.dumps({"scheme": scheme, "weights_sha256": hashes}, indent=1))


def stated_base(folder: Path) -> str | None:
    """The scheme of the weights under an adapter as recorded beside it; None where nothing is.

    Raises:
        UserError: the file holds something else.
    """
    file = folder / FILE
    if not file.is_file():
        return None
    scheme = read_object(file).get("scheme")
    if not isinstance(scheme, str) or not scheme:
        raise UserError(f"{file} must name a scheme such as bnb-nf4, got {scheme!r}; copy the adapter again")
    return scheme


def check_base(folder: Path, base: Path) -> None:
    """Refuse a base whose integers are not those that an adapter was trained over.

    Args:
        folder: of the adapter.
        base: the checkpoint that the adapter names.

    Raises:
        UserError: names both.
    """
    recorded = read_object(folder / FILE).get("weights_sha256") if (folder / FILE).is_file() else None
    if recorded and _weight_hashes(base) != recorded:
        raise UserError(
            f"adapter {folder} was trained over other integers than {str(base)!r} holds now; use the checkpoint as it "
            "was, or train the adapter again"
        )


def _weight_hashes(checkpoint: Path) -> dict[str, str]:
    listed = read_object(checkpoint / MANIFEST).get("sha256") or {}
    return {name: sha256 for name, sha256 in listed.items() if name.endswith(".safetensors")}


def base_options(scheme: str | None, options: dict[str, Any]) -> dict[str, Any]:
    """Options of `from_pretrained` for the base: bitsandbytes quantises it as it did for the training."""
    if scheme not in BITSANDBYTES:
        return options | {"dtype": "float32"}
    dtype = options["dtype"]
    compute = "float32" if dtype == "auto" else dtype
    return {**options, "dtype": compute, "quantization_config": bitsandbytes_config(scheme, compute)}


def bitsandbytes_config(scheme: str, dtype: str) -> Any:
    """transformers' configuration for bnb-int8 (LLM.int8), bnb-nf4 (QLoRA's NormalFloat) or bnb-fp4."""
    import torch
    from transformers import BitsAndBytesConfig

    if scheme == "bnb-int8":
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type=scheme.removeprefix("bnb-"),
        bnb_4bit_compute_dtype=getattr(torch, dtype),
    )


@contextmanager
def as_linears(base: Any) -> Iterator[dict[type, type]]:
    """Our integer linears in a shape that peft can put adapters beside: kinds of layers, by that of peft's layer.

    peft asks a layer's `weight` for its device. Inside, integer layers show their codes under that name.
    """
    import torch
    from peft.tuners.lora import Linear

    layers = [module for module in base.modules() if getattr(module, "kind", None) == "linear"]
    layers = [module for module in layers if not isinstance(module, torch.nn.Linear)]
    for layer in layers:
        object.__setattr__(layer, "weight", layer.packed.codes)
    try:
        yield {type(layer): Linear for layer in layers}
    finally:
        for layer in layers:
            object.__delattr__(layer, "weight")
