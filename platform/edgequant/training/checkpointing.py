"""Gradient checkpointing (Chen et al. 2016, arXiv 1604.06174): a block keeps its input and is computed again later.

Checkpoints lie around the blocks' compiled code and not within it, on every version of transformers: what is compiled
is the same with and without.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from edgequant.training.compilation import repeated_blocks


@contextlib.contextmanager
def checkpointed_blocks(model: nn.Module) -> Iterator[None]:
    """Inside, the model's repeated blocks keep only their input for the backward pass; outside as before.

    A module with a method `recomputation`, a context manager, is told when its block is computed again, so that it does
    not count the same batch twice.

    Args:
        model: causal language model; enter `compiled_blocks` first where blocks are to be compiled.
    """
    blocks = repeated_blocks(model)
    before = [block._compiled_call_impl for block in blocks]
    for block in blocks:
        block._compiled_call_impl = _checkpointed(block)  # what nn.Module runs instead of `_call_impl` where it is set
    try:
        yield
    finally:
        for block, call in zip(blocks, before, strict=True):
            block._compiled_call_impl = call


def _checkpointed(block: nn.Module) -> Callable[..., Any]:
    call: Callable[..., Any] = block._compiled_call_impl or block._call_impl
    told = [module for module in block.modules() if hasattr(module, "recomputation")]

    def both_passes() -> tuple[contextlib.AbstractContextManager[None], contextlib.AbstractContextManager[None]]:
        return contextlib.nullcontext(), _recomputation(told)

    def run(*arguments: Any, **options: Any) -> Any:
        if not (block.training and torch.is_grad_enabled()):
            return call(*arguments, **options)
        return checkpoint(call, *arguments, use_reentrant=False, context_fn=both_passes, **options)

    return run


@contextlib.contextmanager
def _recomputation(modules: list[nn.Module]) -> Iterator[None]:
    with contextlib.ExitStack() as contexts:
        for module in modules:
            contexts.enter_context(module.recomputation())  # type: ignore[operator]
        yield
