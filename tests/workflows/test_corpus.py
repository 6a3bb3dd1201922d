"""`corpus` end to end: what it writes, that it works only where something changed, and that engines agree."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from edgequant.corpora.settings import CorpusSettings
from edgequant.errors import UserError
from edgequant.workflows.corpus import corpus

COLUMNS = [
    *("text", "domain", "domain_confidence", "document_type", "hazard_type", "agency", "language"),
    *("source", "page", "section", "sha256", "licence", "tokens", "augmented"),
]
SETTINGS = CorpusSettings(min_tokens=300, max_tokens=500, workers=1, license="CC0")  # the tiny tokenizer counts bytes


def write_source(folder: Path, files: int = 6) -> Path:
    folder.mkdir()
    for n in range(files):
        body = " ".join(
            f"In village {n} crew {n * i} moved {i} families from house {i * n + 3} at {i} o'clock." for i in range(30)
        )
        (folder / f"report-{n}.md").write_text(f"# Flood situation report {n}\n\n{body}\n")
    (folder / "empty.txt").write_text("")
    return folder


def run(source: Path | None, output: Path, settings: CorpusSettings = SETTINGS) -> dict[str, Any]:
    corpus(source=str(source) if source else None, output=str(output), model="tiny", settings=settings)
    return json.loads((output / "manifest.json").read_text())


def test_the_data_set_loads_with_all_columns_and_no_document_in_two_splits(
    tmp_path: Path, store: Any, cache: Path
) -> None:
    import datasets

    run(write_source(tmp_path / "in"), tmp_path / "out")
    loaded = datasets.load_from_disk(str(tmp_path / "out"))
    assert list(loaded) == ["train", "validation", "test"]
    assert loaded["train"].column_names == COLUMNS
    sources = [set(loaded[split]["source"]) for split in loaded]
    assert all(sources) and len(set.union(*sources)) == sum(map(len, sources)) == 6
    assert set(loaded["train"]["licence"]) == {"CC0"} and set(loaded["train"]["hazard_type"]) == {"flood"}
    parquet = datasets.Dataset.from_parquet(str(tmp_path / "out" / "parquet" / "train.parquet"), cache_dir=str(cache))
    assert parquet["text"][:] == loaded["train"]["text"][:]
    assert "not official guidance" not in (tmp_path / "out" / "README.md").read_text()


def test_a_second_run_does_no_work_and_an_added_file_costs_only_itself(
    tmp_path: Path, store: Any, cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = write_source(tmp_path / "in")
    first = run(source, tmp_path / "out")
    written = (tmp_path / "out" / "dataset_dict.json").stat().st_mtime_ns
    assert run(source, tmp_path / "out") == first
    assert (tmp_path / "out" / "dataset_dict.json").stat().st_mtime_ns == written
    assert "nothing to do" in capsys.readouterr().out
    (source / "added.txt").write_text("One more report on the flood came in. " * 20)
    assert len(run(source, tmp_path / "out")["files"]) == len(first["files"]) + 1
    runs = store.search_runs(["1"], order_by=["attributes.start_time DESC"])
    assert runs[0].data.metrics["corpus/files_processed"] == 1


def test_the_run_records_the_data_set_and_its_files(tmp_path: Path, store: Any, cache: Path) -> None:
    source = write_source(tmp_path / "in")
    manifest = run(source, tmp_path / "out")
    run(source, tmp_path / "out")  # as after one that was killed before it filed anything
    for found in store.search_runs(["1"]):
        assert [entry.dataset.digest for entry in found.inputs.dataset_inputs] == [manifest["digest"]]
        artifacts = {item.path for item in store.list_artifacts(found.info.run_id, "corpus")}
        assert {"corpus/README.md", "corpus/removed.jsonl", "corpus/parquet", "corpus/plots"} <= artifacts


def test_an_unreadable_file_is_a_line_with_its_reason(tmp_path: Path, store: Any, cache: Path) -> None:
    lines = {line["file"]: line["warnings"] for line in run(write_source(tmp_path / "in"), tmp_path / "out")["files"]}
    assert lines["empty.txt"] == "left out: empty file"


@pytest.mark.parametrize("word", ["a" * 250_000, "-" * 3000 + "b" * 3000])
def test_the_pieces_of_a_word_that_was_cut_are_no_words_that_came_from_nowhere(
    tmp_path: Path, store: Any, cache: Path, word: str
) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "blob.txt").write_text(f"Before the flood. {word} After it, crews came.\n")
    manifest = run(tmp_path / "in", tmp_path / "out")
    (line,) = manifest["files"]
    assert line["words"] == 8 and line["removed words"] == 0
    assert "unaccounted" not in line["warnings"]
    assert "words too long for a chunk were cut" in line["warnings"]


def test_two_runs_with_empty_caches_give_the_same_digest(
    tmp_path: Path, store: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = write_source(tmp_path / "in")
    digests = set()
    for name in ("one", "two"):
        monkeypatch.setenv("EDGEQUANT_CACHE", str(tmp_path / name))
        digests.add(run(source, tmp_path / f"out-{name}")["digest"])
    assert len(digests) == 1


@pytest.mark.long
def test_augmented_rows_are_in_train_alone(tmp_path: Path, store: Any, cache: Path) -> None:
    import datasets

    settings = CorpusSettings(min_tokens=300, max_tokens=900, workers=1, augment_below=1.0)
    run(None, tmp_path / "out", settings)
    loaded = datasets.load_from_disk(str(tmp_path / "out"))
    assert any(loaded["train"]["augmented"])
    assert not any(loaded["validation"]["augmented"]) and not any(loaded["test"]["augmented"])
    assert "not official guidance" in (tmp_path / "out" / "README.md").read_text()


@pytest.mark.long
def test_ray_gives_the_same_data_set_as_local_workers(
    tmp_path: Path, store: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = write_source(tmp_path / "in", files=3)
    digests = []
    for engine in ("local", "ray"):
        monkeypatch.setenv("EDGEQUANT_CACHE", str(tmp_path / engine))
        settings = CorpusSettings(min_tokens=300, max_tokens=500, workers=1, engine=engine)  # type: ignore[arg-type]
        digests.append(run(source, tmp_path / f"out-{engine}", settings)["digest"])
    assert digests[0] == digests[1]


def test_bad_places_are_refused_before_a_run_is_begun(tmp_path: Path, store: Any) -> None:
    source = write_source(tmp_path / "in", files=1)
    with pytest.raises(UserError, match=r"source .*nowhere.* not found"):
        corpus(source=str(tmp_path / "nowhere"), output=str(tmp_path / "out"))
    with pytest.raises(UserError, match=r"which lies in source .*, which is read"):
        corpus(source=str(source), output=str(source / "out"))
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.tex").write_text("years of work")
    with pytest.raises(UserError, match=r"got .*full', which holds 'thesis.tex', which edgequant did not write"):
        corpus(source=str(source), output=str(tmp_path / "full"))
    assert store.search_experiments(filter_string="name = 'edgequant'") == []


def test_a_data_set_without_training_text_is_no_data_set_to_train_on_next(
    tmp_path: Path, store: Any, cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = write_source(tmp_path / "in", files=1)
    run(source, tmp_path / "out")  # one document, whatever its hash
    assert "next  edgequant finetune" in capsys.readouterr().out
    (source / "report-0.md").write_text("---\nsplit: test\n---\n\n" + (source / "report-0.md").read_text())
    run(source, tmp_path / "out")
    said = capsys.readouterr().out
    assert "no text to train on: all documents state another split than train" in said and "next " not in said
