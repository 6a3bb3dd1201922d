"""One tensor with two roles: a head that is its embedding, and what config.json says of it."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn


def head_weights(model: Any) -> tuple[Any, Any] | None:
    """The weights of embedding and head as they stand, [vocabulary, features]; None where a model lacks one of them."""
    found = []
    for getter in ("get_input_embeddings", "get_output_embeddings"):
        module = getattr(model, getter, lambda: None)()
        weight = getattr(module, "weight", None)
        if not isinstance(weight, torch.Tensor):
            return None
        found.append(weight)
    return found[0], found[1]


def is_tied(model: Any) -> bool:
    """Whether embedding and head are one tensor."""
    weights = head_weights(model)
    return weights is not None and weights[0] is weights[1]


def says_tied(model: Any) -> bool:
    """What the configuration says."""
    return any(bool(getattr(config, "tie_word_embeddings", False)) for config in _configs(model))


def _configs(model: Any) -> list[Any]:
    config = model.config
    text = config.get_text_config() if hasattr(config, "get_text_config") else config
    return [config] if text is config else [config, text]


def mark_untied(model: Any) -> None:
    """Let configuration and bookkeeping say that the head is a matrix of its own, so that it is saved and reloaded."""
    for config in _configs(model):
        config.tie_word_embeddings = False
    head = model.get_output_embeddings()
    own = {f"{name}.weight" for name, module in model.named_modules() if module is head}
    tied = getattr(model, "all_tied_weights_keys", None) or {}
    model.all_tied_weights_keys = {name: source for name, source in tied.items() if not {name, source} & own}


def tie_if_equal(model: Any) -> bool:
    """Make embedding and head one tensor where their values are equal; whether they are one now."""
    weights = head_weights(model)
    if weights is None or weights[0] is weights[1]:
        return True
    if not _are_equal(*weights):
        return False
    model.get_output_embeddings().weight = model.get_input_embeddings().weight
    for config in _configs(model):
        config.tie_word_embeddings = True
    return True


def settle_head(model: Any, location: str) -> None:
    """Go by the weights where config.json says tied and the head has values of its own, and say so; in place.

    transformers leaves such a model untied, with a configuration that says otherwise: written and read again it would
    be another one.

    Args:
        model: as transformers loaded it, with all of its weights.
        location: folder or hub id, for messages.
    """
    if says_tied(model) and not tie_if_equal(model):
        mark_untied(model)
        print(
            f"model {location}: config.json says tie_word_embeddings true, but the weights hold a head of its own "
            "with other values; it is kept, as an untied model",
            flush=True,
        )


def _are_equal(embedding: torch.Tensor, head: torch.Tensor) -> bool:
    if embedding.is_meta or head.is_meta:
        return embedding.is_meta and head.is_meta
    return embedding.dtype == head.dtype and torch.equal(embedding, head.to(embedding.device))


def give_own_weights(model: nn.Module, changed: set[int]) -> bool:
    """Split up parameters that several modules hold where one of these is about to change; whether there were any.

    Args:
        changed: ids of the modules whose weights change.
    """
    owners: dict[int, list[tuple[nn.Module, str]]] = {}
    for module in model.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None:
                owners.setdefault(id(parameter), []).append((module, name))
    shared = [held for held in owners.values() if len(held) > 1 and any(id(module) in changed for module, _ in held)]
    for held in shared:
        for module, name in held[1:]:
            parameter = getattr(module, name)
            setattr(module, name, nn.Parameter(parameter.detach().clone(), requires_grad=parameter.requires_grad))
    return bool(shared)
