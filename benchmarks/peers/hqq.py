"""HQQ: half-quadratic quantisation, without calibration."""

from __future__ import annotations

import copy
from typing import Any

from edgequant.quantization.scheme import parse_scheme
from peers.ptq_rows import Row, Setting, linears, measured


def hqq_rows(scheme: str, setting: Setting) -> list[Row]:
    parsed = parse_scheme(scheme)
    if parsed.activation is not None or parsed.weight is None or parsed.weight.zero_point == "none":
        return []
    from hqq.core.quantize import BaseQuantizeConfig, HQQLinear

    spec = parsed.weight

    def make() -> Any:
        model = setting.copy()
        config = BaseQuantizeConfig(nbits=spec.bits, group_size=spec.group_size, axis=1)
        for linear in linears(model).values():
            given = copy.deepcopy(linear)
            layer = HQQLinear(given, config, compute_dtype=setting.dtype, device=str(setting.device), initialize=True)
            linear.weight.data = layer.dequantize().to(linear.weight)
        return model

    return [measured(Row("hqq", scheme, spec.bits + 32 / (spec.group_size or 1)), setting, make)]
