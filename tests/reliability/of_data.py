"""Data sets, training texts and documents: what their columns hold, and what was named and is not there."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from unittest import mock

from odd_documents import AUTHORS_AND_DATA, COLUMNS, HIDDEN, archive_with_a_bomb, columns_pdf
from situation import Place, Situation

BOOLQ = {"question": "is it", "title": "It", "passage": "It is.", "answer": True}
ANSWER = {"text": "It", "answer_start": 0}
QUICK = ("--device", "cpu", "--cache", "false", "--limit", "4", "--evaluation.bootstrap_resamples", "20")


def write(path: Path, content: str | bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def evaluated(place: Place, *tasks: str) -> str:
    asked = ("--evaluation.tasks", f"[{','.join(tasks)}]") if tasks else ()
    return place.edgequant("evaluate", "--model", "tiny", *asked, "--data_dir", "DATA", *QUICK)


def boolq(change: str) -> Callable[[Place], str]:
    """A second line of the file that is another than the first in some columns; `change` is JSON's inside."""

    def run(place: Place) -> str:
        second = json.dumps(BOOLQ)[:-1] + f", {change}}}" if '"' in change else json.dumps(BOOLQ | {"answer": change})
        write(place.folder / "DATA/boolq/dev.jsonl", f"{json.dumps(BOOLQ)}\n{second}\n")
        return evaluated(place, "boolq")

    return run


