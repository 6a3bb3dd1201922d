"""Our plotly figures as PNG, drawn by matplotlib: plotly's own way to a picture starts a browser.

What our figures hold is drawn: bars, lines and named points with error bars, heat maps, parallel coordinates.
"""

from __future__ import annotations

import html
import io
import math
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib import colormaps, colors, rcParams
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure as Canvas
from matplotlib.ticker import LogFormatterSciNotation, NullLocator

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

WIDTH, HEIGHT, DPI = 1000, 460, 100  # pixels where the figure says none; pixels per inch
INK, GRID = "#4d4d4d", "#d9d9d9"
DASHES = {"dot": ":", "dash": "--", "dashdot": "-."}
OFFSET = 9  # points between a point and its name
RAISED = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


def png(figure: Figure) -> bytes:
    """A figure as a PNG of its own size, white behind, whatever the theme of the page it is shown on."""
    layout = figure.layout
    canvas = Canvas((WIDTH / DPI, (layout.height or HEIGHT) / DPI), dpi=DPI, layout="constrained", facecolor="white")
    paper = FigureCanvasAgg(canvas)
    axes = canvas.add_subplot()
    _dress(axes, layout)
    for index, trace in enumerate(figure.data):
        if draw := _DRAWN.get(trace.type):
            draw(axes, trace, f"C{index % len(rcParams['axes.prop_cycle'])}")
    _set_axis(axes, "x", layout.xaxis)
    _set_axis(axes, "y", layout.yaxis)
    for note in layout.annotations:
        _annotate(axes, note)
    if layout.showlegend is not False and axes.get_legend_handles_labels()[1]:
        axes.legend(loc="upper left", bbox_to_anchor=(1, 1), fontsize=8, frameon=False)
    written = io.BytesIO()
    paper.print_png(written)  # `savefig` would go through everything twice, the first time for the layout alone
    return written.getvalue()


def plain(text: str | None) -> str:
    """Plotly's little HTML as text; a dollar sign stays one, which matplotlib would read as mathematics."""
    lines = re.sub(r"<br\s*/?>", "\n", text or "")
    return html.unescape(re.sub(r"<[^>]+>", "", lines)).replace("$", r"\$")


class PowersAsText(LogFormatterSciNotation):
    """The labels of a logarithmic axis with the same powers, as characters: typesetting them as mathematics takes half
    of the time of a whole picture, anew for each."""

    def __call__(self, x: float, pos: int | None = None) -> str:
        label = re.sub(r"\^\{(.+?)\}", lambda found: found[1].translate(RAISED), super().__call__(x, pos))
        return re.sub(r"\$|\\mathdefault|[{}]", "", label.replace(r"\times", "×"))


def _dress(axes: Any, layout: Any) -> None:
    title, subtitle = layout.title.text, layout.title.subtitle.text
    axes.set_title(plain(title), loc="left", fontsize=12, color="#222222", pad=20 if subtitle else 8)
    if subtitle:
        axes.text(0, 1.01, plain(subtitle), transform=axes.transAxes, fontsize=9, color=INK, va="bottom")
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(GRID)
    axes.tick_params(colors=INK, labelsize=9)
    axes.set_axisbelow(True)


def _annotate(axes: Any, note: Any) -> None:
    places = "axes fraction" if note.xref == "paper" else "data"
    shift: dict[str, Any] = {"xytext": (note.xshift or 0, note.yshift or 0), "textcoords": "offset points"}
    side: dict[str, Any] = {"ha": note.xanchor if note.xanchor in ("left", "right") else "center"}
    side["va"] = note.yanchor if note.yanchor in ("top", "bottom") else "center"
    axes.annotate(plain(note.text), (note.x, note.y), xycoords=places, color=INK, fontsize=9, **shift, **side)


