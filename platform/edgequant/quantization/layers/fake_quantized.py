"""Layers that compute with simulated integers: what is trained here is what `convert` deploys."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any, ClassVar, Literal, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from edgequant.errors import UserError
from edgequant.quantization.layers.frozen_weights import FrozenCodesQuantizer
from edgequant.quantization.layers.input_quantizers import InputQuantizer, StaticInputQuantizer
from edgequant.quantization.layers.integer import IntegerEmbedding, IntegerLayer, IntegerLinear
from edgequant.quantization.layers.packed_weight import PackedWeight
from edgequant.quantization.layers.weight_quantizer import WeightQuantizer
from edgequant.quantization.scheme import ActivationSpec, WeightSpec


class FakeQuantizedLayer(nn.Module):
    """What the linear and the embedding share: a weight [out, in] in floating point, seen through a quantiser.

    Attributes:
        kind: `linear` or `embedding`.
        weight: as trained, [out, in]; packed integers [out, bytes] where these are frozen.
        input_quantizer: of a linear's input, where the scheme quantises it; None for an embedding.
    """

    kind: ClassVar[Literal["linear", "embedding"]]
    weight: Tensor
    weight_quantizer: WeightQuantizer
    input_quantizer: InputQuantizer | None
    _reference: list[WeightQuantizer]  # in a list, so that torch does not count another layer's quantiser as this one's

    def _take_quantizer(self, quantizer: WeightQuantizer, *, tied: bool) -> None:
        self._reference = [quantizer] if tied else []
        if not tied:
            self.weight_quantizer = quantizer

    @property
    def is_tied(self) -> bool:
        """Whether this is a head whose weight, and the quantiser with it, is the embedding's."""
        return bool(self._reference)

    @property
    def quantizer(self) -> WeightQuantizer:
        """The weight's quantiser, own or the tied embedding's; a tied layer that is given one refers to it."""
        return self._reference[0] if self._reference else self.weight_quantizer

    @quantizer.setter
    def quantizer(self, quantizer: WeightQuantizer) -> None:
        self._take_quantizer(quantizer, tied=self.is_tied)

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "quantizer":  # nn.Module would keep a module as a child of that name, past the property
            object.__setattr__(self, name, value)
        else:
            super().__setattr__(name, value)

    @property
    def is_frozen(self) -> bool:
        """Whether the weight is fixed integers, whose scales alone may still train."""
        return isinstance(self.quantizer, FrozenCodesQuantizer)

    @property
    def real_weight(self) -> Tensor:
        """The weight [out, in] that is rounded."""
        return self.quantizer(self.weight) if self.is_frozen else self.weight

    @property
    def spec(self) -> WeightSpec:
        """How the weight is quantised."""
        return self.quantizer.spec

    @property
    def needs_range(self) -> bool:
        """Whether the input has a static range, which has to be observed."""
        return self.input_quantizer is not None and self.input_quantizer.needs_range

    @torch.no_grad()
    def packed(self) -> PackedWeight:
        """The integers that are simulated at present."""
        weight, quantizer = self.real_weight, self.quantizer
        if isinstance(quantizer, FrozenCodesQuantizer):
            chosen = quantizer.codes(self.weight)
        else:
            chosen = quantizer.quantized(weight)
        rows, features = weight.shape
        return PackedWeight.of(chosen, rows, features, self.spec)

    @abstractmethod
    def to_integer(self, packed: PackedWeight, *, tied: bool = False) -> IntegerLayer:
        """The layer that computes with these integers; `tied`: another one holds them.

        Raises:
            UserError: a static range was never observed.
        """


