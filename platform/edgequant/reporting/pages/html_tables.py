"""The report's tables: their first column stays in view, and each row becomes a card where the page is narrow."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from markupsafe import Markup

from edgequant.reporting.charts.marks import Mark
from edgequant.reporting.charts.svg import element, picture, symbol
from edgequant.reporting.charts.text_width import text_width
from edgequant.reporting.columns import MISSING, Column, Row, columns, described_metrics, is_metric, metric
from edgequant.reporting.comparison import Pair
from edgequant.reporting.findings.domains import Breakdown
from edgequant.reporting.findings.in_words import change, own_change, signed

ROOM = 1216.0 - 2  # of the page at 1280 pixels, less the table's edges
NAMES, CELL_PADDING, STAR = 216.0, 21.0, 16.0
VALUE, SMALL, HEADING = 14.0, 12.0, 12.5  # heights of the fonts, as the page's style has them
DECISIVE = ("figure", "summary")
GLYPHS = {"better": "▲", "worse": "▼", "undecided": "◇"}


class Cell(NamedTuple):
    """What stands in a cell, and in small print under it; `kind` is its class in the page's style."""

    text: Markup | str
    small: Markup | str = ""
    kind: str = "number"


class Line(NamedTuple):
    """A row of a table: what it is called, and its cells."""

    head: Markup | str
    cells: Sequence[Cell]
    kind: str = ""


def table(headings: Sequence[str], lines: Sequence[Line], *, cards: bool = True) -> Markup:
    """A table in a frame that scrolls by itself where even the page at its widest is too narrow.

    Args:
        headings: of all columns, that of the rows' names first.
        cards: whether rows become cards on a phone.
    """
    heads = Markup("").join(
        Markup('<th scope="col" class="{}">{}</th>').format("name" if at == 0 else "number", heading)
        for at, heading in enumerate(headings)
    )
    body = Markup("").join(_line(line, headings) for line in lines)
    return Markup(
        '<div class="scroll" tabindex="0"><table class="{}"><thead><tr>{}</tr></thead><tbody>{}</tbody></table></div>'
    ).format("cards" if cards else "grid-table", heads, body)


def results_table(rows: Sequence[Row], shown: Sequence[Column], heads: Sequence[Head]) -> Markup:
    """The rows with some of their columns."""
    lines = [Line(heads[at].shown(), [_result(column, at) for column in shown]) for at in range(len(rows))]
    return table(["", *(column.heading.removeprefix("shipped ") for column in shown)], lines)


def everything_table(rows: Sequence[Row], marks: Sequence[Mark]) -> Markup:
    """All metrics, one a line, the rows side by side."""
    shown = [column for column in columns(rows) if is_metric(column.key)]
    lines = [
        Line(
            Markup("<code>{}</code> {}").format(column.key, column.counted),
            [_result(column, at) for at in range(len(rows))],
        )
        for column in shown
    ]
    return table(["metric", *(f"{mark.number} {mark.label}" for mark in marks)], lines, cards=False)


def fitting(found: Sequence[Column], most: Sequence[str] = DECISIVE) -> list[Column]:
    """As many of the columns as stand side by side at 1280 pixels, those that a decision rests on first.

    Args:
        most: prominences of what is shown; other columns only where there is nothing else.
    """
    known = described_metrics()
    fit = [column for column in found if column.key in known and known[column.key].prominence in most] or list(found)
    kept, free = [], ROOM - NAMES
    for column in sorted(
        fit, key=lambda column: metric(column.key).prominence
    ):  # figure comes before summary and table
        if (width := _width(column)) <= free:
            kept.append(column.key)
            free -= width
    return [column for column in fit if column.key in kept]


class Head(NamedTuple):
    """What a row is called: number and symbol as in the charts, variant, scheme, model and, where only that tells it
    apart, run.

    Attributes:
        badge: a word beside the name.
        link: id of the place where its command stands.
    """

    mark: Mark
    name: str
    details: Sequence[str]
    badge: str
    link: str

    def shown(self, against: str = "") -> Markup:
        """As the first cell of a row; `against`: what the row is compared with."""
        mark = self.mark
        parts = [Markup('<span class="row-number">{}</span>{}<span class="row-name">').format(mark.number, _icon(mark))]
        parts.append(Markup('<a href="#{}">{}</a>').format(self.link, self.name))
        parts += [Markup(' <span class="badge">{}</span>').format(self.badge)] if self.badge else []
        parts += [Markup('<span class="against">against {}</span>').format(against)] if against else []
        parts += [Markup('<span class="detail">{}</span>').format(detail) for detail in self.details]
        return Markup("").join([*parts, Markup("</span>")])


def row_heads(
    rows: Sequence[Row], marks: Sequence[Mark], badges: Mapping[int, str], links: Sequence[str]
) -> list[Head]:
    """A head for each row.

    Args:
        badges: by row.
        links: of each row.
    """
    several = len({str(row.get("model", "")) for row in rows}) > 1
    unlike = _unlike(rows)
    found = []
    for at, (row, mark) in enumerate(zip(rows, marks, strict=True)):
        details = [str(row.get("scheme", ""))] if row.get("scheme") not in (None, "", "none") else []
        details = [str(row.get("model", "")), *details] if several else details
        details += [str(row.get("run", ""))] if at in unlike else []
        found.append(Head(mark, str(row.get("variant") or mark.label), details, badges.get(at, ""), links[at]))
    return found


