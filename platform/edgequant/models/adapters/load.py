"""PEFT adapters over the model that they name: all of their weights found, merged into a floating-point model."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

from edgequant.disk.leftovers import Scratch
from edgequant.errors import UserError
from edgequant.models.adapters.embeddings import fit_embeddings
from edgequant.models.adapters.quantized_base import as_linears, base_options, check_base, stated_base
from edgequant.models.complete import load_complete, named, one_line, readable_errors, renamed
from edgequant.models.configs import ADAPTER_CONFIG, CONFIG, read_object
from edgequant.models.devices import cast
from edgequant.models.same_function.merging import fold_in, merge_adapters
from edgequant.models.same_function.ties import head_weights
from edgequant.models.sources import ModelSource, adapter_base
from edgequant.models.stored_weights import SINGLE, safetensors_header
from edgequant.models.tokenizers import check_rows, has_tokenizer, load_tokenizer_of

WEIGHTS = ("adapter_model.safetensors", "adapter_model.bin")
PREFIX = "base_model.model."
CHANGING_THE_BASE = ("pissa", "olora")  # ways to begin that take from the base what they put into the adapter

Pair = tuple[Any, Any]
LoadPair = Callable[[ModelSource, dict[str, Any]], Pair]


def check_adapter(folder: Path) -> None:
    """Refuse an adapter that cannot be loaded, as far as its own files tell.

    Raises:
        UserError: no weights, no LoRA-like adapter of a causal language model, or a whole model beside it.
    """
    file = folder / ADAPTER_CONFIG
    config = read_object(file)
    adapter_base(folder)
    weights = next((folder / name for name in WEIGHTS if (folder / name).is_file()), None)
    if weights is None:
        raise UserError(
            f"adapter weights ({WEIGHTS[0]}) not found in {folder}, which has an {file.name}; copy it whole"
        )
    if weights.suffix == ".safetensors":
        safetensors_header(weights)
    if (folder / CONFIG).is_file() and any((folder / name).is_file() for name in (SINGLE, f"{SINGLE}.index.json")):
        raise UserError(
            f"{folder} holds both a model ({SINGLE}) and an adapter ({file.name}); keep each in a folder of its own"
        )
    task = config.get("task_type")
    if task not in (None, "CAUSAL_LM"):
        raise UserError(f"{file}: task_type must be CAUSAL_LM, got {task!r}; use an adapter of a language model")


def load_adapter(folder: Path, options: dict[str, Any], load_pair: LoadPair) -> Pair:
    """An adapter and its model: merged in float32 and cast, or on top of weights that are quantised already.

    Args:
        folder: with adapter_config.json and the adapter's weights.
        options: of `from_pretrained`. A `quantization_config` is applied to what was merged.
        load_pair: loads the base model and its tokenizer.

    Raises:
        UserError: weights that are missing, left over or of another shape; tokens without a row; no base model.
    """
    check_adapter(folder)
    if "quantization_config" in options:
        return _quantized(folder, options, load_pair)
    source, scheme = adapter_base(folder), stated_base(folder)
    if scheme is not None and source.kind == "folder":
        check_base(folder, Path(source.location))
    base, tokenizer = load_pair(source, base_options(scheme, options))
    if has_tokenizer(folder):
        tokenizer = load_tokenizer_of(str(folder))
    with readable_errors(f"adapter {str(folder)!r}", str(folder)):
        adapted = _attach(base, folder)
        check_rows(tokenizer, adapted, str(folder))
        if getattr(base, "is_quantized", False):
            return adapted, tokenizer
        return _merged(adapted, folder, options["dtype"], tokenizer), tokenizer


def _quantized(folder: Path, options: dict[str, Any], load_pair: LoadPair) -> Pair:
    """bitsandbytes quantises what it reads from disk, and nothing else."""
    plain = {name: value for name, value in options.items() if name not in ("quantization_config", "device_map")}
    model, tokenizer = load_adapter(folder, plain | {"dtype": "float32"}, load_pair)
    if getattr(model, "is_quantized", False):
        raise UserError(
            f"adapter {folder} stands on a quantised model, which cannot be quantised again; use its float one"
        )
    with Scratch() as temporary:
        model.save_pretrained(temporary)
        return load_complete(temporary, options), tokenizer


def _attach(base: Any, folder: Path) -> Any:
    from peft import load_peft_weights, set_peft_model_state_dict

    config, made_from = _configuration(folder, without_values=base.device.type == "meta")
    weights = _by_module(load_peft_weights(str(folder), device="cpu"), base)
    if head_weights(base) is not None:  # integers keep the rows that they have
        fit_embeddings(base, config, weights, str(folder))
    stored = {PREFIX + name: tensor for name, tensor in weights.items()}
    try:
        adapted = _with_layers(base, config)
        report: Any = set_peft_model_state_dict(adapted, stored)
    except KeyError as error:  # peft looks up the modules that were to be saved whole
        raise UserError(f"adapter {folder} lacks tensor {error.args[0]}; copy it whole") from error
    except (RuntimeError, ValueError) as error:
        raise UserError(
            f"adapter {folder} does not fit its base {made_from!r} ({one_line(error)}); use the base it was trained on"
        ) from error
    missing = _missing(adapted, report.missing_keys)
    if missing or report.unexpected_keys:
        fault = f"lacks {named(missing)}" if missing else f"holds {named(report.unexpected_keys)}, without a place"
        raise UserError(f"adapter {folder} {fault} on its base {made_from!r}; use the base it was trained on")
    return adapted.eval()


def _with_layers(base: Any, config: Any) -> Any:
    """peft's layers around the base's; beside our integer linears too, whose kind peft does not know."""
    from peft import PeftModelForCausalLM

    with as_linears(base) as custom, warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Unsupported layer type")
        if custom:
            config._register_custom_module(custom)
        return PeftModelForCausalLM(base, config)


def _configuration(folder: Path, *, without_values: bool) -> tuple[Any, Any]:
    """peft's configuration of the adapter, and the base that it names."""
    from peft import PeftConfig

    config = PeftConfig.from_pretrained(str(folder))
    if config.is_prompt_learning:
        raise UserError(
            f"adapter {folder} must change weights, as LoRA does, got {config.peft_type.value}; merge it first"
        )
    start = str(getattr(config, "init_lora_weights", None)).lower()
    if start.startswith("pissa_niter"):
        raise UserError(
            f"adapter {folder} was begun with {start}, which changed its base by random numbers that nobody has; save "
            "it with path_initial_model_for_weight_conversion, as peft's page on PiSSA says"
        )
    if without_values and start.startswith(CHANGING_THE_BASE):
        config.init_lora_weights = True  # names and shapes are the same
    config.inference_mode = True
    return config, config.base_model_name_or_path


