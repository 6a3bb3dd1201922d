"""The tables in Markdown: means over seeds with their standard deviation, losses against the model as it came."""

from __future__ import annotations

import math
import statistics
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

from peers.table import markdown_table

from qat_quality.cells import AUTO, Cell, Store

Row = dict[str, Any]
PERPLEXITY = "wikitext2/perplexity"
COLUMNS = {  # heading: metric, digits
    "WikiText-2": (PERPLEXITY, 2),
    "domain": ("domain/perplexity", 2),
    "guard": ("guard/perplexity", 2),
    "BoolQ %": ("boolq/accuracy", 1),
    "SQuAD EM %": ("squad/exact_match", 1),
    "SQuAD F1 %": ("squad/f1", 1),
    "smaller %": ("size/reduction_vs_fp16", 1),
    "linears' bits": ("size/linear_bits", 2),
    "seconds": ("cost/seconds", 0),
    "peak GB": ("cost/peak_gb", 1),
}
LOST = {  # heading: metric; per cent of a perplexity, points of a task
    "ppl lost %": PERPLEXITY,
    "BoolQ lost": "boolq/accuracy",
    "F1 lost": "squad/f1",
}


def rows_of(cells: Sequence[Cell], store: Store) -> list[Row]:
    """Every row that is there, that of what QAT delivers behind QAT's, and a line for each cell that failed."""
    found: list[Row] = []
    for cell in cells:
        for row in store.rows(cell):
            found.append(row)
            if "delivered" in row:
                found.append({**row, "variant": "delivered", "metrics": row["delivered_metrics"], "notes": {}})
        if store.error(cell) and not store.has(cell):
            last = store.error(cell).strip().splitlines()[-1][:120]
            found.append({"variant": cell.variant, "scheme": cell.scheme, "seed": cell.seed, "note": f"failed: {last}"})
    return found


def quality_table(rows: Sequence[Row]) -> str:
    """One line a scheme and variant, in the order of the schemes."""
    baselines = {row["seed"]: row["metrics"] for row in rows if row["variant"] == "baseline"}
    schemes = list(dict.fromkeys(row["scheme"] for row in rows))
    groups = [
        (scheme, variant, [row for row in rows if (row["scheme"], row["variant"]) == (scheme, variant)])
        for scheme in schemes
        for variant in dict.fromkeys(row["variant"] for row in rows if row["scheme"] == scheme)
    ]
    shown = {name: spec for name, spec in COLUMNS.items() if any(spec[0] in row.get("metrics", {}) for row in rows)}
    lost = {name: metric for name, metric in LOST.items() if any(metric in found for found in baselines.values())}
    lines = [
        [
            scheme, variant, str(len({row["seed"] for row in group})),
            *(_spread(_values(group, metric), digits) for metric, digits in shown.values()),
            *(_spread(_losses(group, baselines, metric), 2) for metric in lost.values()),
            _remark(group),
        ]
        for scheme, variant, group in groups
    ]  # fmt: skip
    return markdown_table(["scheme", "variant", "seeds", *shown, *lost, ""], lines)


def _values(rows: Sequence[Row], metric: str) -> list[float]:
    return [row["metrics"][metric] for row in rows if metric in row.get("metrics", {})]


def _losses(rows: Sequence[Row], baselines: dict[int, dict[str, float]], metric: str) -> list[float]:
    """Against the same seed's baseline; where that is not there, another's, which differs in the guard alone."""
    found = []
    for row in rows:
        base = baselines.get(row["seed"]) or next(iter(baselines.values()), {})
        if metric in base and metric in row.get("metrics", {}):
            before, after = base[metric], row["metrics"][metric]
            found.append(100 * (after / before - 1) if metric == PERPLEXITY else before - after)
    return found


def _spread(values: Sequence[float], digits: int) -> str:
    if not values:
        return ""
    text = f"{statistics.mean(values):.{digits}f}"
    return f"{text} ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 and digits else text


def _remark(rows: Sequence[Row]) -> str:
    """What a number does not say: which variant is delivered, harm, the best step, the method, why nothing is there."""
    said = [row["note"] for row in rows if row.get("note")]
    said += [f"{row['method']}" for row in rows if row.get("method")]
    if all("delivered" in row for row in rows):
        said += [f"delivered: {name} x {count}" for name, count in Counter(row["delivered"] for row in rows).items()]
        said += [f"harmed: {harm}" for row in rows for harm in row["harm"] if row["variant"] == "delivered"]
    noted = [row.get("notes", {}).get(name) for row in rows for name in ("best_step", "resumed")]
    said += [note for note in noted if note]
    return "; ".join(dict.fromkeys(said))


def reasons(rows: Sequence[Row]) -> str:
    """Which variant each QAT delivers, and why."""
    trained = [row for row in rows if row["variant"] == "qat" and "delivered" in row]
    return "\n".join(
        f"{row['scheme']} seed {row['seed']}: delivered {row['delivered']}, because {row['because']}" for row in trained
    )


def grid_table(rows: Sequence[Row]) -> str:
    """Held-out loss and perplexity by rate, and how far `auto` is from the best of them, per seed."""
    rated = [row for row in rows if row["variant"].startswith("rate x ") and "metrics" in row]
    rated.sort(key=lambda row: (row["seed"], float(row["variant"].rpartition(" ")[2])))
    headings = ["seed", "rate", "learning rate", "held-out loss", "WikiText-2", "guard", "best step", "ended"]
    lines = [
        [
            str(row["seed"]), row["variant"], f"{row.get('rate_test', {}).get('rate', math.nan):.2e}",
            f"{held_out_loss(row):.4f}",
            *(f"{row['metrics'].get(name, math.nan):.3f}" for name in (PERPLEXITY, "guard/perplexity")),
            row["notes"].get("best_step", ""), row["notes"].get("ended", ""),
        ]
        for row in rated
    ]  # fmt: skip
    remarks = [_auto_beside_best([row for row in rated if row["seed"] == seed]) for seed in {r["seed"] for r in rated}]
    return "\n".join([markdown_table(headings, lines), "", *filter(None, remarks)])


def held_out_loss(row: Row) -> float:
    """Mean over the texts, nats per token."""
    return statistics.mean(value for name, value in row["metrics"].items() if name.startswith("held_out/"))


def _auto_beside_best(rows: Sequence[Row]) -> str:
    automatic = next((row for row in rows if row["variant"] == AUTO), None)
    if automatic is None:
        return ""
    measures: dict[str, Callable[[Row], float]] = {
        "held-out perplexity": lambda row: math.exp(held_out_loss(row)),
        "WikiText-2 perplexity": lambda row: row["metrics"].get(PERPLEXITY, math.nan),
    }
    said = []
    for name, value in measures.items():
        best = min(rows, key=value)
        said.append(f"{name} {100 * (value(automatic) / value(best) - 1):.2f} % above the best, {best['variant']}")
    return f"seed {automatic['seed']}, {len(rows)} rates, auto's (target: within 2 %): {'; '.join(said)}"
