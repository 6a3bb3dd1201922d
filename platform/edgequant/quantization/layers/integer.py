"""Layers that hold integers and compute with them: what `convert` leaves in the model and a checkpoint stores."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from edgequant.quantization.arithmetic.affine import (
    dequantize,
    quantize,
    token_parameters,
)
from edgequant.quantization.layers import kernels
from edgequant.quantization.layers.input_quantizers import INT8
from edgequant.quantization.layers.packed_weight import FixedDtypeBuffers, PackedWeight
from edgequant.quantization.scheme import ActivationSpec


class IntegerLayer(nn.Module):
    """What the linear and the embedding share: a weight [out, in] in integers.

    Attributes:
        kind: `linear` or `embedding`.
        activation: how a linear's input is quantised; None: not at all.
    """

    kind: ClassVar[Literal["linear", "embedding"]]
    activation: ActivationSpec | None
    packed_weight: PackedWeight
    _reference: list[PackedWeight]  # in a list, so that a checkpoint stores tied integers once

    def _take_weight(self, packed: PackedWeight, *, tied: bool) -> None:
        self._reference = [packed] if tied else []
        if not tied:
            self.packed_weight = packed

    @property
    def is_tied(self) -> bool:
        """Whether this is a head whose integers are the embedding's."""
        return bool(self._reference)

    @property
    def packed(self) -> PackedWeight:
        """The integers, own or the tied embedding's."""
        return self._reference[0] if self._reference else self.packed_weight

    def dequantized_weight(self) -> Tensor:
        """The real weight [out, in], float32; an embedding's without Gemma's factor."""
        return self.packed.dequantized()


class IntegerLinear(IntegerLayer, FixedDtypeBuffers):
    """y = x W^T + b with integer weights, and with integer inputs where the scheme quantises activations.

    8-bit weights and 8-bit inputs are multiplied as integers with 32-bit accumulation (Jacob et al. 2017, equation 7):
    S1 S2 (sum q1 q2 - Z2 sum q1 - Z1 sum q2 + N Z1 Z2). Fewer weight bits are dequantised in blocks.
    A head tied to the embedding holds no weight of its own but a reference to the embedding's.
    """

    kind = "linear"
    input_scale: Tensor | None
    input_zero_point: Tensor | None

    def __init__(
        self,
        packed: PackedWeight,
        bias: Tensor | None,
        activation: ActivationSpec | None,
        *,
        tied: bool = False,
    ) -> None:
        super().__init__()
        self.in_features, self.out_features, self.activation = packed.features, packed.rows, activation
        self._take_weight(packed, tied=tied)
        self.bias = None if bias is None else nn.Parameter(bias.detach(), requires_grad=False)
        static = activation is not None and activation.mode == "static"
        device = packed.codes.device
        # float32 also where transformers builds the model under another default type.
        self.register_buffer("input_scale", torch.ones(1, dtype=torch.float32, device=device) if static else None)
        self.register_buffer("input_zero_point", torch.zeros(1, dtype=torch.int8, device=device) if static else None)
        self._column_sums: Tensor | None = None
        self._kernel_cache: dict[str, Any] = {}

    def forward(self, input: Tensor) -> Tensor:
        if self.activation is None:
            return self._weight_only(input)
        scale, zero_point = self._input_parameters(input)
        codes = quantize(input.float(), scale, zero_point, INT8)
        if kernels.multiplies_int8(self.packed):
            return self._integer(codes, scale, zero_point).to(input.dtype)
        return self._weight_only(dequantize(codes, scale, zero_point).to(input.dtype))

    def _input_parameters(self, input: Tensor) -> tuple[Tensor, Tensor]:
        if self.input_scale is None or self.input_zero_point is None:
            return token_parameters(input.float(), INT8)
        return self.input_scale.float(), self.input_zero_point.float()

    def _weight_only(self, input: Tensor) -> Tensor:
        product = kernels.weight_only_product(input, self.packed, self._kernel_cache)
        if product is None:
            return functional.linear(input, self.packed.dequantized(input.dtype), self._bias(input.dtype))
        return product if self.bias is None else product + self.bias.to(input.dtype)

    def _bias(self, dtype: torch.dtype) -> Tensor | None:
        return None if self.bias is None else self.bias.to(dtype)

    def _integer(self, codes: Tensor, scale: Tensor, zero_point: Tensor) -> Tensor:
        """Codes [..., in] (integral floats) times the 8-bit weight, float32 [..., out]."""
        flat = codes.reshape(-1, self.in_features).to(torch.int8)
        packed = self.packed
        accumulator = kernels.int8_product(flat, packed.codes)
        if self._column_sums is None or self._column_sums.device != flat.device:
            self._column_sums = packed.codes.sum(1, dtype=torch.int32)
        input_zero = zero_point.reshape(-1, 1).to(torch.int32)
        accumulator = accumulator - input_zero * self._column_sums
        if packed.zero_point is not None:
            weight_zero = packed.zero_point.reshape(1, -1).to(torch.int32)
            row_sums = flat.sum(1, dtype=torch.int32)[:, None]
            accumulator = accumulator - weight_zero * (row_sums - self.in_features * input_zero)
        real = accumulator.float() * (scale.reshape(-1, 1) * packed.scale.reshape(1, -1))
        real = real if self.bias is None else real + self.bias.float()
        return real.view(*codes.shape[:-1], self.out_features)


class IntegerEmbedding(IntegerLayer):
    """An embedding whose rows are integers; looks up, then dequantises only those rows."""

    kind = "embedding"
    anchor: Tensor
    output_scale: Tensor | None

    def __init__(self, packed: PackedWeight, dtype: torch.dtype, output_scale: Tensor | None = None) -> None:
        super().__init__()
        self.num_embeddings, self.embedding_dim, self.activation = packed.rows, packed.features, None
        self._take_weight(packed, tied=False)
        device = packed.codes.device
        self.register_buffer(
            "anchor", torch.zeros(0, dtype=dtype, device=device), persistent=False
        )  # follows .to(dtype)
        scale = None if output_scale is None else output_scale.to(device, torch.float32).reshape(1)
        self.register_buffer("output_scale", scale)

    def forward(self, input: Tensor) -> Tensor:
        rows = self.packed.dequantized(self.anchor.dtype, rows=input.reshape(-1))
        rows = rows.view(*input.shape, self.embedding_dim)
        return rows if self.output_scale is None else rows * self.output_scale.to(rows.dtype)


def integer_layers(model: nn.Module) -> dict[str, IntegerLayer]:
    """A model's integer layers by name, in its order; a head tied to the embedding is one of them."""
    return {name: module for name, module in model.named_modules() if isinstance(module, IntegerLayer)}
