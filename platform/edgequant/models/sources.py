"""What a model argument means: short name, hub id, folder, GGUF file, MLflow URI."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from edgequant.errors import UserError
from edgequant.models import hub
from edgequant.models.configs import (
    ADAPTER_CONFIG,
    CONFIG,
    OUR_METHOD,
    folder_config,
    is_adapter,
    read_object,
    stated_quantization,
    whole_number,
)
from edgequant.models.onnx.folder import KIND as ONNX
from edgequant.models.onnx.folder import is_onnx_folder
from edgequant.models.tiny import TINY_SIZES

# The four models of the methodology, by the names that the papers use.
HUB_MODELS = {
    "qwen2.5-0.5b": "Qwen/Qwen2.5-0.5B",
    "tinyllama-1.1b": "TinyLlama/TinyLlama-1.1B-Chat-v1.0",
    "phi-1.5": "microsoft/phi-1_5",
    "gemma-3-1b-it": "google/gemma-3-1b-it",
}
SHORT_NAMES = (*HUB_MODELS, "smollm2-135m", "tiny")
NAME_LENGTH = 96  # characters; names of files are made of it
SMOLLM2_CONFIG = {
    "model_type": "llama",
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_hidden_layers": 30,
    "num_attention_heads": 9,
    "vocab_size": 49_152,
    "max_position_embeddings": 8192,
}


@dataclass(frozen=True)
class ModelSource:
    """Where a model comes from. `name` is short and fit for a tag or a registered model's name."""

    kind: str  # hub, folder, gguf, onnx, embedded, tiny, mlflow
    name: str
    location: str
    version_of: str = ""  # the model that a registered version, or a run's checkpoint, is one of

    @property
    def family(self) -> str:
        """What is made of it goes by this name, and is registered under it: of a version by that of all versions."""
        return self.version_of or self.name


def resolve(source: str | ModelSource) -> ModelSource:
    """Say what a model argument means, without loading anything.

    Raises:
        UserError: a path that does not exist, or a name that is neither a short name nor a hub id.
    """
    if isinstance(source, ModelSource):
        return source
    named, pinned = _without_revision(source)
    if named in HUB_MODELS:
        return ModelSource("hub", named, f"{HUB_MODELS[named]}{pinned}")
    if source == "smollm2-135m":
        return ModelSource("embedded", source, source)
    if source == "tiny":
        return ModelSource("tiny", source, source)
    if source.startswith(("models:/", "runs:/")):
        return ModelSource("mlflow", _tag_name(re.sub(r"^\w+:/+", "", source)), source, _version_of(source))
    path = Path(source).expanduser()
    if source and path.is_dir():
        return _folder_source(path)
    if path.is_file() and path.suffix == ".gguf":
        return ModelSource("gguf", _tag_name(path.stem), str(path.resolve()))
    if _looks_like_a_path(named):
        raise UserError(f"model {source!r} not found; give a folder with config.json, a .gguf file, {_known()}")
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", named) or not re.fullmatch(r"(@(?!.*\.\.)[\w.-]+(/[\w.-]+)*)?", pinned):
        raise UserError(f"model {source!r} is unknown; give {_known()}")
    return ModelSource("hub", _tag_name(named.split("/")[-1]), source)


def _version_of(uri: str) -> str:
    from edgequant.tracking.permissions import registered_model

    name = registered_model(uri)
    return _tag_name(name) if name else ""


def _without_revision(source: str) -> tuple[str, str]:
    """A name, and what pins its revision on the hub: `@` and a branch, tag or commit; or nothing."""
    named, at, revision = source.partition("@")
    return named, f"{at}{revision}"


def _folder_source(path: Path) -> ModelSource:
    if (path / CONFIG).is_file() or is_adapter(path):
        return ModelSource("folder", _folder_name(path), str(path.resolve()))
    if is_onnx_folder(path):
        return ModelSource(ONNX, _folder_name(path), str(path.resolve()))
    files = sorted(path.glob("*.gguf"))
    if len(files) == 1:
        return ModelSource("gguf", _tag_name(files[0].stem), str(files[0].resolve()))
    inside = "no config.json" if not files else f"{len(files)} .gguf files"
    if inner := sorted(one.name for one in path.iterdir() if (one / CONFIG).is_file() or is_adapter(one)):
        inside += f"; there is one in {str(path / inner[0])!r}"
    raise UserError(
        f"model folder must hold a config.json, adapter_config.json or one .gguf, got {str(path)!r} with {inside}"
    )


def _folder_name(path: Path) -> str:
    """A checkpoint or merged model of ours says which model it was made from; any other folder goes by its own name."""
    return stated_name(path) or _tag_name(path.resolve().name)


def stated_name(folder: Path) -> str:
    """Of the model that a checkpoint or merged model of ours was made from; empty of any other folder."""
    config = folder_config(folder)
    made_from = config.get("edgequant_model") or config.get("edgequant_base")
    return _tag_name(made_from) if isinstance(made_from, str) and made_from else ""


def _looks_like_a_path(source: str) -> bool:
    return source.startswith((".", "/", "~")) or source.endswith(".gguf") or source.count("/") > 1


