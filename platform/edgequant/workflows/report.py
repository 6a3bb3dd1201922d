"""`report`: compare runs in one HTML page, with Markdown and CSV twins and model cards of what they registered.

mlflow run . -e report
edgequant report                                        # the newest finished runs
edgequant report --runs '[3f2a91c0, 77ab02de]' --output comparison
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable
from dataclasses import asdict, is_dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgequant.errors import UserError, first_line
from edgequant.folders import atomic_folder
from edgequant.outputs import check_output, check_own_folder
from edgequant.workflows.settings import WorkflowResult, configuration

if TYPE_CHECKING:
    from edgequant.reporting.comparison import Comparison
    from edgequant.reporting.findings.commands import Command
    from edgequant.reporting.model_card import Card

REPORT = "report"  # kind of its folder


def report(
    *,
    runs: list[str] | str | None = None,
    title: str = "edgequant report",
    output: str | None = None,
    experiment: str = "edgequant",
) -> WorkflowResult:
    """Compare measured models in one self-contained HTML page with tables, plots, warnings and configuration.

    Args:
        runs: run ids (their first characters are enough), as a list or separated by commas; by default the newest
            finished run of baseline, ptq, qat, finetune and evaluate, each model as it was measured last.
        title: heading of the page.
        output: folder that receives report.html, report.md, report.csv and cards, new, empty or of an earlier report
            (default: outputs/report/<run id>).
        experiment: MLflow experiment of this run, unless `mlflow run` names one; runs of all experiments are found.
    """
    config = dict(locals())
    ids = run_ids(runs)
    target = check_folder(output)

    from edgequant import tracking
    from edgequant.reporting.gathering import compare
    from edgequant.workflows.steps.summary import print_summary

    compared = compare(ids)
    with tracking.workflow_run("report", config, experiment=experiment) as run:
        written = write_report(compared, title, target or tracking.run_folder("report", run.id))
        tracking.log_folder(written.parent, "report")
        log_figures(compared)
        for warning in compared.warnings:
            print(f"warning: {warning}")
        print_summary(f"{title}: {len(compared.rows)} models", compared.rows, run, f"open {written}")
    return WorkflowResult(run.id, {}, str(written), list(compared.rows))


def check_folder(output: str | None) -> Path | None:
    """Refuse an output that is no place for a report; returns it, resolved.

    Raises:
        UserError: as `outputs.check_output`.
    """
    if output is None:
        check_own_folder("report")
        return None
    return check_output(output, REPORT)


def run_ids(runs: list[str] | str | None) -> list[str]:
    """Run ids from a list or from a text in which commas separate them."""
    given = runs.strip("[] ").split(",") if isinstance(runs, str) else runs or []  # [12, 34] is no list of texts
    return [text.strip() for text in given if text.strip()]


def write_report(compared: Comparison, title: str, folder: Path) -> Path:
    """Write the page, its twins and the cards; returns the page."""
    from edgequant.files import write_atomically
    from edgequant.reporting.pages.html_report import html_report
    from edgequant.reporting.pages.markdown_report import markdown_report
    from edgequant.reporting.tables import csv_table

    commands = commands_of(compared)
    cards, damaged = model_cards(compared)
    for line in damaged:
        print(f"warning: {line}")
    compared = replace(compared, warnings=[*compared.warnings, *damaged])
    with atomic_folder(folder, REPORT) as temporary:
        write_atomically(temporary / "report.md", markdown_report(compared, title, commands))
        write_atomically(temporary / "report.csv", csv_table(compared.rows))
        for name, card in cards.items():
            write_atomically(temporary / "cards" / f"{name}.md", card)
        write_atomically(temporary / "report.html", html_report(compared, title, commands))
    return folder / "report.html"


def commands_of(compared: Comparison) -> dict[str, Command]:
    """The command that makes each workflow run again, by the run's id."""
    from edgequant.reporting.findings.commands import command
    from edgequant.reporting.gathering import MEASURING_WORKFLOWS

    known = {name: defaults_of(name) for name in {run.workflow for run in compared.parents} & {*MEASURING_WORKFLOWS}}
    return {run.id: command(run.workflow, run.id, known.get(run.workflow)) for run in compared.parents}


def defaults_of(workflow: str) -> dict[str, Any]:
    """Options of a measuring workflow with their defaults, in groups, as its runs keep them."""
    function = getattr(importlib.import_module(f"edgequant.workflows.{workflow}"), workflow)
    defaults = {name: each.default for name, each in inspect.signature(function).parameters.items()}
    given = configuration(defaults) if "run" in defaults else defaults
    return {name: asdict(value) if is_dataclass(value) else value for name, value in given.items()}  # type: ignore[arg-type]


def model_cards(compared: Comparison) -> tuple[dict[str, str], list[str]]:
    """A card for every registered version that the compared runs made, by file name; a line for each of which the
    evidence cannot be read, whose card has the figures of its tags."""
    from edgequant import tracking
    from edgequant.reporting.model_card import model_card

    cards, damaged = dict[str, str](), list[str]()
    for parent in compared.parents:
        versions: Any = tracking.client().search_model_versions(f"run_id = '{parent.id}'")
        for version in versions:
            cards[f"{version.name}-v{version.version}"] = model_card(_card(version, parent.url, damaged.append))
    return cards, damaged


def _card(version: Any, run_url: str | None, tell: Callable[[str], None]) -> Card:
    """With every figure of the version's evidence; tags hold a few of them."""
    from edgequant import tracking
    from edgequant.evaluation.evidence_file import read
    from edgequant.reporting.model_card import card_of_version

    card = card_of_version(version.name, str(version.version), version.tags, run_url)
    try:
        filed = tracking.filed_evidence(version.name, str(version.version), version.run_id)
        if filed is None:
            return card
        evidence = read(filed.copy.decode(), f"evidence.json of {version.name} version {version.version}")
    except (UserError, UnicodeDecodeError) as error:
        place = f"run {version.run_id[:12]}: evidence of {version.name} version {version.version}"
        tell(f"{place} cannot be read, so that its card has the figures of its tags: {first_line(error)}")
        return card
    return replace(card, metrics=evidence.measured.metrics, baseline=evidence.baseline.metrics)


def log_figures(compared: Comparison) -> None:
    """Each plot on its own as well, where the MLflow UI shows it."""
    from edgequant.reporting.figure_files import log_figure
    from edgequant.reporting.plots import figures

    for name, figure in figures(compared.rows).items():
        log_figure(figure, f"plots/{name}.html")
