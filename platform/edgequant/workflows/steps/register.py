"""`register_version`: the only way a checkpoint becomes a version of a registered model; and the newest of them."""

from __future__ import annotations

import json
import shlex
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgequant.disk.leftovers import Scratch
from edgequant.errors import UserError
from edgequant.evaluation.evidence import is_evidence
from edgequant.evaluation.evidence_file import FILE as EVIDENCE
from edgequant.evaluation.evidence_file import Conditions, Evidence, Scores
from edgequant.files import sha256_of, write_atomically
from edgequant.folders import MANIFEST
from edgequant.models.manifest import files_that_count, list_file, verify

if TYPE_CHECKING:
    from edgequant.evaluation.settings import EvaluationSettings
    from edgequant.evaluation.tasks.task import EvaluationData
    from edgequant.models.origin import Origin
    from edgequant.workflows.settings import RunSettings

MADE = "Made by edgequant:"  # how descriptions of versions begin, until somebody writes one
BASELINE_TAG = "edgequant.baseline"
# By these settings of its workflow a policy tells which figures a version has to have.
ASKED = ("workflow", "evaluation.tasks", "data_dir", "guard", "export", "device_profile", "qat.max_task_loss")
OF_LESS_INTEREST = ("guard/", "latency/", "energy/")  # in a list of versions, which has room for a dozen figures


def register_version(
    checkpoint: Path,
    *,
    model: str,
    scheme: str,
    variant: str,
    measured: Scores,
    baseline: Scores | None,
    began: Scores | None = None,
    uncompared: str = "",
    conditions: Conditions | None = None,
    tags: Mapping[str, str] | None = None,
) -> str:
    """File a checkpoint folder with the active run and register it as a new version of `edgequant-<model>`.

    Gates judge a version by what was measured on it and on the model it was made from, filed as evidence.json beside
    the weights; its tags are a short copy for people. A folder that has no manifest of its own (a merged or a
    bitsandbytes model) gets one, so that promotion can check every file.

    Args:
        checkpoint: folder that `transformers` loads.
        model: short name of the model it was made from.
        scheme: name of its quantisation scheme; `none` for a floating-point model.
        variant: what made it: ptq, qat, finetuned, tuned.
        measured: on the checkpoint; entries that are no numbers (a row's names) are left out.
        baseline: the same of the floating-point model it was made from; None where `uncompared` says why it was never
            compared with that.
        began: the same of the quantised checkpoint that fine-tuning within integers began with, for people.
        conditions: under which both were measured; without them promotion cannot measure them again.
        tags: more tags of the version, which its evidence states too.

    Returns:
        The URI of the version, models:/edgequant-<model>/<number>; `unfiled` is its number while the server is away.

    Raises:
        UserError: no metrics of the checkpoint or of the baseline, or one that is not finite.
    """
    from edgequant import tracking
    from edgequant.models.origin import origin
    from edgequant.quantization.checkpoint import ensure_manifest
    from edgequant.reporting.description import description_table
    from edgequant.reporting.model_card import Card, exported_files, write_card

    given = (measured, baseline or Scores({}))
    scores = [Scores(numbers(each.metrics), each.items) for each in given]
    _check_figures(checkpoint, *scores, uncompared=uncompared)
    ensure_manifest(checkpoint)
    stated = {name: value for name, value in (tags or {}).items() if value}
    names = {"model": model, "scheme": scheme, "variant": variant}
    asked = tracking.asked_settings()
    name, made_from = f"{tracking.REGISTERED}{model}", origin(asked.get("model") or model)
    commit = tracking.loaded_commit(made_from.base_model) or ""
    stated |= {"edgequant.base_commit": commit} if commit else {}
    evidence = Evidence(
        **names, run=tracking.active_run_id(), files=files_that_count(verify(checkpoint)), settings=stated,
        measured=scores[0], baseline=scores[1], uncompared=uncompared, conditions=conditions,
        asked={setting: asked[setting] for setting in ASKED if setting in asked},
    )  # fmt: skip
    card = Card(
        title=name, origin=made_from, commit=commit, scheme=scheme, variant=variant, metrics=scores[0].metrics,
        baseline=scores[1].metrics, files=exported_files(checkpoint),
    )  # fmt: skip
    write_card(checkpoint, card)
    of_all = {"baseline": baseline, "quantized": began, variant: measured}
    rows = [
        {"variant": name, "scheme": "none" if name == "baseline" else scheme, **each.metrics}
        for name, each in of_all.items()
        if each is not None
    ]
    said = f"{uncompared[:1].upper()}{uncompared[1:]}\n\n" if uncompared else ""
    with Scratch() as folder:
        version = tracking.register_checkpoint(
            checkpoint, name, tags=stated | _short_copy(evidence), about=_about(model, made_from),
            description=f"{MADE} `{variant}` of {_terms(made_from)}; model card: README.md.\n\n"
            + said + description_table(rows),
            evidence=_with_its_manifest(evidence, checkpoint, Path(folder)),
        )  # fmt: skip
    return f"models:/{name}/{version}"


