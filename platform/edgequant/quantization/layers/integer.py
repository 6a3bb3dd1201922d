"""Layers that hold integers and compute with them: what `convert` leaves in the model and a checkpoint stores."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from edgequant.quantization.layers import kernels
from edgequant.quantization.layers.packed_weight import FixedDtypeBuffers, PackedWeight
from edgequant.quantization.layers.quantized_input import QuantizedInput, Range
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
        self._kernel_cache: dict[str, Any] = {}

    def forward(self, input: Tensor) -> Tensor:
        if self.activation is None:
            return self._weight_only(input)
        quantized = self.quantized_input(input)
        if kernels.multiplies_int8(self.packed):
            return self._integer(quantized).view(*input.shape[:-1], self.out_features).to(input.dtype)
        return self._weight_only(quantized.real)

    def kernel_operands(self) -> list[Tensor]:
        """What kernels keep beside the checkpoint's tensors, for who counts memory."""
        return kernels.tensors_of(self._kernel_cache)

    def quantized_input(self, input: Tensor) -> QuantizedInput:
        """The integers of an input [..., in], in the layer's own range where it has one."""
        if self.input_scale is None or self.input_zero_point is None:
            return QuantizedInput.of(input)
        return QuantizedInput.of(input, Range(self.input_scale.float(), self.input_zero_point.float()))

    def _weight_only(self, input: Tensor) -> Tensor:
        bias = None if self.bias is None else self.bias.to(input.dtype)
        return kernels.weight_only_linear(input, self.packed, bias, self._kernel_cache)

    def _integer(self, input: QuantizedInput) -> Tensor:
        """Codes times the 8-bit weight, float32 [tokens, out].

        With Z1 and sum q1 for each token, Z2 and sum q2 - N Z2 for each output, two products correct sum q1 q2.
        """
        packed = self.packed
        accumulator = kernels.int8_product(input, packed.codes, self._kernel_cache)
        weight_zero, weight_sums = kernels.zero_points_and_sums(packed, self._kernel_cache)
        accumulator.addcmul_(input.integer_zero_point, weight_sums, value=-1)
        if weight_zero is not None:
            accumulator.addcmul_(input.row_sums, weight_zero, value=-1)
        real = accumulator * (input.scale.reshape(-1, 1) * packed.scale.reshape(1, -1))
        return real if self.bias is None else real + self.bias.float()


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
