"""Whose model a model argument means, and on which terms, as far as that is known without a network."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from edgequant.errors import UserError
from edgequant.models import hub
from edgequant.models.configs import CONFIG
from edgequant.models.sources import ModelSource, resolve, stated_name

LICENSES = {
    "Qwen/Qwen2.5-0.5B": "apache-2.0",
    "TinyLlama/TinyLlama-1.1B-Chat-v1.0": "apache-2.0",
    "microsoft/phi-1_5": "mit",
    "google/gemma-3-1b-it": "gemma",
}
NOT_STATED = "not stated"


@dataclass(frozen=True)
class Origin:
    """Whose model something was made from, and on which terms: a hub id or a name, and a licence as hubs spell it."""

    base_model: str
    license: str = NOT_STATED


def origin(source: str | ModelSource) -> Origin:
    """Base model and licence of a model argument, as far as they are known without a network.

    A folder's, a registered version's and a cached hub model's are those that the front matter of its README.md states.
    """
    try:
        found = resolve(source)
    except UserError:
        return Origin(str(source))
    if found.kind == "embedded":
        return Origin("HuggingFaceTB/SmolLM2-135M-Instruct", "apache-2.0")
    if found.kind == "tiny":
        return Origin("tiny (random weights)", "apache-2.0")
    if found.kind == "hub":
        repository = hub.split(found.location)[0]
        license = LICENSES.get(repository) or _front_matter(hub.cached_card(found.location))[1]
        return Origin(repository, license)
    if found.kind == "folder":
        base, license = _front_matter(Path(found.location) / "README.md")
        return Origin(base or found.name, license)
    if found.kind == "mlflow":
        base, license = _front_matter(_small_file(found.location, "README.md"))
        return Origin(base or _stated(found.location) or found.family, license)
    return Origin(found.name)


def _small_file(uri: str, name: str) -> Path | None:
    from edgequant import tracking

    try:
        return tracking.download(f"{uri}/{name}")
    except UserError:
        return None


def _stated(uri: str) -> str:
    """The model that a checkpoint or merged model says it was made from; its address may hold but a run's id."""
    config = _small_file(uri, CONFIG)
    try:
        return stated_name(config.parent) if config is not None else ""
    except UserError:  # a file that loading the model refuses by its name
        return ""


def _front_matter(card: Path | None) -> tuple[str, str]:
    """Base model (empty where none is named) and licence of a model card."""
    try:
        text = card.read_text(encoding="utf-8") if card is not None else ""
        stated = yaml.safe_load(text.split("---")[1]) if text.startswith("---") else {}
    except (OSError, UnicodeDecodeError, yaml.YAMLError):
        return "", NOT_STATED
    stated = stated if isinstance(stated, dict) else {}
    base, license = (_first(stated.get(key)) for key in ("base_model", "license"))
    name = _first(stated.get("license_name"))
    return base, (name if license == "other" and name else license) or NOT_STATED


def _first(value: Any) -> str:
    value = value[0] if isinstance(value, list) and value else value
    return value if isinstance(value, str) else ""