def conditions_of(
    settings: EvaluationSettings, data: EvaluationData, run: RunSettings, dataset: str | None = None
) -> Conditions:
    """Under which a workflow measures its models; `dataset`: what it trains on, whose test split may be domain text."""
    from edgequant import models
    from edgequant.corpora.benchmarks import data_folder
    from edgequant.workflows.steps.data import domain_rows, further_questions

    device, folder = models.pick_device(run.device), data_folder(run.data_dir)
    where = None if folder is None else str(folder.resolve())
    dtype, own = models.pick_dtype(run.dtype, device), [*further_questions(dataset)]
    own += ["domain"] if domain_rows(dataset) else []
    return Conditions.of(settings, data, data_dir=where, device=device, dtype=dtype, kept=own)


def _check_figures(checkpoint: Path, measured: Scores, baseline: Scores, *, uncompared: str) -> None:
    if not measured.metrics or not (baseline.metrics or uncompared):
        missing = "the checkpoint" if not measured.metrics else "the model it was made from (the baseline)"
        raise UserError(f"{checkpoint} cannot be registered: no metrics of {missing} were given; measure it first")
    for whose, row in (("its", measured.metrics), ("the baseline's", baseline.metrics)):
        if broken := [name for name, value in row.items() if not is_evidence(name, value)]:
            raise UserError(
                f"{checkpoint} cannot be registered: {whose} {broken[0]} is {row[broken[0]]:g}, which measures "
                "nothing; measure it again, or quantise it otherwise"
            )


def _short_copy(evidence: Evidence) -> dict[str, str]:
    """Tags that people read in MLflow's list of versions; nothing is judged by them."""
    from edgequant.reporting.columns import summary_metrics

    def few(metrics: Mapping[str, float]) -> dict[str, float]:
        shown = [name for name in summary_metrics() if name in metrics and not name.startswith(OF_LESS_INTEREST)]
        return {name: float(f"{metrics[name]:.10g}") for name in shown}

    names = {"model": evidence.model, "scheme": evidence.scheme, "variant": evidence.variant}
    return {
        **{f"edgequant.{key}": value for key, value in names.items()},
        **{name: str(value) for name, value in few(evidence.measured.metrics).items()},
        BASELINE_TAG: json.dumps(few(evidence.baseline.metrics)),
    }


def _with_its_manifest(evidence: Evidence, checkpoint: Path, folder: Path) -> Path:
    """A folder with the file and with the checkpoint's manifest, which lists it; the checkpoint stays as it is."""
    shutil.copy(checkpoint / MANIFEST, folder)
    file = write_atomically(folder / EVIDENCE, evidence.to_json())
    list_file(folder, EVIDENCE, sha256_of(file))
    return folder


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
    """The command that puts a registered version through the gates; the newest, where it has no number yet."""
    _, name, version = uri.split("/")
    return f"edgequant promote --model {shlex.quote(name)}" + (f" --version {version}" if version.isdigit() else "")


def default_model() -> str:
    """The newest registered champion, else the newest registered version, else the embedded model; says which."""
    from edgequant import tracking

    registered = tracking.all_pages(
        tracking.client().search_registered_models, filter_string=f"name LIKE '{tracking.REGISTERED}%'"
    )
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
