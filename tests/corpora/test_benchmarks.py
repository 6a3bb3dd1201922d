"""WikiText-2, BoolQ and SQuAD come with the official rows, or not at all."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from edgequant.corpora.benchmarks import find_local, load_boolq, load_squad, load_wikitext2
from edgequant.errors import UserError


def as_file(rows: list[str]) -> str:
    """The raw file's characters: a blank line is ' ' there and '' in the hub's rows."""
    return "".join(row or " \n" for row in rows)


def test_wikitext2_test_has_the_official_lines_and_restores_the_official_file(data_dir: Path) -> None:
    rows = load_wikitext2("test", data_dir)
    assert len(rows) == 4_358
    assert rows[:3] == ["", " = Robert Boulter = \n", ""]
    assert as_file(rows).encode() == (data_dir / "wikitext-2" / "wiki.test.raw").read_bytes()


def test_wikitext2_test_is_299078_qwen_tokens_as_one_string(data_dir: Path) -> None:
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(data_dir / "tokenizers" / "qwen2.5-0.5b" / "tokenizer.json"))
    text = as_file(load_wikitext2("test", data_dir))
    assert len(tokenizer.encode(text, add_special_tokens=False)) == 299_078


def test_tokenized_text_stands_in_for_training_only_and_says_so(data_dir: Path, tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match="training only"):
        rows = load_wikitext2("validation", data_dir)
    assert len(rows) == 3_760 and not any("<unk>" in row for row in rows)
    (tmp_path / "wikitext-2").mkdir()
    shutil.copy(data_dir / "wikitext-2" / "wiki.test.tokens", tmp_path / "wikitext-2")
    assert find_local("wikitext2", "test", tmp_path) is None


def test_boolq_validation_has_3270_rows_of_which_62_17_percent_are_true(data_dir: Path) -> None:
    rows = load_boolq("validation", data_dir)
    assert len(rows) == 3_270
    assert round(100 * sum(row["answer"] for row in rows) / len(rows), 2) == 62.17
    assert set(rows[0]) == {"question", "title", "passage", "answer"}


def test_squad_dev_has_10570_questions_whose_answers_are_spans(data_dir: Path) -> None:
    rows = load_squad("dev", data_dir)
    assert len(rows) == 10_570
    for row in rows[::97]:
        for text, start in zip(row["answers"]["text"], row["answers"]["answer_start"], strict=True):
            assert row["context"][start : start + len(text)] == text


def test_a_short_file_is_refused_with_both_counts(tmp_path: Path) -> None:
    (tmp_path / "boolq").mkdir()
    row = {"question": "is it", "title": "It", "passage": "It is.", "answer": True}
    (tmp_path / "boolq" / "dev.jsonl").write_text(json.dumps(row) + "\n")
    with pytest.raises(UserError, match=r"has 1 rows, the official one 3,270"):
        load_boolq("validation", tmp_path)


def test_missing_data_names_the_hub_id_the_folder_and_the_file(tmp_path: Path) -> None:
    with pytest.raises(UserError) as caught:
        load_squad("validation", tmp_path)
    for part in ("rajpurkar/squad", str(tmp_path / "squad"), "dev-v1.1.json", "--data_dir"):
        assert part in str(caught.value)


def test_an_unknown_split_is_refused_with_the_known_ones() -> None:
    with pytest.raises(UserError, match="train, validation"):
        load_boolq("test")
