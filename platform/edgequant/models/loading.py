"""Load a model and its tokenizer from any source."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from edgequant.models import hub
from edgequant.models.complete import load_complete
from edgequant.models.configs import (
    ADAPTER_CONFIG,
    OUR_METHOD,
    check_small_files,
    folder_config,
    is_adapter,
    is_checkpoint,
    stated_quantization,
)
from edgequant.models.devices import check_dtype, check_finite, pick_device, pick_dtype
from edgequant.models.load_errors import told_in_one_line
from edgequant.models.manifest import verify_if_ours
from edgequant.models.onnx.folder import KIND as ONNX
from edgequant.models.onnx.folder import not_for_torch
from edgequant.models.sources import ModelSource, adapter_base, resolve, stated_name
from edgequant.models.stored_weights import check_weight_files, weights_read_by
from edgequant.models.tokenizers import check_rows, has_tokenizer, load_tokenizer_of

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


class LoadedModel(NamedTuple):
    """A model in evaluation mode, its tokenizer, and where it came from."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    source: ModelSource

    @property
    def stored(self) -> Path | None:
        """The file or folder with its weights as they came, whose bytes are its size; None where there is none."""
        return Path(self.source.location) if self.source.kind == "gguf" else weights_read_by(self.model)


class Rehearsed(NamedTuple):
    """A model that can be loaded: where it comes from, and its modules without weights where they can be had so."""

    source: ModelSource
    model: PreTrainedModel | None


@told_in_one_line
def load(
    source: str | ModelSource,
    *,
    dtype: str = "auto",
    device: str = "auto",
    load_options: Mapping[str, Any] | None = None,
) -> LoadedModel:
    """Load a causal language model and its tokenizer.

    Args:
        source: short name, hub id, folder (plain model, PEFT adapter, edgequant checkpoint), .gguf file, MLflow URI, or
            what `resolve` made of one of these.
        dtype: compute type: float32, bfloat16, float16, or `auto`: what a quantised checkpoint was measured in, else
            bfloat16 where the device computes it natively, else float32. Integers stay integers.
        device: `auto` (CUDA where there is one, else the CPU), `cpu`, `cuda`, `cuda:1`, ...
        load_options: further arguments for `from_pretrained`, e.g. a `quantization_config`.

    Raises:
        UserError: the source does not exist or cannot be reached, or a weight is NaN or infinite; the message says what
            was tried and the fix.
    """
    check_dtype(dtype)
    resolved = resolve(source)
    if resolved.kind == ONNX:
        raise not_for_torch(resolved.location)
    placed = pick_device(device)
    options: dict[str, Any] = {"dtype": pick_dtype(dtype, placed), **(load_options or {})}
    if "quantization_config" in options or _is_over_bitsandbytes(resolved):
        options["device_map"] = {"": placed}  # a quantiser places the weights itself
    model, tokenizer = _load_pair(resolved, options, as_checkpoint_says=dtype == "auto")
    if "device_map" not in options:
        model = model.to(placed)
    check_finite(model)
    if resolved.kind == "hub":
        _record(resolved.location, model)
    return LoadedModel(model.eval(), tokenizer, resolved)


def _record(repository: str, model: Any) -> None:
    """In the active run, if there is one, which commit of a repository was loaded: its branch moves on."""
    commit = hub.commit_of(repository, model.config)
    if commit is not None and "mlflow" in sys.modules:  # without which there is no run
        from edgequant import tracking

        tracking.log_revision(hub.split(repository)[0], commit)


@told_in_one_line
def load_tokenizer(source: str) -> PreTrainedTokenizerBase:
    """The tokenizer of a model source, without its weights.

    Raises:
        UserError: as `load`; a folder needs only the tokenizer's files.
    """
    path = Path(source).expanduser()
    if path.is_dir() and has_tokenizer(path):
        verify_if_ours(path)
        return load_tokenizer_of(str(path))
    resolved = resolve(source)
    if resolved.kind == "hub":
        return hub.fetched(resolved.name, resolved.location, lambda: load_tokenizer_of(hub.located(resolved.location)))
    return _load_tokenizer_of(resolved)


def _load_tokenizer_of(resolved: ModelSource) -> PreTrainedTokenizerBase:
    from edgequant.models.gguf.load import load_gguf_tokenizer
    from edgequant.models.smollm2 import smollm2_folder
    from edgequant.models.tiny import tiny_tokenizer

    if resolved.kind == "tiny":
        return tiny_tokenizer()
    if resolved.kind == "embedded":
        return load_tokenizer_of(str(smollm2_folder()))
    if resolved.kind == "gguf":
        return load_gguf_tokenizer(Path(resolved.location))
    return load(resolved.location, device="cpu").tokenizer


def check_available(source: str | ModelSource) -> ModelSource:
    """`rehearse`, of which only the source is wanted."""
    return rehearse(source).source


