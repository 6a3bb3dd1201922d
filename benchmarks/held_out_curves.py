"""The figure of docs/quantization.md: held-out losses of finished `qat` runs, step by step.

    python benchmarks/held_out_curves.py --runs outputs/qat/ID OTHER/outputs/qat/ID --titles adapts overfits \
        --output docs/images/held-out-curves.png

Each run's folder holds `control.json` (where it adapts) and `qat.json` with the looks at held-out text. Drawn is how
far each loss lies from what it was before the first step; a ring marks the state that is kept.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot

COLORS = {"validation": "tab:blue", "guard": "tab:orange"}
LINES = {"control": "--", "qat": "-"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", nargs="+", type=Path, required=True)
    parser.add_argument("--titles", nargs="+", required=True)
    parser.add_argument("--output", type=Path, required=True)
    options = parser.parse_args()
    figure, panels = pyplot.subplots(1, len(options.runs), figsize=(5 * len(options.runs), 3.6), squeeze=False)
    for panel, run, title in zip(panels[0], options.runs, options.titles, strict=True):
        draw(panel, run, title)
    figure.tight_layout()
    figure.savefig(options.output, dpi=110)


def draw(panel: Any, run: Path, title: str) -> None:
    """One run's curves."""
    for variant, style in LINES.items():
        file = run / f"{variant}.json"
        if not file.is_file():
            continue
        notes = json.loads(file.read_text())["notes"]
        looks, best = json.loads(notes["looks"]), notes["best_step"].split()[1]
        steps = sorted(looks, key=int)
        for text, color in COLORS.items():
            if text not in looks[steps[0]]:
                continue
            change = [looks[step][text] - looks[steps[0]][text] for step in steps]
            panel.plot([int(step) for step in steps], change, style, color=color, label=f"{variant}: {text}")
            panel.plot(int(best), change[steps.index(best)], "o", color=color, fillstyle="none", markersize=9)
    panel.axhline(0.0, color="gray", linewidth=0.8)
    panel.set(title=title, xlabel="optimizer step", ylabel="change of held-out loss (nats per token)")
    panel.legend(fontsize=8)


if __name__ == "__main__":
    main()
