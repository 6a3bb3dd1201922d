"""bitsandbytes: NF4 and LLM.int8()."""

from __future__ import annotations

from typing import Any

from edgequant import models
from peers.ptq_rows import Row, Setting, measured


def bitsandbytes_rows(scheme: str, setting: Setting) -> list[Row]:
    if scheme != "w4-g64":
        return []
    from transformers import BitsAndBytesConfig

    def load(**options: Any) -> Any:
        config = {"quantization_config": BitsAndBytesConfig(**options)}
        name = str(setting.dtype).removeprefix("torch.")
        return models.load(setting.options.model, dtype=name, device=str(setting.device), load_options=config).model

    def nf4() -> Any:
        return load(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=setting.dtype)

    return [
        measured(Row("bitsandbytes nf4 g64", scheme, 4 + 32 / 64), setting, nf4),
        measured(Row("bitsandbytes int8", "w8a8", 8.0), setting, lambda: load(load_in_8bit=True)),
    ]
