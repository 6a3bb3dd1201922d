"""What goes into a workflow: training text by name or path, never what is evaluated on, all logged with digests."""

from __future__ import annotations

import hashlib

import pytest
import torch
from datasets import Dataset, DatasetDict

from edgequant import tracking
from edgequant.corpora.disaster.corpus import bundled_documents
from edgequant.errors import UserError
from edgequant.workflows.steps.data import (
    evaluation_data,
    training_texts,
)
from edgequant.workflows.steps.sequences import training_sequences
from edgequant.workflows.steps.text_mix import check_dataset

NOTHING: dict = {}
LONG = "The gauge at the bridge shows the level of the river every ten minutes, day and night. "


@pytest.mark.parametrize("name", ["disaster", "disaster-multilingual", "wikitext-2"])
def test_the_names_of_texts_are_accepted(name):
    check_dataset(name)


def test_a_text_that_is_neither_name_nor_path_is_refused_with_the_names():
    with pytest.raises(
        UserError,
        match=r"must be one of disaster, disaster-multilingual, wikitext-2, a file or a folder, got 'wikitext2'",
    ):
        check_dataset("wikitext2")


def test_the_bundled_text_is_its_english_train_split():
    held_out = {document.text for split in ("validation", "test") for document in bundled_documents(split)}
    english = training_texts("disaster", None)
    everything = training_texts("disaster-multilingual", None)
    assert english and not held_out & set(everything)
    assert set(english) < set(everything)
    assert any(ord(letter) > 0x0B00 for text in everything for letter in text)  # Tamil and Sinhala scripts
    assert not any(0x0B80 <= ord(letter) <= 0x0DFF for text in english for letter in text)


def test_files_of_a_folder_are_read_in_their_order_and_a_file_alone(tmp_path):
    (tmp_path / "b.md").write_text("second")
    (tmp_path / "a.txt").write_text("first")
    (tmp_path / "c.csv").write_text("not text")
    assert training_texts(str(tmp_path), None) == ["first", "second"]
    assert training_texts(str(tmp_path / "b.md"), None) == ["second"]


def test_a_folder_without_text_is_refused(tmp_path):
    (tmp_path / "empty.txt").write_text("  \n")
    with pytest.raises(UserError, match=r"dataset must hold \.md or \.txt files, .* without text"):
        training_texts(str(tmp_path), None)


def test_a_data_set_of_the_corpus_workflow_gives_its_train_split(tmp_path):
    splits = {"train": Dataset.from_dict({"text": ["one", "two"]}), "test": Dataset.from_dict({"text": ["held out"]})}
    DatasetDict(splits).save_to_disk(str(tmp_path / "corpus"))
    assert training_texts(str(tmp_path / "corpus"), None) == ["one", "two"]


def test_wikitext_training_never_takes_the_test_split(data_dir):
    (text,) = training_texts("wikitext-2", str(data_dir))
    test = (data_dir / "wikitext-2" / "wiki.test.raw").read_text()
    lines = [line.strip() for line in test.splitlines() if len(line) > 200]
    assert len(text) > 100_000
    assert not [line for line in lines[:50] if line in text]


def test_without_data_only_what_is_bundled_is_evaluated(store):
    data = evaluation_data(("perplexity", "boolq", "squad", "domain_perplexity", "latency"), None)
    assert set(data) == {"domain"}
    assert data["domain"] and {text for _, text in data["domain"]} <= {d.text for d in bundled_documents("test")}


def test_benchmarks_come_from_the_folder_and_only_if_measured(store, data_dir):
    with tracking.workflow_run("evaluate", {}) as run:
        data = evaluation_data(("boolq",), str(data_dir))
    assert len(data["boolq"]) == 3270 and set(data) == {"boolq"}
    (given,) = store.get_run(run.id).inputs.dataset_inputs
    assert given.dataset.name == "boolq" and len(given.dataset.digest) == 36
    assert str(data_dir) in given.dataset.source and "3270" in given.dataset.source


def test_digests_tell_two_texts_apart(store, tmp_path, tiny):
    digests = []
    for content in (LONG * 20, LONG * 21):
        (tmp_path / "text.txt").write_text(content)
        with tracking.workflow_run("qat", {"n": len(content)}) as run:
            training_sequences(str(tmp_path / "text.txt"), tiny.tokenizer, 32, NOTHING, None)
        digests.append(store.get_run(run.id).inputs.dataset_inputs[0].dataset.digest)
        assert digests[-1] == hashlib.sha256(content.encode()).hexdigest()[:36]
    assert digests[0] != digests[1]


def test_rows_are_the_text_in_a_seeded_order(tmp_path, tiny):
    content = "".join(f"{number:05d} " for number in range(500))
    (tmp_path / "text.txt").write_text(content)
    rows = [
        training_sequences(str(tmp_path / "text.txt"), tiny.tokenizer, 30, NOTHING, None, seed=seed)
        for seed in (0, 0, 1)
    ]
    assert rows[0].shape[1] == 30 and rows[0].dtype == torch.int64
    assert torch.equal(rows[0], rows[1]) and not torch.equal(rows[0], rows[2])
    pieces = [tiny.tokenizer.decode(row) for row in rows[0]]
    assert sorted(pieces) == sorted(content[start : start + 30] for start in range(0, len(pieces) * 30, 30))


def test_training_text_that_repeats_evaluation_text_is_refused(tmp_path, tiny):
    document = next(document for document in bundled_documents("test") if document.language == "en")
    (tmp_path / "leak.txt").write_text(LONG * 5 + document.text + LONG * 5)
    data = evaluation_data(("domain_perplexity",), None)
    with pytest.raises(UserError, match="domain/test"):
        training_sequences(str(tmp_path / "leak.txt"), tiny.tokenizer, 32, data, None)


def test_too_little_text_is_refused(tmp_path, tiny):
    (tmp_path / "short.txt").write_text("ten bytes.")
    with pytest.raises(UserError, match="64"):
        training_sequences(str(tmp_path / "short.txt"), tiny.tokenizer, 64, NOTHING, None)
