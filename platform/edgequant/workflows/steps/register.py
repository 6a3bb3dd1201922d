"""`register_version`: the only way a checkpoint becomes a version of a registered model; and the newest of them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgequant.errors import UserError
from edgequant.evaluation.evidence import is_evidence

if TYPE_CHECKING:
    from edgequant.models.sources import Origin

PREFIX = "edgequant-"
MADE = "Made by edgequant:"  # how descriptions of versions begin, until somebody writes one
BASELINE_TAG = "edgequant.baseline"


def register_version(
    checkpoint: Path,
    *,
    model: str,
    scheme: str,
    variant: str,
    metrics: Mapping[str, Any],
    baseline: Mapping[str, Any],
    tags: Mapping[str, str] | None = None,
) -> str:
    """File a checkpoint folder with the active run and register it as a new version of `edgequant-<model>`.

    Gates judge a version by these metrics alone: its own, and those of the model it was made from. A folder that has no
    manifest of its own (a merged or a bitsandbytes model) gets one, so that promotion can check every file.

    Args:
        checkpoint: folder that `transformers` loads.
        model: short name of the model it was made from.
        scheme: name of its quantisation scheme; `none` for a floating-point model.
        variant: what made it: ptq, qat, finetuned, tuned.
        metrics: what was measured on the checkpoint; entries that are no numbers (a row's names) are left out.
        baseline: the same of the model it was made from.
        tags: more tags of the version.

    Returns:
        The URI of the version, models:/edgequant-<model>/<number>.

    Raises:
        UserError: no metrics of the checkpoint or of the baseline, or one that is not finite.
    """
    from edgequant import tracking
    from edgequant.models.sources import origin
    from edgequant.quantization.checkpoint import ensure_manifest
    from edgequant.reporting.description import description_table
    from edgequant.reporting.model_card import Card, exported_files, write_card

    measured, reference = numbers(metrics), numbers(baseline)
    if not measured or not reference:
        missing = "the checkpoint" if not measured else "the model it was made from (the baseline)"
        raise UserError(f"{checkpoint} cannot be registered: no metrics of {missing} were given; measure it first")
    for whose, row in (("its", measured), ("the baseline's", reference)):
        if broken := [name for name, value in row.items() if not is_evidence(name, value)]:
            raise UserError(
                f"{checkpoint} cannot be registered: {whose} {broken[0]} is {row[broken[0]]:g}, which measures "
                "nothing; measure it again, or quantise it otherwise"
            )
    ensure_manifest(checkpoint)
    filed = {
        **{name: value for name, value in (tags or {}).items() if value},
        "edgequant.model": model,
        "edgequant.scheme": scheme,
        "edgequant.variant": variant,
        BASELINE_TAG: json.dumps(reference),
    }
    name, made_from = f"{PREFIX}{model}", origin(tracking.asked_model() or model)
    card = Card(
        title=name, origin=made_from, scheme=scheme, variant=variant, metrics=numbers(metrics), baseline=reference,
        files=exported_files(checkpoint),
    )  # fmt: skip
    write_card(checkpoint, card)
    rows = [{"variant": "baseline", "scheme": "none", **baseline}, {"variant": variant, "scheme": scheme, **metrics}]
    version = tracking.register_checkpoint(
        checkpoint, name, metrics=measured, tags=filed, about=_about(model, made_from),
        description=f"{MADE} `{variant}` of {_terms(made_from)}; model card: README.md.\n\n{description_table(rows)}",
    )  # fmt: skip
    return f"models:/{name}/{version}"


def _about(model: str, made_from: Origin) -> dict[str, str]:
    """Of the registered model: what it holds, of whose model, on which terms."""
    text = f"{model} made small by edgequant, a version for each checkpoint: {_terms(made_from)}."
    return {"description": text, "base_model": made_from.base_model, "license": made_from.license}


def _terms(made_from: Origin) -> str:
    return f"base model `{made_from.base_model}`, licence `{made_from.license}`"


def numbers(row: Mapping[str, Any]) -> dict[str, float]:
    """A row's metrics, without its names and remarks."""
    return {key: float(value) for key, value in row.items() if isinstance(value, int | float) and "/" in key}


def promote_command(uri: str) -> str:
    """The command that puts a registered version through the gates."""
    _, name, version = uri.split("/")
    return f"edgequant promote --model {name} --version {version}"


def default_model() -> str:
    """The newest registered champion, else the newest registered version, else the embedded model; says which."""
    from edgequant import tracking

    registered = tracking.client().search_registered_models("name LIKE 'edgequant-%'")
    champions = [(entry, entry.aliases["champion"]) for entry in registered if "champion" in entry.aliases]
    newest = sorted(champions or _latest(registered), key=lambda pair: pair[0].last_updated_timestamp or 0)
    chosen = f"models:/{newest[-1][0].name}/{newest[-1][1]}" if newest else "smollm2-135m"
    why = "newest champion" if champions else "newest registered version" if newest else "nothing is registered yet"
    print(f"model: {chosen} ({why}; choose another with --model)")
    return chosen


def _latest(registered: Any) -> list[tuple[Any, str]]:
    from edgequant import tracking

    latest = []
    for entry in registered:
        versions = tracking.client().search_model_versions(f"name = '{entry.name}'")
        if versions:
            latest.append((entry, max(versions, key=lambda version: int(version.version)).version))
    return latest
