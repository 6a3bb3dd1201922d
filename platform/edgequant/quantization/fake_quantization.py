"""Layers that compute with simulated integers: what is trained here is what `convert` deploys."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from edgequant.errors import UserError
from edgequant.quantization.affine import (
    QuantizedWeight,
    affine_parameters,
    best_shrink,
    fake_quantize,
    fake_quantize_learned,
    fake_quantize_tokens,
    fake_quantize_weight,
    grouped,
    quantize,
    quantize_weight,
    rounded_straight_through,
    simulated_weight,
    stored_scale,
    straight_through,
    weight_parameters,
)
from edgequant.quantization.observers import ObserverName, make_observer
from edgequant.quantization.scheme import ActivationSpec, WeightSpec

INT8 = (-128, 127)
# Weights move by fractions of their size at rates near 1e-4; a scale's ratio to its start and a zero point in integer
# steps are larger numbers, whose rates are these multiples of the weights'.
SCALE_LEARNING_RATE = 10.0
ZERO_POINT_LEARNING_RATE = 100.0


class DynamicInputQuantizer(nn.Module):
    """Simulates 8-bit inputs whose range is taken from each token.

    Linears that share an input (query, key and value; gate and up) come one after the other and share the result.
    """

    enabled = True
    _latest: ClassVar[tuple[Tensor, int, bool, Tensor] | None] = None

    def forward(self, inputs: Tensor) -> Tensor:
        if not self.enabled:
            return inputs
        # Compiled code shares what is equal by itself; a tensor of inference mode has no version to tell a change by.
        if torch.compiler.is_compiling() or inputs.is_inference():
            return fake_quantize_tokens(inputs, INT8)
        kept = DynamicInputQuantizer._latest
        with_gradient = torch.is_grad_enabled()
        if kept is not None and kept[0] is inputs and kept[1:3] == (inputs._version, with_gradient):
            return kept[3]
        simulated = fake_quantize_tokens(inputs, INT8)
        DynamicInputQuantizer._latest = (inputs, inputs._version, with_gradient, simulated)
        return simulated

    @classmethod
    def forget(cls) -> None:
        """Let go of the input last seen, and of the graph behind it."""
        cls._latest = None


class StaticInputQuantizer(nn.Module):
    """Simulates 8-bit inputs with one range for the tensor, seen by an observer (Jacob et al. 2017, section 3.1).

    `enabled`: simulate; off during the first steps of training, so that weights settle first (delayed activation
    quantisation). `observing`: let the range follow the data; off late in training, at calibration's end, and in eval.
    """

    def __init__(self, observer: ObserverName) -> None:
        super().__init__()
        self.observer = make_observer(observer)
        self.enabled = True
        self.observing = True
        self._seen = False

    @property
    def has_range(self) -> bool:
        """Whether anything was observed; asked of the device at most until it is true, since asking waits for it."""
        if not self._seen:
            self._seen = bool(self.observer.batches > 0)
        return self._seen

    def parameters_of_range(self) -> tuple[Tensor, Tensor]:
        """Scale and zero point, two float32 scalars; the zero point is integral.

        Raises:
            UserError: nothing was observed yet.
        """
        if not self.has_range:
            raise UserError("static activation ranges were never observed; run calibration or training batches first")
        low, high = self.observer.range()
        return affine_parameters(low, high, INT8)

    def forward(self, inputs: Tensor) -> Tensor:
        if self.observing:
            self.observer.observe(inputs)
            self._seen = True
        if not self.enabled or not self.has_range:
            return inputs
        scale, zero_point = self.parameters_of_range()
        return fake_quantize(inputs, scale, zero_point, INT8)


InputQuantizer = DynamicInputQuantizer | StaticInputQuantizer


def make_input_quantizer(
    spec: ActivationSpec | None, observer: ObserverName, device: torch.device
) -> InputQuantizer | None:
    """The quantiser of a linear's input, or None where inputs stay as they are."""
    if spec is None:
        return None
    return DynamicInputQuantizer() if spec.mode == "dynamic" else StaticInputQuantizer(observer).to(device)


def _parameter(values: Tensor, learning_rate_factor: float) -> nn.Parameter:
    parameter = nn.Parameter(values)
    parameter.learning_rate_factor = learning_rate_factor  # type: ignore[attr-defined]  # read by the training loop
    return parameter


