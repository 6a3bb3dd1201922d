"""`e2e_qp`: after all blocks, the scales of the whole model trained towards the floating-point model's predictions.

EfficientQAT's end-to-end training of quantisation parameters (Chen et al. 2024, arXiv 2407.11062, section 3.3), here
with the forward KL divergence from the model as it was as its loss. Integers stay; no weight has a gradient.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from edgequant.progress import Progress
from edgequant.quantization.layers.fake_quantized import FakeQuantizedLayer, fake_quantized_layers
from edgequant.quantization.layers.fixed_weights import IdentityQuantizer, fix_codes, fixed_codes_of
from edgequant.quantization.layers.input_quantizers import DynamicInputQuantizer
from edgequant.quantization.ptq.block_learning import BestState, gradients_of_these, norms_of
from edgequant.quantization.ptq.block_stream import BlockStream
from edgequant.quantization.ptq.learned_rounding import TunedGrid
from edgequant.quantization.ptq.settings import PtqSettings

HELD_OUT_SHARE = 8  # one calibration sequence of so many is not learned from
FEWEST_SPLIT = 4  # with fewer sequences, all are learned from and all decide
CHECKS = 10  # looks at the sequences held out
LOGITS = 1 << 28  # at most so many at once, unless one sequence has more
WARM_UP = 0.1  # of the steps
BETAS = (0.9, 0.95)


class QuantizedModel(NamedTuple):
    """A model whose layers all have integers, and what the floating-point one makes of the calibration text.

    Attributes:
        stream: the model and its token batches.
        floating: for each batch, the last decoder block's output [batch, length, features] of the model as it was.
        head: name of a quantised output head.
    """

    stream: BlockStream
    floating: list[Tensor]
    head: str | None


class _Part(NamedTuple):
    """Some sequences of a batch: token ids [n, length] and the floating-point model's last hidden states."""

    ids: Tensor
    states: Tensor