class FakeQuantizedLinear(FakeQuantizedLayer, nn.Linear):
    """A linear layer that sees its weight, and its input where the scheme says so, through the quantiser.

    Takes over the parameters of the layer that it replaces: optimiser state, tying and names stay as they were.
    A head tied to the embedding refers to the embedding's quantiser instead of having its own. `before_rounding` holds
    what changes the weight [out, in] before the quantiser sees it: a low-rank update, a pruning mask, mostly nothing.
    """

    kind = "linear"

    def __init__(
        self,
        linear: nn.Linear,
        weight_quantizer: WeightQuantizer,
        input_quantizer: InputQuantizer | None,
        *,
        tied: bool = False,
    ) -> None:
        super().__init__(linear.in_features, linear.out_features, linear.bias is not None, device="meta")
        self.weight, self.bias = linear.weight, linear.bias
        self._take_quantizer(weight_quantizer, tied=tied)
        self.input_quantizer = input_quantizer
        self.before_rounding = nn.Sequential()

    @property
    def real_weight(self) -> Tensor:
        """The weight [out, in] that is rounded."""
        return self.quantizer(self.weight) if self.is_frozen else self.before_rounding(self.weight)

    def forward(self, input: Tensor) -> Tensor:
        if self.input_quantizer is not None:
            input = self.input_quantizer(input)
        return functional.linear(input, self.quantizer(self.real_weight), self.bias)

    def to_integer(self, packed: PackedWeight, *, tied: bool = False) -> IntegerLinear:
        quantizer = self.input_quantizer
        activation = None if quantizer is None else ActivationSpec(mode=quantizer.mode)
        integer = IntegerLinear(packed, self.bias, activation, tied=tied)
        if self.needs_range:
            scale, zero_point = cast(StaticInputQuantizer, quantizer).parameters_of_range()
            integer.input_scale = scale.reshape(1)
            integer.input_zero_point = zero_point.reshape(1).to(torch.int8)
        return integer


class FakeQuantizedEmbedding(FakeQuantizedLayer, nn.Embedding):
    """An embedding whose rows are seen through the quantiser; only the rows looked up are computed.

    `output_scale` is Gemma's factor on embeddings, applied after quantisation.
    """

    kind = "embedding"

    def __init__(self, embedding: nn.Embedding, weight_quantizer: WeightQuantizer) -> None:
        super().__init__(embedding.num_embeddings, embedding.embedding_dim, embedding.padding_idx, device="meta")
        self.weight = embedding.weight
        self._take_quantizer(weight_quantizer, tied=False)
        self.input_quantizer = None
        self.output_scale = output_scale_of(embedding)

    def forward(self, input: Tensor) -> Tensor:
        ids = input.reshape(-1)
        rows = self.quantizer(functional.embedding(ids, self.weight, self.padding_idx), ids)
        rows = rows.view(*input.shape, self.embedding_dim)
        return rows if self.output_scale is None else rows * self.output_scale.to(rows.dtype)

    def to_integer(self, packed: PackedWeight, *, tied: bool = False) -> IntegerEmbedding:
        return IntegerEmbedding(packed, self.real_weight.dtype, self.output_scale)


def fake_quantized_layers(model: nn.Module) -> dict[str, FakeQuantizedLayer]:
    """A model's fake-quantised layers by name, in its order; a head tied to the embedding is one of them."""
    return {name: module for name, module in model.named_modules() if isinstance(module, FakeQuantizedLayer)}


def fake_quantized_linears(model: nn.Module) -> dict[str, FakeQuantizedLinear]:
    """The linears among them."""
    return {name: module for name, module in model.named_modules() if isinstance(module, FakeQuantizedLinear)}


@torch.no_grad()
def output_scale_of(embedding: nn.Embedding) -> Tensor | None:
    """The factor by which a subclass of nn.Embedding (Gemma) scales its rows; None for a plain one.

    Raises:
        UserError: the subclass does something else than scaling.
    """
    if type(embedding) is nn.Embedding or isinstance(embedding, FakeQuantizedEmbedding):
        return getattr(embedding, "output_scale", None)
    scale: Any = getattr(embedding, "embed_scale", None)
    scale = torch.as_tensor(1.0 if scale is None else scale)
    if embedding.weight.device.type != "meta":
        ids = torch.arange(min(4, embedding.num_embeddings), device=embedding.weight.device)
        expected = functional.embedding(ids, embedding.weight) * scale.to(embedding.weight)
        if not torch.allclose(embedding(ids), expected, rtol=1e-2, atol=1e-6):
            raise UserError(
                f"embedding {type(embedding).__name__} does more than look up and scale; +emb cannot quantise it"
            )
    return scale
