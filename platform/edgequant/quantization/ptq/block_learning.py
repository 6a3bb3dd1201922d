"""`signround` and `block_ap`: what learns against a decoder block's output, and which of its iterates is kept."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from edgequant.quantization.layers.fake_quantized import fake_quantized_linears
from edgequant.quantization.layers.fixed_weights import fix_codes
from edgequant.quantization.ptq.calibrated_block import CalibratedBlock
from edgequant.quantization.ptq.learned_rounding import (
    MAX_ROUNDING_OFFSET,
    LearnedRounding,
    codes_of,
    learned_rounding,
)
from edgequant.quantization.ptq.settings import PtqSettings

HELD_OUT = 8  # one calibration batch of so many decides which iterate is kept
FEWEST_SPLIT = 4  # with fewer batches, all are learned from and all decide
CLEARLY_WORSE = 1.03  # a score beyond noise above the best
CHECKS = 10  # looks at the batches held out
MAX_SIGN_RATE, MAX_RATE = 0.01, 0.01  # in integer steps, of signround and block_ap, however few steps there are
SCALE_RATE = 0.1  # of scales, relative to their size, and of norms, against the weights' rate
SHIFT_RATE = 1.0  # of zero points, in integer steps
BETAS = (0.9, 0.95)

Update = Callable[[list[Tensor], float], None]


class BestState:
    """The best values so far of some parameters, by a score of which less is better, the start's among them.

    Attributes:
        least: the best score.
        share: of the learning rate; halved whenever a state was clearly worse than the best, which is then gone back
            to. A rate too high for a model thus finds its level within a few looks.
    """

    def __init__(self, parameters: list[nn.Parameter], score: float) -> None:
        self.parameters, self.least, self.share = parameters, score, 1.0
        self.values = _copies(parameters)

    def offer(self, score: float) -> None:
        """Remember the present values where they are better; go back where they are clearly worse."""
        if score < self.least:
            self.least, self.values = score, _copies(self.parameters)
        elif not score < CLEARLY_WORSE * self.least:
            self.load()
            self.share /= 2

    def load(self) -> None:
        """Give the parameters their best values."""
        _load(self.parameters, self.values)


class BlockLearning:
    """Learns every layer's rounding and ranges at once, minimising the block's squared output error.

    The inputs are those behind quantised predecessors, the targets those of the floating-point model, so that a block
    also makes up for the ones before it. Batches that were held out decide which iterate is kept, the start among them,
    and what is kept beats the start on all calibration batches too.
    """

    def __init__(self, settings: PtqSettings) -> None:
        self.settings = settings

    @abstractmethod
    def optimizer(self, learned: list[LearnedRounding], others: list[nn.Parameter]) -> Update:
        """What takes gradients and the share of the first rate, which falls linearly to 0."""

    @property
    @abstractmethod
    def steps(self) -> int:
        """Optimiser steps for a block."""

    def others(self, block: CalibratedBlock) -> list[nn.Parameter]:
        """Parameters of the block that learn beside its roundings and ranges."""
        return []

    def apply(self, block: CalibratedBlock) -> None:
        everything = range(len(block.inputs))
        before, others = _error(block, everything), self.others(block)
        starts = {name: codes_of(layer) for name, layer in block.layers.items()}
        kept = [parameter.detach().clone() for parameter in others]
        learned = {name: learned_rounding(layer, block.rounded_from.get(name)) for name, layer in block.layers.items()}
        for name, layer in block.layers.items():
            layer.quantizer = learned[name]
        self._learn(block, list(learned.values()), others)
        better = _error(block, everything) < before
        for name, layer in block.layers.items():
            fix_codes(layer, learned[name].quantized(layer.weight) if better else starts[name])
        if not better:
            _load(others, kept)

    def _learn(self, block: CalibratedBlock, learned: list[LearnedRounding], others: list[nn.Parameter]) -> None:
        parameters = [*_parameters(learned), *others]
        update, (training, held_out) = self.optimizer(learned, others), _split(len(block.inputs))
        best, every = BestState(parameters, _error(block, held_out)), max(1, self.steps // CHECKS)
        with gradients_of_these(parameters, block.module):  # a model that was trained before may be frozen
            for step, batch in zip(range(self.steps), _drawn(training), strict=False):
                update(_gradients(block, batch, parameters), best.share * (1 - step / self.steps))
                if (step + 1) % every == 0 or step + 1 == self.steps:
                    best.offer(_error(block, held_out))
        best.load()


class BlockRounding(BlockLearning):
    """Sign-SGD on rounding offsets, scales and zero points (AutoRound, Cheng et al. 2023, arXiv 2309.05516)."""

    @property
    def steps(self) -> int:
        return self.settings.signround_steps

    def optimizer(self, learned: list[LearnedRounding], others: list[nn.Parameter]) -> Update:
        first_rate = self.settings.signround_learning_rate or min(MAX_SIGN_RATE, 1 / self.steps)
        parameters = _parameters(learned)

        def update(gradients: list[Tensor], share: float) -> None:
            torch._foreach_sign_(gradients)
            torch._foreach_add_([parameter.data for parameter in parameters], gradients, alpha=-first_rate * share)
            for quantizer in learned:
                quantizer.clamp_(offset=MAX_ROUNDING_OFFSET)

        return update


class BlockAp(BlockLearning):
    """AdamW on all weights, scales and zero points of a block, and on its norms.

    EfficientQAT's Block-AP (Chen et al. 2024, arXiv 2407.11062, section 3.2). Rates are in steps of each group's grid,
    and relative to each norm's own size.
    """

    @property
    def steps(self) -> int:
        return self.settings.block_ap_steps

    def others(self, block: CalibratedBlock) -> list[nn.Parameter]:
        return norms_of(block.module)

    def optimizer(self, learned: list[LearnedRounding], others: list[nn.Parameter]) -> Update:
        rate = self.settings.block_ap_learning_rate or min(MAX_RATE, 1 / self.steps)
        shifts = [quantizer.shift for quantizer in learned if quantizer.shift is not None]
        groups: list[dict[str, Any]] = [
            {"params": [quantizer.offset for quantizer in learned], "lr": rate},
            {"params": [quantizer.stretch for quantizer in learned], "lr": rate * SCALE_RATE},
            {"params": shifts, "lr": rate * SHIFT_RATE},
        ]
        groups += [{"params": [norm], "lr": rate * SCALE_RATE * float(norm.detach().abs().mean())} for norm in others]
        groups = [group for group in groups if group["params"]]
        optimizer = torch.optim.AdamW(groups, weight_decay=0.0, betas=BETAS)
        parameters, first = [*_parameters(learned), *others], [group["lr"] for group in groups]

        def update(gradients: list[Tensor], share: float) -> None:
            for parameter, gradient in zip(parameters, gradients, strict=True):
                parameter.grad = gradient
            for group, lr in zip(optimizer.param_groups, first, strict=True):
                group["lr"] = lr * share
            optimizer.step()
            optimizer.zero_grad()
            for quantizer in learned:
                quantizer.clamp_()

        return update


@contextmanager
def gradients_of_these(parameters: list[nn.Parameter], module: nn.Module) -> Iterator[None]:
    """Inside, these parameters of a module require gradients and no others; afterwards as before."""
    before = [(parameter, parameter.requires_grad) for parameter in module.parameters()]
    for parameter, _ in before:
        parameter.requires_grad_(False)
    for parameter in parameters:
        parameter.requires_grad_(True)
    try:
        yield
    finally:
        for parameter, wanted in before:
            parameter.requires_grad_(wanted)


def norms_of(block: nn.Module) -> list[nn.Parameter]:
    """Parameters of a decoder block's norms: vectors that are no bias of a quantised linear."""
    biases = {id(layer.bias) for layer in fake_quantized_linears(block).values()}
    return [parameter for parameter in block.parameters() if parameter.dim() == 1 and id(parameter) not in biases]


