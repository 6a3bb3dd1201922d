"""The per-layer errors of a quantisation as a figure: where in the model it hurts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from plotly.graph_objects import Figure, Scatter

ERRORS = {"output_error": "output", "weight_error": "weight"}


def layer_error_figure(rows: Sequence[Mapping[str, Any]]) -> Figure:
    """Relative squared error of every layer, one line per kind of layer, depth from left to right.

    Args:
        rows: as `quantization.ptq.quantize` returns them: `layer`, `kind`, and `output_error` or `weight_error`.
    """
    measured = "output_error" if any("output_error" in row for row in rows) else "weight_error"
    figure = Figure()
    for name, points in by_role(rows, measured).items():
        depths, errors, layers = zip(*points, strict=True)
        figure.add_trace(Scatter(x=depths, y=errors, text=layers, name=name, mode="lines+markers"))
    figure.update_layout(
        title=f"Relative squared {ERRORS[measured]} error by layer",
        xaxis_title="decoder block",
        yaxis_title=f"{ERRORS[measured]} error",
        yaxis_type="log",
    )
    return figure


def by_role(rows: Sequence[Mapping[str, Any]], measured: str) -> dict[str, list[tuple[int, float, str]]]:
    """Points by what a layer does: its name behind the last number, which counts the blocks."""
    roles: dict[str, list[tuple[int, float, str]]] = {}
    for row in rows:
        if not row.get(measured):
            continue
        parts = str(row["layer"]).split(".")
        numbers = [index for index, part in enumerate(parts) if part.isdigit()]
        depth = int(parts[numbers[-1]]) if numbers else 0
        role = ".".join(parts[numbers[-1] + 1 :] if numbers else parts) or "block, against the original"
        roles.setdefault(role, []).append((depth, float(row[measured]), str(row["layer"])))
    return roles
