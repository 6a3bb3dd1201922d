"""AutoRound: rounding learned block by block."""

from __future__ import annotations

from typing import Any

import torch

from edgequant.quantization.scheme import parse_scheme
from peers.ptq_rows import Row, Setting, cast, measured


def auto_round_rows(scheme: str, setting: Setting) -> list[Row]:
    parsed = parse_scheme(scheme)
    if parsed.activation is not None or parsed.weight is None or parsed.weight.levels:
        return []
    from auto_round import AutoRound

    spec, options = parsed.weight, setting.options
    symmetric = spec.zero_point == "none"

    def make() -> Any:
        model = setting.copy()
        dataset = [
            {"input_ids": row[None], "attention_mask": torch.ones_like(row[None])} for row in setting.calibration
        ]
        rounder = AutoRound(
            model,
            setting.tokenizer,
            bits=spec.bits,
            group_size=spec.group_size,
            sym=symmetric,
            iters=options.steps,
            nsamples=len(setting.calibration),
            seqlen=setting.calibration.shape[1],
            batch_size=8,
            dataset=dataset,
            device_map=str(setting.device),
            enable_torch_compile=setting.device.type == "cuda",
            amp=setting.dtype != torch.float32,
        )
        found = rounder.quantize()
        return cast((found[0] if isinstance(found, tuple) else model).to(setting.device), setting.dtype)

    kind = "symmetric" if symmetric else "affine"
    return [measured(Row(f"auto-round {kind}", scheme, spec.bits_per_weight(0)), setting, make)]
