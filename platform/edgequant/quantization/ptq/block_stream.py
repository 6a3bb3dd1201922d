"""A model's decoder blocks one after the other, with the inputs of one block at a time in memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from edgequant.errors import UserError
from edgequant.quantization.layers.fake_quantized import fake_quantized_linears

Context = tuple[tuple[Any, ...], dict[str, Any]]


class _ForwardStopped(Exception):
    """Raised inside a forward pass once what was wanted has been seen."""


def decoder_blocks(model: nn.Module) -> dict[str, nn.Module]:
    """The decoder blocks by name, in order: the longest list of modules that hold quantised linears.

    Raises:
        UserError: the model has no such list.
    """
    lists = [(name, module) for name, module in model.named_modules() if isinstance(module, nn.ModuleList)]
    fitting = [(name, blocks) for name, blocks in lists if len(blocks) and all(map(fake_quantized_linears, blocks))]
    if not fitting:
        raise UserError(
            f"{type(model).__name__} has no list of decoder blocks with linears, which calibrated PTQ goes through "
            "one by one; use method rtn or mse_clip"
        )
    name, blocks = max(fitting, key=lambda pair: len(pair[1]))
    return {f"{name}.{index}": block for index, block in enumerate(blocks)}


class BlockStream:
    """Runs the parts of a model before, between and behind its decoder blocks.

    Blocks are called as the model itself calls them: masks, rotary embeddings and whatever else a block is given are
    seen once for each shape of batch, and do not depend on the hidden states.
    """

    def __init__(
        self, model: nn.Module, batches: list[Tensor], *, bfloat16: bool = False, offload: bool = False
    ) -> None:
        self.model, self.batches = model, batches
        self.blocks = decoder_blocks(model)
        self.device = next(model.parameters()).device
        self.bfloat16, self.offload = bfloat16, offload
        self._contexts: dict[tuple[int, ...], list[Context]] = {}
        for batch in batches:
            if tuple(batch.shape) not in self._contexts:
                self._contexts[tuple(batch.shape)] = self._seen_contexts(batch)

    def autocast(self) -> AbstractContextManager[Any]:
        """Matrix products in bfloat16 where that was asked for."""
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.bfloat16)

    def full_precision(self) -> AbstractContextManager[Any]:
        """No autocast, whatever surrounds it."""
        return torch.autocast(self.device.type, enabled=False)

    def keep(self, hidden: Tensor) -> Tensor:
        """Hidden states where they wait for their turn."""
        return hidden.detach().cpu() if self.offload else hidden.detach()

    def fetch(self, hidden: Tensor) -> Tensor:
        """Hidden states where they are computed with."""
        return hidden.to(self.device, non_blocking=True)

    @torch.no_grad()
    def first_inputs(self) -> list[Tensor]:
        """What the first block is given for each batch, [batch, length, features]."""
        return [self.keep(self._until_block(0, batch)) for batch in self.batches]

    def run(self, index: int, batch: int, hidden: Tensor, block: nn.Module | None = None) -> Tensor:
        """Block `index`, or another in its place, on the hidden states of batch `batch`; gradients flow if enabled."""
        args, kwargs = self._contexts[tuple(self.batches[batch].shape)][index]
        block = list(self.blocks.values())[index] if block is None else block
        with self.autocast():
            output = block(hidden, *args, **kwargs)
        return output[0] if isinstance(output, tuple) else output

    @torch.no_grad()
    def head_inputs(self, hidden: list[Tensor], head: nn.Module) -> Iterator[Tensor]:
        """What the output head is given for each batch, from the last block's outputs."""
        for batch, states in zip(self.batches, hidden, strict=True):
            yield self._until_head(batch, self.fetch(states), head)

    def logits(self, batch: Tensor, states: Tensor) -> Tensor:
        """What the model makes of a last block's output [batch, length, features]: [batch, length, vocabulary]."""
        with _blocks_replaced(list(self.blocks.values()), lambda _index, *_args, **_kwargs: states), self.autocast():
            return self.model(input_ids=batch.to(self.device), use_cache=False).logits  # type: ignore[no-any-return]

    def _seen_contexts(self, batch: Tensor) -> list[Context]:
        contexts: list[Context] = []

        def record(index: int, hidden: Tensor, *args: Any, **kwargs: Any) -> Tensor:
            contexts.append((args, kwargs))
            if index == len(self.blocks) - 1:
                raise _ForwardStopped
            return hidden

        self._run_with(record, batch)
        return contexts

    def _until_block(self, wanted: int, batch: Tensor) -> Tensor:
        seen: list[Tensor] = []

        def record(index: int, hidden: Tensor, *args: Any, **kwargs: Any) -> Tensor:
            if index == wanted:
                seen.append(hidden)
                raise _ForwardStopped
            return hidden

        self._run_with(record, batch)
        return seen[0]

    def _until_head(self, batch: Tensor, states: Tensor, head: nn.Module) -> Tensor:
        seen: list[Tensor] = []

        def stop(_module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            seen.append(inputs[0])
            raise _ForwardStopped

        handle = head.register_forward_pre_hook(stop)
        try:
            self._run_with(lambda _index, *_args, **_kwargs: states, batch)
        finally:
            handle.remove()
        return seen[0]

    @torch.no_grad()
    def _run_with(self, stand_in: Callable[..., Tensor], batch: Tensor) -> None:
        with _blocks_replaced(list(self.blocks.values()), stand_in), self.autocast():
            try:
                self.model(input_ids=batch.to(self.device), use_cache=False)
            except _ForwardStopped:
                return


@contextmanager
def _blocks_replaced(blocks: list[nn.Module], stand_in: Callable[..., Tensor]) -> Iterator[None]:
    """Let `stand_in(index, hidden, *args, **kwargs)` take the place of every block's forward."""

    def bound(index: int) -> Callable[..., Tensor]:
        def forward(*args: Any, **kwargs: Any) -> Tensor:
            if args:
                return stand_in(index, *args, **kwargs)
            hidden = kwargs.pop("hidden_states")
            return stand_in(index, hidden, **kwargs)

        return forward

    for index, block in enumerate(blocks):
        block.forward = bound(index)  # type: ignore[method-assign]
    try:
        yield
    finally:
        for block in blocks:
            del block.forward


@contextmanager
def capture_inputs(
    layers: list[nn.Module], see: Callable[[nn.Module, Tensor], None], *, stop: bool = False
) -> Iterator[None]:
    """Show `see(layer, inputs)` every input of the layers; with `stop`, a pass ends once all have been seen."""
    seen: set[int] = set()

    def hook(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        see(module, inputs[0])
        seen.add(id(module))
        if stop and len(seen) == len(layers):
            seen.clear()
            raise _ForwardStopped

    handles = [layer.register_forward_pre_hook(hook) for layer in layers]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def run_until_captured(run: Callable[[], Any]) -> None:
    """Run a pass that `capture_inputs(..., stop=True)` may end early."""
    try:
        run()
    except _ForwardStopped:
        return