class WeightQuantizer(nn.Module):
    """Sees a weight as its integers will represent it.

    Scales and zero points follow each group's extremes as the weight moves, or, `learned`, are parameters of their own
    that start from the range with the least squared error, or from what a PTQ method chose. A tied head and embedding
    share one.
    """

    relative_scale: nn.Parameter | None
    zero_point: nn.Parameter | None
    initial_scale: Tensor
    _reuse = False
    _kept: Tensor | None = None

    def __init__(
        self, spec: WeightSpec, weight: Tensor, *, learned: bool, start: QuantizedWeight | None = None
    ) -> None:
        super().__init__()
        self.spec = spec
        self.learned = learned and spec.layout == "affine"
        if self.learned:
            self._learn_from(*(self._least_error(weight) if start is None else (start.scale, start.zero_point)))

    @torch.no_grad()
    def _least_error(self, weight: Tensor) -> tuple[Tensor, Tensor | None]:
        groups = grouped(weight.detach().float(), self.spec)
        return weight_parameters(groups, self.spec, best_shrink(groups, self.spec))

    def _learn_from(self, scale: Tensor, zero_point: Tensor | None) -> None:
        self.register_buffer("initial_scale", scale)
        # The optimiser sees the scale relative to its start: one learning rate then suits every layer and model.
        self.relative_scale = _parameter(torch.ones_like(scale), SCALE_LEARNING_RATE)
        self.zero_point = None if zero_point is None else _parameter(zero_point, ZERO_POINT_LEARNING_RATE)

    def parameters_now(self) -> tuple[Tensor, Tensor | None]:
        """Scale, as stored, and zero point, integral; both with straight-through gradients."""
        assert self.relative_scale is not None
        scale = self.initial_scale * self.relative_scale
        scale = scale + (stored_scale(scale.detach(), self.spec) - scale).detach()
        return scale, None if self.zero_point is None else rounded_straight_through(self.zero_point).clamp(
            *self._bounds
        )

    @property
    def _bounds(self) -> tuple[int, int]:
        return self.spec.integer_range

    def forward(self, weight: Tensor, rows: Tensor | None = None) -> Tensor:
        """The simulated weight [out, in]; `rows` [n] says which rows of the whole these are."""
        if not self.learned:
            return self._simulated(weight, whole=rows is None)
        scale, zero_point = self.parameters_now()
        if rows is not None:
            scale, zero_point = scale[rows], None if zero_point is None else zero_point[rows]
        groups = grouped(weight.float(), self.spec)
        simulated = fake_quantize_learned(groups, scale, zero_point, self._bounds)
        return simulated.reshape(weight.shape).to(weight.dtype)

    def begin_step(self, *, reuse: bool) -> None:
        """Forget what was simulated; with `reuse`, simulate a whole weight once until the next call.

        The forward passes of one optimiser step all see the same weight. Learned scales need each pass's own gradient
        and are simulated every time.
        """
        self._reuse, self._kept = reuse, None

    def _simulated(self, weight: Tensor, *, whole: bool) -> Tensor:
        if torch.compiler.is_compiling() or not (self._reuse and whole):  # compiled, simulating costs next to nothing
            return fake_quantize_weight(weight, self.spec)
        if self._kept is None:
            kind = weight.device.type
            dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else weight.dtype
            self._kept = simulated_weight(weight, self.spec).to(dtype)  # as the product will want it
        return straight_through(weight, self._kept)

    @torch.no_grad()
    def quantized(self, weight: Tensor) -> QuantizedWeight:
        """The integers that `forward` simulates."""
        if not self.learned:
            return quantize_weight(weight.detach(), self.spec)
        scale, zero_point = self.parameters_now()
        codes = quantize(grouped(weight.detach().float(), self.spec), scale, zero_point, self._bounds)
        return QuantizedWeight(codes.to(torch.int8), scale, zero_point)


class FakeQuantizedLinear(nn.Linear):
    """A linear layer that sees its weight, and its input where the scheme says so, through the quantiser.

    Takes over the parameters of the layer that it replaces: optimiser state, tying and names stay as they were.
    A head tied to the embedding refers to the embedding's quantiser instead of having its own. `before_rounding` holds
    what changes the weight [out, in] before the quantiser sees it: a low-rank update, a pruning mask, mostly nothing.
    """

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
        self._reference: list[WeightQuantizer] = [weight_quantizer] if tied else []
        if not tied:
            self.weight_quantizer = weight_quantizer
        self.input_quantizer = input_quantizer
        self.before_rounding = nn.Sequential()

    @property
    def real_weight(self) -> Tensor:
        """The weight [out, in] that is rounded."""
        return self.before_rounding(self.weight)  # type: ignore[no-any-return]

    @property
    def quantizer(self) -> WeightQuantizer:
        """The weight's quantiser, own or the tied embedding's."""
        return self._reference[0] if self._reference else self.weight_quantizer

    @property
    def spec(self) -> WeightSpec:
        """How the weight is quantised."""
        return self.quantizer.spec

    def forward(self, input: Tensor) -> Tensor:
        if self.input_quantizer is not None:
            input = self.input_quantizer(input)
        return functional.linear(input, self.quantizer(self.real_weight), self.bias)


class FakeQuantizedEmbedding(nn.Embedding):
    """An embedding whose rows are seen through the quantiser; only the rows looked up are computed.

    `output_scale` is Gemma's factor on embeddings, applied after quantisation.
    """

    def __init__(self, embedding: nn.Embedding, weight_quantizer: WeightQuantizer) -> None:
        super().__init__(embedding.num_embeddings, embedding.embedding_dim, embedding.padding_idx, device="meta")
        self.weight = embedding.weight
        self.weight_quantizer = weight_quantizer
        self.output_scale = output_scale_of(embedding)

    @property
    def spec(self) -> WeightSpec:
        """How the weight is quantised."""
        return self.weight_quantizer.spec

    def forward(self, input: Tensor) -> Tensor:
        ids = input.reshape(-1)
        rows = self.weight_quantizer(functional.embedding(ids, self.weight, self.padding_idx), ids)
        rows = rows.view(*input.shape, self.embedding_dim)
        return rows if self.output_scale is None else rows * self.output_scale.to(rows.dtype)


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
