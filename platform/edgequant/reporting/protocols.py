"""How each group of metrics is measured, in a sentence or two: what a reader has to know before comparing tables."""

from __future__ import annotations

from collections.abc import Iterable

from edgequant.reporting.columns import shown_tasks

# Of what no task measures; the tasks tell their own.
_PROTOCOLS = {
    "size": "Bytes on disk with scales and zero points, in units of 10^9 (GB) or 10^6 (MB) bytes; the reduction is "
    "against 2 bytes (fp16) for every parameter of the unquantised model.",
    "qat": "Share of PTQ's loss that QAT recovered: (PTQ(control) - QAT) / (PTQ(control) - control) on perplexity, the "
    "control being the same training without quantisation.",
    "parity": "The delivered model against the simulated (or exported) one on the same text.",
}


def protocols_for(metric_names: Iterable[str]) -> dict[str, str]:
    """The sentences for the groups that occur, the tasks' first."""
    groups = {name.split("/")[0] for name in metric_names}
    protocols = {task.group: task.protocol for task in shown_tasks()} | _PROTOCOLS
    return {group: text for group, text in protocols.items() if group in groups}
