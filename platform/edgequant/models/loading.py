"""Load a model and its tokenizer from any source."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from edgequant.errors import UserError
from edgequant.models import hub
from edgequant.models.devices import check_dtype, check_finite, pick_device, pick_dtype
from edgequant.models.load_errors import told_in_one_line
from edgequant.models.sources import ModelSource, is_checkpoint, resolve

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


class LoadedModel(NamedTuple):
    """A model in evaluation mode, its tokenizer, and where it came from."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    source: ModelSource


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
    placed = pick_device(device)
    options: dict[str, Any] = {"dtype": pick_dtype(dtype, placed), **(load_options or {})}
    if "quantization_config" in options:
        options["device_map"] = {"": placed}  # a quantiser places the weights itself
    model, tokenizer = _load_pair(resolved, options, as_checkpoint_says=dtype == "auto")
    if "quantization_config" not in options:
        model = model.to(placed)
    check_finite(model)
    return LoadedModel(model.eval(), tokenizer, resolved)


@told_in_one_line
def load_tokenizer(source: str) -> PreTrainedTokenizerBase:
    """The tokenizer of a model source, without its weights.

    Raises:
        UserError: as `load`; a folder needs only the tokenizer's files.
    """
    path = Path(source).expanduser()
    if path.is_dir() and any(path.glob("tokenizer*")):
        return _tokenizer_of(str(path))
    resolved = resolve(source)
    if resolved.kind == "hub":
        return hub.fetched(resolved.name, resolved.location, lambda: _tokenizer_of(resolved.location))
    return _load_tokenizer_of(resolved)


def _load_tokenizer_of(resolved: ModelSource) -> PreTrainedTokenizerBase:
    from edgequant.models.gguf.load import load_gguf_tokenizer
    from edgequant.models.smollm2 import smollm2_folder
    from edgequant.models.tiny import tiny_tokenizer

    if resolved.kind == "tiny":
        return tiny_tokenizer()
    if resolved.kind == "embedded":
        return _tokenizer_of(str(smollm2_folder()))
    if resolved.kind == "gguf":
        return load_gguf_tokenizer(Path(resolved.location))
    return load(resolved.location, device="cpu").tokenizer


def _load_pair(resolved: ModelSource, options: dict[str, Any], *, as_checkpoint_says: bool = False) -> tuple[Any, Any]:
    from edgequant.models.gguf.load import load_gguf
    from edgequant.models.smollm2 import smollm2_folder
    from edgequant.models.tiny import tiny_folder, tiny_model, tiny_tokenizer

    match resolved.kind:
        case "tiny" if "quantization_config" not in options:
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
            return hub.fetched(resolved.name, resolved.location, lambda: _from_pretrained(resolved.location, options))


def _fetched_folder(resolved: ModelSource) -> Path:
    from edgequant import tracking

    return _model_folder_in(tracking.download(resolved.location))


def _model_folder_in(folder: Path) -> Path:
    """A registered model may wrap the checkpoint (MLmodel beside artifacts/): find the folder that holds the model."""
    for candidate in (folder, folder / "checkpoint", folder / "artifacts" / "checkpoint"):
        if (candidate / "config.json").is_file() or (candidate / "adapter_config.json").is_file():
            return candidate
    return folder


def _load_folder(folder: Path, options: dict[str, Any]) -> tuple[Any, Any]:
    if (folder / "adapter_config.json").is_file():
        return _load_adapter(folder, options)
    if not any(folder.glob("*.safetensors")) and not any(folder.glob("*.bin")):
        raise UserError(
            f"weights (*.safetensors) not found in model folder {str(folder)!r}, which has a config.json; copy it whole"
        )
    return _from_pretrained(str(folder), options)


def _load_adapter(folder: Path, options: dict[str, Any]) -> tuple[Any, Any]:
    from peft import PeftModel

    base = json.loads((folder / "adapter_config.json").read_text()).get("base_model_name_or_path")
    if not base:
        raise UserError(
            f"base_model_name_or_path not found in {folder / 'adapter_config.json'}; add the model it was trained on"
        )
    model, tokenizer = _load_pair(resolve(base), options)
    if any(folder.glob("tokenizer*")):
        tokenizer = _tokenizer_of(str(folder))
    return PeftModel.from_pretrained(model, str(folder)), tokenizer


def _from_pretrained(location: str, options: dict[str, Any]) -> tuple[Any, Any]:
    from transformers import AutoModelForCausalLM

    from edgequant.models.same_function.ties import settle_head

    loaded: Any = AutoModelForCausalLM.from_pretrained(location, output_loading_info=True, **options)
    model, report = loaded
    settle_head(model, location, report["missing_keys"])
    if hasattr(model, "ct_decompress_hook"):  # compressed-tensors would wait for a call of the whole model
        model.hf_quantizer.compressor.decompress_model(model)
    return model, _tokenizer_of(location)


def _tokenizer_of(location: str, **options: Any) -> Any:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(location, **options)
    if tokenizer.pad_token is None:  # Llama, Phi: batches need one, and the attention mask hides it
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def weights_digest(model: Any) -> str:
    """SHA-256 over a model's configuration and the bytes of every weight and buffer."""
    import torch

    digest = hashlib.sha256(str(model.config.to_dict()).encode())
    for name, tensor in sorted(model.state_dict().items()):
        if isinstance(tensor, torch.Tensor):
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
            digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()
