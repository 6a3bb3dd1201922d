"""A user's own data set: its validation split selects, its test split is reported on, in the languages it is in."""

from __future__ import annotations

import pytest
import torch
from datasets import Dataset, DatasetDict

from edgequant.corpora.benchmarks import as_in_the_file, read_split
from edgequant.corpora.packing import pack
from edgequant.errors import UserError
from edgequant.evaluation.evidence_file import Conditions
from edgequant.evaluation.settings import EvaluationSettings
from edgequant.workflows.steps.data import domain_rows, evaluation_data
from edgequant.workflows.steps.sequences import split_sequences
from edgequant.workflows.steps.text_mix import check_test_split


def sentences(word: str, count: int) -> str:
    return " ".join(f"{word}{n} rises above the gauge near the {word} bridge." for n in range(count))


@pytest.fixture
def own(tmp_path):
    """Three splits of three documents, with words of their own."""
    made = {
        split: Dataset.from_dict({"text": [sentences(f"{split}{n}", 30) for n in range(3)]})
        for split in ("train", "validation", "test")
    }
    DatasetDict(made).save_to_disk(str(tmp_path / "own"))
    return str(tmp_path / "own")


def test_its_test_split_is_what_domain_perplexity_is_measured_on(store, own):
    from edgequant import tracking

    with tracking.workflow_run("finetune", {}):
        rows = evaluation_data(("domain_perplexity",), None, f"{own}:0.8,self-generated:0.2")["domain"]
        bundled = evaluation_data(("domain_perplexity",), None, "wikitext-2")["domain"]
    assert [text for _, text in rows] == [sentences(f"test{n}", 30) for n in range(3)]
    assert len(bundled) == 18
    assert len(domain_rows("disaster-multilingual")) == 22  # with two Sinhala and two Tamil documents


def test_its_validation_split_selects_and_all_of_its_train_split_is_trained_on(store, own, tiny):
    from edgequant import tracking

    with tracking.workflow_run("finetune", {}):
        split = split_sequences(own, tiny.tokenizer, 64, {}, None, set_apart=lambda rows: (rows[1:], rows[:1]))
    train, validation = (
        pack([sentences(f"{name}{n}", 30) for n in range(3)], tiny.tokenizer, 64) for name in ("train", "validation")
    )
    as_set = lambda rows: {tuple(row.tolist()) for row in rows}  # noqa: E731
    assert as_set(split.training) == as_set(train)
    assert as_set(split.validation) <= as_set(validation) and len(split.validation) == 32


def test_a_validation_split_that_repeats_the_test_split_is_refused(store, tmp_path, tiny):
    from edgequant import tracking

    texts = {"train": sentences("train", 30), "validation": sentences("test", 30), "test": sentences("test", 30)}
    DatasetDict({name: Dataset.from_dict({"text": [text]}) for name, text in texts.items()}).save_to_disk(
        tmp_path / "o"
    )
    with tracking.workflow_run("finetune", {}), pytest.raises(UserError, match="training text overlaps domain/test"):
        data = evaluation_data(("domain_perplexity",), None, str(tmp_path / "o"))
        split_sequences(str(tmp_path / "o"), tiny.tokenizer, 64, data, None, set_apart=lambda rows: (rows, rows))


def test_evidence_keeps_rows_that_only_the_user_has():
    data = {"domain": [("text", sentences("own", 3))] * 6}
    settings = EvaluationSettings(tasks=("domain_perplexity",))
    place = {"data_dir": None, "device": "cpu", "dtype": "float32"}
    assert Conditions.of(settings, data, **place).kept == {}
    assert len(Conditions.of(settings, data, **place, kept=("domain",)).kept["domain"]) == 4


@pytest.mark.parametrize("dataset", ["disaster", "nowhere", "."])
def test_what_has_no_test_split_cannot_be_evaluated_on(dataset):
    with pytest.raises(UserError, match="dataset must be a data set on disk with a test split"):
        check_test_split(dataset)


def test_wikitext_is_trained_on_with_the_blank_lines_that_it_is_scored_with(data_dir):
    rows = read_split("wikitext2", "test", data_dir).rows
    assert as_in_the_file(rows) == (data_dir / "wikitext-2" / "wiki.test.raw").read_text(encoding="utf-8")


def test_no_end_of_text_stands_between_the_chunks_of_one_document(tiny, tmp_path):
    from edgequant.corpora.training_files import read_training_files

    rows = {"text": ["one bridge " * 20, "two bridges " * 20], "sha256": ["a", "a"], "source": ["a", "a"]}
    made = Dataset.from_dict(rows | {"augmented": [False, False]})
    DatasetDict({"train": made}).save_to_disk(str(tmp_path / "c"))
    ids = pack(read_training_files(tmp_path / "c")[0], tiny.tokenizer, 16)
    assert int(torch.eq(ids, tiny.tokenizer.eos_token_id).sum()) <= 1
