"""Mixes of training texts: how they are written, what is refused, and that the shares are the tokens'."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from edgequant import tracking
from edgequant.errors import UserError
from edgequant.workflows.steps.sequences import training_sequences
from edgequant.workflows.steps.text_mix import Part, check_dataset, parse_mix, rows_of_each, with_parts, with_replay

NOTHING: dict = {}


def test_parts_without_a_share_divide_what_the_others_leave():
    assert parse_mix("disaster,wikitext-2:0.3") == [("disaster", 0.7), ("wikitext-2", 0.3)]
    assert parse_mix("a, b ,c:0.5") == [("a", 0.25), ("b", 0.25), ("c", 0.5)]
    assert parse_mix("a:0.4,b:0.6") == [("a", 0.4), ("b", 0.6)]
    assert parse_mix("a,b") == [("a", 0.5), ("b", 0.5)]


def test_one_text_is_all_of_it_and_a_path_is_one_text_whatever_it_contains(tmp_path):
    strange = tmp_path / "a,b:0.3"
    strange.mkdir()
    assert parse_mix("wikitext-2") == [("wikitext-2", 1.0)]
    assert parse_mix(str(strange)) == [(str(strange), 1.0)]


def test_a_path_with_commas_is_one_text_in_a_mix_too(tmp_path):
    strange = tmp_path / "a, b,c.txt"
    strange.write_text("text")
    (tmp_path / "a").mkdir()
    assert parse_mix(f"disaster, {strange}:0.25") == [("disaster", 0.75), (str(strange), 0.25)]
    assert parse_mix(f"{strange} ,disaster") == [(str(strange), 0.5), ("disaster", 0.5)]


def test_replayed_text_takes_its_share_of_whatever_the_text_is(tmp_path):
    strange = tmp_path / "a,b:0.3"
    strange.mkdir()
    half = "self-generated:0.5"
    assert parse_mix(with_replay("disaster", half)) == [("disaster", 0.5), ("self-generated", 0.5)]
    assert parse_mix(with_replay(str(strange), half)) == [(str(strange), 0.5), ("self-generated", 0.5)]
    mixed = parse_mix(with_replay("disaster:0.2,b", "wikitext-2:0.25"))
    assert [part.name for part in mixed] == ["disaster", "b", "wikitext-2"]
    assert [part.share for part in mixed] == pytest.approx([0.15, 0.6, 0.25])
    for kept in ("disaster,self-generated:0.1", "self-generated"):
        assert with_replay(kept, half) == kept
    assert with_replay("disaster", None) == "disaster"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("disaster,wikitext-2:much", r"a share must be a number between 0 and 1 behind the colon, got 'much'"),
        ("disaster,wikitext-2:1.5", r"got '1.5'"),
        ("disaster:0.2,wikitext-2:0.3", r"the given shares must make 1, or leave a part without a share, got 0.5"),
        ("disaster:0.7,wikitext-2:0.3,self-generated", r"the given shares must make less than 1, .* got 1"),
        ("disaster,disaster:0.3", r"must be a mix of different texts"),
        ("disaster,", r"must be a mix of different texts"),
        (
            "disaster,wikitext",
            r"dataset must be one of disaster, disaster-multilingual, wikitext-2, a file or a folder, got 'wikitext'",
        ),
        ("disaster,self-generated:0.5", r"dataset self-generated is what the model itself writes"),
        ("disaster-instructions", r"is instructions with answers, which finetune alone learns; name one of disaster, "),
        ("nowhere.jsonl", r"must be one of disaster, disaster-multilingual, wikitext-2, a file or a folder"),
    ],
)
def test_what_is_no_mix_is_refused(text, message):
    with pytest.raises(UserError, match=message):
        check_dataset(text)


def test_a_mix_with_generated_text_is_for_those_who_take_it():
    check_dataset("disaster,self-generated:0.5", self_generated=True)


@given(st.lists(st.tuples(st.integers(50, 5000), st.floats(0.05, 1)), min_size=2, max_size=4))
@settings(deadline=None)
def test_shares_hold_to_a_row_and_the_scarcest_part_is_used_up(drawn):
    total = sum(weight for _, weight in drawn)
    parts = [Part(str(number), weight / total) for number, (_, weight) in enumerate(drawn)]
    available = [rows for rows, _ in drawn]
    counts = rows_of_each(parts, available)
    assert all(1 <= count <= rows for count, rows in zip(counts, available, strict=True))
    assert any(count == rows for count, rows in zip(counts, available, strict=True))
    for part, count in zip(parts, counts, strict=True):
        assert abs(count - part.share * sum(counts)) <= len(parts)


def test_rows_of_a_mix_come_from_its_parts_by_their_shares_in_a_seeded_order(store, tmp_path, tiny):
    for letter, size in (("a", 3200), ("b", 64_000)):
        (tmp_path / f"{letter}.txt").write_text(letter * size)
    text = f"{tmp_path}/a.txt:0.8,{tmp_path}/b.txt"
    with tracking.workflow_run("qat", {}) as run:
        rows = [training_sequences(text, tiny.tokenizer, 32, NOTHING, None, seed=seed) for seed in (0, 0, 1)]
    letters = [tiny.tokenizer.decode(row[0]) for row in rows[0]]
    assert letters.count("a") == 100 and letters.count("b") == 25
    assert letters != sorted(letters)
    assert torch.equal(rows[0], rows[1]) and not torch.equal(rows[0], rows[2])
    names = {given.dataset.name for given in store.get_run(run.id).inputs.dataset_inputs}
    assert names == {f"{tmp_path}/a.txt", f"{tmp_path}/b.txt"}


def test_parts_can_be_renamed_in_place():
    found = with_parts("disaster,b:0.25", lambda part: part if part == "disaster" else f"/there/{part}")
    assert parse_mix(found) == [("disaster", 0.75), ("/there/b", 0.25)]
    assert with_parts("b", str.upper) == "B"
