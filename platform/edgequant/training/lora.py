"""LoRA and QLoRA through peft: attach adapters, train them with `loop.train`, merge or save them."""

from __future__ import annotations

import warnings
from typing import Any

from edgequant.errors import UserError
from edgequant.models.same_function.integers_of_bitsandbytes import hold_layout
from edgequant.models.same_function.merging import merge_adapters
from edgequant.models.same_function.ties import head_weights, is_tied
from edgequant.training.settings import LoraSettings


def attach(model: Any, settings: LoraSettings, *, made_from: str) -> Any:
    """Freeze a model and put trainable adapters on its linears; the head stays as it is unless it is named.

    Args:
        model: floating-point, or loaded by bitsandbytes in 8 or 4 bits (QLoRA, Dettmers et al. 2023, arXiv 2305.14314).
        made_from: model source written into the adapter, so that it can be loaded by itself.

    Raises:
        UserError: no layer has one of the target names.
    """
    from peft import LoraConfig, get_peft_model, prepare_model_for_kbit_training

    hold_layout(model)
    if getattr(model, "is_loaded_in_8bit", False) or getattr(model, "is_loaded_in_4bit", False):
        model = prepare_model_for_kbit_training(model, use_gradient_checkpointing=False)
    if settings.rank == 0:
        raise UserError("lora.rank must be at least 1 for adapters, such as 8 or 16, got 0")
    names = settings.targets if settings.targets == "all-linear" else [n.strip() for n in settings.targets.split(",")]
    config = LoraConfig(
        r=settings.rank,
        lora_alpha=settings.alpha,  # type: ignore[arg-type]  # a float works
        lora_dropout=settings.dropout,
        target_modules=names,
        task_type="CAUSAL_LM",
    )
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Model with `tie_word_embeddings=True`")  # said below
            adapted = get_peft_model(model, config)
    except ValueError as error:
        linears = sorted(
            {name.rpartition(".")[2] for name, module in model.named_modules() if hasattr(module, "in_features")}
        )
        raise UserError(
            f"lora.targets {settings.targets!r} does not fit: {error}; the layers are {', '.join(linears)}"
        ) from error
    adapted.peft_config["default"].base_model_name_or_path = made_from
    _tell_of_tied(adapted, settings)
    return adapted


def _tell_of_tied(adapted: Any, settings: LoraSettings) -> None:
    """Say before training what adapters on a tied embedding or head make of the merged model."""
    model = adapted.get_base_model()
    ends = (model.get_input_embeddings(), model.get_output_embeddings())
    weights = head_weights(model)
    if weights is not None and is_tied(model) and any(hasattr(end, "base_layer") for end in ends):
        print(
            f"lora.targets {settings.targets!r}: embedding and head are one tensor in this model, and adapters change "
            f"each alone; the merged model is untied, {weights[0].numel() / 1e6:.3g} million parameters more",
            flush=True,
        )


def merge(adapted: Any, tokenizer: Any = None) -> Any:
    """The model with its adapters folded into the weights; as `merge_adapters`, which compares logits."""
    return merge_adapters(adapted, tokenizer)