def _known() -> str:
    names = ", ".join(SHORT_NAMES)
    hub_id = "a hub id such as Qwen/Qwen2.5-0.5B, or with a revision, OWNER/NAME@REVISION"
    return f"a short name ({names}), {hub_id}, models:/NAME/VERSION or runs:/ID/PATH"


def _tag_name(text: str) -> str:
    """Fit for files, tags and a registered model, whatever a foreign config says: neither a path nor too long."""
    return re.sub(r"[^\w.-]+", "-", text)[:NAME_LENGTH].strip("-.").lower() or "model"


def adapter_base(folder: Path) -> ModelSource:
    """The model that an adapter was trained on, as its adapter_config.json names it.

    Raises:
        UserError: none is named, or it is not there, or an adapter that comes back to this one.
    """
    seen, base = [folder.resolve()], _named_base(folder)
    while base.kind == "folder" and is_adapter(Path(base.location)):
        if Path(base.location) in seen:
            raise UserError(f"base_model_name_or_path in {folder / ADAPTER_CONFIG} leads back to it; name a model")
        seen.append(Path(base.location))
        base = _named_base(seen[-1])
    return _named_base(folder)


def _named_base(folder: Path) -> ModelSource:
    file = folder / ADAPTER_CONFIG
    base = read_object(file).get("base_model_name_or_path")
    if not base or not isinstance(base, str):
        raise UserError(f"base_model_name_or_path not found in {file}; add the model it was trained on")
    try:
        return resolve(base)
    except UserError as error:
        raise UserError(
            f"adapter {folder} was trained on {base!r}, which base_model_name_or_path in its {ADAPTER_CONFIG} names "
            f"({str(error).partition(';')[0]}); put the model there, or name where it is"
        ) from error


def layer_inputs(source: str | ModelSource) -> dict[str, int]:
    """Input features of one layer of each kind, as far as they can be told without loading weights (else empty).

    So that a group size that does not fit is refused before anything is downloaded or loaded.

    Raises:
        UserError: config.json has a size that is no positive whole number.
    """
    config = _config_of(resolve(source))
    hidden = whole_number(config, "hidden_size")
    if hidden is None:
        return {}
    heads = whole_number(config, "num_attention_heads") or 1
    attention = heads * (whole_number(config, "head_dim") or hidden // heads)
    out, down = ("dense", "fc2") if config.get("model_type") == "phi" else ("o_proj", "down_proj")
    layer = "model.layers.0"
    features = {f"{layer}.self_attn.q_proj": hidden, f"{layer}.self_attn.{out}": attention}
    if inner := whole_number(config, "intermediate_size"):
        features[f"{layer}.mlp.{down}"] = inner
    return features


def context_length(source: str | ModelSource) -> int | None:
    """Positions that a model was made for, where its configuration says so without being downloaded or loaded."""
    length = _config_of(resolve(source)).get("max_position_embeddings")
    return length if isinstance(length, int) and length > 0 else None


class StatedSizes(NamedTuple):
    """A model's sizes; `parameters` are estimated from the others."""

    parameters: float
    hidden: int
    layers: int
    vocabulary: int


def stated_sizes(source: str | ModelSource) -> StatedSizes | None:
    """Sizes as a model's configuration says them, without downloading or loading it; None where it says none."""
    config = _config_of(resolve(source))
    hidden, layers = whole_number(config, "hidden_size"), whole_number(config, "num_hidden_layers")
    if hidden is None or layers is None:
        return None
    inner = whole_number(config, "intermediate_size") or 4 * hidden
    vocabulary = whole_number(config, "vocab_size") or 50_000
    tables = 1 if config.get("tie_word_embeddings", True) else 2
    parameters = layers * (4.0 * hidden**2 + 3.0 * hidden * inner) + tables * vocabulary * hidden
    return StatedSizes(parameters, hidden, layers, vocabulary)


def check_floating(source: ModelSource) -> None:
    """Refuse a model that is quantised already, as far as can be told without fetching it.

    Raises:
        UserError: its config.json, or that of an adapter's base, says how its weights are quantised.
    """
    if method := stated_quantization(_config_of(source)) or _scheme_under_adapter(source):
        ours = ", or adapt it within its integers with `edgequant finetune`" if method == OUR_METHOD else ""
        raise UserError(
            f"model must be a floating-point model, got {source.name!r}, which is quantised already ({method}); use "
            f"the model that it was made from{ours}"
        )


def _scheme_under_adapter(source: ModelSource) -> str | None:
    from edgequant.models.adapters.quantized_base import stated_base

    return stated_base(Path(source.location)) if source.kind == "folder" else None


def _config_of(resolved: ModelSource) -> dict[str, Any]:
    if resolved.kind == "tiny":
        return TINY_SIZES
    if resolved.kind == "embedded":
        return SMOLLM2_CONFIG
    if resolved.kind == "folder":
        folder = Path(resolved.location)
        return _config_of(adapter_base(folder)) if is_adapter(folder) else folder_config(folder)
    return hub.cached_config(resolved.location) if resolved.kind == "hub" else {}