def rehearse(source: str | ModelSource) -> Rehearsed:
    """`resolve`, and a look whether the model can be had and loaded, so that nobody waits for an error.

    What lies on the hub, in the registry or in a run is fetched. Files are verified and the weights compared with
    config.json by names and shapes, adapters and their base alike, without reading the weights; so is what a GGUF file
    says.

    Returns:
        Where the model comes from (of the registry or a run: the folder that it was fetched to, under its name), and
        its modules on the device `meta`, None where nothing was loaded.

    Raises:
        UserError: as `resolve` and `load`, or neither in the hub's local cache nor within reach.
    """
    from edgequant.models.gguf.load import check_gguf

    resolved = resolve(source)
    if resolved.kind == ONNX:
        raise not_for_torch(resolved.location)
    if resolved.kind == "mlflow":
        folder = _fetched_folder(resolved)
        found, family = rehearse(str(folder)), resolved.version_of or stated_name(folder)
        return found._replace(source=replace(found.source, name=resolved.name, version_of=family))
    if resolved.kind == "hub":
        hub.check_available(resolved.name, resolved.location)
    if resolved.kind == "gguf":
        check_gguf(Path(resolved.location))
    if _can_be_rehearsed(resolved):
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*meta parameter.*")  # nothing is copied: that is the purpose
            return Rehearsed(resolved, _load_pair(resolved, {"dtype": "float32", "device_map": "meta"})[0])
    if resolved.kind == "folder":
        _check_files(Path(resolved.location))
    return Rehearsed(resolved, None)


def _is_over_bitsandbytes(resolved: ModelSource) -> bool:
    from edgequant.models.adapters.quantized_base import BITSANDBYTES, stated_base

    return resolved.kind == "folder" and stated_base(Path(resolved.location)) in BITSANDBYTES


def _can_be_rehearsed(resolved: ModelSource) -> bool:
    """Whether it can be loaded without its weights: nothing to make, and no quantiser that asks for values."""
    folder = Path(resolved.location)
    if resolved.kind not in ("folder", "hub") or _is_over_bitsandbytes(resolved):
        return False
    if resolved.kind == "folder" and is_adapter(folder):
        base = adapter_base(folder)
        return base.kind == "tiny" or _can_be_rehearsed(base)
    config = folder_config(folder) if resolved.kind == "folder" else hub.stated_config(resolved.name, resolved.location)
    method = stated_quantization(config)
    return method in (None, OUR_METHOD) or not _has_quantizer(method)


def _has_quantizer(method: str | None) -> bool:
    from transformers.quantizers.auto import AUTO_QUANTIZATION_CONFIG_MAPPING

    return any(known == method or known.startswith(f"{method}_") for known in AUTO_QUANTIZATION_CONFIG_MAPPING)


def _load_pair(resolved: ModelSource, options: dict[str, Any], *, as_checkpoint_says: bool = False) -> tuple[Any, Any]:
    from edgequant.models.gguf.load import load_gguf
    from edgequant.models.smollm2 import smollm2_folder
    from edgequant.models.tiny import tiny_folder, tiny_model, tiny_tokenizer

    match resolved.kind:
        case "tiny" if "device_map" not in options:
            return tiny_model(options["dtype"]), tiny_tokenizer()
        case "tiny":
            return _load_folder(tiny_folder(), options)
        case "embedded":
            return _load_folder(smollm2_folder(), options)
        case "gguf":
            return load_gguf(Path(resolved.location), options)
        case "folder":
            folder = Path(resolved.location)
            if as_checkpoint_says and is_checkpoint(folder):
                options = options | {"dtype": "auto"}  # transformers: the type that config.json names
            return _load_folder(folder, options)
        case "mlflow":
            fetched = resolve(str(_fetched_folder(resolved)))
            return _load_pair(fetched, options, as_checkpoint_says=as_checkpoint_says)
        case _:
            return hub.fetched(resolved.name, resolved.location, lambda: _load_hub(resolved.location, options))


def _fetched_folder(resolved: ModelSource) -> Path:
    from edgequant import tracking

    return _model_folder_in(tracking.download(resolved.location))


def _model_folder_in(folder: Path) -> Path:
    """A registered model may wrap the checkpoint (MLmodel beside artifacts/): find the folder that holds the model."""
    for candidate in (folder, folder / "checkpoint", folder / "artifacts" / "checkpoint"):
        if (candidate / "config.json").is_file() or is_adapter(candidate):
            return candidate
    return folder


def _load_folder(folder: Path, options: dict[str, Any]) -> tuple[Any, Any]:
    from edgequant.models.adapters.load import load_adapter

    _check_files(folder)
    return load_adapter(folder, options, _load_pair) if is_adapter(folder) else _load_model(str(folder), options)


def _check_files(folder: Path) -> None:
    from edgequant.models.adapters.load import check_adapter

    verify_if_ours(folder)
    check_small_files(folder)
    if is_adapter(folder):
        check_adapter(folder)
    else:
        check_weight_files(folder, quantized_by=stated_quantization(folder_config(folder)))


def _load_hub(repository: str, options: dict[str, Any]) -> tuple[Any, Any]:
    """An adapter's files are few and its base another repository: it is fetched whole and read as a folder, and so is
    what is pinned to a revision."""
    from huggingface_hub import snapshot_download
    from transformers.utils import cached_file

    from edgequant.models.adapters.load import load_adapter

    if hub.split(repository)[1] is not None:
        return _load_folder(Path(hub.located(repository)), options)
    found = cached_file(
        repository,
        ADAPTER_CONFIG,
        _raise_exceptions_for_missing_entries=False,
        _raise_exceptions_for_connection_errors=False,
    )
    if found is None:
        return _load_model(repository, options)
    return load_adapter(Path(snapshot_download(repository)), options, _load_pair)


def _load_model(location: str, options: dict[str, Any]) -> tuple[Any, Any]:
    model = load_complete(location, options)
    if hasattr(model, "ct_decompress_hook"):  # compressed-tensors would wait for a call of the whole model
        model.hf_quantizer.compressor.decompress_model(model)
    tokenizer = load_tokenizer_of(location)
    check_rows(tokenizer, model, location)
    return model, tokenizer