def _parameters(learned: list[LearnedRounding]) -> list[nn.Parameter]:
    return [parameter for quantizer in learned for parameter in quantizer.parameters()]


def _copies(parameters: list[nn.Parameter]) -> list[Tensor]:
    return [parameter.detach().clone() for parameter in parameters]


@torch.no_grad()
def _load(parameters: list[nn.Parameter], values: list[Tensor]) -> None:
    for parameter, value in zip(parameters, values, strict=True):
        parameter.copy_(value)


def _split(batches: int) -> tuple[list[int], list[int]]:
    """Batches to learn from and, spread evenly, batches that decide."""
    everything = list(range(batches))
    if batches < FEWEST_SPLIT:
        return everything, everything
    held_out = everything[HELD_OUT // 2 :: HELD_OUT] or everything[-1:]
    return [batch for batch in everything if batch not in held_out], held_out


def _drawn(batches: list[int]) -> Iterator[int]:
    """Batches in an order that is drawn anew for every pass over them; the same in every call."""
    generator = torch.Generator().manual_seed(0)
    while True:
        for place in torch.randperm(len(batches), generator=generator).tolist():
            yield batches[place]


def _gradients(block: CalibratedBlock, batch: int, parameters: list[nn.Parameter]) -> list[Tensor]:
    with torch.enable_grad():
        target = block.stream.fetch(block.targets[batch])
        loss = (block.run(batch).float() - target.float()).square().mean()
        return list(torch.autograd.grad(loss, parameters))


@torch.no_grad()
def _error(block: CalibratedBlock, batches: Iterable[int]) -> float:
    """Summed over batches, the mean squared error of the block's output; read from the device once."""
    errors = [
        (block.run(batch).float() - block.stream.fetch(block.targets[batch]).float()).square().mean()
        for batch in batches
    ]
    return float(torch.stack(errors).sum())
