"""bitsandbytes' weights given back as floating point, and in the layout that training and dequantising read.

On a CPU with AVX512-BF16 the first forward pass in evaluation mode packs 4-bit weights for a kernel that has no
gradient. Seen with bitsandbytes 0.50.2: a model that was measured before has no gradients behind its
linears, `dequantize` makes noise of it, and asking for its state, as any saving does, leaves its scales transposed.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

from edgequant.models.same_function.comparison import check_same, probe_logits, probe_tokens, rounding_limit

OVER_INTEGERS = 0.3  # it computes in a precision of its own, LLM.int8 with activations rounded: 0.01 on `tiny`
MAY_PACK = "support_avx512bf16_for_cpu"  # bitsandbytes' own switch of a layer


def holds_integers(model: Any) -> bool:
    """Whether bitsandbytes quantised the model."""
    method = getattr(model, "quantization_method", None)
    return str(getattr(method, "value", method)) == "bitsandbytes"


def hold_layout(model: nn.Module) -> None:
    """Put 4-bit weights into the layout that has gradients and can be saved, in place, and let them stay there.

    Scales that were packed stay rounded to bfloat16.
    """
    for layer in _layers(model):
        setattr(layer, MAY_PACK, False)
        state: Any = getattr(layer.weight, "quant_state", None)
        if getattr(state, "packing_format_for_cpu", False):
            layer.state_dict()  # which bitsandbytes unpacks for, but for the scales' order
            if state.absmax.ndim == 2:
                state.absmax = state.absmax.t().reshape(-1).float()


def release_layout(model: nn.Module) -> None:
    """Let 4-bit weights be packed again, now that nothing but measuring is left."""
    for layer in _layers(model):
        from bitsandbytes.functional import has_avx512bf16

        setattr(layer, MAY_PACK, has_avx512bf16())


@contextmanager
def layout_held(model: nn.Module) -> Iterator[None]:
    """Inside, 4-bit weights can be asked for their state; then they may be packed again where they might before."""
    may_pack = [(layer, getattr(layer, MAY_PACK)) for layer in _layers(model)]
    hold_layout(model)
    try:
        yield
    finally:
        for layer, might in may_pack:
            setattr(layer, MAY_PACK, might)


def _layers(model: nn.Module) -> Iterator[Any]:
    return (module for module in model.modules() if hasattr(module, MAY_PACK))


def dequantized(model: Any, tokenizer: Any = None) -> Any:
    """A model of bitsandbytes with the floating-point weights that its integers stand for; the given one is used up.

    Raises:
        UserError: it computes something else; says how far off.
    """
    hold_layout(model)
    tokens = probe_tokens(model, tokenizer)
    before, limit = probe_logits(model, tokens), max(rounding_limit(model), OVER_INTEGERS)
    plain = model.dequantize()
    check_same(before, probe_logits(plain, tokens), limit, "dequantising bitsandbytes' weights")
    return plain
