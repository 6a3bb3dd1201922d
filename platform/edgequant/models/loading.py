"""Which models there are, and how to load one: short name, hub id, folder, GGUF file, MLflow URI."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from edgequant.errors import UserError
from edgequant.models import hub

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

# The four models of the methodology, by the names that the papers use.
HUB_MODELS = {
    "qwen2.5-0.5b": "Qwen/Qwen2.5-0.5B",
    "tinyllama-1.1b": "TinyLlama/TinyLlama-1.1B-Chat-v1.0",
    "phi-1.5": "microsoft/phi-1_5",
    "gemma-3-1b-it": "google/gemma-3-1b-it",
}
SHORT_NAMES = (*HUB_MODELS, "smollm2-135m", "tiny")
DTYPES = ("auto", "float32", "bfloat16", "float16")
TINY_SIZES: dict[str, Any] = {
    "hidden_size": 128,
    "intermediate_size": 512,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 2048,
}
SMOLLM2_CONFIG = {"model_type": "llama", "hidden_size": 576, "intermediate_size": 1536, "num_attention_heads": 9}


@dataclass(frozen=True)
class ModelSource:
    """Where a model comes from. `name` is short and fit for a tag or a registered model's name."""

    kind: str  # hub, folder, gguf, embedded, tiny, mlflow
    name: str
    location: str


