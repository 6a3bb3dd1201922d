"""Adapters folded into the weights, without a change of what is computed."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from edgequant.models.same_function.comparison import check_same, probe_logits, probe_tokens, rounding_limit
from edgequant.models.same_function.ties import give_own_weights, mark_untied, says_tied, tie_if_equal

OVER_INTEGERS = 0.1  # bitsandbytes computes in its own precision, LLM.int8 with rounded activations: 0.02 on `tiny`


def merge_adapters(adapted: Any, tokenizer: Any = None) -> Any:
    """A peft model's plain model, its active adapters folded into the weights: for LoRA W + (alpha / rank) B A.

    Where embedding and head are one tensor and an adapter changes either, each gets its own: the adapter of one was
    trained without reaching the other. The merged model says then that it is untied. Weights of bitsandbytes are given
    back as floating point, since integers could not hold the update.

    Args:
        adapted: of peft; used up.
        tokenizer: the model's own, to compare logits on text before and after.

    Raises:
        UserError: the merged model computes something else; says how far off.
    """
    tokens = probe_tokens(adapted, tokenizer)
    before = probe_logits(adapted, tokens)
    limit = max(rounding_limit(adapted), OVER_INTEGERS if _over_integers(adapted) else 0.0)
    tied = says_tied(adapted.get_base_model())
    give_own_weights(adapted, {id(layer.get_base_layer()) for _, layer in _adapted_layers(adapted)})
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*no longer tied after merging")  # said below
        merged = _merged_in_float(adapted) if _over_integers(adapted) else adapted.merge_and_unload()
    if tied and not tie_if_equal(merged):
        mark_untied(merged)
        print("merging: embedding and head were one tensor and are two now, as their adapters were trained", flush=True)
    check_same(before, probe_logits(merged, tokens), limit, "merging the adapter", "use the adapter as it is, unmerged")
    return merged


def _adapted_layers(adapted: Any) -> Iterator[tuple[str, Any]]:
    from peft.tuners.tuners_utils import BaseTunerLayer

    base = adapted.get_base_model()
    return ((name, module) for name, module in base.named_modules() if isinstance(module, BaseTunerLayer))


def _over_integers(adapted: Any) -> bool:
    method = getattr(adapted.get_base_model(), "quantization_method", None)
    return str(getattr(method, "value", method)) == "bitsandbytes"


@torch.no_grad()
def _merged_in_float(adapted: Any) -> Any:
    updates: dict[str, Tensor] = {
        name: sum(layer.get_delta_weight(active) for active in layer.active_adapters if active in layer.lora_A)
        for name, layer in _adapted_layers(adapted)
        if getattr(layer, "lora_A", None)
    }
    plain = adapted.unload().dequantize()
    for name, update in updates.items():
        if isinstance(update, Tensor):
            weight = plain.get_submodule(name).weight
            weight.add_(update.to(weight))
    return plain
