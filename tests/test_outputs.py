"""`check_output` lets an output be new, empty or an earlier result, and never a place that must not be lost."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from edgequant.disk import leftovers
from edgequant.errors import UserError
from edgequant.folders import atomic_folder
from edgequant.outputs import Place, check_output, check_own_folder, places

KIND = "report"


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder, in a home of its own."""
    folder = tmp_path / "home" / "here"
    folder.mkdir(parents=True)
    monkeypatch.chdir(folder)
    monkeypatch.setenv("HOME", str(folder.parent))
    monkeypatch.setenv("EDGEQUANT_CACHE", str(tmp_path / "cache"))
    return folder


def made(folder: Path, kind: str = KIND) -> Path:
    with atomic_folder(folder, kind) as temporary:
        (temporary / "page").write_text("made")
    return folder


def everything(folder: Path) -> dict[str, tuple[int, bytes]]:
    """Every path below a folder with its mode and bytes."""
    return {
        str(path): (path.lstat().st_mode, path.read_bytes() if path.is_file() else b"") for path in folder.rglob("*")
    }


@pytest.mark.parametrize(
    "given", ["new", "new/below", "./new/", "empty", "earlier", "~/new", "ü ö", "-x", "link", "a,b"]
)
def test_a_new_an_empty_and_an_earlier_folder_will_do_and_checking_leaves_nothing_behind(
    here: Path, tmp_path: Path, given: str
) -> None:
    (here / "empty").mkdir()
    made(here / "earlier")
    (here / "link").symlink_to(here / "earlier")
    before = everything(tmp_path)
    target = check_output(given, KIND)
    assert everything(tmp_path) == before
    expected = {"link": here / "earlier", "~/new": here.parent / "new"}
    assert target == expected.get(given, here / os.path.normpath(given))


def test_what_a_killed_run_left_in_an_output_goes_and_the_folder_will_do(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(leftovers, "_began", lambda: time.time() + 3600)
    (here / "out").mkdir()
    (here / "out" / f".tiny.gguf.{leftovers.MARK}abcdefgh.gguf").write_text("half")
    assert check_output("out", KIND) == here / "out" and not list((here / "out").iterdir())
    (here / "out" / "mine.gguf").write_text("x")
    with pytest.raises(UserError, match=r"mine\.gguf"):
        check_output("out", KIND)


@pytest.mark.parametrize(
    ("given", "why"),
    [
        (".", "is the working folder"),
        ("../here", "is the working folder"),
        ("..", "holds the working folder"),
        ("~", "holds the working folder"),
        ("/", "is the root of the file system"),
        ("to-here", "is the working folder"),
        ("file", "is a file"),
        ("file/below", "file' is not a folder"),
        ("outputs", "holds the folder of runs outputs/ptq"),
        ("outputs/qat", "is the folder of runs outputs/qat"),
        ("mlruns", "is MLflow's mlruns"),
        ("mlruns/1/x", "lies in MLflow's mlruns"),
        ("/proc/new", "cannot be written to"),
        ("x" * 300, "cannot be written to (File name too long)"),
        ("x" * 250, "cannot be written to (File name too long)"),
        ("nul\0", "cannot be written to"),
        ("~nobody-of-this-name/x", "cannot be written to"),
        ("circle", "cannot be written to"),
        ("dangling-file", "is not a folder"),
    ],
)
def test_places_that_must_not_be_lost_and_those_that_cannot_be_written_are_refused(
    here: Path, tmp_path: Path, given: str, why: str
) -> None:
    (here / "file").write_text("x")
    (here / "to-here").symlink_to(".")
    (here / "circle").symlink_to("circle")
    (here / "dangling-file").symlink_to(here / "file" / "gone")
    before = everything(tmp_path)
    with pytest.raises(UserError) as caught:
        check_output(given, KIND)
    assert why in str(caught.value) and "\n" not in str(caught.value)
    assert everything(tmp_path) == before


@pytest.mark.parametrize("given", ["", "  "])
def test_no_name_is_no_folder(given: str) -> None:
    with pytest.raises(UserError, match="output must name a folder"):
        check_output(given, KIND)


@pytest.mark.parametrize("given", ["s3://bucket/x", "file:///tmp/x", "models:/edgequant-tiny/1", "hdfs:/x"])
def test_an_address_is_no_folder(given: str) -> None:
    with pytest.raises(UserError, match="is an address; name a folder"):
        check_output(given, KIND)


@pytest.mark.parametrize("name", ["mlflow.db", ".git"])
def test_a_folder_with_a_store_or_a_repository_is_refused_even_where_it_is_ours(here: Path, name: str) -> None:
    made(here / "earlier")
    (here / "earlier" / name).touch()
    with pytest.raises(UserError, match=f"which holds {name};"):
        check_output("earlier", KIND)


def test_what_a_run_reads_is_neither_written_nor_written_in_nor_held(here: Path) -> None:
    """Each of the three folders is ours, so that the relation alone refuses it."""
    made(here / "around" / "model")
    reads = [Place("the model", here / "around" / "model")]
    for given, relation in (("around/model", "is"), ("around", "holds"), ("around/model/new", "lies in")):
        with pytest.raises(UserError, match=f"which {relation} the model;"):
            check_output(given, KIND, reads=reads)
    assert check_output("around/model-2", KIND, reads=reads) == here / "around" / "model-2"


def test_another_name_of_the_same_folder_is_seen(here: Path) -> None:
    made(here / "model")
    (here / "alias").symlink_to("model")
    with pytest.raises(UserError, match="which is the model;"):
        check_output("alias", KIND, reads=[Place("the model", here / "model")])
    with pytest.raises(UserError, match="which is the model;"):
        check_output("model", KIND, reads=[Place("the model", here / "alias")])


def test_beside_benchmarks_and_beside_a_gguf_file_there_is_room(here: Path) -> None:
    (here / "data").mkdir()
    (here / "m.gguf").touch()
    reads = places({"data_dir": "data", "model": "m.gguf", "teacher": "not-a-path", "base": None})
    assert [place.path for place in reads] == [Path("data"), Path("m.gguf")]
    assert check_output("data/new", KIND, reads=reads) and check_output("new", KIND, reads=reads)
    with pytest.raises(UserError, match="which is data_dir 'data', which is read"):
        check_output("data", KIND, reads=reads)


@pytest.mark.parametrize("kind", ["checkpoint", "corpus", "compressed-tensors"])
def test_nothing_is_written_into_a_result_that_is_loaded_as_a_whole(here: Path, kind: str) -> None:
    made(here / "earlier", kind) if kind != "checkpoint" else checkpoint_in(here / "earlier")
    with pytest.raises(UserError, match=f"which lies in the {kind}"):
        check_output("earlier/new/below", KIND)


def checkpoint_in(folder: Path) -> None:
    folder.mkdir()
    (folder / "edgequant.json").write_text('{"format": 1, "scheme": null, "sha256": {}}')


def test_a_result_of_another_kind_is_not_replaced(here: Path) -> None:
    made(here / "earlier", "corpus")
    with pytest.raises(UserError, match=r"which holds something else of edgequant's \(corpus\)"):
        check_output("earlier", KIND)


def test_a_working_folder_without_room_for_runs_is_refused(here: Path) -> None:
    check_own_folder("ptq")
    assert not any(here.iterdir())
    (here / "outputs").write_text("a file")
    with pytest.raises(UserError, match="folder of runs outputs/ptq cannot be written to"):
        check_own_folder("ptq")