class EndToEnd:
    """AdamW on scales and norms; the state with the least divergence on held-out text is kept, the start among them."""

    def __init__(self, settings: PtqSettings) -> None:
        self.settings = settings

    def apply(self, quantized: QuantizedModel) -> dict[str, float]:
        """Train in place; returns the divergence on held-out text before and after, in nats per token."""
        model = quantized.stream.model
        layers = [layer for layer in fake_quantized_layers(model).values() if not layer.is_tied]
        tuned = [_tuned(layer, zero_points=self.settings.tune_zero_points) for layer in layers]
        for layer, grid in zip(layers, tuned, strict=True):
            layer.quantizer = grid
        tie_heads(model)
        norms = _norms(quantized.stream)
        with gradients_of_these([*(p for grid in tuned for p in grid.parameters()), *norms], model):
            before, after = self._learn(quantized, tuned, norms)
        for layer, grid in zip(layers, tuned, strict=True):
            fix_codes(layer, grid.quantized(layer.weight))
        tie_heads(model)
        DynamicInputQuantizer.forget()
        return {"divergence_before": before, "divergence": after}

    def _learn(
        self, quantized: QuantizedModel, tuned: list[TunedGrid], norms: list[nn.Parameter]
    ) -> tuple[float, float]:
        training, held_out = _split(_sequences(quantized))
        parameters = [*(p for grid in tuned for p in grid.parameters()), *norms]
        optimizer, before = _Optimizer(self.settings, tuned, norms), self._divergence(quantized, held_out)
        best, every = BestState(parameters, before), max(1, self.settings.tune_steps // CHECKS)
        steps = range(self.settings.tune_steps)
        drawn = _drawn(training, quantized.stream.batches[0].shape[0])
        shown = Progress(len(steps), "e2e_qp", "step")
        for step, parts in zip(steps, drawn, strict=False):
            optimizer.step(parameters, self._gradients(quantized, parts, parameters), step, best.share)
            if (step + 1) % every == 0 or step + 1 == self.settings.tune_steps:
                best.offer(self._divergence(quantized, held_out))
                shown.say(f"divergence {best.least:.5f}")
            shown.update()
        shown.close()
        best.load()
        return before, best.least

    def _gradients(self, quantized: QuantizedModel, drawn: list[_Part], parameters: list[nn.Parameter]) -> list[Tensor]:
        """Of the mean divergence per token."""
        total = [torch.zeros_like(parameter) for parameter in parameters]
        tokens = sum(part.ids.numel() for part in drawn)
        for part in _of_like_length(quantized, drawn):
            log_teacher = _log_teacher(quantized, part)
            with torch.enable_grad(), quantized.stream.autocast():
                logits = quantized.stream.model(input_ids=part.ids, use_cache=False).logits
            with torch.no_grad():  # of sum p (log p - log q) by the logits behind q: q - p
                slope = logits.float().softmax(-1).sub_(log_teacher.exp_()).div_(tokens).to(logits.dtype)
            gradients = torch.autograd.grad(logits, parameters, slope, allow_unused=True)
            pairs = zip(total, gradients, strict=True)
            total = [before if gradient is None else before + gradient for before, gradient in pairs]
        return total

    @torch.no_grad()
    def _divergence(self, quantized: QuantizedModel, sequences: list[_Part]) -> float:
        nats, tokens = [], 0
        for part in _of_like_length(quantized, sequences):
            log_teacher = _log_teacher(quantized, part)
            with quantized.stream.autocast():
                logits = quantized.stream.model(input_ids=part.ids, use_cache=False).logits
            log_student = logits.float().log_softmax(-1)
            nats.append((log_teacher.exp() * log_teacher.sub(log_student)).sum())
            tokens += part.ids.numel()
        return float(torch.stack(nats).sum()) / tokens


class _Optimizer:
    """AdamW whose rates rise over the first steps and then fall linearly to 0; relative to what they move."""

    def __init__(self, settings: PtqSettings, tuned: list[TunedGrid], norms: list[nn.Parameter]) -> None:
        self.steps, rate = settings.tune_steps, settings.tune_learning_rate
        groups: list[dict[str, Any]] = [
            {"params": [parameter for grid in tuned for parameter in grid.parameters()], "lr": rate},
            *({"params": [norm], "lr": rate * float(norm.detach().abs().mean())} for norm in norms),
        ]
        self.optimizer = torch.optim.AdamW(groups, weight_decay=0.0, betas=BETAS)
        self.rates = [group["lr"] for group in groups]

    def step(self, parameters: list[nn.Parameter], gradients: list[Tensor], step: int, share: float) -> None:
        share *= min(1.0, (step + 1) / (WARM_UP * self.steps)) * (1 - step / self.steps)
        for group, rate in zip(self.optimizer.param_groups, self.rates, strict=True):
            group["lr"] = rate * share
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.grad = gradient
        self.optimizer.step()
        self.optimizer.zero_grad()


def _tuned(layer: FakeQuantizedLayer, *, zero_points: bool) -> TunedGrid:
    chosen = fixed_codes_of(layer)
    assert chosen is not None, "a rounding step comes first"
    return TunedGrid(layer.spec, chosen, zero_points=zero_points)


def tie_heads(model: nn.Module) -> None:
    """Let a head tied to the embedding see the integers that the embedding has."""
    layers = fake_quantized_layers(model).values()
    own = {id(layer.weight): layer.quantizer for layer in layers if not layer.is_tied}
    for layer in layers:
        if layer.is_tied:
            layer.quantizer = own[id(layer.weight)]


def _norms(stream: BlockStream) -> list[nn.Parameter]:
    """Norm weights of the decoder blocks; the one before the head stays, since the teacher's head reads through it."""
    return [norm for block in stream.blocks.values() for norm in norms_of(block)]


def _sequences(quantized: QuantizedModel) -> list[_Part]:
    """All calibration sequences, one by one."""
    pairs = zip(quantized.stream.batches, quantized.floating, strict=True)
    return [
        _Part(ids, states)
        for batch, hidden in pairs
        for ids, states in zip(batch.split(1), hidden.split(1), strict=True)
    ]


def _split(sequences: list[_Part]) -> tuple[list[_Part], list[_Part]]:
    """Sequences to learn from and, spread evenly, sequences that decide."""
    if len(sequences) < FEWEST_SPLIT:
        return sequences, sequences
    places = set(range(len(sequences))[HELD_OUT_SHARE // 2 :: HELD_OUT_SHARE]) or {len(sequences) - 1}
    training = [part for place, part in enumerate(sequences) if place not in places]
    return training, [part for place, part in enumerate(sequences) if place in places]


def _drawn(sequences: list[_Part], size: int) -> Iterator[list[_Part]]:
    """Batches of `size` sequences in an order drawn anew for every pass over them; the same in every call."""
    generator = torch.Generator().manual_seed(0)
    while True:
        order = torch.randperm(len(sequences), generator=generator).split(size)
        yield from ([sequences[place] for place in places.tolist()] for places in order)


def _of_like_length(quantized: QuantizedModel, parts: list[_Part]) -> Iterator[_Part]:
    """Sequences of equal length joined, as many as their logits allow."""
    by_length: dict[int, list[_Part]] = {}
    for part in parts:
        by_length.setdefault(part.ids.shape[1], []).append(part)
    first = parts[0]
    vocabulary = quantized.stream.logits(first.ids[:, :1], quantized.stream.fetch(first.states[:, :1])).shape[-1]
    for length, alike in by_length.items():
        count = max(1, LOGITS // (length * vocabulary))
        for start in range(0, len(alike), count):
            yield _joined(quantized.stream, alike[start : start + count])


def _joined(stream: BlockStream, parts: Iterable[_Part]) -> _Part:
    ids, states = zip(*parts, strict=True)
    return _Part(torch.cat(ids).to(stream.device), stream.fetch(torch.cat(states)))


@torch.no_grad()
def _log_teacher(quantized: QuantizedModel, part: _Part) -> Tensor:
    """Log-probabilities of the floating-point model, [n, length, vocabulary], from its last hidden states."""
    with _floating_head(quantized):
        return quantized.stream.logits(part.ids, part.states).float().log_softmax(-1)


@contextmanager
def _floating_head(quantized: QuantizedModel) -> Iterator[None]:
    """The output head as it was, where it is quantised."""
    if quantized.head is None:
        yield
        return
    head = fake_quantized_layers(quantized.stream.model)[quantized.head]
    quantizer, inputs = head.quantizer, head.input_quantizer
    head.quantizer, head.input_quantizer = IdentityQuantizer(head.spec), None
    try:
        yield
    finally:
        head.quantizer, head.input_quantizer = quantizer, inputs
