"""The text on top of a run's page in MLflow: what was asked, the table, what it comes to, what to do next."""

from __future__ import annotations

from collections.abc import Sequence

from edgequant.reporting.columns import BEST_IN, IDENTITY, Row, columns, core, metric
from edgequant.reporting.tables import MAX_METRICS, markdown_table, markdown_text, turned_table

LENGTH = 5000  # characters: MLflow's databases take 8000 in a tag, of as many bytes
TURNED_ROWS = 6  # of a table whose metrics go down and whose rows go across: the page is narrow


def description(
    asked: str,
    rows: Sequence[Row],
    *,
    verdict: Sequence[str] = (),
    notes: Sequence[str] = (),
    following: str | None = None,
    compare: str | None = None,
) -> str:
    """A run's description in Markdown, cut where MLflow would refuse it.

    Args:
        asked: what the run was asked to do, in Markdown.
        rows: the summary table.
        verdict: what it comes to, in plain lines; above the table, of which MLflow shows the beginning.
        notes: what it does not show, and why.
        following: the command that a user would type next.
        compare: address of the page that puts the run's models side by side.
    """
    parts = [asked, *map(markdown_text, verdict), description_table(rows) if rows else "", *map(markdown_text, notes)]
    parts += [f"[Compare these models](#{compare.partition('#')[2]})"] if compare else []  # on whatever server shows it
    parts += [f"Next: `{following.replace('`', '')}`"] if following else []
    kept: list[str] = []
    for part in filter(None, (part.strip() for part in parts)):
        if sum(len(one.encode()) + 2 for one in (*kept, part)) > LENGTH:
            kept.append("…")
            break
        kept.append(part)
    return "\n\n".join(kept)


def description_table(rows: Sequence[Row]) -> str:
    """The metrics that a decision rests on: a line each, and a column for each model where those are few."""
    shown = core(columns(rows))
    names = [column for column in shown if column.key in IDENTITY]
    if not names or len(rows) > TURNED_ROWS:
        keys = {column.key for column in shown[: MAX_METRICS + len(names)]}
        return markdown_table([_with_bounds(row, keys) for row in rows])
    return turned_table(shown)


def _with_bounds(row: Row, keys: set[str]) -> Row:
    kept = {*keys, BEST_IN, *(f"{key}_ci_{end}" for key in keys for end in ("low", "high"))}
    kept |= {name for key in keys for name in (*metric(key).counts, metric(key).floor) if isinstance(name, str)}
    return {key: value for key, value in row.items() if key in kept}
