"""torch.compile for the blocks that a model repeats: one translation serves all of them, another the quantised head.

A decoder's blocks run the same code, so compiling a block takes seconds where the whole model would take minutes, and
names of parameters stay as they are. What training through a quantiser adds, many small steps over each weight and
input, is fused into the products' neighbours.
"""

from __future__ import annotations

import contextlib
import importlib.util
from collections.abc import Iterator

import torch
from torch import nn

COMPILE_FROM_PASSES = 200  # passes: a start costs some ten seconds on an H100, which QAT saves again in less than these
BACKEND = "inductor"
VARIANTS = 64  # of a block's code: layers that differ (attention kinds, bits), phases of training


def should_compile(device: torch.device, passes: int) -> bool:
    """Whether compiling is worth its time: on a GPU, in a training of some length, where its compiler is installed."""
    return device.type == "cuda" and passes >= COMPILE_FROM_PASSES and importlib.util.find_spec("triton") is not None


@contextlib.contextmanager
def compiled_blocks(*models: nn.Module | None, tolerant: bool = False) -> Iterator[None]:
    """Inside, the models' repeated blocks, and a head that does more than multiply, run compiled; outside as before.

    Args:
        models: causal language models; None is passed over.
        tolerant: where a block cannot be compiled, run it as it is instead of failing.
    """
    parts = [part for model in models if model is not None for part in (*repeated_blocks(model), *_busy_head(model))]
    dynamo = torch._dynamo.config
    limit = max(VARIANTS, dynamo.recompile_limit)
    # optimize_ddp would cut each block's graph at the buckets of a training on several GPUs; blocks are small enough.
    with dynamo.patch(suppress_errors=tolerant, recompile_limit=limit, optimize_ddp=False):
        for part in parts:
            part.compile(backend=BACKEND)
        try:
            yield
        finally:
            for part in parts:
                part._compiled_call_impl = None


@contextlib.contextmanager
def scoring(model: nn.Module, precision: str = "float32") -> Iterator[None]:
    """Inside, a model in training is scored: as in evaluation mode and without gradients; then it trains on.

    Looking never costs a compilation: where blocks are compiled and training drops nothing out, the very code of the
    training's forward pass computes the score, its gradients unused; else it is done line by line.

    Args:
        model: also one whose blocks are compiled at present. What its quantisers do is the caller's to say, before and
            after. Give it batches of the training's shape.
        precision: `bfloat16` or `float32`, that of training's forward passes.
    """
    was_training, device = model.training, next(model.parameters()).device
    as_in_training = was_training and is_compiled(model) and not _drops_out(model)
    model.train(as_in_training)
    stance = torch.compiler.set_stance("default" if as_in_training else "force_eager")
    try:
        with (
            torch.set_grad_enabled(as_in_training),
            torch.autocast(device.type, torch.bfloat16, enabled=precision == "bfloat16"),
            stance,
        ):
            yield
    finally:
        model.train(was_training)


def is_compiled(model: nn.Module) -> bool:
    """Whether the model's repeated blocks run compiled at present."""
    return any(block._compiled_call_impl is not None for block in repeated_blocks(model))


def _drops_out(model: nn.Module) -> bool:
    """Whether anything is left to chance in training mode."""
    config = getattr(model, "config", None)
    rates = [getattr(config, name, 0.0) for name in vars(config) if "drop" in name or "pdrop" in name] if config else []
    modules = [module.p for module in model.modules() if isinstance(module, nn.modules.dropout._DropoutNd)]
    return any(isinstance(rate, float) and rate > 0 for rate in (*rates, *modules))


def repeated_blocks(model: nn.Module) -> list[nn.Module]:
    """The blocks of the longest list of like modules: the decoder's layers. Empty where there is none."""
    lists = [
        list(module)
        for module in model.modules()
        if isinstance(module, nn.ModuleList) and len(module) > 1 and len({type(block) for block in module}) == 1
    ]
    return max(lists, key=len, default=[])


def _busy_head(model: nn.Module) -> list[nn.Module]:
    head = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None  # type: ignore[operator]
    return [] if head is None or type(head) is nn.Linear else [head]
