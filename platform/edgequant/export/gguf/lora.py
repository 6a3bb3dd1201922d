"""Write a LoRA adapter as a GGUF file that llama.cpp puts beside a model's own: `write_lora(folder, "adapter.gguf")`.

llama.cpp computes W x + (alpha / rank) B A x, so that the integers of the model's file stay as they are.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from gguf import GGMLQuantizationType, GGUFType, GGUFWriter, Keys, get_tensor_name_map
from gguf.constants import MODEL_ARCH_NAMES
from torch import Tensor

from edgequant.errors import UserError
from edgequant.export.formats import Exported
from edgequant.export.gguf.architectures import Architecture, architecture_of, row_order
from edgequant.export.gguf.expressible import check_expressible
from edgequant.files import atomic_path, sha256_of
from edgequant.models import load
from edgequant.models.adapters.load import check_adapter
from edgequant.models.configs import ADAPTER_CONFIG, read_object
from edgequant.models.sources import ModelSource, adapter_base

_FACTOR = re.compile(r"^base_model\.model\.(?P<layer>.+)\.lora_(?P<factor>[AB])\.weight$")
# What a LoRA file has no place for, by peft's names, and the values that mean nothing.
_NOTHING: dict[str, tuple[Any, ...]] = {
    "use_dora": (None, False), "modules_to_save": (None, []), "trainable_token_indices": (None, {}, []),
    "lora_bias": (None, False), "bias": (None, "none"), "fan_in_fan_out": (None, False),
}  # fmt: skip


class _Pair(NamedTuple):
    """One layer's factors under llama.cpp's name of its weight: A [rank, in], B [out, rank], and alpha / rank."""

    name: str
    a: Tensor
    b: Tensor
    scaling: float


def write_lora(folder: Path, path: str | Path) -> Exported:
    """Write an adapter's factors as float32, whole or not at all, for the GGUF file of its base.

    Args:
        folder: of the adapter, whose base says the architecture.
        path: the file to write.

    Raises:
        UserError: the adapter is not plain LoRA of linears, or an architecture that is not exported.
    """
    check_adapter(folder)
    source = adapter_base(folder)
    base: Any = load(source, dtype="float32", device="cpu").model
    config = base.config
    check_expressible(config)
    architecture = architecture_of(config)
    pairs = list(_pairs(folder, config, architecture))
    alpha = pairs[0].scaling * pairs[0].a.shape[0]
    with atomic_path(path) as temporary:
        writer = GGUFWriter(temporary, MODEL_ARCH_NAMES[architecture.gguf])
        writer.add_type(GGUFType.ADAPTER)
        writer.add_string(Keys.Adapter.TYPE, "lora")
        writer.add_float32(Keys.Adapter.LORA_ALPHA, alpha)
        for pair in pairs:
            others = pair.scaling * pair.a.shape[0] / alpha  # the file has one alpha for all layers
            for name, factor in (("lora_a", pair.a), ("lora_b", pair.b * others)):
                values = np.ascontiguousarray(factor.numpy())
                writer.add_tensor(f"{pair.name}.{name}", values, raw_dtype=GGMLQuantizationType.F32)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
    notes = [
        f"{len(pairs)} linears of rank {pairs[0].a.shape[0]}; llama.cpp adds them to the GGUF file of {_told(source)}"
    ]
    return Exported(Path(path), Path(path).stat().st_size, sha256_of(path), None, notes)


def check_lora(folder: Path) -> None:
    """Refuse an adapter that a LoRA file cannot hold, by its configuration.

    Raises:
        UserError: names what there is no place for.
    """
    config = read_object(folder / ADAPTER_CONFIG)
    if config.get("peft_type") != "LORA":
        raise UserError(
            f"format lora needs a LoRA adapter, got {config.get('peft_type')!r} in {folder}; merge it first"
        )
    for name, meaningless in _NOTHING.items():
        if config.get(name) not in meaningless:
            raise UserError(
                f"format lora has no place for {name} {config[name]!r} of adapter {folder}; export the merged model"
            )


def _pairs(folder: Path, config: Any, architecture: Architecture) -> Iterator[_Pair]:
    from peft import PeftConfig, load_peft_weights

    check_lora(folder)
    names = get_tensor_name_map(architecture.gguf, config.num_hidden_layers)
    stated: Any = PeftConfig.from_pretrained(str(folder))
    factors: dict[str, dict[str, Tensor]] = {}
    for name, tensor in load_peft_weights(str(folder), device="cpu").items():
        found = _FACTOR.match(name)
        if found is None:
            raise UserError(f"format lora has no place for tensor {name} of adapter {folder}; export the merged model")
        factors.setdefault(found["layer"], {})[found["factor"]] = tensor.to(torch.float32)
    for layer, each in sorted(factors.items()):
        target = names.get_name(f"{layer}.weight", try_suffixes=(".weight",))
        if target is None or "embed_tokens" in layer:
            raise UserError(f"format lora has no place for layer {layer} of adapter {folder}; export the merged model")
        order = row_order(architecture, config, f"{layer}.weight")
        b = each["B"] if order is None else each["B"][order]
        yield _Pair(str(target), each["A"], b, _scaling(stated, layer))


def _scaling(stated: Any, layer: str) -> float:
    """alpha / rank of a layer, or alpha / sqrt(rank) of rank-stabilised LoRA, with what patterns say of it."""
    rank, alpha = stated.r, stated.lora_alpha
    for pattern, value in (stated.rank_pattern or {}).items():
        rank = value if re.match(rf"(.*\.)?({pattern})$", layer) else rank
    for pattern, value in (stated.alpha_pattern or {}).items():
        alpha = value if re.match(rf"(.*\.)?({pattern})$", layer) else alpha
    return float(alpha / (rank**0.5 if stated.use_rslora else rank))


def _told(source: ModelSource) -> str:
    return source.location if source.kind in ("folder", "gguf") else source.name
