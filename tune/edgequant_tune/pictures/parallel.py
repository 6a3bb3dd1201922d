"""Every finished trial as a line through its hyperparameters and metrics."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from edgequant.reporting.columns import metric, shown_metric
from edgequant_tune.objectives import Objective
from edgequant_tune.space.hyperparameter import Hyperparameter, Space, canonical
from edgequant_tune.trial_records import TrialRecord

TICKS = 5


def parallel_coordinates(
    finished: Sequence[TrialRecord], space: Space, objectives: Sequence[Objective], others: Sequence[str]
) -> Any:
    """Colours tell the first objective: dark is better. A hyperparameter that does not count stands in the middle.

    Args:
        others: further metrics, those of constraints.
    """
    from plotly.graph_objects import Figure, Parcoords

    rows = [
        canonical(space, {item.name: record.values.get(item.name, item.at(0.5)) for item in space})
        for record in finished
    ]
    dimensions = [_of_hyperparameter(item, [row[item.name] for row in rows]) for item in space]
    names = list(dict.fromkeys([*(objective.metric for objective in objectives), *others]))
    columns = {name: [record.metrics.get(name, math.nan) for record in finished] for name in names}
    # one value for all trials tells nothing
    varying = {
        name: values for name, values in columns.items() if all(map(math.isfinite, values)) and len({*values}) > 1
    }
    dimensions += [_of_metric(name, values) for name, values in varying.items()]
    first = objectives[0]
    color = [first.cost(record.metrics) for record in finished]
    figure = Figure(
        Parcoords(
            line={"color": color, "colorscale": "Viridis", "showscale": False},
            dimensions=dimensions,
            labelangle=-15,
        )
    )
    better = "lower" if first.mode == "min" else "higher"
    figure.update_layout(
        title=f"All trials; dark lines: {metric(first.metric).label} {better}",
        margin={"l": 90, "r": 60, "t": 150, "b": 40}, height=520,
    )  # fmt: skip
    return figure


def _of_hyperparameter(item: Hyperparameter, values: Sequence[Any]) -> dict[str, Any]:
    if item.kind == "choice":
        places = [item.values.index(value) for value in values]
        texts = [str(value) for value in item.values]
        return {"label": item.name, "values": places, "tickvals": list(range(len(texts))), "ticktext": texts,
                "range": [0, max(1, len(texts) - 1)]}  # fmt: skip
    low, high = item.values
    if not item.kind.startswith("log_"):
        return {"label": item.name, "values": list(values), "range": [low, high]}
    ends = [math.log10(low), math.log10(high)]
    ticks = [ends[0] + at * (ends[1] - ends[0]) / (TICKS - 1) for at in range(TICKS)]
    return {"label": item.name, "values": [math.log10(value) for value in values], "range": ends, "tickvals": ticks,
            "ticktext": [f"{10**tick:.2g}" for tick in ticks]}  # fmt: skip


def _of_metric(name: str, values: Sequence[float]) -> dict[str, Any]:
    shown = shown_metric(name, values)
    return {"label": shown.label, "values": [value * shown.scale for value in values]}
