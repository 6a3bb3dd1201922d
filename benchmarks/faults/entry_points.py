"""MLproject's eleven entry points with the smallest settings that still go through all of their work."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import NamedTuple

from faults.places import Place

ROOT = Path(__file__).resolve().parents[2]
DOCUMENTS = ROOT / "platform" / "edgequant" / "corpora" / "disaster" / "documents"
PAPERS = ("food-01-cooked-meal-centre-bulathsinhala.md", "rescue-01-gin-ganga-night-boats.md")
POLICY = "name: size\ngates:\n- {metric: size/checkpoint_gb, max: 1}\n"
SMALL = (
    "--device cpu --dtype float32 --evaluation.tasks [domain_perplexity] --evaluation.limit 2 --evaluation.window 128 "
    "--evaluation.bootstrap_resamples 5"
)
BATCHES = (
    "--training.batch_size 2 --training.sequence_length 64 --training.precision float32 --training.learning_rate 0.001"
)
TRAINED = f"{BATCHES} --training.steps 24"
CALIBRATED = "--calibration.num_calibration_samples 4 --calibration.sequence_length 64"
QAT = f"--model tiny --scheme w8a8-static --dataset papers --guard guard.txt {TRAINED} {SMALL} --output made"
PHASES = "[corpus,ptq,qat,export,report]"
PROMOTE = "promote --model tiny --policy policy.yaml --remeasure false"


class EntryPoint(NamedTuple):
    """One of them.

    Attributes:
        arguments: of the command line.
        template: the place that it runs in, by name.
        resumes: whether it takes `--resume`; others are given again as they were.
        kills: share of all kills, in parts.
    """

    name: str
    arguments: str
    template: str
    resumes: bool
    kills: int

    def command(self, *, again: bool = False) -> list[str]:
        """As it is given at first, or after an interruption."""
        return [self.name, *self.arguments.split(), *(("--resume", "true") if again and self.resumes else ())]


ENTRY_POINTS = {
    name: EntryPoint(name, arguments, template, resumes, kills)
    for name, template, resumes, kills, arguments in (
        ("corpus", "fresh", False, 30, "--model tiny --source papers --output made"),
        ("baseline", "made", True, 32, f"--model tiny,checkpoint {SMALL}"),
        (
            "ptq", "fresh", True, 36,
            f"--model tiny --scheme w4-g32 --method gptq --dataset papers {CALIBRATED} {SMALL} --output made",
        ),
        ("qat", "fresh", True, 44, QAT),
        ("finetune", "fresh", True, 40, f"--model tiny --dataset papers {TRAINED} {SMALL} --output made"),
        ("evaluate", "made", True, 32, f"--model checkpoint {SMALL}"),
        ("export", "made", False, 32, "--model checkpoint --check false --output made"),
        (
            "tune", "fresh", True, 4,
            f"--model tiny --scheme w8 --dataset papers {BATCHES} --training.steps 4 --trials 3 --concurrent_trials 1 "
            f"--policy null {SMALL} --output made",
        ),
        ("promote", "made", False, 32, f"{PROMOTE.removeprefix('promote ')} --version 2"),
        ("report", "made", False, 28, "--output made"),
        (
            "pipeline", "fresh", True, 16,
            f"--model tiny --scheme w8 --source papers --phases {PHASES} --replay null {TRAINED} {SMALL} --output made",
        ),
    )
}  # fmt: skip
ROUNDED = f"ptq --model tiny --dataset papers --method rtn {SMALL} --register true"
PREPARING = (
    f"{ROUNDED} --scheme w4-g32 --output checkpoint",
    f"{ROUNDED} --scheme w8 --output checkpoint8",
    f"{PROMOTE} --version 1",
    f"finetune --model tiny --dataset papers {BATCHES} --training.steps 2 {SMALL} --output adapted",
    "export --model checkpoint --check false --output exported",
    "corpus --model tiny --source papers --output texts",
)


def make_templates(place: Place, folder: Path) -> dict[str, Path]:
    """`fresh`, a store with its tables and a cache with the model; `made`, where results lie already.

    Raises:
        RuntimeError: one of the commands fails, with what it said.
    """
    made = {name: folder / name for name in ("fresh", "made")}
    if not made["made"].is_dir():
        place.laid_out()
        _leave_inputs(place.work)
        _run(place, f"evaluate --model tiny {SMALL} --experiment first")
        _copied(place, made["fresh"])
        for command in PREPARING:
            _run(place, command)
        _copied(place, made["made"])
    return made


def _leave_inputs(folder: Path) -> None:
    (folder / "papers").mkdir()
    for name in PAPERS:
        shutil.copy(DOCUMENTS / name, folder / "papers")
    (folder / "guard.txt").write_text("Water rose by two metres, and the road to the hospital was closed. " * 20)
    (folder / "policy.yaml").write_text(POLICY)


def _run(place: Place, command: str) -> None:
    ended = place.run(command.split(), "template")
    if ended.status != 0:
        raise RuntimeError(f"{command} ended with {ended.status}:\n{ended.said[-3000:]}")


def _copied(place: Place, template: Path) -> None:
    shutil.rmtree(template, ignore_errors=True)
    shutil.copytree(place.root, template, symlinks=True)
    shutil.rmtree(template / "cache" / "scores", ignore_errors=True)  # are made by every try