def boolq_without_answer(place: Place) -> str:
    rows = [BOOLQ, BOOLQ | {"answer": None}]
    write(place.folder / "DATA/boolq/dev.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    return evaluated(place, "boolq")


def boolq_of_words(place: Place) -> str:
    """The same accuracy as of the official file."""
    official = (place.data() / "boolq/dev.jsonl").read_text(encoding="utf-8")
    changed = official.replace('"answer": true', '"answer": "Yes"').replace('"answer": false', '"answer": 0')
    assert changed.count('"Yes"') == 2033
    write(place.folder / "DATA/boolq/dev.jsonl", changed)
    said = evaluated(place, "boolq")
    write(place.folder / "DATA/boolq/dev.jsonl", official)
    assert row_of(said, "BoolQ accuracy") == row_of(evaluated(place, "boolq"), "BoolQ accuracy") != ""
    return said


def row_of(said: str, name: str) -> str:
    return next((line for line in said.splitlines() if line.strip().startswith(name)), said)


def squad(**changes: object) -> Callable[[Place], str]:
    """Two questions on one paragraph, the second changed; `context` is the paragraph's."""

    def run(place: Place) -> str:
        context = changes.pop("context", "It is here.")
        first = {"id": "a", "question": "What?", "answers": [ANSWER]}
        paragraph = {"context": context, "qas": [first, first | {"id": "b"} | changes]}
        content = {"version": "1.1", "data": [{"title": "It", "paragraphs": [paragraph]}]}
        write(place.folder / "DATA/squad/dev-v1.1.json", json.dumps(content))
        return evaluated(place, "squad")

    return run


def wikitext(change: Callable[[bytes], bytes], *, scored: bool) -> Callable[[Place], str]:
    """The official file, changed; `scored`: its perplexity is the official file's."""

    def run(place: Place) -> str:
        official = (place.data() / "wikitext-2/wiki.test.raw").read_bytes()
        write(place.folder / "DATA/wikitext-2/wiki.test.raw", change(official))
        said = evaluated(place, "perplexity")
        if scored:
            write(place.folder / "DATA/wikitext-2/wiki.test.raw", official)
            assert row_of(said, "perplexity") == row_of(evaluated(place, "perplexity"), "perplexity")
        return said

    return run


def data_dir_with_a_typo(place: Place) -> str:
    write(place.folder / "DATA/boolq/dev.jsonl", "")
    return place.edgequant("ptq", "--model", "tiny", "--scheme", "w8", "--data_dir", "DATTA")


def variable_with_a_typo(place: Place) -> str:
    with mock.patch.dict(os.environ, {"EDGEQUANT_DATA": "/none/such"}):
        return place.edgequant("evaluate", "--model", "tiny")


def file_under_another_name(place: Place) -> str:
    write(place.folder / "DATA/boolq/validation.jsonl", json.dumps(BOOLQ))
    return evaluated(place, "boolq", "latency")


def task_without_a_folder(place: Place) -> str:
    return place.edgequant("evaluate", "--model", "tiny", "--evaluation.tasks", "[boolq]")


def defaults_without_a_folder(place: Place) -> str:
    fast = ["--evaluation.latency_prompt_lengths", "[8]", "--evaluation.latency_batch_sizes", "[1]"]
    fast += [
        "--evaluation.latency_new_tokens",
        "2",
        "--evaluation.latency_repetitions",
        "1",
        "--evaluation.window",
        "64",
    ]
    fast += ["--evaluation.latency_methods", "[generate]", "--evaluation.max_new_tokens", "1"]
    return place.edgequant("evaluate", "--model", "tiny", *QUICK, *fast)


def predictions_of_another_set(place: Place) -> str:
    write(place.folder / "answers.json", json.dumps({"1": "It", "2": "It"}))
    return place.edgequant("evaluate", "--squad_predictions", "answers.json", "--data_dir", place.data())


def text(name: str, content: str | bytes, option: str = "dataset") -> Callable[[Place], str]:
    def run(place: Place) -> str:
        write(place.folder / name, content)
        command = ("ptq", "--scheme", "w8") if option == "dataset" else ("qat", "--scheme", "w8")
        return place.edgequant(*command, "--model", "tiny", f"--{option}", name)

    return run


def mixed_folder(place: Place) -> str:
    write(place.folder / "TEXTS/notes.txt", b"\xef\xbb\xbf" + b"The river rose and the boats came.\r\n" * 400)
    write(place.folder / "TEXTS/manual.pdf", columns_pdf())
    quick = ["--calibration.num_calibration_samples", "2", "--evaluation.tasks", "[domain_perplexity]"]
    quick += ["--evaluation.limit", "4", "--evaluation.window", "64", "--evaluation.bootstrap_resamples", "20"]
    return place.edgequant(
        "ptq", "--model", "tiny", "--scheme", "q8_0", "--dataset", "TEXTS", "--device", "cpu", *quick
    )


def source_with_a_typo(place: Place) -> str:
    return place.edgequant("pipeline", "--model", "tiny", "--source", "documents")


def corpus(name: str, content: str | bytes, shown: list[str], hidden: list[str]) -> Callable[[Place], str]:
    """A source of one document: which texts are in the data set's chunks, in this order, and which are in none."""

    def run(place: Place) -> str:
        from datasets import load_from_disk

        write(place.folder / "SOURCE" / name, content)
        said = place.edgequant("corpus", "--source", "SOURCE", "--output", "OUT", "--model", "tiny")
        found = load_from_disk(str(place.folder / "OUT"))
        whole = " ".join(text for split in found.values() for text in split["text"])
        places = [whole.find(text) for text in shown]
        assert -1 not in places and places == sorted(places), whole
        assert not [text for text in hidden if text in whole]
        return said

    return run


REFUSED_BOOLQ = "edgequant evaluate: DATA/boolq/dev.jsonl, line 2"
REFUSED_SQUAD = "edgequant evaluate: DATA/squad/dev-v1.1.json: data[0].paragraphs[0].qas[1]"
EVALUATE = "evaluate --data_dir DATA"
SITUATIONS = [
    Situation(
        "BoolQ's answers written as Yes and 0", EVALUATE, "told",
        'boolq: answer "Yes" read as true: 2,033 times, first in DATA/boolq/dev.jsonl, line ...', boolq_of_words,
    ),
    Situation(
        "a BoolQ answer that is null", EVALUATE, "refused",
        f"{REFUSED_BOOLQ}, column answer: must be true or false, got null; correct the row", boolq_without_answer,
    ),
    Situation(
        "a BoolQ answer that is neither", EVALUATE, "refused",
        f'{REFUSED_BOOLQ}, column answer: must be true or false, got "perhaps"; ...', boolq("perhaps"),
    ),
    Situation(
        "a BoolQ row with two answers", EVALUATE, "refused",
        f"{REFUSED_BOOLQ}: key 'answer' stands twice in one object; keep one of them", boolq('"answer": false'),
    ),
    Situation(
        "a SQuAD question without answers, as v2 has", EVALUATE, "refused",
        f"{REFUSED_SQUAD} (id b), column answers: must be one or more, got none; SQuAD v2 has ...", squad(answers=[]),
    ),
    Situation(
        "two SQuAD questions of one id", EVALUATE, "refused",
        f"{REFUSED_SQUAD}, column id: must be a question's own, got 'a', which is ...", squad(id="a"),
    ),
    Situation(
        "a SQuAD paragraph without text", EVALUATE, "refused",
        "... (id a), column context: must be text, got \" \"; correct the row", squad(context=" "),
    ),
    Situation(
        "a SQuAD answer that its context does not hold", EVALUATE, "refused",
        f'{REFUSED_SQUAD} (id b), column answers: must stand in the context, got "He", which does not',
        squad(answers=[{"text": "He", "answer_start": 0}]),
    ),
    Situation(
        "WikiText-2 with CRLF and a byte order mark", EVALUATE, "told",
        "wikitext2: official WikiText-2 test split (DATA/wikitext-2/wiki.test.raw)",
        wikitext(lambda official: b"\xef\xbb\xbf" + official.replace(b"\n", b"\r\n"), scored=True),
    ),
    Situation(
        "WikiText-2 with one word changed", EVALUATE, "told",
        "wikitext2: not the official file: DATA/wikitext-2/wiki.test.raw differs from the official WikiText-2 test ...",
        wikitext(lambda official: official.replace(b"Boulter", b"Bolter", 1), scored=False),
    ),
    Situation(
        "WikiText-2 saved as Latin-1", EVALUATE, "refused",
        "edgequant evaluate: DATA/wikitext-2/wiki.test.raw must be UTF-8 text, got bytes that are none (...",
        wikitext(lambda official: official.decode().encode("latin-1", "replace"), scored=False),
    ),
    Situation(
        "a data folder with a typo", "ptq --data_dir DATTA", "refused",
        "edgequant ptq: data_dir must be a folder with wikitext-2/, boolq/ and squad/ ..., got 'DATTA': not found; ...",
        data_dir_with_a_typo,
    ),
    Situation(
        "a data folder in the environment that is not there", "EDGEQUANT_DATA=/none/such evaluate", "refused",
        "edgequant evaluate: $EDGEQUANT_DATA must be a folder ..., got '/none/such': not found; correct it, or ...",
        variable_with_a_typo,
    ),
    Situation(
        "a data file under another name", EVALUATE, "refused",
        "edgequant evaluate: data_dir must hold boolq/dev.jsonl, which task boolq needs, got validation.jsonl in "
        "'DATA/boolq'; put the official file there; or measure without: --evaluation.tasks '[latency]'",
        file_under_another_name,
    ),
    Situation(
        "a task named one by one, and no data folder", "evaluate --evaluation.tasks [boolq]", "refused",
        "edgequant evaluate: task boolq is asked for and needs boolq/dev.jsonl, and no data folder is named; ...",
        task_without_a_folder,
    ),
    Situation(
        "no data folder, and no task named", "evaluate", "told",
        "not measured, because no data_dir: perplexity, boolq, squad; pass --data_dir DATA", defaults_without_a_folder,
    ),
    Situation(
        "predictions for other questions", "evaluate --squad_predictions FILE", "refused",
        "edgequant evaluate: squad_predictions must answer questions ... none of whose 2 ids is one of them",
        predictions_of_another_set,
    ),
    Situation(
        "a training text of blanks and a byte order mark", "ptq --dataset FILE", "refused",
        "edgequant ptq: dataset must hold .md or .txt files, ... got 'blank.txt' without text",
        text("blank.txt", "\ufeff \r\n\t\n"),
    ),
    Situation(
        "a guard text in Windows-1252", "qat --guard FILE", "refused",
        "edgequant qat: guard 'guard.txt' must be UTF-8 text, got bytes that are none (0x93 at 0); convert it, ...",
        text("guard.txt", "“Boats” at the café".encode("cp1252"), "guard"),
    ),
    Situation(
        "JSON as a training text", "ptq --dataset FILE", "refused",
        "edgequant ptq: dataset 'rows.jsonl' must be Markdown or plain text, got jsonl; make a data set of it ...",
        text("rows.jsonl", '{"text": "The river rose."}\n'),
    ),
    Situation(
        "a folder of which one file is text, with CRLF, and one a PDF", "ptq --dataset FOLDER", "told",
        "dataset of TEXTS only .md and .txt are read, 1 other files are not (1 .pdf); ...", mixed_folder,
    ),
    Situation(
        "a source with a typo", "pipeline --source documents", "refused",
        "edgequant pipeline: source 'documents' not found; give a folder of documents, or leave it out",
        source_with_a_typo,
    ),
    Situation(
        "a PDF in two columns that is drawn row by row", "corpus --source FOLDER", "told",
        "...1 page in columns that were drawn row by ...",
        corpus("columns.pdf", columns_pdf(), [" ".join(column.split()[2:-1]) for column in COLUMNS], []),
    ),
    Situation(
        "a zip with a bomb in it and a path that leaves it", "corpus --source FOLDER", "told",
        "...left out: 2 members not read: 1:...",
        corpus("a.zip", archive_with_a_bomb(), ["river rose quickly"], ["SECRET"]),
    ),
    Situation(
        "a page with hidden text", "corpus --source FOLDER", "read as meant", "next  edgequant finetune ...",
        corpus("page.html", HIDDEN, ["river rose quickly", "the water fell again"], ["SECRET", "ORNAMENT"]),
    ),
    Situation(
        "records beside a list of authors", "corpus --source FOLDER", "read as meant", "next  edgequant finetune ...",
        corpus("records.json", json.dumps(AUTHORS_AND_DATA), ["river rose quickly"], ["Ann Lee"]),
    ),
]  # fmt: skip
