"""A folder is replaced whole or stays as it was, and none that holds what we did not write is replaced."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path

import pytest

from edgequant.disk.faults import DiskError
from edgequant.errors import UserError
from edgequant.folders import MARKER, atomic_folder, check_own_file, check_shared, made_here, share_folder

KIND = "report"


def write(folder: Path, content: str = "old") -> None:
    with atomic_folder(folder, KIND) as temporary:
        (temporary / "a.txt").write_text(content)
        (temporary / "below").mkdir()
        (temporary / "below" / "b.txt").write_text(content)


def tree(folder: Path) -> dict[str, bytes]:
    """Every file below a folder with its bytes."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """`home/result`, written once; `home` holds nothing else."""
    write(tmp_path / "home" / "result")
    return tmp_path / "home" / "result"


def test_a_folder_is_replaced_whole(folder: Path) -> None:
    with atomic_folder(folder, KIND) as temporary:
        (temporary / "new").touch()
    assert {*tree(folder)} == {"new", MARKER} and os.listdir(folder.parent) == ["result"]


def full_disk(folder: Path) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def interrupt(folder: Path) -> None:
    raise KeyboardInterrupt


@pytest.mark.parametrize("fail", [full_disk, interrupt])
def test_a_writer_that_fails_leaves_what_was_there(folder: Path, fail: Callable[[Path], None]) -> None:
    before = tree(folder)
    with pytest.raises((DiskError, KeyboardInterrupt)), atomic_folder(folder, KIND) as temporary:
        (temporary / "half").touch()
        fail(temporary)
    assert tree(folder) == before and os.listdir(folder.parent) == ["result"]


@pytest.mark.parametrize("calls", [1, 2])
@pytest.mark.parametrize("error", [OSError, KeyboardInterrupt])
def test_what_was_moved_aside_comes_back_when_the_new_folder_cannot_take_its_place(
    folder: Path, monkeypatch: pytest.MonkeyPatch, calls: int, error: type[BaseException]
) -> None:
    before, made = tree(folder), []
    rename = Path.replace

    def failing(self: Path, target: Path) -> Path:
        made.append(target)
        if len(made) == calls:
            raise error
        return rename(self, target)

    with pytest.raises(error), atomic_folder(folder, KIND) as temporary:
        (temporary / "new").touch()
        (temporary / MARKER).touch()
        monkeypatch.setattr("edgequant.folders.mark_folder", lambda *_: None)  # which renames a file itself
        monkeypatch.setattr(Path, "replace", failing)
    monkeypatch.undo()
    assert tree(folder) == before and os.listdir(folder.parent) == ["result"]


def test_an_interruption_after_the_new_folder_stands_leaves_no_trace_of_the_old(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rename = Path.replace

    def interrupted(self: Path, target: Path) -> Path:
        found = rename(self, target)
        if self.name.startswith(".result"):
            raise KeyboardInterrupt
        return found

    with pytest.raises(KeyboardInterrupt), atomic_folder(folder, KIND) as temporary:
        (temporary / "new").touch()
        monkeypatch.setattr(Path, "replace", interrupted)
    assert {*tree(folder)} == {"new", MARKER} and os.listdir(folder.parent) == ["result"]


def test_a_killed_writer_leaves_what_was_there(folder: Path) -> None:
    before = tree(folder)
    code = textwrap.dedent(f"""
        import os, signal, sys
        sys.path[:0] = {sys.path!r}
        from edgequant.folders import atomic_folder
        with atomic_folder({str(folder)!r}, {KIND!r}) as temporary:
            (temporary / "half").touch()
            os.kill(os.getpid(), signal.SIGKILL)
    """)
    assert subprocess.run([sys.executable, "-c", code]).returncode == -9
    assert tree(folder) == before


@pytest.mark.parametrize("name", ["thesis.tex", "below/thesis.tex", "new/thesis.tex", ".hidden"])
def test_a_file_of_the_users_is_named_and_nothing_is_touched(folder: Path, name: str) -> None:
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / name).write_text("years of work")
    before = tree(folder)
    with pytest.raises(UserError, match=rf"holds '{name}', which edgequant did not write"):
        write(folder, "new")
    assert tree(folder) == before


def test_a_link_is_a_file_of_the_users_and_what_it_points_to_stays(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "x").write_text("data")
    (folder / "link").symlink_to(tmp_path / "data")
    with pytest.raises(UserError, match="holds 'link'"):
        write(folder, "new")
    assert (tmp_path / "data" / "x").read_text() == "data"


def test_a_file_that_was_changed_since_is_the_users_and_one_that_was_removed_is_not_missed(folder: Path) -> None:
    (folder / "below" / "b.txt").write_text("my remarks")
    with pytest.raises(UserError, match=r"holds 'below/b.txt', which was changed since edgequant wrote it"):
        write(folder, "new")
    (folder / "below" / "b.txt").unlink()
    write(folder, "new")
    assert tree(folder)["below/b.txt"] == b"new"


def test_what_appears_while_the_new_folder_is_made_stays_and_so_does_the_new_folder(folder: Path) -> None:
    with (
        pytest.raises(UserError, match="what was made meanwhile is in ") as caught,
        atomic_folder(folder, KIND) as made,
    ):
        (made / "new").write_text("hours of work")
        (folder / "thesis.tex").write_text("years of work")
    assert (folder / "thesis.tex").read_text() == "years of work" and (folder / "a.txt").read_text() == "old"
    (kept,) = (path for path in folder.parent.iterdir() if path != folder)
    assert (kept / "new").read_text() == "hours of work" and str(kept) in str(caught.value)


@pytest.mark.parametrize(
    "name", [".DS_Store", "below/cache-0123456789abcdef.arrow", "cache-0123456789abcdef_00000_of_00002.arrow"]
)
def test_what_other_programs_leave_by_themselves_is_no_obstacle(folder: Path, name: str) -> None:
    (folder / name).touch()
    write(folder, "new")
    assert (folder / "a.txt").read_text() == "new"


def test_permissions_are_those_of_ordinary_folders_and_files_at_every_depth(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        write(tmp_path / "made")
    finally:
        os.umask(before)
    modes = {str(path.relative_to(tmp_path)): path.stat().st_mode & 0o777 for path in tmp_path.rglob("*")}
    assert modes == {
        "made": 0o750, "made/below": 0o750, "made/a.txt": 0o640, "made/below/b.txt": 0o640, f"made/{MARKER}": 0o640,
    }  # fmt: skip


def test_a_symbolic_link_to_the_folder_stays_one(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(folder)
    write(tmp_path / "link", "new")
    assert (tmp_path / "link").is_symlink() and (folder / "a.txt").read_text() == "new"


def test_a_mount_point_stays_and_what_is_in_it_changes_or_comes_back(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os.path, "ismount", lambda path: Path(path) == folder)
    inode, old, rename = folder.stat().st_ino, tree(folder), Path.replace

    def failing(self: Path, target: Path) -> Path:
        if self.name == "below" and self.parent.name.startswith(".result"):
            raise OSError(errno.EIO, "broken disk")
        return rename(self, target)

    with monkeypatch.context() as broken, pytest.raises(DiskError, match="the disk fails"):
        broken.setattr(Path, "replace", failing)
        write(folder, "new")
    assert tree(folder) == old
    write(folder, "new")
    assert (folder / "a.txt").read_text() == "new" and folder.stat().st_ino == inode
    assert {*os.listdir(folder)} == {"a.txt", "below", MARKER}


def test_a_folder_that_cannot_be_renamed_as_in_a_containers_image_is_replaced_all_the_same(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rename = Path.replace

    def in_a_lower_layer(self: Path, target: Path) -> Path:
        if self == folder:
            raise OSError(errno.EXDEV, "Invalid cross-device link")
        return rename(self, target)

    with monkeypatch.context() as overlay:
        overlay.setattr(Path, "replace", in_a_lower_layer)
        write(folder, "new")
    assert (folder / "a.txt").read_text() == "new" and os.listdir(folder.parent) == ["result"]


@pytest.mark.parametrize(
    "manifest", ["", "[]", "{}", '{"made": "report"}', '{"made": "report", "sha256": []}', "\x00", '{"sha256": {}']
)
def test_a_marker_that_says_nothing_makes_no_folder_ours(tmp_path: Path, manifest: str) -> None:
    (tmp_path / MARKER).write_text(manifest)
    assert made_here(tmp_path) is None
    with pytest.raises(UserError, match=f"holds '{MARKER}'"):
        write(tmp_path)


def test_a_corpus_made_before_there_were_markers_is_known_by_its_manifest(tmp_path: Path) -> None:
    for name in ("train/data.arrow", "README.md"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("x")
    (tmp_path / "manifest.json").write_text(json.dumps({"fingerprint": "f", "contents": ["README.md", "train"]}))
    found = made_here(tmp_path)
    assert found is not None and found.kind == "corpus"
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match=r"holds 'notes.txt'"), atomic_folder(tmp_path, "corpus"):
        pass


# ------------------------------------------------------------------------------------------- folders that results share


def test_a_shared_folder_keeps_the_users_files_and_lets_only_our_own_be_replaced(tmp_path: Path) -> None:
    shared = tmp_path / "shared"
    check_shared(shared, "gguf")
    share_folder(shared, "gguf")
    (shared / "ours.gguf").write_bytes(b"1")
    digest = "6b86b273ff34fce19d6b804eff5a3f5747ada4eaa22f1d49c01e52ddb7875b4b"  # `printf 1 | sha256sum`
    share_folder(shared, "gguf", {"ours.gguf": digest})
    (shared / "theirs.gguf").write_bytes(b"2")
    check_shared(shared, "gguf")
    check_own_file(shared / "ours.gguf", "gguf")
    check_own_file(shared / "next.gguf", "gguf")
    with pytest.raises(UserError, match=r"holds 'theirs.gguf', which edgequant did not write"):
        check_own_file(shared / "theirs.gguf", "gguf")
    (shared / "ours.gguf").write_bytes(b"3")
    with pytest.raises(UserError, match=r"holds 'ours.gguf', which was changed since"):
        check_own_file(shared / "ours.gguf", "gguf")


def test_a_shared_folder_is_of_one_kind(tmp_path: Path) -> None:
    share_folder(tmp_path, "gguf")
    with pytest.raises(UserError, match=r"holds something else of edgequant's \(gguf\)"):
        check_shared(tmp_path, "pipeline")


def test_results_from_before_there_were_markers_may_be_joined_but_not_mixed(tmp_path: Path) -> None:
    write(tmp_path / "results" / "one")
    check_shared(tmp_path / "results", "pipeline")
    (tmp_path / "results" / "thesis").mkdir()
    with pytest.raises(UserError, match="holds 'thesis', which edgequant did not write"):
        check_shared(tmp_path / "results", "pipeline")
