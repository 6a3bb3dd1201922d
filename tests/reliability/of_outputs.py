"""Outputs: where a result may go, and what stays that was there."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

from situation import Place, Situation

Prepare = Callable[[Place], None]
MINE = "years of work"


def tree(folder: Path) -> dict[str, bytes]:
    """Every file below a folder with its bytes, but for the tracking store."""
    files = (path for path in folder.rglob("*") if path.is_file() and not path.name.startswith("mlflow.db"))
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def untouched(prepare: Prepare, *command: str) -> Callable[[Place], str]:
    """Make what is there, give the command, and see that nothing has changed."""

    def run(place: Place) -> str:
        prepare(place)
        before = tree(place.folder)
        said = place.edgequant(*command)
        assert tree(place.folder) == before
        return said

    return run


def a_text_of_the_users(place: Place, name: str = "thesis/thesis.tex") -> None:
    file = place.folder / name
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(MINE)


def a_model(place: Place) -> None:
    shutil.copytree(place.tiny_folder, place.folder / "models" / "mine")


def a_checkpoint(place: Place) -> None:
    import edgequant

    model, tokenizer, _ = edgequant.load(str(place.tiny_folder), dtype="float32", device="cpu")
    edgequant.quantize(model, "w4-g32")
    edgequant.save(model, tokenizer, place.folder / "earlier", made_from="tiny")


def a_checkpoint_with_notes(place: Place) -> None:
    a_checkpoint(place)
    a_text_of_the_users(place, "earlier/notes.txt")


def a_checkpoint_that_was_edited(place: Place) -> None:
    a_checkpoint(place)
    file = place.folder / "earlier" / "config.json"
    file.write_text(file.read_text().replace("{", "{ ", 1))


def documents(place: Place) -> None:
    a_text_of_the_users(place, "papers/flood.md")


def a_data_set_of_the_users(place: Place) -> None:
    a_text_of_the_users(place, "papers/flood.md")
    for name in ("dataset_dict.json", "train/data-00000-of-00001.arrow"):
        a_text_of_the_users(place, f"mine/{name}")


def a_qat_folder_of_the_users(place: Place) -> None:
    a_text_of_the_users(place, "work/qat/weights.bin")
    (place.folder / "work" / "edgequant-output.json").write_text('{"made": "pipeline", "sha256": {}}')


def another_format_into_the_same_folder(place: Place) -> str:
    """The first file and the user's own text are what they were; a second export of the same format is a new file."""
    place.edgequant("export", "--model", "tiny", "--format", "q4_0", "--check", "false", "--output", "out")
    a_text_of_the_users(place, "out/README.md")
    before = tree(place.folder / "out")
    said = place.edgequant("export", "--model", "tiny", "--format", "q4_1", "--check", "false", "--output", "out")
    after = tree(place.folder / "out")
    assert {name: after[name] for name in before if "edgequant" not in name} == {
        name: content for name, content in before.items() if "edgequant" not in name
    }
    assert {*after} - {*before} == {"tiny-q4_1.gguf"}
    return said


def refused(given: str, command: str, why: str, prepare: Prepare, got: str = "") -> Situation:
    workflow, named = command.split()[0], command.rpartition("--output ")[2]
    line = f"edgequant {workflow}: output must be ..., got '{got or named}', which {why}; name another folder"
    return Situation(given, command, "refused", line, untouched(prepare, *command.split()))


FOREIGN = "holds 'thesis.tex', which edgequant did not write"
ENTRY_POINTS = {
    "output": "ptq --model tiny",
    "output of several schemes": "ptq --model tiny --scheme w4-g32,w8",
    "output of qat": "qat --model tiny",
    "output of a fine-tuning": "finetune --model tiny",
    "output of an export": "export --model tiny",
    "output of a report": "report",
    "output of a corpus": "corpus --model tiny",
    "output of a search": "tune --model tiny",
    "output of a pipeline": "pipeline --model tiny",
}
SITUATIONS = [
    *(
        refused(f"{output} that holds a text of the user's", f"{command} --output thesis", FOREIGN, a_text_of_the_users)
        for output, command in ENTRY_POINTS.items()
    ),
    refused(
        "folder of an earlier pipeline with a file of the user's in a phase's place",
        "pipeline --model tiny --output work", "holds 'weights.bin', which edgequant did not write",
        a_qat_folder_of_the_users, got="work/qat",
    ),
    refused("the working folder as output", "ptq --model tiny --output .", "is the working folder", documents),
    refused(
        "the model's own folder as output", "ptq --model models/mine --output models/mine", "is model ...", a_model
    ),
    refused("a folder that holds the model", "qat --model models/mine --output models", "holds model ...", a_model),
    refused(
        "a folder in the model's", "export --model models/mine --output models/mine/gguf", "lies in model ...", a_model
    ),
    refused(
        "the folder of the training text as output", "ptq --model tiny --dataset papers --output papers",
        "is dataset 'papers', which is read", documents,
    ),
    refused(
        "output in the source", "corpus --model tiny --source papers --output papers/out",
        "lies in source 'papers', which is read", documents,
    ),
    refused(
        "a data set that something else saved as output", "corpus --model tiny --source papers --output mine",
        "holds 'dataset_dict.json', which edgequant did not write", a_data_set_of_the_users,
    ),
    refused(
        "an earlier checkpoint with a file of the user's", "ptq --model tiny --scheme w8 --output earlier",
        "holds 'notes.txt', which edgequant did not write", a_checkpoint_with_notes,
    ),
    refused(
        "an earlier checkpoint whose config.json was edited", "ptq --model tiny --scheme w8 --output earlier",
        "holds 'config.json', which was changed since edgequant wrote it", a_checkpoint_that_was_edited,
    ),
    refused(
        "a checkpoint as output of a report", "report --output earlier",
        "holds something else of edgequant's (checkpoint)", a_checkpoint,
    ),
    refused(
        "a checkpoint as output of its own export",
        "export --model earlier --format compressed-tensors --output earlier", "is model ...", a_checkpoint,
    ),
    Situation(
        "an earlier export, with a text of the user's beside it", "export --format q4_1 --output out", "read as meant",
        "next  edgequant chat --model out/tiny-q4_1.gguf", another_format_into_the_same_folder,
    ),
]  # fmt: skip
