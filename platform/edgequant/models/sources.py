"""What a model argument means: short name, hub id, folder, GGUF file, MLflow URI."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgequant.errors import UserError
from edgequant.models import hub
from edgequant.models.tiny import TINY_SIZES

# The four models of the methodology, by the names that the papers use.
HUB_MODELS = {
    "qwen2.5-0.5b": "Qwen/Qwen2.5-0.5B",
    "tinyllama-1.1b": "TinyLlama/TinyLlama-1.1B-Chat-v1.0",
    "phi-1.5": "microsoft/phi-1_5",
    "gemma-3-1b-it": "google/gemma-3-1b-it",
}
SHORT_NAMES = (*HUB_MODELS, "smollm2-135m", "tiny")
SMOLLM2_CONFIG = {
    "model_type": "llama",
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_attention_heads": 9,
    "max_position_embeddings": 8192,
}


@dataclass(frozen=True)
class ModelSource:
    """Where a model comes from. `name` is short and fit for a tag or a registered model's name."""

    kind: str  # hub, folder, gguf, embedded, tiny, mlflow
    name: str
    location: str


def resolve(source: str | ModelSource) -> ModelSource:
    """Say what a model argument means, without loading anything.

    Raises:
        UserError: a path that does not exist, or a name that is neither a short name nor a hub id.
    """
    if isinstance(source, ModelSource):
        return source
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
        raise UserError(f"model {source!r} not found; give a folder with config.json, a .gguf file, {_known()}")
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
        f"model folder must hold a config.json, adapter_config.json or one .gguf, got {str(path)!r} with {inside}"
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


def check_available(source: str | ModelSource) -> ModelSource:
    """`resolve`, and for a model of the hub or a GGUF file a look whether it can be had: nobody waits for an error.

    Raises:
        UserError: as `resolve`, or neither in the hub's local cache nor within reach, or a GGUF file that says what
            cannot be read (its weights are not looked at).
    """
    resolved = resolve(source)
    if resolved.kind == "gguf":
        from edgequant.models.gguf.load import check_gguf

        check_gguf(Path(resolved.location))
    if resolved.kind == "hub":
        hub.check_available(resolved.name, resolved.location)
    return resolved


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


def layer_inputs(source: str | ModelSource) -> dict[str, int]:
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


def context_length(source: str | ModelSource) -> int | None:
    """Positions that a model was made for, where its configuration says so without being downloaded or loaded."""
    length = _config_of(resolve(source)).get("max_position_embeddings")
    return length if isinstance(length, int) and length > 0 else None


def _config_of(resolved: ModelSource) -> dict[str, Any]:
    if resolved.kind == "tiny":
        return TINY_SIZES
    if resolved.kind == "embedded":
        return SMOLLM2_CONFIG
    if resolved.kind == "folder":
        return folder_config(Path(resolved.location))
    return {}
