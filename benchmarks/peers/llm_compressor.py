"""llm-compressor: GPTQ with its observer that minimises the squared error."""

from __future__ import annotations

import tempfile
from typing import Any

from edgequant.quantization.scheme import parse_scheme
from peers.ptq_rows import Row, Setting, measured


def llmcompressor_rows(scheme: str, setting: Setting) -> list[Row]:
    parsed = parse_scheme(scheme)
    if parsed.activation is not None or parsed.weight is None or parsed.weight.levels:
        return []
    from datasets import Dataset
    from llmcompressor import oneshot
    from llmcompressor.modifiers.quantization import GPTQModifier

    spec = parsed.weight
    symmetric = spec.zero_point == "none"

    def make() -> Any:
        weights = {"num_bits": spec.bits, "type": "int", "symmetric": symmetric, "strategy": "group"}
        weights |= {"group_size": spec.group_size, "observer": "mse", "actorder": "static"}
        group = {"group_0": {"targets": ["Linear"], "weights": weights}}
        rows = [{"input_ids": row, "attention_mask": [1] * len(row)} for row in setting.calibration.tolist()]
        model = setting.copy()
        with tempfile.TemporaryDirectory() as folder:  # it reads the configuration again from where the model came from
            model.config.save_pretrained(folder)
            model.config.name_or_path = folder
            oneshot(
                model=model,
                processor=setting.tokenizer,
                dataset=Dataset.from_list(rows),
                recipe=[GPTQModifier(config_groups=group, ignore=["lm_head"])],
                max_seq_length=setting.calibration.shape[1],
                num_calibration_samples=len(rows),
                shuffle_calibration_samples=False,
            )
        return model

    kind = "symmetric" if symmetric else "affine"
    return [measured(Row(f"llm-compressor gptq {kind} mse", scheme, spec.bits_per_weight(0)), setting, make)]
