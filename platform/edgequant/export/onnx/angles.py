"""Rotary angles of a graph, from the model's own frequencies: whatever scaling they have, nothing is derived again."""

from __future__ import annotations

from typing import Any

import onnx_ir as ir
from torch import Tensor

_RUN = 8  # angles that attention's kernel rotates at once


class Angles:
    """Methods of onnxruntime-genai's builder, in place of those that compute angles from a configuration."""

    def make_rope_init(self, config: Any) -> None:
        """Nothing, as the model is not known yet."""

    def make_rotary_embedding_multi_cache(self) -> None:
        """Nothing, as above."""

    def is_fused_rope_supported(self: Any) -> bool:
        """Whether attention itself can rotate; a step of its own takes positions and any number of angles."""
        return bool(self.rotated % (2 * _RUN) == 0)

    def make_rotary_embedding_caches(self: Any, **_: Any) -> tuple[str, str]:
        """Cosines and sines [context, angles]; ONNX Runtime computes them once."""
        rotary = self.weights.model.rotary_emb
        kind = ("full_attention" if self.window_size == -1 else "sliding_attention") if _has_kinds(rotary) else ""
        names = f"cos_cache{kind}", f"sin_cache{kind}"
        if names[0] not in self.values:
            frequencies, factor = _angles(rotary, kind)
            shape = [self.context_length, frequencies.shape[-1]]
            self._steps(f"/rotary{kind}", frequencies, shape)
            for operator, name in zip(("Cos", "Sin"), names, strict=True):
                self._wave(operator, f"/rotary{kind}", name, factor, shape)
        return names

    def _steps(self: Any, place: str, frequencies: Tensor, shape: list[int]) -> None:
        """Positions times frequencies."""
        self.make_initializer(frequencies.detach().float().cpu(), f"{place[1:]}.frequencies")
        constants = [f"/model/constants/FLOAT/{at}" for at in (0.0, float(shape[0]), 1.0)]
        self.make_range(f"{place}/Range", constants, ir.DataType.FLOAT, shape[:1])
        column = [f"{place}/Range/output_0", "/model/constants/INT64/[1]"]
        self.make_unsqueeze(f"{place}/Unsqueeze", column, ir.DataType.FLOAT, [shape[0], 1])
        self.make_mul(
            f"{place}/Mul", [f"{place}/Unsqueeze/output_0", f"{place[1:]}.frequencies"], ir.DataType.FLOAT, shape
        )

    def _wave(self: Any, operator: str, place: str, name: str, factor: float, shape: list[int]) -> None:
        wave = f"{place}/{operator}/output_0"
        self.make_node(operator, inputs=[f"{place}/Mul/output_0"], outputs=[wave], name=f"{place}/{operator}")
        self.make_value(wave, ir.DataType.FLOAT, shape)
        scaled = [wave, f"/model/constants/FLOAT/{float(factor)}"]
        self.make_node("Mul", inputs=scaled, outputs=[name], name=f"{place}/{operator}/Mul")
        self.make_value(name, ir.DataType.FLOAT, shape)


def _has_kinds(rotary: Any) -> bool:
    return hasattr(rotary, "full_attention_inv_freq") or hasattr(rotary, "sliding_attention_inv_freq")


def _angles(rotary: Any, kind: str) -> tuple[Tensor, float]:
    """Frequencies [angles] and the factor on cosines and sines."""
    prefix = f"{kind}_" if kind else ""
    return getattr(rotary, f"{prefix}inv_freq"), float(getattr(rotary, f"{prefix}attention_scaling"))
