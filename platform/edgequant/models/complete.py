"""`load_complete`: a transformers model all of whose weights come from its files; anything else is refused by name."""

from __future__ import annotations

import copy
import logging
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from edgequant.errors import UserError

# What wrappers put into the names of tensors, and what stands there instead: DDP, FSDP, torch.compile, peft,
# activation checkpointing, and a multimodal model whose language model was saved alone or is wanted alone.
RENAMES = {
    r"(?:_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.": "",
    r"^(?:(?:module|base_model\.model|language_model)\.)+": "",
    r"^model\.language_model\.": "model.",
}
# Stored by older versions and other loaders, computed or not used here.
HARMLESS = re.compile(
    r"rotary\w*\.inv_freq$|rotary\w*\.(cos|sin)_cached$|position_ids$|\.attn\.(masked_)?bias$|"
    r"(^|\.)(vision_tower|vision_model|visual|audio_tower|embed_vision|embed_audio|multi_modal_projector)\."
)
OF_QUANTIZERS = re.compile(
    r"\.(SCB|weight_format|absmax|quant_map|nested_absmax|nested_quant_map|quant_state\.\w+|g_idx|"
    r"(weight|input|output|k|v|q)_(scale|zero_point|shape|g_idx|global_scale|scale_inv))$"
)


def load_complete(location: str, options: dict[str, Any]) -> Any:
    """`AutoModelForCausalLM.from_pretrained`, with what it reports read: every weight found, none left over.

    Names with a known prefix (`module.`, `base_model.model.`, `_orig_mod.`, `language_model.`) are read without it.

    Args:
        location: folder or hub id.
        options: of `from_pretrained`; on the device `meta` nothing is read but names and shapes.

    Raises:
        UserError: names tensors that are missing, left over or of another shape, or what transformers could not read.
        OSError: a hub's, which `hub.fetched` words.
    """
    from edgequant.models.same_function.ties import settle_head

    model, report = _load(location, options)
    if report["missing_keys"] and report["unexpected_keys"] and _are_renamed(report):
        del model
        model, report = _load(location, options | {"key_mapping": RENAMES})
    _check_kind(location, model)
    _settle_constants(model, report)
    _check_report(location, model, report)
    settle_head(model, location)
    return model


