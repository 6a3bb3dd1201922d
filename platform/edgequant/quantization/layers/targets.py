"""Where a scheme applies in a model: its linears, its embedding and its output head, tied or not."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from torch import nn

from edgequant.errors import UserError
from edgequant.quantization.scheme import Scheme, check_group_sizes


@dataclass(frozen=True)
class Targets:
    """Names of the layers to quantise. `head` and `embedding` are None where they stay as they are."""

    linears: tuple[str, ...]
    embedding: str | None
    head: str | None
    tied: bool

    @property
    def names(self) -> tuple[str, ...]:
        """All of them, in the model's order."""
        extra = [name for name in (self.embedding, self.head) if name is not None]
        return (*self.linears, *extra)

    @property
    def weights(self) -> tuple[str, ...]:
        """The layers that hold a weight of their own: of a tied embedding and head, the embedding."""
        return tuple(name for name in self.names if self.weight_of(name) == name)

    def weight_of(self, name: str) -> str:
        """The layer that holds the weight of the layer `name`."""
        return self.embedding if self.tied and name == self.head and self.embedding else name


def widths_of(model: nn.Module, targets: Targets) -> dict[str, int]:
    """Input features of every weight of a floating-point model that is quantised."""
    return {name: int(model.get_submodule(name).weight.shape[1]) for name in targets.weights}  # type: ignore[union-attr,index]


def find_targets(model: nn.Module, scheme: Scheme) -> Targets:
    """Find the layers that a scheme quantises: every nn.Linear but the head, and the embedding and head with `+emb`.

    Raises:
        UserError: the model has no nn.Linear or no nn.Embedding where one is wanted, a group size does not fit, or the
            scheme gives bits to a layer that is not there.
    """
    modules = dict(model.named_modules())
    embedding_name, head_name = _embedding_name(modules, model), _head_name(modules, model)
    linears = tuple(name for name, module in modules.items() if isinstance(module, nn.Linear) and name != head_name)
    if not linears:
        raise UserError(
            f"model must have layers of nn.Linear, which scheme {scheme.name} quantises, got {type(model).__name__}"
            f"{_made_of(modules)}; choose another architecture (Llama, Qwen, Gemma, Phi, ...), or convert its layers "
            "to nn.Linear"
        )
    if scheme.embedding is None:
        embedding_name = head_name = None
    elif embedding_name is None:
        raise UserError(f"{type(model).__name__} has no input nn.Embedding, which scheme {scheme.name} quantises")
    targets = Targets(linears, embedding_name, head_name, _are_tied(model, modules, embedding_name, head_name))
    check_group_sizes(scheme, _group_inputs(modules, targets, scheme))
    strangers = [layer for layer, _ in scheme.layer_bits if layer not in targets.names]
    if strangers:
        raise UserError(
            f"scheme {scheme.name} gives bits to {strangers[0]}, which is not a layer that it quantises in "
            f"{type(model).__name__}; choose the bits for this model"
        )
    return targets


def _made_of(modules: dict[str, nn.Module]) -> str:
    """The kind of layer that holds most matrices beside embeddings."""
    kinds = Counter(
        type(module).__name__
        for module in modules.values()
        if getattr(getattr(module, "weight", None), "ndim", 0) == 2
        and not isinstance(module, (nn.Embedding, nn.Linear))
    )
    return f" with {kinds.most_common(1)[0][0]} in their place" if kinds else ""


def _group_inputs(modules: dict[str, nn.Module], targets: Targets, scheme: Scheme) -> dict[str, int]:
    names = targets.linears if scheme.weight and scheme.weight.group_size else ()
    inputs = {name: getattr(modules[name], "in_features") for name in names}  # noqa: B009 - Module hides the type
    if targets.embedding and scheme.embedding and scheme.embedding.group_size:
        inputs[targets.embedding] = getattr(modules[targets.embedding], "embedding_dim")  # noqa: B009
    return inputs


def _embedding_name(modules: dict[str, nn.Module], model: nn.Module) -> str | None:
    getter = getattr(model, "get_input_embeddings", None)
    found = getter() if getter else None
    return next(
        (name for name, module in modules.items() if module is found and isinstance(module, nn.Embedding)), None
    )


def _head_name(modules: dict[str, nn.Module], model: nn.Module) -> str | None:
    getter = getattr(model, "get_output_embeddings", None)
    found = getter() if getter else None
    return next((name for name, module in modules.items() if module is found and isinstance(module, nn.Linear)), None)


def _are_tied(model: nn.Module, modules: dict[str, nn.Module], embedding: str | None, head: str | None) -> bool:
    """One parameter already, or about to become one: transformers ties a model on the meta device only later."""
    if embedding is None or head is None:
        return False
    weight = getattr(modules[head], "weight", None)
    if (
        weight is not None
        and weight.is_meta
        and f"{head}.weight" in (getattr(model, "all_tied_weights_keys", None) or {})
    ):
        return True
    return weight is not None and getattr(modules[embedding], "weight", None) is weight


def replace_module(model: nn.Module, name: str, replacement: nn.Module) -> None:
    """Put `replacement` where the module `name` is."""
    parent, _, child = name.rpartition(".")
    setattr(model.get_submodule(parent), child, replacement)
