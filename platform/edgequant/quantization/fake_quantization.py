"""Layers that compute with simulated integers: what is trained here is what `convert` deploys."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from edgequant.errors import UserError
from edgequant.quantization.affine import affine_parameters, fake_quantize, fake_quantize_tokens, fake_quantize_weight
from edgequant.quantization.observers import ObserverName, make_observer
from edgequant.quantization.scheme import ActivationSpec, WeightSpec

INT8 = (-128, 127)


class DynamicInputQuantizer(nn.Module):
    """Simulates 8-bit inputs whose range is taken from each token."""

    enabled = True

    def forward(self, inputs: Tensor) -> Tensor:
        return fake_quantize_tokens(inputs, INT8) if self.enabled else inputs


class StaticInputQuantizer(nn.Module):
    """Simulates 8-bit inputs with one range for the tensor, as an observer has seen it (Jacob et al. 2017, section 3.1).

    `enabled`: simulate; off during the first steps of training, so that weights settle first (delayed activation
    quantisation). `observing`: let the range follow the data; off late in training, at calibration's end, and in eval.
    """

    def __init__(self, observer: ObserverName) -> None:
        super().__init__()
        self.observer = make_observer(observer)
        self.enabled = True
        self.observing = True

    def parameters_of_range(self) -> tuple[Tensor, Tensor]:
        """Scale and zero point, two float32 scalars; the zero point is integral.

        Raises:
            UserError: nothing was observed yet.
        """
        if self.observer.batches == 0:
            raise UserError("static activation ranges were never observed; run calibration or training batches first")
        low, high = self.observer.range()
        return affine_parameters(low, high, INT8)

    def forward(self, inputs: Tensor) -> Tensor:
        if self.observing:
            self.observer.observe(inputs)
        if not self.enabled or self.observer.batches == 0:
            return inputs
        scale, zero_point = self.parameters_of_range()
        return fake_quantize(inputs, scale, zero_point, INT8)


InputQuantizer = DynamicInputQuantizer | StaticInputQuantizer


def make_input_quantizer(spec: ActivationSpec | None, observer: ObserverName) -> InputQuantizer | None:
    """The quantiser of a linear's input, or None where inputs stay as they are."""
    if spec is None:
        return None
    return DynamicInputQuantizer() if spec.mode == "dynamic" else StaticInputQuantizer(observer)


class FakeQuantizedLinear(nn.Linear):
    """A linear layer that sees its weight, and its input where the scheme says so, through the quantiser.

    Takes over the parameters of the layer that it replaces: optimiser state, tying and names stay as they were.
    """

    def __init__(self, linear: nn.Linear, spec: WeightSpec, input_quantizer: InputQuantizer | None) -> None:
        super().__init__(linear.in_features, linear.out_features, linear.bias is not None, device="meta")
        self.weight, self.bias = linear.weight, linear.bias
        self.spec = spec
        self.input_quantizer = input_quantizer
        self.enabled = True

    def simulated_weight(self) -> Tensor:
        """The weight as the integers will represent it, [out, in]."""
        return fake_quantize_weight(self.weight, self.spec) if self.enabled else self.weight

    def forward(self, input: Tensor) -> Tensor:
        if self.input_quantizer is not None:
            input = self.input_quantizer(input)
        return functional.linear(input, self.simulated_weight(), self.bias)


class FakeQuantizedEmbedding(nn.Embedding):
    """An embedding whose rows are seen through the quantiser; only the rows looked up are computed.

    `output_scale` is Gemma's factor on embeddings, applied after quantisation.
    """

    def __init__(self, embedding: nn.Embedding, spec: WeightSpec) -> None:
        super().__init__(embedding.num_embeddings, embedding.embedding_dim, embedding.padding_idx, device="meta")
        self.weight = embedding.weight
        self.spec = spec
        self.enabled = True
        self.output_scale = output_scale_of(embedding)

    def forward(self, input: Tensor) -> Tensor:
        rows = functional.embedding(input, self.weight, self.padding_idx)
        if self.enabled:
            flat = rows.reshape(-1, self.embedding_dim)
            rows = fake_quantize_weight(flat, self.spec).view_as(rows)
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
