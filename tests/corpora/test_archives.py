"""Archives of documents: every member is read once and in order, or a line says why it is not."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import stat
import struct
import tarfile
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from edgequant.corpora.extraction.extracted import ExtractionError
from edgequant.corpora.processing import sandbox
from edgequant.corpora.processing.archives.open_archive import list_archive, open_archive
from edgequant.corpora.processing.sandbox import process_in_workers
from edgequant.corpora.settings import CorpusSettings
from edgequant.corpora.sources import list_files
from edgequant.corpora.text.tokens import tokenizer_file

SENTENCE = "The boats left the jetty at dawn and came back with nine people from the village of {}. "
BOMB = bytes(30_000_000)


def listed(path: Path, **limits: Any) -> tuple[list[str], str]:
    """Names of the members, and what is said of the others."""
    settings = CorpusSettings(**limits)
    archive = open_archive(str(path))
    assert archive is not None
    listing = list_archive(archive, str(path), settings)
    for name, place in listing.members:
        assert len(archive.read(place, 10**7)) > 0, name
    archive.close()
    return [name for name, _ in listing.members], listing.said()


def zipped(path: Path, *members: tuple[Any, bytes]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members:
            archive.writestr(name, content)
    return path


def tarred(path: Path, *members: tuple[Any, bytes], mode: str = "w") -> Path:
    with tarfile.open(path, mode) as archive:  # type: ignore[call-overload]
        for name, content in members:
            info = name if isinstance(name, tarfile.TarInfo) else tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return path


def words(texts: Sequence[str]) -> list[int]:
    return [len(text.split()) for text in texts]


def run(folder: Path, **settings: Any) -> list[tuple[str, str]]:
    """(name, why it was refused) of all that came of a folder, in order."""
    found: dict[int, list[tuple[str, str]]] = {}
    process_in_workers(
        list_files(folder), tokenizer_file("tiny"), CorpusSettings(**({"workers": 2} | settings)),
        lambda at, result: found.setdefault(at, []).append((result.name, result.refused)),
    )  # fmt: skip
    return [each for at in sorted(found) for each in found[at]]


def of_many_members(count: int) -> list[tuple[str, bytes]]:
    return [(f"reports/{number:05d}.txt", (SENTENCE.format(number) * 3).encode()) for number in range(count)]


def test_members_are_shared_among_workers_and_come_in_their_order_and_once(tmp_path: Path) -> None:
    members = of_many_members(330)
    zipped(tmp_path / "a.zip", *members)
    tarred(tmp_path / "b.tar.gz", *members[:120], mode="w:gz")
    (tmp_path / "c.txt").write_text(SENTENCE)
    expected = [f"a.zip!/{name}" for name, _ in members] + [f"b.tar.gz!/{name}" for name, _ in members[:120]]
    assert run(tmp_path) == [(name, "") for name in [*expected, "c.txt"]]


def test_an_archives_directory_is_read_once_by_a_worker_however_many_members_it_has(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from edgequant.corpora.processing import worker

    path, settings = str(zipped(tmp_path / "a.zip", *of_many_members(100))), CorpusSettings()
    opened, init = [], zipfile.ZipFile.__init__
    monkeypatch.setattr(
        zipfile.ZipFile, "__init__", lambda self, *given, **named: opened.append(1) or init(self, *given, **named)
    )
    state = worker._Opened()
    members = worker._handle({"path": path, "name": "a.zip"}, settings, words, state)["members"]
    for name, place in members:
        answer = worker._handle({"path": path, "name": name, "place": place}, settings, words, state)
        assert answer["file"]["words"] > 30
    assert len(members) == 100 and len(opened) == 2  # to see whether it is a DOCX, and to read


@pytest.mark.parametrize("mode", ["w", "w:gz", "w:bz2", "w:xz"])
def test_tar_archives_are_read_packed_or_not(tmp_path: Path, mode: str) -> None:
    path = tarred(tmp_path / "a", ("one.txt", b"one"), ("d/two.md", b"two"), mode=mode)
    assert listed(path) == (["one.txt", "d/two.md"], "")
    archive = open_archive(str(path))
    assert archive is not None
    places = [place for _, place in list_archive(archive, str(path), CorpusSettings()).members]
    assert [archive.read(place, 100) for place in reversed(places)] == [b"two", b"one"]
    archive.close()


@pytest.mark.parametrize(("ending", "pack"), [(".gz", gzip.compress), (".bz2", bz2.compress), (".xz", lzma.compress)])
def test_a_single_packed_file_is_a_document(tmp_path: Path, ending: str, pack: Callable[[bytes], bytes]) -> None:
    path = tmp_path / f"a.txt{ending}"
    path.write_bytes(pack(b"one two three"))
    assert listed(path) == (["a.txt"], "")
    path.write_bytes(pack(b"one two three")[:-9])
    with pytest.raises(ExtractionError, match="damaged"):
        listed(path)


def test_no_member_leaves_the_archive_and_no_link_is_followed(tmp_path: Path) -> None:
    link = zipfile.ZipInfo("link.txt")
    link.external_attr = (stat.S_IFLNK | 0o777) << 16
    names = ["../evil.txt", "/abs.txt", "a/../../b.txt", "C:\\x.txt", "\\\\host\\x.txt"]
    path = zipped(tmp_path / "a.zip", *((name, b"x") for name in names), (link, b"/etc/passwd"), ("good.md", b"good"))
    members, said = listed(path)
    assert members == ["good.md"]
    assert (
        "6 members not read: 5: path leaves the archive; not opened (../evil.txt, /abs.txt, a/../../b.txt, ...)" in said
    )
    assert "1: symbolic link; not followed (link.txt)" in said and "\n" not in said
    odd = []
    for kind, name in (
        (tarfile.SYMTYPE, "sym"),
        (tarfile.LNKTYPE, "hard"),
        (tarfile.FIFOTYPE, "p"),
        (tarfile.CHRTYPE, "c"),
    ):
        odd.append(tarfile.TarInfo(name))
        odd[-1].type, odd[-1].linkname = kind, "/etc/passwd"
    path = tarred(tmp_path / "a.tar", *((info, b"") for info in odd), ("/abs.txt", b"x"), ("good.md", b"good"))
    members, said = listed(path)
    assert members == ["good.md"] and "2: link to another file; not followed (sym, hard)" in said
    assert "2: no regular file (device or pipe) (p, c)" in said and "1: path leaves the archive" in said


@pytest.mark.parametrize("make", [zipped, tarred])
def test_limits_of_an_archive_are_told_in_one_line(tmp_path: Path, make: Any) -> None:
    path = make(tmp_path / "a", *((f"{number}.txt", b"word " * 200_000) for number in range(8)))
    assert listed(path, archive_members=3) == (
        ["0.txt", "1.txt", "2.txt"],
        "nothing behind its first 3 members read: more than archive_members 3",
    )
    members, said = listed(path, archive_megabytes=4.5)
    assert len(members) == 4 and said.endswith("unpacks to more than archive_megabytes 4.5 (bomb?)")
    members, said = listed(path, file_megabytes=0.5)
    assert not members and said.startswith(
        "8 members not read: 8: unpacks to more than file_megabytes 0.5 (bomb?) (0.txt,"
    )


def test_what_explodes_is_not_unpacked(tmp_path: Path) -> None:
    members, said = listed(zipped(tmp_path / "a.zip", ("bomb.txt", BOMB), ("good.md", b"good")))
    assert members == ["good.md"] and "unpacks to more than archive_ratio 200 times its size (bomb?) (bomb.txt)" in said
    path = tarred(tmp_path / "a.tar.gz", ("good.md", b"good"), ("bomb.txt", BOMB), ("late.md", b"late"), mode="w:gz")
    members, said = listed(path)
    assert members == ["good.md"] and said.startswith("nothing behind its first 1 members read: unpacks to more than")


def test_members_that_overlap_are_told(tmp_path: Path) -> None:
    """As in a zip bomb of one kernel that many entries of the directory point to."""
    path = zipped(tmp_path / "a.zip", ("kernel.txt", b"water " * 1000), ("other.txt", b"fire"), ("good.md", b"good"))
    data = bytearray(path.read_bytes())
    second = data.index(b"PK\x01\x02", data.index(b"PK\x01\x02") + 4)
    struct.pack_into("<I", data, second + 42, 0)  # where it says that its member begins
    path.write_bytes(data)
    members, said = listed(path)
    assert members == ["good.md"] and "2: overlaps another member (bomb?) (kernel.txt, other.txt)" in said


def test_a_locked_a_damaged_and_a_packed_member_cost_only_themselves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    inner = zipped(tmp_path / "inner", ("hidden.txt", b"x")).read_bytes()
    packed = gzip.compress(b"text")
    names = [
        ("inner.zip", inner),
        ("inner.gz", packed),
        ("bad.txt", b"water is life " * 9),
        ("good.txt", b"good words"),
    ]
    folder = tmp_path / "source"
    folder.mkdir()
    path = zipped(folder / "a.zip", *names, ("locked.txt", b"secret"))
    data = bytearray(path.read_bytes())
    data[data.rfind(b"PK\x01\x02") + 8] |= 1  # the flag "encrypted" of the last entry
    at = data.index(b"bad.txt") + len("bad.txt")
    data[at : at + 6] = b"\xff" * 6
    path.write_bytes(data)
    said = dict(run(folder, workers=1))
    assert said["a.zip!/inner.zip"] == said["a.zip!/inner.gz"] == "archive in an archive; unpack it"
    assert "damaged archive member" in said["a.zip!/bad.txt"] and said["a.zip!/good.txt"] == ""
    assert said["a.zip"] == "1 members not read: 1: encrypted archive member; needs its password (locked.txt)"


def test_a_damaged_archive_is_read_as_far_as_it_goes_and_says_so(tmp_path: Path) -> None:
    members = [(f"{number}.txt", bytes(range(256)) * 40) for number in range(5)]
    whole = tarred(tmp_path / "a.tar", *members).read_bytes()
    cut = tmp_path / "cut.tar"
    cut.write_bytes(whole[:26_000])
    archive = open_archive(str(cut))
    assert archive is not None
    listing = list_archive(archive, str(cut), CorpusSettings())
    assert [name for name, _ in listing.members] == ["0.txt", "1.txt", "2.txt"] and "damaged archive" in listing.said()
    with pytest.raises(ExtractionError, match="the archive ends within it"):
        archive.read(listing.members[-1][1], 10**6)
    archive.close()
    broken = bytearray(whole)
    header = whole.index(b"3.txt")
    broken[header : header + 512] = b"\x55" * 512
    cut.write_bytes(broken)
    names, said = listed(cut)
    assert names == ["0.txt", "1.txt", "2.txt"] and "damaged archive: no member begins at its byte" in said
    cut.write_bytes(gzip.compress(whole)[:400])
    with pytest.raises(ExtractionError, match="damaged archive"):
        listed(cut)


def test_the_same_name_twice_is_two_documents(tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match="Duplicate name"):
        path = zipped(
            tmp_path / "a.zip", ("a.txt", b"first"), ("a.txt", b"second"), (".DS_Store", b"x"), ("__MACOSX/._a", b"x")
        )
    assert listed(path) == (["a.txt", "a.txt (2)"], "")


def test_members_that_are_left_when_an_archives_time_is_over_are_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    zipped(tmp_path / "a.zip", *of_many_members(60))
    (tmp_path / "b.txt").write_text(SENTENCE)
    spend = sandbox._Archive.spend
    monkeypatch.setattr(sandbox._Archive, "spend", lambda self, _: spend(self, 0.5))
    line, *read, last = run(tmp_path, workers=1, archive_timeout_s=5)
    assert line == ("a.zip", "50 of 60 members not read within archive_timeout_s 5")
    assert [name for name, _ in read] == [f"a.zip!/reports/{number:05d}.txt" for number in range(10)]
    assert last == ("b.txt", "")


def test_an_archive_without_a_file_says_so(tmp_path: Path) -> None:
    zipped(tmp_path / "a.zip")
    zipped(tmp_path / "b.zip", ("folder/", b""))
    assert run(tmp_path, workers=1) == [("a.zip", "no file in it"), ("b.zip", "no file in it")]
