"""What a run is called in MLflow's table: the workflow, its model and what is made of it."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mlflow.utils import name_utils

from edgequant.tracking.logging import flatten

SUBJECTS = ("model", "scheme", "size_budget", "source", "format", "title")  # settings that tell runs apart
ASKED = (
    *("model", "version", "runs", "source", "scheme", "size_budget", "method", "policy", "dataset", "adapt", "base"),
    *("format", "limit", "training.steps", "training.learning_rate", "training.distillation_weight", "seed"),
)
UNSAID = (None, "", "auto", "none", "edgequant report")
LENGTH = 120  # characters, of a column that shows about 40
MOST = 4  # of a list


def run_name(workflow: str, config: Mapping[str, Any]) -> str:
    """`qat smollm2-135m w4a8-g32+emb4`: the workflow and what its configuration says of model and scheme.

    Args:
        workflow: name of the entry point.
        config: the resolved configuration, of which a few keys are read.
    """
    config = _of_all_models(config)
    told = [_told(key, config[key]) for key in SUBJECTS if key in config and config[key] not in UNSAID]
    return " ".join([workflow, *filter(None, told)])[:LENGTH].rstrip()


def headline_parameters(config: Mapping[str, Any]) -> dict[str, str]:
    """Model and scheme of a workflow, as its measured models carry them: what the table of runs shows first."""
    config = _of_all_models(config)
    wanted = {key: config[key] for key in ("model", "scheme") if config.get(key) not in UNSAID}
    return {key: _told(key, value) for key, value in wanted.items()}


def asked_for(workflow: str, config: Mapping[str, Any]) -> str:
    """What a run was asked to do, as one line of Markdown.

    Args:
        workflow: name of the entry point.
        config: the resolved configuration, of which the keys that people choose are read.
    """
    config = _of_all_models(config)
    settings = dict(config) | flatten(config)
    told = [f"{key} `{_code(settings[key])}`" for key in ASKED if settings.get(key) not in (None, "", False, "auto")]
    return f"Asked: **{workflow}**" + (f" of {', '.join(told)}" if told else "")


def is_generated(name: str) -> bool:
    """Whether MLflow made the name up, as in `bold-ant-123`, because nobody gave one."""
    parts = name.split("-")
    if len(parts) != 3 or not parts[2].isdigit():
        return False
    lists = (getattr(name_utils, f"_GENERATOR_{kind}", ()) for kind in ("PREDICATES", "NOUNS"))
    return all(part in {word.lower() for word in words} for part, words in zip(parts, lists, strict=False))


def short_name(model: Any) -> str:
    """A model's source as people call it: the last part of a hub id or path, a version with its name.

    Args:
        model: as the workflow was told: text, or a source with a `name`.
    """
    if isinstance(model, Mapping):
        return str(model.get("name") or "model")
    text = str(model).strip()
    if found := re.fullmatch(r"runs:/+([0-9a-f]{8})[0-9a-f]*/(.+)", text):
        return f"{found[2]} of {found[1]}"
    if text.startswith("models:/"):
        return " v".join(text.removeprefix("models:/").strip("/").split("/"))
    made_from = _stated_base(Path(text).expanduser())
    return made_from or _fit_for_a_line(Path(text).name.removesuffix(".gguf").lower()) or text


def _of_all_models(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """The configuration with several models, where it names such, in place of one."""
    return {**config, "model": config["models"]} if config.get("models") else config


def _told(key: str, value: Any) -> str:
    if key in ("model", "source"):
        return _listed([short_name(part) for part in _parts(value)])
    return _listed([_fit_for_a_line(part) for part in _parts(value)])


def _parts(value: Any) -> list[Any]:
    if isinstance(value, str):
        return [part for part in (part.strip() for part in value.split(",")) if part]
    return [value] if isinstance(value, Mapping) else list(value) if isinstance(value, list | tuple) else [value]


def _listed(parts: list[str]) -> str:
    more = f" and {len(parts) - MOST} more" if len(parts) > MOST else ""
    return ", ".join(parts[:MOST]) + more


def _code(value: Any) -> str:
    """Fit for Markdown's backticks."""
    text = value["name"] if isinstance(value, Mapping) and "name" in value else value
    return _fit_for_a_line(text).replace("`", "'")[:LENGTH]


def _fit_for_a_line(text: Any) -> str:
    return " ".join(str(text).split())


def _stated_base(folder: Path) -> str | None:
    """The model that one of our checkpoints was made from, as its config.json says: `checkpoint` is no name."""
    try:
        config = json.loads((folder / "config.json").read_text())
    except (OSError, ValueError):
        return None
    found = config if isinstance(config, dict) else {}
    stated = found.get("edgequant_model") or found.get("edgequant_base")
    return stated if isinstance(stated, str) and stated else None
