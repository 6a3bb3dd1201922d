"""Layers that hold integers and compute with them: what `convert` leaves in the model and a checkpoint stores."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar, Literal, Self

import torch
from torch import Tensor, nn
from torch.nn import functional

from edgequant.quantization.arithmetic.affine import (
    QuantizedWeight,
    dequantize,
    dequantize_weight,
    quantize,
    token_parameters,
)
from edgequant.quantization.arithmetic.packing import pack, packed_length, unpack
from edgequant.quantization.layers import kernels
from edgequant.quantization.layers.input_quantizers import INT8
from edgequant.quantization.scheme import ActivationSpec, WeightSpec

STORAGE = {"float16": torch.float16, "float32": torch.float32}


class _KeepsBufferTypes(nn.Module):
    """Buffers follow moves between devices but stay out of casts: a scale rounded to bfloat16 is another scale."""

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        before = dict(self._buffers)
        super()._apply(fn, recurse)
        for name, buffer in before.items():
            moved = self._buffers[name]
            if buffer is not None and moved is not None and moved.dtype != buffer.dtype:
                self._buffers[name] = buffer.to(moved.device)
        return self


class PackedWeight(_KeepsBufferTypes):
    """The integers of a weight [rows, features] as they lie in the checkpoint.

    Buffers: `codes` [rows, bytes] (uint8, or int8 at 8 bits), `scale` [rows, groups], and, where the spec has them,
    `zero_point` [rows, bytes] (packed like the codes) or `minimum` [rows, groups]. They keep their types under
    `.to(dtype)`.
    """

    codes: Tensor
    scale: Tensor
    zero_point: Tensor | None
    minimum: Tensor | None

    def __init__(self, rows: int, features: int, spec: WeightSpec, device: Any = None) -> None:
        super().__init__()
        self.rows, self.features, self.spec = rows, features, spec
        self.scale_rows = 1 if spec.granularity == "tensor" else rows
        self.groups = features // spec.group_size if spec.group_size else 1
        storage, code_type = STORAGE[spec.scale_dtype], torch.int8 if spec.bits == 8 else torch.uint8
        zeros = {"device": device}
        self.register_buffer("codes", torch.zeros(rows, packed_length(features, spec.bits), dtype=code_type, **zeros))
        self.register_buffer("scale", torch.zeros(self.scale_rows, self.groups, dtype=storage, **zeros))
        zero_point = torch.zeros(self.scale_rows, packed_length(self.groups, spec.bits), dtype=code_type, **zeros)
        self.register_buffer("zero_point", zero_point if spec.zero_point == "integer" else None)
        minimum = torch.zeros(self.scale_rows, self.groups, dtype=storage, **zeros)
        self.register_buffer("minimum", minimum if spec.zero_point == "real" else None)

    @staticmethod
    def of(quantized: QuantizedWeight, rows: int, features: int, spec: WeightSpec) -> PackedWeight:
        """Pack quantised integers; scales are already representable in their storage type."""
        packed = PackedWeight(rows, features, spec, device=quantized.codes.device)
        packed.codes = pack(quantized.codes.reshape(rows, features), spec.bits)
        packed.scale = quantized.scale.reshape(packed.scale.shape).to(packed.scale.dtype)
        if packed.zero_point is not None and quantized.zero_point is not None:
            packed.zero_point = pack(quantized.zero_point.reshape(packed.scale.shape).to(torch.int8), spec.bits)
        if packed.minimum is not None and quantized.minimum is not None:
            packed.minimum = quantized.minimum.reshape(packed.scale.shape).to(packed.minimum.dtype)
        return packed

    def unpacked(self, rows: Tensor | None = None) -> QuantizedWeight:
        """The integers as the arithmetic sees them, all of them or the rows of an index tensor [n]."""

        def take(stored: Tensor | None) -> Tensor | None:
            return stored if stored is None or rows is None or self.scale_rows == 1 else stored[rows]

        codes = self.codes if rows is None else self.codes[rows]
        codes = unpack(codes, self.spec.bits, self.features)
        scale, zero_point, minimum = take(self.scale), take(self.zero_point), take(self.minimum)
        assert scale is not None
        if zero_point is not None:
            zero_point = unpack(zero_point, self.spec.bits, self.groups).float()[..., None]
        shape = (1, 1, -1) if self.scale_rows == 1 and self.rows > 1 else (codes.shape[0], self.groups, -1)
        minimum = None if minimum is None else minimum.float()[..., None]
        return QuantizedWeight(codes.view(shape), scale.float()[..., None], zero_point, minimum)

    def dequantized(self, dtype: torch.dtype = torch.float32, rows: Tensor | None = None) -> Tensor:
        """The real weight, [rows, features]."""
        count = self.rows if rows is None else rows.numel()
        return dequantize_weight(self.unpacked(rows), (count, self.features)).to(dtype)


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


class IntegerLinear(IntegerLayer, _KeepsBufferTypes):
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