def _draw_bars(axes: Any, trace: Any, color: str) -> None:
    is_horizontal = trace.orientation == "h"
    at, lengths = (trace.y, trace.x) if is_horizontal else (trace.x, trace.y)
    drawn = axes.barh if is_horizontal else axes.bar
    error: dict[str, Any] = {
        "xerr" if is_horizontal else "yerr": _errors(trace.error_x if is_horizontal else trace.error_y)
    }
    drawn(list(at), list(lengths), 0.6, color=_colors(trace.marker.color, color), ecolor="#888888", capsize=3, **error)
    axes.grid(axis="x" if is_horizontal else "y", color=GRID)
    texts = [trace.text] * len(at) if isinstance(trace.text, str) else trace.text
    for where, length, text in zip(at, lengths, texts if texts is not None else (), strict=False):
        inside = trace.textposition == "inside"
        point = (0 if inside else length, where) if is_horizontal else (where, length)
        style: dict[str, Any] = {
            "color": "white" if inside else INK,
            "fontsize": 9,
            "va": "center" if is_horizontal else "bottom",
        }
        axes.annotate(plain(str(text)), point, (4, 0), textcoords="offset points", **style)


def _draw_points(axes: Any, trace: Any, color: str) -> None:
    xs, ys, mode = list(trace.x), list(trace.y), trace.mode or "lines+markers"
    own = _colors(trace.line.color if isinstance(trace.line.color, str) else trace.marker.color, color)
    own = color if isinstance(own, list) else own
    name = plain(trace.name) if trace.name else None
    if "lines" in mode:
        axes.plot(xs, ys, DASHES.get(trace.line.dash, "-"), color=own, lw=1.5)
    if "markers" in mode or "lines" not in mode:
        error: dict[str, Any] = {"xerr": _errors(trace.error_x), "yerr": _errors(trace.error_y)}
        if any(each is not None for each in error.values()):
            axes.errorbar(xs, ys, fmt="none", ecolor="#888888", elinewidth=1.2, capsize=3, zorder=1, **error)
        axes.scatter(xs, ys, 60 if "text" in mode else 20, _colors(trace.marker.color, color), zorder=3, label=name)
    elif name:
        axes.plot([], [], color=own, label=name)
    axes.grid(color=GRID)
    if "text" in mode:
        _name_points(axes, trace, xs, ys)


def _name_points(axes: Any, trace: Any, xs: list[Any], ys: list[Any]) -> None:
    places = trace.textposition
    places = [places or "top center"] * len(xs) if isinstance(places, str) or places is None else list(places)
    sides = {"left": (-OFFSET, "right"), "right": (OFFSET, "left"), "center": (0, "center")}
    heights = {"top": (OFFSET, "bottom"), "bottom": (-OFFSET, "top"), "middle": (0, "center")}
    for x, y, text, place in zip(xs, ys, trace.text, places, strict=True):
        vertical, horizontal = place.split()
        (dx, ha), (dy, va) = sides[horizontal], heights[vertical]
        offset: dict[str, Any] = {"xytext": (dx, dy), "textcoords": "offset points", "ha": ha, "va": va}
        behind = {"facecolor": "white", "edgecolor": "none", "alpha": 0.8, "pad": 1}
        axes.annotate(plain(str(text)), (x, y), fontsize=9, color="#222222", zorder=4, bbox=behind, **offset)


def _draw_heatmap(axes: Any, trace: Any, _color: str) -> None:
    cells = np.array([[math.nan if cell is None else cell for cell in row] for row in trace.z], dtype=float)
    image = axes.imshow(cells, cmap="viridis", aspect="auto")
    axes.figure.colorbar(image, ax=axes, label=plain(trace.colorbar.title.text))
    axes.set_xticks(range(len(trace.x)), list(trace.x))
    axes.set_yticks(range(len(trace.y)), [plain(str(name)) for name in trace.y])
    darkest = np.nanmin(cells) + 0.6 * (np.nanmax(cells) - np.nanmin(cells)) if trace.texttemplate else 0.0
    for line, column in np.argwhere(np.isfinite(cells)) if trace.texttemplate else ():
        is_dark = cells[line, column] < darkest
        text = f"{cells[line, column]:g}"
        axes.text(column, line, text, ha="center", va="center", fontsize=8, color="white" if is_dark else "black")


