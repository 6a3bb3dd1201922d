"""`auto`: the method that fits the machine's time, on as much text as fits it, checked on text that it did not see."""

from __future__ import annotations

import itertools
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from edgequant import models
from edgequant.quantization.arithmetic.affine import quantize_weight
from edgequant.quantization.layers.convert import set_phase
from edgequant.quantization.layers.fake_quantized import FakeQuantizedLayer, fake_quantized_layers
from edgequant.quantization.layers.fixed_weights import fix_codes
from edgequant.quantization.ptq.end_to_end import tie_heads
from edgequant.quantization.ptq.methods import affordable_tokens, best_method, parse_method
from edgequant.quantization.scheme import Scheme

HELD_OUT_TOKENS = 1024  # enough to tell a method that went wrong
HELD_OUT_SHARE = 8  # one sequence of so many, at least one, where text is short


class Automatic(NamedTuple):
    """A method, the sequences [1, length] that it looks at, and those that judge it, none where nothing can."""

    method: str
    calibration: list[Tensor]
    held_out: list[Tensor]


def choose_automatically(model: nn.Module, scheme: Scheme, calibration: list[Tensor]) -> Automatic:
    """What `auto` stands for with this model, scheme and text [batch, length] each."""
    parameters, device = sum(parameter.numel() for parameter in model.parameters()), next(model.parameters()).device
    method = best_method(scheme, parameters, device.type, has_text=bool(calibration))
    sequences = [row for batch in calibration for row in batch.split(1)]
    limit = affordable_tokens(parameters, device.type)
    seen = sequences if limit is None else sequences_within(sequences, limit)
    if len(sequences) < 2 or not can_be_judged(scheme, method):
        return Automatic(method, seen, [])
    if len(seen) == len(sequences):
        seen = sequences[: -max(1, len(sequences) // HELD_OUT_SHARE)]
    unseen = sequences[len(seen) :]
    return Automatic(method, seen, sequences_within(unseen, HELD_OUT_TOKENS))


def sequences_within(sequences: list[Tensor], tokens: int) -> list[Tensor]:
    """The first sequences [1, length] that have so many tokens together at the most; the very first in any case."""
    lengths = itertools.accumulate(row.shape[1] for row in sequences)
    return [row for row, length in zip(sequences, lengths, strict=True) if length <= tokens] or sequences[:1]


def can_be_judged(scheme: Scheme, method: str) -> bool:
    """Whether rounding to nearest would be something else, and what a method does leaves weights as they came."""
    static = scheme.activation is not None and scheme.activation.mode == "static"
    return scheme.weight is not None and scheme.weight.bits < 8 and not static and parse_method(method).scale is None


class Guard:
    """Goes back to rounding to nearest where a method predicts text that it did not see worse than that.

    Args:
        model: fake-quantised, its weights as they came.
        held_out: sequences [1, length].
        precision: of `CalibrationSettings`.
    """

    @torch.no_grad()
    def __init__(self, model: nn.Module, held_out: list[Tensor], precision: str) -> None:
        self.model, self.held_out, self.device = model, held_out, next(model.parameters()).device
        self.bfloat16 = models.pick_dtype(precision, str(self.device)) == "bfloat16"
        self.kept = {name: part.detach().clone() for name, part in model.named_parameters() if part.dim() < 2}
        self._round_to_nearest()
        self.loss = self._held_out_loss()

    @torch.no_grad()
    def overrules(self, method: str) -> bool:
        """Whether the method, whose integers the model has, did worse; the model is rounded to nearest then."""
        loss = self._held_out_loss()
        if loss <= self.loss:
            return False
        parameters = dict(self.model.named_parameters())
        for name, value in self.kept.items():
            parameters[name].copy_(value)
        self._round_to_nearest()
        print(
            f"ptq: rounded to nearest, since {method} predicts calibration text held out worse "
            f"({loss:.3f} against {self.loss:.3f} nats per token)",
            flush=True,
        )
        return True

    def _round_to_nearest(self) -> None:
        for layer in _untied(self.model):
            fix_codes(layer, quantize_weight(layer.weight.detach(), layer.spec))
        tie_heads(self.model)

    def _held_out_loss(self) -> float:
        """Mean next-token loss, nats, with activations as they are deployed."""
        set_phase(self.model, quantize_inputs=True, observe=False)
        model: Any = self.model
        nats = tokens = 0.0
        for row in self.held_out:
            ids = row.to(self.device)
            with torch.autocast(self.device.type, torch.bfloat16, enabled=self.bfloat16):
                logits = model(input_ids=ids, use_cache=False).logits[0, :-1]
            nats += float(nn.functional.cross_entropy(logits.float(), ids[0, 1:], reduction="sum"))
            tokens += ids.shape[1] - 1
        return nats / max(1.0, tokens)


def _untied(model: nn.Module) -> list[FakeQuantizedLayer]:
    return [layer for layer in fake_quantized_layers(model).values() if not layer.is_tied]
