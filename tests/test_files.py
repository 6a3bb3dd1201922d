"""Files are written whole or not at all, and known by their SHA-256."""

import hashlib
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from edgequant.files import atomic_path, cache_dir, sha256_of, sha256_of_bytes, write_atomically

ABC = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"  # FIPS 180-2, appendix B.1


def test_sha256_of_abc_is_the_standards():
    assert sha256_of_bytes("abc") == sha256_of_bytes(b"abc") == ABC


def test_sha256_of_a_file_is_that_of_its_bytes(tmp_path):
    content = bytes(range(256)) * 20_000  # longer than one piece
    (tmp_path / "file").write_bytes(content)
    assert sha256_of(tmp_path / "file") == hashlib.sha256(content).hexdigest()


@pytest.mark.parametrize("content", ["água\n", b"\x00\xff", ""])
def test_content_arrives_unchanged_and_folders_are_made(tmp_path, content):
    path = write_atomically(tmp_path / "a" / "b.txt", content)
    assert path.read_bytes() == (content.encode() if isinstance(content, str) else content)


def test_a_failing_writer_leaves_the_old_file_and_nothing_beside_it(tmp_path):
    target = tmp_path / "file.json"
    target.write_text("old")
    with pytest.raises(RuntimeError), atomic_path(target) as temporary:
        temporary.write_text("half")
        raise RuntimeError
    assert target.read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["file.json"]


def test_a_killed_writer_leaves_the_old_file(tmp_path):
    target = tmp_path / "file.json"
    target.write_text("old")
    code = textwrap.dedent(f"""
        import os, signal, sys
        sys.path[:0] = {sys.path!r}
        from edgequant.files import atomic_path
        with atomic_path({str(target)!r}) as temporary:
            temporary.write_text("half")
            os.kill(os.getpid(), signal.SIGKILL)
    """)
    assert subprocess.run([sys.executable, "-c", code]).returncode == -9
    assert target.read_text() == "old"


def test_permissions_are_those_of_an_ordinary_file(tmp_path):
    before = os.umask(0o027)
    try:
        path = write_atomically(tmp_path / "file", "x")
    finally:
        os.umask(before)
    assert path.stat().st_mode & 0o777 == 0o640


def test_cache_is_where_the_environment_says_else_in_the_home(monkeypatch, tmp_path):
    monkeypatch.setenv("EDGEQUANT_CACHE", str(tmp_path))
    assert cache_dir() == tmp_path
    monkeypatch.delenv("EDGEQUANT_CACHE")
    assert cache_dir() == Path.home() / ".cache" / "edgequant"