def _draw_parallel(axes: Any, trace: Any, _color: str) -> None:
    """Every dimension from 0 to 1, its ends written at them; lines coloured by the first one."""
    columns = [np.asarray(dimension["values"], dtype=float) for dimension in trace.dimensions]
    spans = [(float(np.nanmin(column)), float(np.nanmax(column))) for column in columns]
    scaled = [(column - low) / ((high - low) or 1.0) for column, (low, high) in zip(columns, spans, strict=True)]
    for line in np.array(scaled).T:
        axes.plot(range(len(line)), line, color=colormaps["viridis"](line[0]), alpha=0.7)
    for at, (dimension, (low, high)) in enumerate(zip(trace.dimensions, spans, strict=True)):
        named = dict(zip(dimension.tickvals, dimension.ticktext, strict=True)) if dimension.ticktext else {}
        for end, value, va in ((0.0, low, "top"), (1.0, high, "bottom")):
            text = plain(str(named.get(value, f"{value:.4g}")))
            axes.annotate(
                text, (at, end), (0, -4 if va == "top" else 4), textcoords="offset points", ha="center", va=va
            )
        axes.axvline(at, color=GRID)
    axes.set_xticks(range(len(columns)), [plain(dimension.label) for dimension in trace.dimensions])
    axes.set_yticks([])
    axes.margins(y=0.12)


def _errors(bar: Any) -> list[list[float]] | None:
    if bar is None or bar.array is None:
        return None
    above = list(bar.array)
    below = above if bar.arrayminus is None else list(bar.arrayminus)
    return [below, above]


def _colors(given: Any, otherwise: str) -> Any:
    if isinstance(given, str):
        return _color(given) or otherwise
    read = [_color(one) if isinstance(one, str) else None for one in given] if given is not None else []
    return read if read and None not in read else otherwise


def _color(text: str) -> str | tuple[float, ...] | None:
    """A colour as matplotlib takes it: CSS' `rgba(255, 0, 0, 0.5)` as fractions."""
    if found := re.fullmatch(r"rgba?\((.+)\)", text.replace(" ", "")):
        parts = [float(part) for part in found[1].split(",")]
        return (*(part / 255 for part in parts[:3]), *parts[3:])
    return text if colors.is_color_like(text) else None


def _set_axis(axes: Any, name: str, axis: Any) -> None:
    set_label, set_scale, limit = (getattr(axes, f"set_{name}{what}") for what in ("label", "scale", "lim"))
    if axis.title.text:
        set_label(plain(axis.title.text), color=INK)
    if axis.type == "log":
        set_scale("log")
        for which in ("major", "minor"):
            getattr(getattr(axes, f"{name}axis"), f"set_{which}_formatter")(PowersAsText())
    if axis.range is not None and None not in axis.range:
        limit(*(10.0**end for end in axis.range) if axis.type == "log" else axis.range)
    if axis.tickvals is not None:
        _set_ticks(axes, name, axis.tickvals, axis.ticktext)
    if axis.autorange == "reversed" and not getattr(axes, f"{name}axis_inverted")():
        getattr(axes, f"invert_{name}axis")()
    if axis.visible is False:
        getattr(axes, f"{name}axis").set_visible(False)


def _set_ticks(axes: Any, name: str, values: Sequence[Any], texts: Sequence[str] | None) -> None:
    ticks = getattr(axes, f"{name}axis")
    ticks.set_ticks([float(value) for value in values])
    ticks.set_ticklabels([plain(str(text)) for text in (texts if texts is not None else values)])
    ticks.set_minor_locator(NullLocator())


_DRAWN = {
    "bar": _draw_bars,
    "scatter": _draw_points,
    "heatmap": _draw_heatmap,
    "parcoords": _draw_parallel,
}