class LoadedModel(NamedTuple):
    """A model in evaluation mode, its tokenizer, and where it came from."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    source: ModelSource


def resolve(source: str) -> ModelSource:
    """Say what a model argument means, without loading anything.

    Raises:
        UserError: a path that does not exist, or a name that is neither a short name nor a hub id.
    """
    if source in HUB_MODELS:
        return ModelSource("hub", source, HUB_MODELS[source])
    if source == "smollm2-135m":
        return ModelSource("embedded", source, source)
    if source == "tiny":
        return ModelSource("tiny", source, source)
    if source.startswith(("models:/", "runs:/")):
        return ModelSource("mlflow", _tag_name(re.sub(r"^\w+:/+", "", source)), source)
    path = Path(source).expanduser()
    if source and path.is_dir():
        return _folder_source(path)
    if path.is_file() and path.suffix == ".gguf":
        return ModelSource("gguf", _tag_name(path.stem), str(path.resolve()))
    if _looks_like_a_path(source):
        raise UserError(f"model {source!r} does not exist; give a folder with config.json, a .gguf file, {_known()}")
    if not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", source) or "/" not in source:
        raise UserError(f"model {source!r} is unknown; give {_known()}")
    return ModelSource("hub", _tag_name(source.split("/")[-1]), source)


def _folder_source(path: Path) -> ModelSource:
    if (path / "config.json").is_file() or (path / "adapter_config.json").is_file():
        return ModelSource("folder", _folder_name(path), str(path.resolve()))
    files = sorted(path.glob("*.gguf"))
    if len(files) == 1:
        return ModelSource("gguf", _tag_name(files[0].stem), str(files[0].resolve()))
    inside = "no config.json" if not files else f"{len(files)} .gguf files"
    raise UserError(
        f"model folder {str(path)!r} holds {inside}; expected a config.json, adapter_config.json or one .gguf"
    )


def _folder_name(path: Path) -> str:
    """A checkpoint of ours says which model it was made from; any other folder goes by its own name."""
    return str(folder_config(path).get("edgequant_model") or _tag_name(path.resolve().name))


def _looks_like_a_path(source: str) -> bool:
    return source.startswith((".", "/", "~")) or source.endswith(".gguf") or source.count("/") > 1


def _known() -> str:
    names = ", ".join(SHORT_NAMES)
    return f"a short name ({names}), a hub id such as Qwen/Qwen2.5-0.5B, models:/NAME/VERSION or runs:/ID/PATH"


def _tag_name(text: str) -> str:
    return re.sub(r"[^\w.-]+", "-", text).strip("-").lower() or "model"


def check_available(source: str) -> ModelSource:
    """`resolve`, and for a model of the hub a look whether it can be had, so that nobody waits for an error.

    Raises:
        UserError: as `resolve`, or neither in the hub's local cache nor within reach.
    """
    resolved = resolve(source)
    if resolved.kind == "hub":
        hub.check_available(resolved.name, resolved.location)
    return resolved


def load(
    source: str, *, dtype: str = "auto", device: str = "auto", load_options: Mapping[str, Any] | None = None
) -> LoadedModel:
    """Load a causal language model and its tokenizer.

    Args:
        source: short name, hub id, folder (plain model, PEFT adapter, edgequant checkpoint), .gguf file, MLflow URI.
        dtype: compute type: float32, bfloat16, float16, or `auto`: what a quantised checkpoint was measured in, else
            bfloat16 where the device computes it natively, else float32. Integers stay integers.
        device: `auto` (CUDA where there is one, else the CPU), `cpu`, `cuda`, `cuda:1`, ...
        load_options: further arguments for `from_pretrained`, e.g. a `quantization_config`.

    Raises:
        UserError: the source does not exist or cannot be reached; the message says what was tried and the fix.
    """
    if dtype not in DTYPES:
        raise UserError(f"dtype {dtype!r} is unknown; use one of {', '.join(DTYPES)}")
    resolved = resolve(source)
    placed = pick_device(device)
    options: dict[str, Any] = {"dtype": pick_dtype(dtype, placed), **(load_options or {})}
    if "quantization_config" in options:
        options["device_map"] = {"": placed}  # a quantiser places the weights itself
    model, tokenizer = _load_pair(resolved, options, as_checkpoint_says=dtype == "auto")
    if "quantization_config" not in options:
        model = model.to(placed)
    return LoadedModel(model.eval(), tokenizer, resolved)


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
    from edgequant.models.smollm2 import smollm2_folder, tiny_tokenizer

    if resolved.kind == "tiny":
        return tiny_tokenizer()
    if resolved.kind == "embedded":
        return _tokenizer_of(str(smollm2_folder()))
    if resolved.kind == "gguf":
        file = Path(resolved.location)
        return _tokenizer_of(str(file.parent), gguf_file=file.name)
    return load(resolved.location, device="cpu").tokenizer


def _load_pair(resolved: ModelSource, options: dict[str, Any], *, as_checkpoint_says: bool = False) -> tuple[Any, Any]:
    from edgequant.models.smollm2 import load_gguf, smollm2_folder, tiny_folder, tiny_model, tiny_tokenizer

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
        raise UserError(f"model folder {str(folder)!r} has a config.json but no weights; expected *.safetensors")
    return _from_pretrained(str(folder), options)


def _load_adapter(folder: Path, options: dict[str, Any]) -> tuple[Any, Any]:
    from peft import PeftModel

    base = json.loads((folder / "adapter_config.json").read_text()).get("base_model_name_or_path")
    if not base:
        raise UserError(
            f"{folder / 'adapter_config.json'} names no base_model_name_or_path; add the model it was trained on"
        )
    model, tokenizer = _load_pair(resolve(base), options)
    if any(folder.glob("tokenizer*")):
        tokenizer = _tokenizer_of(str(folder))
    return PeftModel.from_pretrained(model, str(folder)), tokenizer


def _from_pretrained(location: str, options: dict[str, Any]) -> tuple[Any, Any]:
    from transformers import AutoModelForCausalLM

    model: Any = AutoModelForCausalLM.from_pretrained(location, **options)
    if hasattr(model, "ct_decompress_hook"):  # compressed-tensors would wait for a call of the whole model
        model.hf_quantizer.compressor.decompress_model(model)
    return model, _tokenizer_of(location)


def is_checkpoint(folder: Path) -> bool:
    """Whether a folder holds one of our quantised checkpoints."""
    return "edgequant_model" in folder_config(folder)


def folder_config(folder: Path) -> dict[str, Any]:
    """A folder's config.json, empty where there is none.

    Raises:
        UserError: it is not JSON.
    """
    file = folder / "config.json"
    try:
        return dict(json.loads(file.read_text())) if file.is_file() else {}
    except ValueError as error:
        raise UserError(f"{file} is not valid JSON ({error}); copy the model's folder again") from error


def _tokenizer_of(location: str, **options: Any) -> Any:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(location, **options)
    if tokenizer.pad_token is None:  # Llama, Phi: batches need one, and the attention mask hides it
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def pick_dtype(dtype: str, device: str) -> str:
    """`auto` to bfloat16 where the device computes it natively, else float32."""
    if dtype != "auto":
        return dtype
    return "bfloat16" if computes_bfloat16(device) else "float32"


def cast(model: PreTrainedModel, dtype: str) -> PreTrainedModel:
    """Cast a model in place as `from_pretrained(dtype=...)` would have loaded it; returns it.

    Rotary frequencies stay as they are: rounded to bfloat16, they turn distant positions by whole radians.
    """
    import torch

    frequencies = [(m, name, b) for m in model.modules() for name, b in m._buffers.items() if "inv_freq" in name]
    model.to(getattr(torch, dtype))
    for module, name, buffer in frequencies:
        module._buffers[name] = buffer
    return model


def computes_bfloat16(device: str) -> bool:
    """Whether a device has bfloat16 arithmetic of its own (Ampere or later; AVX512-BF16, AMX or Arm BF16)."""
    import torch

    if device.startswith("cuda"):
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported()


def layer_inputs(source: str) -> dict[str, int]:
    """Input features of one layer of each kind, as far as they can be told without loading weights (else empty).

    So that a group size that does not fit is refused before anything is downloaded or loaded.
    """
    config = _config_of(resolve(source))
    if not config.get("hidden_size"):
        return {}
    hidden = int(config["hidden_size"])
    heads = int(config.get("num_attention_heads", 1))
    attention = heads * int(config.get("head_dim") or hidden // heads)
    out, down = ("dense", "fc2") if config.get("model_type") == "phi" else ("o_proj", "down_proj")
    layer = "model.layers.0"
    features = {f"{layer}.self_attn.q_proj": hidden, f"{layer}.self_attn.{out}": attention}
    if config.get("intermediate_size"):
        features[f"{layer}.mlp.{down}"] = int(config["intermediate_size"])
    return features


def _config_of(resolved: ModelSource) -> dict[str, Any]:
    if resolved.kind == "tiny":
        return TINY_SIZES
    if resolved.kind == "embedded":
        return SMOLLM2_CONFIG
    if resolved.kind == "folder":
        return folder_config(Path(resolved.location))
    return {}


def pick_device(device: str) -> str:
    """`auto` to `cuda` where there is one, else `cpu`.

    Raises:
        UserError: the device is malformed or not there.
    """
    import torch

    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if not re.fullmatch(r"cpu|cuda(:\d+)?", device):
        raise UserError(f"device {device!r} is unknown; use auto, cpu, cuda or cuda:N")
    if device.startswith("cuda") and int(device.partition(":")[2] or 0) >= torch.cuda.device_count():
        raise UserError(
            f"device {device!r} is not here: torch sees {torch.cuda.device_count()} CUDA devices; use cpu or auto"
        )
    return device


def weights_digest(model: Any) -> str:
    """SHA-256 over a model's configuration and the bytes of every weight and buffer."""
    import torch

    digest = hashlib.sha256(str(model.config.to_dict()).encode())
    for name, tensor in sorted(model.state_dict().items()):
        if isinstance(tensor, torch.Tensor):
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
            digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()
