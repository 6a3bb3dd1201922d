"""docs/reliability.md's tables, made of the situations that tests try: `python tests/reliability/table.py`."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[1]))  # what situations are made of
sys.path.append(str(Path(__file__).resolve().parent / "exported"))

from of_adaptation import SITUATIONS as ADAPTATION
from of_checkpoints import SITUATIONS as CHECKPOINTS
from of_data import SITUATIONS as DATA
from of_devices import SITUATIONS as DEVICES
from of_evidence import SITUATIONS as EVIDENCE
from of_gguf import SITUATIONS as GGUF
from of_k_quants import SITUATIONS as K_QUANTS
from of_models import SITUATIONS as MODELS
from of_onnx import SITUATIONS as ONNX
from of_outputs import SITUATIONS as OUTPUTS
from of_paths import SITUATIONS as PATHS
from of_promotion import SITUATIONS as PROMOTION
from of_runs import SITUATIONS as RUNS
from of_settings import SITUATIONS as SETTINGS
from of_ties import SITUATIONS as TIES
from situation import Situation

DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "reliability.md"
BEGIN, END = "<!-- situations -->", "<!-- end of situations -->"
KINDS: dict[str, list[Situation]] = {
    "Outputs": OUTPUTS,
    "Data sets and documents": DATA,
    "Containers, links, home folders and addresses": PATHS,
    "Model folders": MODELS,
    "Adapters and checkpoints": CHECKPOINTS,
    "Adaptation": ADAPTATION,
    "Settings and machines": SETTINGS,
    "Promotion": PROMOTION,
    "One tensor with two roles": TIES,
    "GGUF files": GGUF,
    "ONNX and GPTQ folders": ONNX,
    "K-quants": K_QUANTS,
    "Devices": DEVICES,
    "Numbers that are no evidence": EVIDENCE,
    "Runs in MLflow": RUNS,
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
