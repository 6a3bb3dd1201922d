"""The model card of a registered version: what it is, how it measures up to its baseline, how to use it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from edgequant.reporting.protocols import protocols_for
from edgequant.reporting.tables import markdown_table, markdown_text


def model_card(name: str, version: str, tags: Mapping[str, str], run_url: str | None = None) -> str:
    """A Markdown card with front matter, as model hubs read it.

    Args:
        name: registered model's name, e.g. `edgequant-smollm2-135m`.
        version: its version.
        tags: the version's tags: metrics under edgequant's metric names, `edgequant.model`, `edgequant.scheme`,
            `edgequant.variant`, `edgequant.baseline` (the baseline's metrics as JSON).
        run_url: the run that made it.
    """
    metrics = {key: value for key, text in tags.items() if "/" in key and (value := _number(text)) is not None}
    base, scheme = tags.get("edgequant.model", "unknown"), tags.get("edgequant.scheme", "unknown")
    rows: list[dict[str, Any]] = [
        {"variant": tags.get("edgequant.variant", "this version"), "scheme": scheme, **metrics}
    ]
    if baseline := _baseline(tags):
        rows.insert(0, {"variant": "baseline", "scheme": "none", **baseline})
    lines = [
        "---",
        f"base_model: {json.dumps(base)}",
        "library_name: edgequant",
        f"tags: {json.dumps(['quantized', scheme])}",
        "---",
        "",
        f"# {markdown_text(name)}, version {markdown_text(version)}",
        "",
        f"{markdown_text(base)} with scheme `{scheme.replace('`', '')}`, made by edgequant"
        + (f" in [this run](<{run_url}>)." if run_url else "."),
        "",
        "## Measured",
        "",
        markdown_table(rows),
        *(f"- **{group}**: {markdown_text(text)}" for group, text in protocols_for(metrics).items()),
        "",
        "## Use",
        "",
        "```python",
        "import edgequant",
        "from transformers import AutoModelForCausalLM",
        "",
        "model = AutoModelForCausalLM.from_pretrained(folder)  # folder: the downloaded checkpoint",
        "```",
        "",
        f"For llama.cpp: `edgequant export --model models:/{name.replace('`', '')}/{version}`.",
        "",
        "## Limits",
        "",
        "A small language model states wrong facts fluently, the more so when quantised. Only what stands above was",
        "measured. It is not a source of safety-critical instructions.",
    ]
    return "\n".join(lines) + "\n"


def _baseline(tags: Mapping[str, str]) -> dict[str, float]:
    try:
        found = json.loads(tags.get("edgequant.baseline", "{}"))
    except ValueError:
        return {}
    return {str(key): float(value) for key, value in found.items() if isinstance(value, int | float)}


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None