def paired_table(pairs: Sequence[Pair], heads: Sequence[Head], *, named: bool) -> Markup:
    """What changed against the references, metric by metric, with the paired interval and what it says.

    Args:
        named: whether each line says what the reference is.
    """
    metrics = list(dict.fromkeys(loss.metric for pair in pairs for loss in pair.losses))
    on = {name: {loss.counted for pair in pairs for loss in pair.losses if loss.metric == name} for name in metrics}
    lines = [Line(heads[pair.row].shown(pair.reference if named else ""), _pair_cells(pair, metrics)) for pair in pairs]
    heads_of = [metric(name).heading + (f", {', '.join(on[name])}" if len(on[name]) == 1 else "") for name in metrics]
    return table(["", *heads_of], lines)


def domains_table(
    rows: Sequence[Row], breakdown: Breakdown, heads: Sequence[Head], baselines: Sequence[int | None]
) -> Markup:
    """A metric by domain, and its change against the baseline of the same model.

    Args:
        baselines: by row, index of that baseline.
    """
    keys = [breakdown.metric, *breakdown.parts.values()]
    shown = {column.key: column for column in columns(rows)}
    lines = []
    for at, row in enumerate(rows):
        if any(row.get(key) is not None for key in keys):
            other = baselines[at]
            lines.append(
                Line(heads[at].shown(), [_domain(shown[key], rows, at, other) for key in keys if key in shown])
            )
    return table(
        ["", *(name for name, key in {"all domains": breakdown.metric, **breakdown.parts}.items() if key in shown)],
        lines,
    )


def legend(marks: Sequence[Mark]) -> Markup:
    """Colour and shape of every variant, once for all charts."""
    first = {mark.variant: mark for mark in reversed(marks)}
    order = dict.fromkeys(mark.variant for mark in marks)
    parts = [Markup("<span>{} {}</span>").format(_icon(first[variant]), variant or "model") for variant in order]
    return Markup('<p class="legend">{}</p>').format(Markup("").join(parts))


def _icon(mark: Mark) -> Markup:
    drawn = picture(16, 16, mark.variant, [symbol(8, 8, mark.shape, mark.color, 5.0)])
    return element("span", drawn, class_="icon", aria_hidden="true")


def _line(line: Line, headings: Sequence[str]) -> Markup:
    cells = Markup("").join(
        Markup('<td class="{}" data-label="{}">{}</td>').format(
            f"{cell.kind} missing" if cell.text == MISSING else cell.kind,
            heading,
            Markup('<span class="cell">{}{}</span>').format(
                cell.text, Markup('<span class="small">{}</span>').format(cell.small) if cell.small else ""
            ),
        )
        for cell, heading in zip(line.cells, headings[1:], strict=True)
    )
    return Markup('<tr class="{}"><th scope="row">{}</th>{}</tr>').format(line.kind, line.head, cells)


def _result(column: Column, row: int) -> Cell:
    if not column.is_number:
        return Cell(column.cells[row], kind="text")
    value, small = _parts(column.cells[row])
    return Cell(value, Markup("<br>").join(small), "number best" if row in column.best else "number")


def _parts(cell: str) -> tuple[str, list[str]]:
    """A value, and lines of small print: its interval, and what else is said of it."""
    value, _, more = cell.partition(", ")  # thousands have no blank behind their comma
    value, _, interval = value.partition(" (")
    return value, [line for line in (interval.removesuffix(")"), more) if line]


def _pair_cells(pair: Pair, metrics: Sequence[str]) -> list[Cell]:
    if not pair.losses:
        return [Cell(pair.reason, kind="text"), *[Cell(MISSING)] * (len(metrics) - 1)] if metrics else []
    found = []
    for name in metrics:
        loss = pair.of(name)
        if loss is None:
            found.append(Cell(MISSING))
            continue
        said = loss.outcome
        word = Markup('<span class="outcome {}">{} {}</span>').format(said.split()[0], GLYPHS.get(said, "·"), said)
        interval = "" if loss.low is None else change(loss)
        found.append(Cell(Markup("{} {}{}").format(signed(own_change(loss), loss.unit), loss.unit, word), interval))
    return found


def _domain(column: Column, rows: Sequence[Row], at: int, other: int | None) -> Cell:
    value, lines = _parts(column.cells[at])
    small = Markup("<br>").join(lines)
    own, plain = rows[at].get(column.key), None if other is None else rows[other].get(column.key)
    if other == at or not own or not plain:
        return Cell(value, small)
    changed = Markup('<span class="change">{} %</span>').format(signed(100 * (float(own) / float(plain) - 1)))
    return Cell(Markup("{} {}").format(value, changed), small)


def _unlike(rows: Sequence[Row]) -> set[int]:
    """Rows that only their run tells apart."""
    names = [tuple(str(row.get(key, "")) for key in ("model", "variant", "scheme")) for row in rows]
    return {at for at, name in enumerate(names) if names.count(name) > 1}


def _width(column: Column) -> float:
    values, small = zip(*map(_parts, column.cells), strict=True)
    widths = [text_width(value, VALUE) + STAR for value in values]
    widths += [text_width(line, SMALL) for lines in small for line in lines]
    widths += [text_width(word, HEADING) for word in column.heading.split()]
    return max(widths) + CELL_PADDING
