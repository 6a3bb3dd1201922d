"""A byte flipped, the end cut off, a file removed or added: whoever reads it refuses it by name, or makes it anew."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from random import Random
from typing import Any, NamedTuple

from faults.entry_points import BATCHES, PROMOTE, SMALL
from faults.forking import Ended
from faults.outcome import Outcome, ended_processes, last_line
from faults.places import Place, Run, runs_of

WAYS = ("flipped", "cut", "removed", "added")
MANIFEST = "edgequant.json"  # may say something else of files that people edit, such as README.md
IN_ITSELF = ("flipped", "cut", "removed")  # where a file beside it is nothing that would be read


class Target(NamedTuple):
    """Something of ours that is read again.

    Attributes:
        folder: its place, a pattern below a try's root.
        files: which of them are tampered with, as patterns.
        command: that reads it.
        ways: of tampering that must be noticed.
        can_be_made_anew: whether the command may do without it, if its result is the same.
    """

    folder: str
    files: str
    command: str
    ways: Sequence[str] = WAYS
    can_be_made_anew: bool = False


EVALUATE, EXPORT = f"evaluate {SMALL} --model", "export --check false --output made --model"
FINETUNE = f"finetune --model tiny --dataset texts {BATCHES} --training.steps 2 {SMALL} --output made"
CORPUS = "corpus --model tiny --source papers --output made"
VERSION, TRAINING = "work/mlruns/*/*/artifacts/checkpoint", "work/outputs/qat/*/qat-training/checkpoint-*"
EVIDENCE = "work/mlruns/*/*/artifacts/evidence"
TARGETS = {
    "checkpoint": Target("work/checkpoint", "*.safetensors *.json", f"{EVALUATE} checkpoint"),
    "checkpoint, exported": Target("work/checkpoint", "*.safetensors *.json", f"{EXPORT} checkpoint"),
    "adapter": Target("work/adapted/adapter", "*.safetensors *.json", f"{EVALUATE} adapted/adapter"),
    "merged model": Target("work/adapted/merged", "*.safetensors *.json", f"{EVALUATE} adapted/merged"),
    "exported file": Target("work/exported", "*.gguf", f"{EVALUATE} exported/tiny-q4_1.gguf", IN_ITSELF),
    "registered version": Target(VERSION, "*.safetensors *.json", f"{PROMOTE} --version 2"),
    "evidence": Target(EVIDENCE, "edgequant-tiny-v2.json", f"{PROMOTE} --version 2", IN_ITSELF),
    "data set": Target("work/texts", "train/* validation/* test/* dataset_dict.json", FINETUNE, IN_ITSELF),
    "cached documents": Target("cache/corpus", "files/* tokenizers/*", CORPUS, IN_ITSELF, True),
    "cached scores": Target("cache/scores", "**/*", f"{EVALUATE} checkpoint", IN_ITSELF, True),
    "training checkpoint": Target(TRAINING, "*", "qat", IN_ITSELF, True),
}


def tamper(file: Path, way: str, draw: Random) -> None:
    """Change a file, or add one beside it that a reader could take for a part of the whole."""
    if way == "removed":
        file.unlink()
    elif way == "added":
        beside = file.with_name(f"{file.stem}-00002{file.suffix}")
        beside.write_bytes(file.read_bytes())
    else:
        content = bytearray(file.read_bytes())
        if way == "flipped":
            content[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
        file.write_bytes(content if way == "flipped" else content[: draw.randrange(len(content))])


def chosen(place: Place, target: Target, draw: Random) -> Path:
    """One of the target's files that has something in it.

    Raises:
        LookupError: there is none.
    """
    served = "code"  # of version 1; the command promotes version 2
    folders = sorted(folder for folder in place.root.glob(target.folder) if not (folder / served).is_dir())
    files = sorted(
        {
            file
            for folder in folders
            for pattern in target.files.split()
            for file in folder.glob(pattern)
            if file.is_file() and file.stat().st_size
        }
    )
    if not files:
        raise LookupError(f"nothing to tamper with at {target.folder}")
    return draw.choice(files)


def tampered(
    name: str, place: Place, ready: Callable[[], None], draw: Random, mark: str, whole: list[dict[str, float]]
) -> dict[str, Any]:
    """One try.

    Args:
        ready: puts everything in its place, untouched.
        whole: metrics of the runs that the command makes of untouched files.
    """
    target = TARGETS[name]
    ready()
    file, way = chosen(place, target, draw), draw.choice(target.ways)
    known = {run.id for run in runs_of(place.database)}
    tamper(file, way, draw)
    about = {"file": str(file.relative_to(place.root)), "way": way}
    try:
        ended = place.run(target.command.split(), mark)
    except TimeoutError:
        return about | Outcome([f"{file.name} {way}: the command does not end"], ended_processes(mark))._asdict()
    made = [run for run in runs_of(place.database) if run.id not in known]
    lost = noticed(ended, file, way, target, made, whole)
    return about | {"said": last_line(ended.said)} | Outcome(lost, ended_processes(mark))._asdict()


def noticed(
    ended: Ended, file: Path, way: str, target: Target, made: list[Run], whole: list[dict[str, float]]
) -> list[str]:
    """What is wrong with how a tampered file was met."""
    told = f"{file.name} {way}"
    lost = [f"{told}: a run is {run.status}" for run in made if run.status == "RUNNING"]
    if "Traceback" in ended.said:
        return [*lost, f"{told}: a traceback: {last_line(ended.said)}"]
    if ended.status == 0:
        is_same = [run.metrics for run in made] == whole
        if is_same and (target.can_be_made_anew or file.name == MANIFEST):
            return lost
        return [*lost, f"{told}: not noticed, and the figures are {'the same' if is_same else 'others'}"]
    names = {file.name, file.parent.name, *((f"{file.stem}-00002{file.suffix}",) if way == "added" else ())}
    if not any(name in last_line(ended.said) for name in names):
        lost.append(f"{told}: refused without its name: {last_line(ended.said)}")
    return lost
