"""docs/reliability.md's tables, made of the situations that tests try: `python tests/reliability/table.py`."""

from __future__ import annotations

from pathlib import Path

from of_checkpoints import SITUATIONS as CHECKPOINTS
from of_models import SITUATIONS as MODELS
from of_settings import SITUATIONS as SETTINGS
from situation import Situation

DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "reliability.md"
BEGIN, END = "<!-- situations -->", "<!-- end of situations -->"
KINDS: dict[str, list[Situation]] = {
    "Model folders": MODELS,
    "Adapters and checkpoints": CHECKPOINTS,
    "Settings and machines": SETTINGS,
}


def table() -> str:
    """The part of the document between its marks."""
    blocks = [BEGIN]
    for kind, situations in KINDS.items():
        blocks += ["", f"## {kind}", "", "| given | command | what happens | line |", "|---|---|---|---|"]
        blocks += [
            f"| {one.given} | `{one.command}` | {one.happens} | `{one.line.replace('|', chr(92) + '|')}` |"
            for one in situations
        ]
    return "\n".join([*blocks, "", END])


def main() -> None:
    before, _, rest = DOCUMENT.read_text().partition(BEGIN)
    DOCUMENT.write_text(before + table() + rest.partition(END)[2])


if __name__ == "__main__":
    main()
