"""Files and folders stay small enough to be read, and a concept stands in one place."""

from __future__ import annotations

from collections import Counter

import pytest
from source_trees import ROOT, SOURCES, modules

FOLDERS = (*SOURCES, "tests", "benchmarks", "examples")
FILES = [path for folder in FOLDERS for path in modules(folder)]
MOST_LINES, MOST_MODULES = 300, 15
# Nothing may grow there again, beside what took its place.
FORMER_PLACES = (
    *("edge", "embedded.py", "hub.py", "models.py", "tracking.py"),
    *("corpora/pipeline.py", "corpora/file_cache.py", "corpora/annotation.py", "corpora/sandbox.py", "corpora/pdf.py"),
    *("corpora/extraction.py", "corpora/normalisation.py", "corpora/output.py", "corpora/questions.py"),
    *("evaluation/boolq.py", "evaluation/squad.py", "evaluation/perplexity.py", "evaluation/answers.py"),
    *("evaluation/latency.py", "evaluation/intervals.py", "evaluation/score_cache.py", "evaluation/scoring.py"),
    *("quantization/affine.py", "quantization/gptq.py", "quantization/ptq.py", "quantization/qat.py"),
    *("quantization/integer.py", "quantization/fake_quantization.py", "quantization/settings.py"),
    *("workflows/inputs.py", "workflows/measuring.py", "workflows/closing.py", "workflows/quantized_training.py"),
)


def test_there_are_files_to_look_at():
    assert {path.relative_to(ROOT).parts[0] for path in FILES} == set(FOLDERS) and len(FILES) > 200


def test_no_file_is_too_long_to_be_read_in_one_go():
    lengths = {str(path.relative_to(ROOT)): len(path.read_text().splitlines()) for path in FILES}
    assert {name: lines for name, lines in lengths.items() if lines > MOST_LINES} == {}


def test_no_folder_has_more_modules_than_can_be_overlooked():
    found = Counter(str(path.parent.relative_to(ROOT)) for path in FILES if path.name != "__init__.py")
    assert {folder: count for folder, count in found.items() if count > MOST_MODULES} == {}


def test_no_module_is_a_place_for_things_without_a_place():
    vague = {"utils", "util", "helpers", "helper", "common", "misc", "shared"}
    assert [path for path in FILES if vague & {path.stem, path.parent.name}] == []


def test_every_folder_below_a_source_root_is_a_package():
    folders = {path.parent for folder in SOURCES for path in modules(folder)}
    assert {str(folder) for folder in folders if not (folder / "__init__.py").is_file()} == set()


def test_a_package_is_not_a_folder_with_nothing_but_its_init():
    folders = {path.parent for folder in SOURCES for path in modules(folder)}
    assert {str(folder) for folder in folders if len(list(folder.rglob("*.py"))) == 1} == set()


@pytest.mark.parametrize("place", FORMER_PLACES)
def test_what_has_moved_is_gone_from_where_it_stood(place):
    former = ROOT / "platform" / "edgequant" / place
    assert not (former.is_file() or list(former.rglob("*.py")))


def test_the_folders_of_tests_are_the_packages_or_what_holds_for_all_of_them():
    """Tests of corpora/ stand in tests/corpora; tests/architecture, tests/documents and tests/ are about the whole."""
    packages = {path.parent.name for path in (ROOT / "platform" / "edgequant").glob("*/__init__.py")}
    folders = {path.parent.relative_to(ROOT / "tests").parts[:1] for path in modules("tests")} - {()}
    whole = {"tune", "registry", "benchmarks", "examples", "architecture", "documents", "reliability", "server"}
    assert {name for (name,) in folders} <= packages | whole
