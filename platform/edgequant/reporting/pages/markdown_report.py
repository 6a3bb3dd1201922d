"""The report in Markdown, without charts."""

from __future__ import annotations

from collections.abc import Mapping

from edgequant.reporting.charts.marks import row_labels
from edgequant.reporting.columns import is_metric, metric
from edgequant.reporting.comparison import Comparison
from edgequant.reporting.findings.commands import Command
from edgequant.reporting.findings.in_words import change, in_words, own_change, p_value, signed
from edgequant.reporting.protocols import protocols_for
from edgequant.reporting.tables import markdown_table, markdown_text


def markdown_report(
    comparison: Comparison, title: str = "edgequant report", commands: Mapping[str, Command] | None = None
) -> str:
    """What the page says, in words and tables.

    Args:
        commands: by the id of a workflow run, the command that makes it again.
    """
    lines = [f"# {markdown_text(title)}", ""]
    for told in in_words(comparison):
        lines += [f"**{markdown_text(told.lead)}**", "", *(f"- {markdown_text(text)}" for text in told.sentences), ""]
    if comparison.warnings:
        lines += ["## Before you compare", "", *(f"- {markdown_text(text)}" for text in comparison.warnings), ""]
    lines += ["## Results", "", markdown_table(comparison.rows), *_paired(comparison)]
    lines += ["## Runs", "", *_runs(comparison, commands or {}), "## How it was measured", ""]
    names = [key for row in comparison.rows for key in row if is_metric(key)]
    lines += [f"- **{group}**: {markdown_text(text)}" for group, text in protocols_for(names).items()]
    return "\n".join(lines) + "\n"


def _paired(comparison: Comparison) -> list[str]:
    labels = row_labels(comparison.rows)
    lines = [
        f"| {markdown_text(labels[pair.row])} | {markdown_text(pair.reference)} | {metric(loss.metric).heading} | "
        f"{signed(own_change(loss), loss.unit)} {loss.unit} | {change(loss)} | {p_value(loss)} | {loss.counted} | "
        f"{loss.outcome} |"
        for pair in comparison.pairs
        for loss in pair.losses
    ]
    heads = [
        "| model | against | metric | change | paired interval | p (Holm) | on | |",
        "| --- | --- | --- | ---: | --- | ---: | --- | --- |",
    ]
    return ["## Item by item", "", *heads, *lines, ""] if lines else []


def _runs(comparison: Comparison, commands: Mapping[str, Command]) -> list[str]:
    lines = []
    for parent in comparison.parents:
        label, command = f"{parent.workflow or parent.name} {parent.id[:8]}", commands.get(parent.id, Command(""))
        commit = parent.tags.get("mlflow.source.git.commit", "unknown")[:12]
        lines += [f"- [{markdown_text(label)}](<{parent.url}>), commit `{commit}`", ""]
        lines += [f"      {command.text}", ""] if command.text else []
    return lines
