"""Adapters that bring tokens of their own, or that change one of the two roles of a tied matrix."""

from __future__ import annotations

import re
from typing import Any

from edgequant.errors import UserError
from edgequant.models.same_function.merging import SPLIT_UP
from edgequant.models.same_function.ties import mark_untied

TOKENS = re.compile(r"\.(token_adapter\..*|trainable_tokens_\w+)$")  # what peft keeps of tokens trained one by one


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
    before = {module: _rows_before(weights, name) for module, name in names.items()}
    whole = {module: weights.get(f"{name}.weight") for module, name in names.items()}
    tied = head is not None and head.weight is embedding.weight
    if tied:
        _drop_second_names(weights, names[embedding], names[head])
    wanted = next((len(rows) for rows in (whole[embedding], before[embedding]) if rows is not None), None)
    grows = wanted is not None and wanted != embedding.weight.shape[0]
    if grows:
        base.resize_token_embeddings(wanted, mean_resizing=False)
        known = _take(base.get_input_embeddings(), before[embedding]) and tied
    if tied and _changes_one_role(config, weights, names.values(), [whole[embedding], whole[head]]):
        _untie(base)
        tied = False
    if grows and not tied and head is not None and not known and whole[head] is before[head] is None:
        raise UserError(
            f"adapter {folder} has an embedding of {wanted:,} rows and no head for them; save it with "
            "save_embedding_layers=True"
        )


def _rows_before(weights: dict[str, Any], name: str) -> Any:
    """Of an embedding or head as it was before it was trained; peft saves it where a vocabulary has grown.

    What it saves of a module that was trained whole a second time, under another name, is taken out.
    """
    trained = weights.pop(f"{name}.modules_to_save.weight", None)
    if trained is not None:
        weights.setdefault(f"{name}.weight", trained)
    original = weights.pop(f"{name}.original_module.weight", None)
    layers = (weights.get(f"{name}.{inner}.weight") for inner in ("base_layer", "token_adapter.base_layer"))
    return next((rows for rows in (original, *layers) if rows is not None), None)


def _drop_second_names(weights: dict[str, Any], embedding: str, head: str) -> None:
    """Tokens that are trained in a tied matrix are saved under both names, and peft gives back one of them."""
    for name in [name for name in weights if name.startswith(f"{head}.") and TOKENS.search(name)]:
        first = weights.get(f"{embedding}{name.removeprefix(head)}")
        if first is not None and first.shape == weights[name].shape and bool((first == weights[name]).all()):
            del weights[name]


def _take(embedding: Any, rows: Any) -> bool:
    """Whether all rows were known, new ones too, which one matrix with two roles then has in both."""
    if rows is not None and not embedding.weight.is_meta:
        embedding.weight.data.copy_(rows)
    return rows is not None


def _changes_one_role(config: Any, weights: dict[str, Any], names: Any, whole: list[Any]) -> bool:
    if getattr(config, "ensure_weight_tying", False):
        return False
    saved = getattr(config, "modules_to_save", None) or ()
    own = [key for key in weights if not TOKENS.search(key)]  # peft keeps the head's tokens tied to these itself
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
