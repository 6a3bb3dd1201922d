"""The model card of a checkpoint: what it is, on which terms, how it measures up to its baseline, how to use it."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from edgequant.files import sha256_of, write_atomically
from edgequant.folders import MANIFEST
from edgequant.models.manifest import list_file
from edgequant.models.origin import Origin, origin
from edgequant.reporting.columns import columns, headline
from edgequant.reporting.licenses import Terms, terms_of
from edgequant.reporting.protocols import protocols_for
from edgequant.reporting.tables import MAX_METRICS, markdown_text, turned_table

FILE, NOTICE = "README.md", "NOTICE"
THIS_FOLDER = "path/to/this/folder"  # until it has another place, see `located`
OURS = "edgequant"  # a tag in the front matter: such a card may be written anew
# Of the metrics, those that hubs list beside other models': data set's id and name, metric's id and name.
LISTED = {
    "wikitext2/perplexity": ("Salesforce/wikitext", "WikiText-2", "perplexity", "Perplexity"),
    "boolq/accuracy": ("google/boolq", "BoolQ", "accuracy", "Accuracy (%)"),
    "squad/f1": ("rajpurkar/squad", "SQuAD 1.1", "f1", "F1 (%)"),
    "squad/exact_match": ("rajpurkar/squad", "SQuAD 1.1", "exact_match", "Exact match (%)"),
}
LIMITS = """A small language model states wrong facts fluently, the more so when quantised. Only what stands above was
measured, on the data and in the way that is said there. It inherits the base model's training data and its biases. It
is no source of safety-critical instructions: whoever acts on what it says checks it first."""
INTENDED = """Text generation and question answering on devices with little memory, behind checks of the task that it is
meant for, and research on quantisation. Not for decisions about people's safety, health or rights without a person who
is responsible for them."""


@dataclass(frozen=True, kw_only=True)
class Card:
    """What a card is made of.

    Attributes:
        title: e.g. the registered model's name.
        origin: base model and licence.
        scheme: `none` for floating point.
        variant: what made it: ptq, qat, finetuned, ...
        metrics: measured on it, with interval bounds, under edgequant's names.
        baseline: the same of the model that it was made from.
        files: names of its exported files: GGUF files, `onnx` for a folder of that name.
        location: what loads it: a folder, a hub id or a models:/ URI.
        run_url: the page of the run that made it.
        commit: of the base model on its hub; empty where it is not known.
    """

    title: str
    origin: Origin
    scheme: str
    variant: str = "this model"
    metrics: Mapping[str, Any] = field(default_factory=dict)
    baseline: Mapping[str, Any] = field(default_factory=dict)
    files: Sequence[str] = ()
    location: str = THIS_FOLDER
    run_url: str | None = None
    commit: str = ""


def model_card(card: Card) -> str:
    """A Markdown card with the front matter that model hubs read."""
    from huggingface_hub import ModelCard

    terms = terms_of(card.origin)
    sections = {
        "Results": _results(card),
        "Intended use": INTENDED,
        "Limits": LIMITS,
        "How to load it": "\n\n".join(_loading(card)),
        "Licence": _licence(card.origin, terms),
    }
    body = "\n\n".join(f"## {heading}\n\n{text}" for heading, text in sections.items())
    content = f"---\n{_front_matter(card, terms)}\n---\n\n# {markdown_text(card.title)}\n\n{_lead(card)}\n\n{body}\n"
    return str(ModelCard(content))


def card_of_version(name: str, version: str, tags: Mapping[str, str], run_url: str | None = None) -> Card:
    """The card of a registered version.

    Args:
        tags: the version's: metrics under edgequant's names, `edgequant.model`, `edgequant.scheme`,
            `edgequant.variant`, `edgequant.baseline` (the baseline's metrics as JSON).
    """
    return Card(
        title=f"{name}, version {version}",
        origin=origin(tags.get("edgequant.model", name)),
        scheme=tags.get("edgequant.scheme", "none"),
        variant=tags.get("edgequant.variant", "this version"),
        metrics={key: value for key, text in tags.items() if "/" in key and (value := _number(text)) is not None},
        baseline=_baseline(tags),
        location=f"models:/{name}/{version}",
        run_url=run_url,
        commit=tags.get("edgequant.base_commit", ""),
    )


def _baseline(tags: Mapping[str, str]) -> dict[str, float]:
    try:
        found = json.loads(tags.get("edgequant.baseline", "{}"))
    except ValueError:
        return {}
    entries = found.items() if isinstance(found, dict) else ()
    return {str(key): float(value) for key, value in entries if isinstance(value, int | float)}


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def write_card(folder: Path, card: Card) -> None:
    """Put a card into a checkpoint's folder, and the notice that its licence asks for; a person's own card stays.

    Both are listed in the folder's manifest, so that a later run may replace the folder.
    """
    place, notice = folder / FILE, terms_of(card.origin).notice
    if place.is_file() and not is_ours(place.read_text(encoding="utf-8", errors="replace")):
        return
    texts = {FILE: model_card(card)} | ({NOTICE: notice + "\n"} if notice else {})
    for name, text in texts.items():
        digest = sha256_of(write_atomically(folder / name, text))
        if (folder / MANIFEST).is_file():
            list_file(folder, name, digest)


def is_ours(text: str) -> bool:
    """Whether a card was written here."""
    from huggingface_hub import ModelCard

    try:
        return OURS in (ModelCard(text, ignore_metadata_errors=True).data.to_dict().get("tags") or [])
    except (ValueError, TypeError):
        return False


def located(text: str, location: str) -> str:
    """A card whose commands name where the model lies now."""
    return text.replace(THIS_FOLDER, location)


def exported_files(folder: Path) -> list[str]:
    """Names of the exported forms in a checkpoint's folder."""
    onnx = ["onnx"] if (folder / "onnx").is_dir() else []
    return [*sorted(path.name for path in folder.glob("*.gguf")), *onnx]


def _front_matter(card: Card, terms: Terms) -> str:
    from huggingface_hub import ModelCardData

    data = ModelCardData(
        base_model=card.origin.base_model if _is_hub_id(card.origin.base_model) else None,
        base_model_relation="quantized" if _is_hub_id(card.origin.base_model) and card.scheme != "none" else None,
        license=terms.license,
        license_name=_identifier(terms.name) or None,
        license_link=terms.link or None,
        library_name="transformers",
        pipeline_tag="text-generation",
        tags=[OURS, *(["quantized", _one_line(card.scheme)] if card.scheme != "none" else []), *_runtimes(card)],
        model_name=_one_line(card.title),
        eval_results=_listed(card) or None,
    )
    return str(data.to_yaml()).rstrip()


def _is_hub_id(name: str) -> bool:
    return re.fullmatch(r"[\w.-]+/[\w.-]+", name) is not None


def _one_line(text: str) -> str:
    """Within code and front matter."""
    return " ".join(text.replace("`", "").split())


def _identifier(name: str) -> str:
    return re.sub(r"[^\w.-]+", "-", name).strip("-").lower()


def _runtimes(card: Card) -> list[str]:
    return [
        *(["gguf"] if any(name.endswith(".gguf") for name in card.files) else []),
        *(["onnx"] * ("onnx" in card.files)),
    ]


def _listed(card: Card) -> list[Any]:
    from huggingface_hub import EvalResult

    return [
        EvalResult(
            task_type="text-generation", dataset_type=data_set, dataset_name=name, metric_type=metric,
            metric_name=metric_name, metric_value=round(float(card.metrics[key]), 4),
        )
        for key, (data_set, name, metric, metric_name) in LISTED.items()
        if key in card.metrics
    ]  # fmt: skip


def _lead(card: Card) -> str:
    base = f"`{_one_line(card.origin.base_model)}`" + (f" at commit `{_one_line(card.commit)}`" if card.commit else "")
    made = "in floating point" if card.scheme == "none" else f"with scheme `{_one_line(card.scheme)}`"
    return f"{base} {made}, made by edgequant" + (f" in [this run](<{card.run_url}>)." if card.run_url else ".")


def _results(card: Card) -> str:
    rows: list[dict[str, Any]] = [{"variant": card.variant, "scheme": card.scheme, **card.metrics}]
    if card.baseline:
        rows.insert(0, {"variant": "baseline", "scheme": "none", **card.baseline})
    if not card.metrics:
        return "Nothing was measured."
    told = [f"- **{group}**: {markdown_text(text)}" for group, text in protocols_for(card.metrics).items()]
    return "\n".join([turned_table(headline(columns(rows), MAX_METRICS)), "", *told])


def _loading(card: Card) -> list[str]:
    place = card.location
    if place.startswith(("models:/", "runs:/")):
        python = ["import edgequant", "", f'loaded = edgequant.load("{place}")  # loaded.model, loaded.tokenizer']
    else:
        python = [
            *(["import edgequant  # makes transformers know its integers"] if card.scheme != "none" else []),
            "from transformers import AutoModelForCausalLM, AutoTokenizer",
            "",
            f'model = AutoModelForCausalLM.from_pretrained("{place}")',
            f'tokenizer = AutoTokenizer.from_pretrained("{place}")',
        ]
    files = [name for name in card.files if name.endswith(".gguf")]
    return [
        "transformers:",
        "\n".join(["```python", *python, "```"]),
        f"llama.cpp: {_llama_cpp(files, place)}",
        f"ONNX: {_onnx('onnx' in card.files, place)}",
    ]


def _llama_cpp(files: Sequence[str], place: str) -> str:
    if files:
        return f"`llama-cli -m {files[0]}` with the file that lies here, or `edgequant chat --model {place}`."
    return f"`edgequant chat --model {place}`, or `edgequant export --model {place}` for a GGUF file."


def _onnx(here: bool, place: str) -> str:
    if here:
        return 'the folder `onnx` that lies here, in onnxruntime-genai: `onnxruntime_genai.Model("onnx")`.'
    return f"`edgequant export --model {place} --format onnx` writes a folder for onnxruntime-genai."


def _licence(origin: Origin, terms: Terms) -> str:
    name = terms.name or terms.license
    stated = f"[{markdown_text(name)}](<{terms.link}>)" if terms.link else markdown_text(name)
    base = f"Base model: `{_one_line(origin.base_model)}`, licence: {stated}."
    return "\n\n".join([base, *map(markdown_text, terms.duties)])
