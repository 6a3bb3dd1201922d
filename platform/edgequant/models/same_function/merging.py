"""Adapters folded into the weights, without a change of what is computed."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from edgequant.errors import UserError
from edgequant.models.same_function.comparison import check_same, probe_logits, probe_tokens, rounding_limit
from edgequant.models.same_function.integers_of_bitsandbytes import OVER_INTEGERS, hold_layout, holds_integers
from edgequant.models.same_function.ties import give_own_weights, mark_untied, says_tied, tie_if_equal

SPLIT_UP = "merging: embedding and head were one tensor and are two now, as their adapters were trained"


def merge_adapters(adapted: Any, tokenizer: Any = None) -> Any:
    """A peft model's plain model, its active adapters folded into the weights: for LoRA W + (alpha / rank) B A.

    Where embedding and head are one tensor and an adapter changes either, each gets its own: the adapter of one was
    trained without reaching the other. The merged model says then that it is untied. Weights of bitsandbytes are given
    back as floating point, since integers could not hold the update.

    Args:
        adapted: of peft; used up.
        tokenizer: the model's own, to compare logits on text before and after.

    Raises:
        UserError: it is of a kind that is not part of the weights, or the merged model computes something else; says
            how far off.
    """
    if not hasattr(adapted, "merge_and_unload"):  # prompts and prefixes
        raise UserError(f"a {_kind(adapted)} adapter cannot be merged into weights; use one of LoRA")
    hold_layout(adapted)
    tokens = probe_tokens(adapted, tokenizer)
    before = probe_logits(adapted, tokens)
    limit = max(rounding_limit(adapted), OVER_INTEGERS if holds_integers(adapted.get_base_model()) else 0.0)
    tied = says_tied(adapted.get_base_model())
    give_own_weights(adapted, {id(layer.get_base_layer()) for _, layer in _adapted_layers(adapted)})
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*no longer tied after merging")  # said below
        merged = fold_in(adapted)
    if tied and not tie_if_equal(merged):
        mark_untied(merged)
        print(SPLIT_UP, flush=True)
    check_same(before, probe_logits(merged, tokens), limit, "merging the adapter", "use the adapter as it is, unmerged")
    return merged


def _kind(adapted: Any) -> str:
    return ", ".join(str(getattr(one.peft_type, "value", one.peft_type)) for one in adapted.peft_config.values())


def fold_in(adapted: Any) -> Any:
    """The plain model of `merge_adapters`, not compared: for a model without values, on the device `meta`.

    Raises:
        UserError: an adapter that the weights have no place for.
    """
    kind = _kind(adapted)
    try:
        return _merged_in_float(adapted) if holds_integers(adapted.get_base_model()) else adapted.merge_and_unload()
    except torch.OutOfMemoryError:
        raise
    except (RuntimeError, ValueError, NotImplementedError) as error:
        reason = str(error).rstrip(".")
        raise UserError(f"the {kind} adapter cannot be merged into weights: {reason}; use another") from error


def _adapted_layers(adapted: Any) -> Iterator[tuple[str, Any]]:
    from peft.tuners.tuners_utils import BaseTunerLayer

    base = adapted.get_base_model()
    return ((name, module) for name, module in base.named_modules() if isinstance(module, BaseTunerLayer))


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
