"""Kept results are found again only while the code that made them is the same, in whatever subpackage it stands."""

from __future__ import annotations

import importlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from edgequant.files import source_digest

KEYS = {
    "edgequant.evaluation": "from edgequant.evaluation.backends.cached_model import _code_digest as key",
    "edgequant.corpora": "from edgequant.corpora.processing.file_cache import _code_hash as key",
}


@pytest.fixture
def package(tmp_path, monkeypatch) -> Path:
    """An importable package with a subpackage and a file of data."""
    folder = tmp_path / "some_package"
    (folder / "inner" / "most").mkdir(parents=True)
    for name in ("__init__.py", "one.py", "inner/__init__.py", "inner/most/two.py", "inner/terms.yaml"):
        (folder / name).write_text(f"# {name}\n")
    monkeypatch.syspath_prepend(tmp_path)
    importlib.invalidate_caches()
    return folder


@pytest.mark.parametrize("name", ["one.py", "inner/__init__.py", "inner/most/two.py"])
def test_a_change_in_any_file_of_a_package_changes_its_digest(package, name):
    before = source_digest("some_package")
    assert source_digest("some_package") == before
    (package / name).write_text("changed")
    assert source_digest("some_package") != before


def test_a_moved_a_new_and_a_removed_file_change_the_digest(package):
    digests = {source_digest("some_package")}
    shutil.move(package / "one.py", package / "inner" / "one.py")
    digests.add(source_digest("some_package"))
    (package / "inner" / "three.py").write_text("")
    digests.add(source_digest("some_package"))
    (package / "inner" / "most" / "two.py").unlink()
    assert len(digests | {source_digest("some_package")}) == 4


def test_data_count_where_they_are_named(package):
    code, all_of_it = source_digest("some_package"), source_digest("some_package", "inner/*.yaml")
    (package / "inner" / "terms.yaml").write_text("changed")
    assert source_digest("some_package") == code and source_digest("some_package", "inner/*.yaml") != all_of_it


def test_what_is_no_package_is_refused():
    with pytest.raises(ValueError, match="must be the name of a package"):
        source_digest("edgequant.files")


@pytest.mark.parametrize("name", KEYS)
def test_the_keys_of_kept_results_change_with_any_file_of_their_package(name, root, tmp_path, environment):
    """By a copy of the project, a file of which is changed: in the package itself, and in a subpackage of it."""
    shutil.copytree(root / "platform", tmp_path / "platform", ignore=shutil.ignore_patterns("__pycache__"))
    folder = tmp_path / "platform" / Path(*name.split("."))
    (folder / "deep" / "er").mkdir(parents=True)
    (folder / "deep" / "er" / "new.py").write_text("")
    paths = environment | {"PYTHONPATH": os.pathsep.join([str(tmp_path / "platform"), environment["PYTHONPATH"]])}

    def key() -> str:
        program = f"{KEYS[name]}\nprint(key())"
        done = subprocess.run([sys.executable, "-c", program], env=paths, capture_output=True, text=True, check=True)
        return done.stdout

    keys = [key()]
    for changed in (folder / "settings.py", folder / "deep" / "er" / "new.py"):
        changed.write_text(changed.read_text() + "\n# changed\n")
        keys.append(key())
    assert len(set(keys)) == 3
