"""torchao: its weights rounded to nearest, and its QAT, of the same bits and groups as a scheme of ours."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import nn

from edgequant.quantization.scheme import Scheme, parse_scheme
from peers.ptq_rows import Row, Setting, linears, measured


def weight_config(scheme: Scheme, mapping: Literal["symmetric", "affine"] = "symmetric") -> Any:
    """torchao's configuration for the linears of a scheme; None where it has none: without groups, ternary.

    Raises:
        ImportError: torchao is not installed, or too old.
    """
    weight = scheme.weight
    if weight is None or weight.group_size is None or weight.levels:
        return None
    from torchao.quantization import (
        Int8DynamicActivationIntxWeightConfig,
        IntxWeightOnlyConfig,
        MappingType,
        PerGroup,
    )

    dtype, group = getattr(torch, f"int{weight.bits}"), PerGroup(weight.group_size)
    kind = {"symmetric": MappingType.SYMMETRIC, "affine": MappingType.ASYMMETRIC}[mapping]
    if scheme.activation is None:
        return IntxWeightOnlyConfig(weight_dtype=dtype, granularity=group, mapping_type=kind)
    return Int8DynamicActivationIntxWeightConfig(weight_dtype=dtype, weight_granularity=group, weight_mapping_type=kind)


def torchao_rows(scheme: str, setting: Setting) -> list[Row]:
    from torchao.quantization import quantize_

    weight = parse_scheme(scheme).weight
    if weight is None or weight.group_size is None or weight.levels:
        return []

    def make(mapping: Literal["symmetric", "affine"]) -> Any:
        model = setting.copy()
        config = weight_config(parse_scheme(scheme), mapping)
        quantize_(model, config, filter_fn=lambda module, name: name in linears(setting.model))
        return model

    scale, zero_point = 16 / weight.group_size, 8 / weight.group_size
    return [
        measured(Row("torchao rtn symmetric", scheme, weight.bits + scale), setting, lambda: make("symmetric")),
        measured(Row("torchao rtn affine", scheme, weight.bits + scale + zero_point), setting, lambda: make("affine")),
    ]


def qat_step(model: nn.Module, scheme: Scheme, step: Literal["prepare", "convert"]) -> None:
    """torchao's QAT of every linear but the head, in place: `prepare` before the training, `convert` after."""
    from torchao.quantization import quantize_
    from torchao.quantization.qat import QATConfig

    def inner_linear(module: nn.Module, name: str) -> bool:
        return isinstance(module, nn.Linear) and not name.endswith("lm_head")

    quantize_(model, QATConfig(weight_config(scheme), step=step), inner_linear)