def _load(location: str, options: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    from transformers import AutoModelForCausalLM

    wanted = {"output_loading_info": True, "ignore_mismatched_sizes": True, "trust_remote_code": False}
    with readable_errors(f"model {location!r}", location), _without_report():
        loaded: Any = AutoModelForCausalLM.from_pretrained(location, **options, **wanted)
    return loaded[0], loaded[1]


@contextmanager
def _without_report() -> Iterator[None]:
    """transformers' report and bar stay out of the output: what the report says is read and refused or done."""
    from transformers.utils import logging as transformers_logging

    logger, shows_bar = logging.getLogger("transformers.modeling_utils"), transformers_logging.is_progress_bar_enabled()
    logger.addFilter(_is_error)  # with a level of its own, transformers says which rules of parallelism are not used
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        logger.removeFilter(_is_error)
        if shows_bar:
            transformers_logging.enable_progress_bar()


def _is_error(record: logging.LogRecord) -> bool:
    return record.levelno >= logging.ERROR


@contextmanager
def readable_errors(what: str, location: str) -> Iterator[None]:
    """What a library raises about foreign files, as one line; lack of memory passes, and OSError for `hub.fetched`."""
    import torch

    try:
        yield
    except (UserError, MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        if isinstance(error, OSError) and not Path(location).is_dir():
            raise
        fix = "install what it needs" if isinstance(error, ImportError) else "copy its folder again"
        raise UserError(f"{what} could not be loaded: {one_line(error)}; {fix}") from error


def one_line(error: BaseException) -> str:
    """An error's kind and text without line ends and without advice that goes on for pages."""
    text = " ".join(str(error).split()).rstrip(".")
    if "trust_remote_code" in text:
        return "it needs Python code of its own, which edgequant does not run"
    if "`CONVERSION` entries" in text:
        return "its quantised tensors do not fit together, some are missing or of another layout"
    return f"{type(error).__name__}: {text[:240]}{'...' if len(text) > 240 else ''}"


def renamed(name: str) -> str:
    """A tensor's name without what wrappers put into it."""
    for pattern, replacement in RENAMES.items():
        name = re.sub(pattern, replacement, name)
    return name


def _are_renamed(report: dict[str, Any]) -> bool:
    """Whether known prefixes explain what is missing, but for a head that may be tied."""
    plain = {renamed(name) for name in report["unexpected_keys"]}
    plain |= {name.partition(".")[2] for name in plain}  # transformers finds a base model without its prefix itself
    return any(name in plain or name.partition(".")[2] in plain for name in report["missing_keys"])


def _settle_constants(model: Any, report: dict[str, Any]) -> None:
    """What no file stores, such as Gemma's factor of the embedding, is a buffer again and is not missed.

    compressed-tensors makes parameters of all that lies beside a quantised weight, also of a buffer that the
    architecture computes by itself; transformers has given it its value, as it has where nothing is quantised.
    """
    if not report["missing_keys"]:
        return
    import torch

    with torch.device("meta"):
        plain = type(model)(copy.deepcopy(model.config))
    constants = {name for name, _ in plain.named_buffers()} - plain.state_dict().keys()
    for name in constants.intersection(report["missing_keys"]):
        path, _, last = name.rpartition(".")
        module = model.get_submodule(path)
        value = getattr(module, last).detach()
        delattr(module, last)
        module.register_buffer(last, value, persistent=False)
    report["missing_keys"] = set(report["missing_keys"]) - constants


def _check_report(location: str, model: Any, report: dict[str, Any]) -> None:
    quantized = getattr(model, "hf_quantizer", None) is not None
    unexpected = [
        name
        for name in sorted(report["unexpected_keys"])
        if not HARMLESS.search(name) and not (quantized and OF_QUANTIZERS.search(name))
    ]
    if mismatched := sorted(report["mismatched_keys"]):
        name, found, wanted = mismatched[0]
        raise UserError(
            f"model {location!r}: tensor {name} has shape {tuple(found)}, config.json asks for {tuple(wanted)}"
            f"{_and_more(mismatched)}; weights and config.json must be of one model, copy the folder again"
        )
    if missing := sorted(report["missing_keys"]):
        left_over = f" (and holds {named(unexpected)}, without a place in it)" if unexpected else ""
        raise UserError(
            f"model {location!r} lacks {named(missing)}{left_over}; copy the whole folder again, or correct config.json"
        )
    if unexpected:
        raise UserError(
            f"model {location!r} holds {named(unexpected)}, without a place in a {type(model).__name__}; weights "
            "and config.json must be of one model, copy the folder again"
        )


def named(tensors: Iterable[str]) -> str:
    """The first few of some tensors, and how many there are."""
    listed = list(tensors)
    shown = ", ".join(listed[:3])
    return f"tensor {shown}" if len(listed) == 1 else f"{len(listed)} tensors ({shown}{', ...' * (len(listed) > 3)})"


def _and_more(listed: list[Any]) -> str:
    return f" ({len(listed) - 1} more like it)" if len(listed) > 1 else ""


def _check_kind(location: str, model: Any) -> None:
    """Refuse a model that reads text in both directions, and weights whose quantisation transformers passed over."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_MASKED_LM_MAPPING_NAMES

    config = model.config
    if config.model_type in MODEL_FOR_MASKED_LM_MAPPING_NAMES and not getattr(config, "is_decoder", False):
        raise UserError(
            f"model {location!r} must be a causal language model, got a {config.model_type}, which reads text in both "
            "directions; use one such as qwen2.5-0.5b"
        )
    stated = getattr(config, "quantization_config", None)
    if stated and getattr(model, "hf_quantizer", None) is None:
        raise UserError(
            f"model {location!r} is quantised in a way that transformers does not know ({str(stated)[:60]}); use the "
            "floating-point model"
        )
