"""The bits of every layer under a size budget as a figure: where in the model they went."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from plotly.graph_objects import Figure, Heatmap

from edgequant.reporting.layer_errors import by_role


def layer_bits_figure(rows: Sequence[Mapping[str, Any]]) -> Figure:
    """Bits of every layer, one line per kind of layer, depth from left to right; sensitivities under the pointer.

    Args:
        rows: as `quantization.mixed_precision.Allocation` has them: `layer`, `bits`, `parameters`, `sensitivity`.
    """
    roles = by_role(rows, "bits")
    by_layer = {str(row["layer"]): row for row in rows}
    depths = 1 + max(depth for points in roles.values() for depth, _, _ in points)
    bits: list[list[float | None]] = [[None] * depths for _ in roles]
    notes = [[""] * depths for _ in roles]
    for line, points in enumerate(roles.values()):
        for depth, width, layer in points:
            bits[line][depth], notes[line][depth] = width, _note(by_layer[layer])
    heatmap = Heatmap(
        x=list(range(depths)),
        y=list(roles),
        z=bits,
        text=notes,
        texttemplate="%{z}",
        hovertemplate="%{text}<extra></extra>",
        colorscale="Viridis",
        colorbar={"title": "bits"},
        xgap=1,
        ygap=1,
    )
    figure = Figure(heatmap)
    figure.update_layout(title="Bits by layer", xaxis_title="decoder block", yaxis_autorange="reversed")
    return figure


def _note(row: Mapping[str, Any]) -> str:
    return (
        f"{row['layer']}<br>{row['bits']} bits, {row['parameters']:,} parameters"
        f"<br>predicted increase of the loss {row['sensitivity']:.3g} nats"
    )
