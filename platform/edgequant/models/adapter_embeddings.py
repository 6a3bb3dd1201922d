"""Adapters that bring tokens of their own, or that change one of the two roles of a tied matrix."""

from __future__ import annotations

from typing import Any

from edgequant.errors import UserError
from edgequant.models.same_function.merging import SPLIT_UP
from edgequant.models.same_function.ties import mark_untied


def fit_embeddings(base: Any, config: Any, weights: dict[str, Any], folder: str) -> None:
    """Give a base model the rows that an adapter's embedding has, and a head of its own where one role alone changes.

    Args:
        base: floating-point model, changed in place.
        config: peft's, of the adapter.
        weights: of the adapter, by the names of the base's modules, e.g. `lm_head.lora_A.weight`.
        folder: for the message.

    Raises:
        UserError: rows of the head for the new tokens are neither in the adapter nor shared with the embedding.
    """
    embedding, head = base.get_input_embeddings(), base.get_output_embeddings()
    names = {module: name for name, module in base.named_modules() if module in (embedding, head)}
    whole = {module: weights.get(f"{name}.weight") for module, name in names.items()}
    rows, tied = whole[embedding], head is not None and head.weight is embedding.weight
    wanted = embedding.weight.shape[0] if rows is None else len(rows)
    grows = wanted != embedding.weight.shape[0]
    if grows:
        base.resize_token_embeddings(wanted, mean_resizing=False)
    if tied and _changes_one_role(config, weights, names.values(), [whole[embedding], whole[head]]):
        _untie(base)
        tied = False
    if grows and not tied and head is not None and whole[head] is None:
        raise UserError(
            f"adapter {folder} has an embedding of {wanted:,} rows and no head for them; save it with "
            "save_embedding_layers=True"
        )


def _changes_one_role(config: Any, weights: dict[str, Any], names: Any, whole: list[Any]) -> bool:
    if getattr(config, "ensure_weight_tying", False):
        return False
    saved = config.modules_to_save or ()
    own = [key for key in weights if ".token_adapter." not in key]  # peft keeps the head's tokens tied to these itself
    adapted = any(key.startswith(f"{name}.") and key != f"{name}.weight" for key in own for name in names)
    differ = all(stored is not None for stored in whole) and not bool((whole[0] == whole[1]).all())
    return adapted or differ or any(name == module or name.endswith(f".{module}") for name in names for module in saved)


def _untie(base: Any) -> None:
    """What was trained had one matrix in two roles, and changed one of them."""
    import torch

    head = base.get_output_embeddings()
    head.weight = torch.nn.Parameter(head.weight.detach().clone(), requires_grad=False)
    mark_untied(base)
    if not head.weight.is_meta:
        print(SPLIT_UP, flush=True)