def _missing(adapted: Any, reported: list[str]) -> list[str]:
    """Of what peft reports the tensors that it would have saved, without second names for one that was found."""
    from peft import get_peft_model_state_dict

    parameters = dict(adapted.named_parameters(remove_duplicate=False))
    found = {id(tensor) for name, tensor in parameters.items() if name not in reported}
    saved = {name.removesuffix(".weight") for name in get_peft_model_state_dict(adapted, save_embedding_layers=False)}
    return [
        name
        for name in reported
        if ".default" in name and id(parameters.get(name)) not in found and _as_saved(name) in saved
    ]


def _as_saved(name: str) -> str:
    return name.replace(".default", "").replace(".modules_to_save", "").removesuffix(".weight")


def _by_module(weights: dict[str, Any], base: Any) -> dict[str, Any]:
    """An adapter's tensors by the names of the base's modules, without what wrappers put before them."""
    layers = {name for name, module in base.named_modules() if not any(module.children())}

    def stands(name: str) -> bool:
        return any(name[:end] in layers for end, character in enumerate(name) if character == ".")

    plain = {name: name.removeprefix(PREFIX) for name in weights}
    return {plain[name] if stands(plain[name]) else renamed(name): tensor for name, tensor in weights.items()}


def _merged(adapted: Any, folder: Path, dtype: str, tokenizer: Any) -> Any:
    """W + scale B A in float32, then cast as the merged model would be loaded."""
    if adapted.device.type == "meta":
        return fold_in(adapted)
    merged = merge_adapters(adapted, tokenizer)
    merged.name_or_path = str(folder / ADAPTER_CONFIG)  # not the base's folder, whose size on disk is not this model's
    return cast(merged, dtype) if dtype != "auto" else merged
