"""Exact scalings inside a decoder block: a layer's input columns times s, what makes that input divided by s.

Which module makes an input, and how (a norm, Gemma's norm with weight + 1, another linear, value heads shared by a
group of query heads), is proposed from the block's own forward pass and accepted only if the block's output stays the
same.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from edgequant.models.same_function.comparison import check_same, rounding_limit
from edgequant.quantization.ptq.calibrated_block import CalibratedBlock, Group

TOLERANCE = 1e-4  # of the block's largest output: float32 rounding
PROBE_SEED = 0


@dataclass
class ScalingPair:
    """Linears whose columns are scaled and the module that absorbs the inverse: one exact scaling of a block.

    Attributes:
        names: the linears whose columns are scaled.
        producer: the module that absorbs the inverse: a norm, or a linear whose rows are divided.
        plus_one: the norm multiplies by weight + 1 (Gemma).
        shared: s has one number per output of `producer`; each serves this many runs of `run` columns (query heads of a
            group).
        run: columns that lie together (a head's size); the whole input where nothing is shared.
    """

    names: list[str]
    producer: nn.Module
    features: int
    plus_one: bool = False
    shared: int = 1
    run: int = 0

    def gather(self, columns: Tensor) -> Tensor:
        """A quantity of every column [features] brought down to one per number of s, by its mean."""
        return columns if self.shared == 1 else columns.view(-1, self.shared, self.run).mean(1).reshape(-1)

    def spread(self, scale: Tensor) -> Tensor:
        """s for every column, [features]."""
        return scale if self.shared == 1 else scale.view(-1, 1, self.run).expand(-1, self.shared, -1).reshape(-1)

    @torch.no_grad()
    def apply(self, block: CalibratedBlock, scale: Tensor) -> None:
        """Multiply the columns by s, divide their producer by it."""
        producer = self.producer
        weight, bias = getattr(producer, "weight"), getattr(producer, "bias", None)  # noqa: B009 - Module hides the type
        if isinstance(producer, nn.Linear):
            weight.div_(scale[:, None])
        elif self.plus_one:
            weight.copy_((weight + 1) / scale - 1)
        else:
            weight.div_(scale)
        if bias is not None:
            bias.div_(scale)
        for name in self.names:
            block.layers[name].weight.mul_(self.spread(scale))


def find_scaling_pairs(block: CalibratedBlock) -> list[tuple[Group, ScalingPair]]:
    """Every group of linears in the block whose input can be scaled exactly, with the pair that does it."""
    expected = block.probe()
    found: list[tuple[Group, ScalingPair]] = []
    for group in block.groups:
        fitting = (pair for pair in _proposals(block, group) if not _is_held_elsewhere(block, pair))
        pair = next((pair for pair in fitting if _is_exact(block, pair, expected)), None)
        if pair is not None:
            found.append((group, pair))
    return found


@contextmanager
def keeps_output(block: CalibratedBlock) -> Iterator[None]:
    """What is done inside must leave the output of an unquantised block as it is.

    The block's output on calibration text says what logits would: everything behind it stays the same, since no
    parameter is scaled that other parts of the model hold too.

    Raises:
        UserError: it did not; names the block and says how far off.
    """
    before, limit = block.probe(), rounding_limit(block.module, blocks=1)
    yield
    after, change = block.probe(), f"scaling the weights of {block.name}"
    check_same(_rows(before), _rows(after), limit, change, "use a PTQ method without awq or smoothquant")


def _rows(output: Tensor) -> Tensor:
    return output.reshape(-1, output.shape[-1]).float().cpu()


def _is_held_elsewhere(block: CalibratedBlock, pair: ScalingPair) -> bool:
    """Whether a parameter of the pair has a second role, in another block or in this one."""
    scaled = [pair.producer, *(block.layers[name] for name in pair.names)]
    own = [parameter for module in scaled for parameter in module.parameters(recurse=False)]
    roles = [id(one) for module in _at_every_place(block.stream.model) for one in module.parameters(recurse=False)]
    return any(roles.count(id(parameter)) > 1 for parameter in own)


def _at_every_place(model: nn.Module) -> Iterator[nn.Module]:
    return (module for _, module in model.named_modules(remove_duplicate=False))


def _proposals(block: CalibratedBlock, group: Group) -> Iterator[ScalingPair]:
    modules = {f"{block.name}.{name}": module for name, module in block.module.named_modules()}
    features = block.layers[group.names[0]].in_features
    producer = modules.get(group.producer or "")
    weight = getattr(producer, "weight", None)
    if producer is not None and weight is not None and weight.shape == (features,):
        yield ScalingPair(group.names, producer, features)
        yield ScalingPair(group.names, producer, features, plus_one=True)
        return
    before = block.order[: block.order.index(group.names[0])]
    for linear in [block.layers[name] for name in reversed(before) if name in block.layers]:
        outputs = linear.out_features
        if outputs == features:
            yield ScalingPair(group.names, linear, features)
        elif features % outputs == 0:
            yield from _shared_heads(block, group, linear, features, outputs)


def _shared_heads(
    block: CalibratedBlock, group: Group, producer: nn.Module, features: int, outputs: int
) -> Iterator[ScalingPair]:
    sizes = {int(size) for module in block.module.modules() if (size := getattr(module, "head_dim", None))}
    for size in sizes:
        if outputs % size == 0:
            yield ScalingPair(group.names, producer, features, shared=features // outputs, run=size)


@torch.no_grad()
def _is_exact(block: CalibratedBlock, pair: ScalingPair, expected: Tensor) -> bool:
    """Scale by random powers of two, which round nothing in the weights, compare, and scale back."""
    generator = torch.Generator().manual_seed(PROBE_SEED)
    count = pair.features // pair.shared
    scale = torch.exp2(torch.randint(-2, 3, (count,), generator=generator).float()).to(expected.device)
    kept = {name: parameter.clone() for name, parameter in pair.producer.named_parameters(recurse=False)}
    pair.apply(block, scale)
    same = bool((block.probe() - expected).abs().max() <= TOLERANCE * expected.abs().max())
    pair.apply(block, 1 / scale)
    for name, parameter in pair.producer.named_parameters(recurse=False):
        parameter.copy_(kept[name])  # weight + 1 does round
    return same
