"""Files in other containers than they should be, links and pipes, home folders and addresses."""

from __future__ import annotations

import gzip
import json
import os
from collections.abc import Callable
from pathlib import Path
from unittest import mock

from of_data import BOOLQ, EVALUATE, QUICK, corpus, evaluated, write
from of_settings import stored_at
from situation import Place, Situation

ROW = json.dumps(BOOLQ) + "\n"
FILE = "DATA/boolq/dev.jsonl"
REFUSED = f"edgequant evaluate: {FILE}"
LACKING = "edgequant evaluate: data_dir must hold boolq/dev.jsonl, which task boolq needs, got"
FLOOD = "The river rose over the dam and people of the village moved to the school before the night was over. "


def holding(content: bytes | str) -> Callable[[Place], str]:
    def run(place: Place) -> str:
        write(place.folder / FILE, content)
        return evaluated(place, "boolq")

    return run


def instead(make: Callable[[Path], object]) -> Callable[[Place], str]:
    def run(place: Place) -> str:
        (place.folder / FILE).parent.mkdir(parents=True)
        make(place.folder / FILE)
        return evaluated(place, "boolq")

    return run


def link_to_nothing(file: Path) -> None:
    file.symlink_to("gone.jsonl")


def at_home(place: Place, *arguments: str) -> str:
    with mock.patch.dict(os.environ, {"HOME": str(place.folder / "home")}):
        return place.edgequant(*arguments)


def training_text_at_home(place: Place) -> str:
    write(place.folder / "home/texts/a.txt", (FLOOD * 40).replace("\n", "\r\n") + "\r\n")
    quick = [*QUICK[:2], "--evaluation.tasks", "[domain_perplexity]", "--evaluation.limit", "4"]
    quick += ["--calibration.num_calibration_samples", "2", "--evaluation.window", "64"]
    return at_home(place, "ptq", "--model", "tiny", "--scheme", "q8_0", "--dataset", "~/texts", *quick)


def predictions_at_home(place: Place) -> str:
    write(place.folder / "home/answers.json", json.dumps({"1": "It"}))
    return at_home(place, "evaluate", "--squad_predictions", "~/answers.json", "--data_dir", str(place.data()))


def with_rtf(place: Place) -> str:
    write(place.folder / "SOURCE/letter.rtf", "{\\rtf1\\ansi " + FLOOD * 3 + "}")
    return corpus("a.txt", FLOOD * 3, ["The river rose"], ["rtf1"])(place)


SITUATIONS = [
    Situation(
        "BoolQ still packed by gzip", EVALUATE, "refused",
        f"{REFUSED} must be UTF-8 text, got binary data (gzip archive, unpack it)",
        holding(gzip.compress(ROW.encode())),
    ),
    Situation(
        "the hub's Parquet file under BoolQ's name", EVALUATE, "refused",
        f"{REFUSED} must be UTF-8 text, got binary data (Parquet file)", holding(b"PAR1\x15\x04PAR1"),
    ),
    Situation(
        "a BoolQ question with half a surrogate pair", EVALUATE, "refused",
        f'{REFUSED}, line 1, column question: must be text, got "\\ud83dis it"; correct the row',
        holding(ROW.replace("is it", "\\ud83dis it")),
    ),
    Situation("a link to nothing for BoolQ", EVALUATE, "refused",
        f"{LACKING} dev.jsonl (a link to nothing) in 'DATA/boolq'; ...", instead(link_to_nothing)),
    Situation("a pipe for BoolQ", EVALUATE, "refused",
        f"{LACKING} dev.jsonl (a pipe or device) in 'DATA/boolq'; ...", instead(os.mkfifo)),
    Situation(
        "a training text in the home folder", "ptq --dataset ~/texts", "told",
        "dataset home/texts/a.txt: CRLF line ends read as LF", training_text_at_home,
    ),
    Situation(
        "predictions in the home folder", "evaluate --squad_predictions ~/answers.json", "refused",
        "edgequant evaluate: squad_predictions must answer questions ... none of whose 1 ids is one of them",
        predictions_at_home,
    ),
    Situation(
        "a table as pandas writes it, columns beside rows", "corpus --source FOLDER", "read as meant",
        "next  edgequant finetune --dataset OUT",
        corpus("table.json", json.dumps({"columns": ["notes"], "data": [[FLOOD * 3], ["Water is safe. " * 40]]}),
               ["The river rose", "Water is safe"], ["notes"]),
    ),
    Situation(
        "an RTF document beside a text", "corpus --source FOLDER", "told",
        "...not a document: RTF; save...", with_rtf,
    ),
    Situation(
        "a tracking store in memory", "MLFLOW_TRACKING_URI=sqlite:///:memory: corpus", "refused",
        "edgequant corpus: tracking store 'sqlite:///:memory:' cannot be used: it is in memory, where no run is "
        "kept; ...",
        stored_at("sqlite:///:memory:"),
    ),
    Situation(
        "a tracking server with a password that does not answer", "MLFLOW_TRACKING_URI=http://me:secret@... corpus",
        "refused",
        "edgequant corpus: tracking store 'http://127.0.0.1:9' cannot be used: it does not answer; ...",
        stored_at("http://me:secret@127.0.0.1:9"),
    ),
]  # fmt: skip
