"""Instructions are read as a chat reads them, and of their rows the answers alone are learnt."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch.nn import functional

from edgequant.corpora.instruction_rows import Pair, instruction_rows, read_instructions
from edgequant.errors import UserError
from edgequant.models.tiny import tiny_tokenizer
from edgequant.training.distillation import as_read, next_token_loss
from edgequant.training.watch import Watch

TEMPLATE = (
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}</>\n{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
PAIRS = [Pair("What is it?", "A boat."), Pair("Who rows?", "Nobody."), Pair("Where?", "On the lake.")]


def learnt(row: torch.Tensor) -> str:
    return tiny_tokenizer().decode([token for token in row.tolist() if token >= 0])


def read(row: torch.Tensor) -> str:
    return tiny_tokenizer().decode(as_read(row))


def test_without_a_chat_template_the_closed_book_question_is_read_and_the_answer_learnt_to_its_end() -> None:
    (row,) = instruction_rows(PAIRS[:1], tiny_tokenizer(), 64)
    assert learnt(row) == " A boat.<|endoftext|>"
    assert read(row).startswith("Question: What is it?\nAnswer: A boat.<|endoftext|><|padding|>")


def test_a_chat_template_renders_the_turns_and_the_answer_is_learnt_with_what_ends_it() -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = TEMPLATE
    (row,) = instruction_rows(PAIRS[:1], tokenizer, 64)
    assert learnt(row) == "A boat.</>\n"
    assert read(row).startswith("<user>What is it?</>\n<assistant>A boat.</>\n<|padding|>")


def test_a_template_that_renders_a_finished_turn_otherwise_still_gives_the_answer_alone() -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = (
        "{{ messages[0].content }}{% if add_generation_prompt %}>{% else %}:{{ messages[1].content }}{% endif %}"
    )
    (row,) = instruction_rows(PAIRS[:1], tokenizer, 64)
    assert learnt(row) == "A boat.<|endoftext|>"


def test_rows_hold_whole_pairs_in_their_order_and_every_answer_once() -> None:
    rows = instruction_rows(PAIRS, tiny_tokenizer(), 80)
    assert rows.shape == (2, 80) and rows.dtype == torch.int64
    assert [learnt(row) for row in rows] == [
        " A boat.<|endoftext|> Nobody.<|endoftext|>",
        " On the lake.<|endoftext|>",
    ]


def test_an_answer_too_long_for_a_row_loses_its_end_and_an_instruction_its_pair() -> None:
    pairs = [Pair("What?", "long " * 50), Pair("why " * 30, "So.")]
    (row,) = instruction_rows(pairs, tiny_tokenizer(), 64)
    assert read(row) == ("Question: What?\nAnswer: " + "long " * 50)[:64]
    with pytest.raises(UserError, match=r"room for an answer, got 16, and the shortest of 2 instructions takes 23"):
        instruction_rows(pairs, tiny_tokenizer(), 16)


def test_the_loss_is_the_cross_entropy_of_the_answers_alone() -> None:
    rows = instruction_rows(PAIRS, tiny_tokenizer(), 64)
    logits = torch.randn(*rows.shape, 300, generator=torch.Generator().manual_seed(0), requires_grad=True)
    labels = torch.where(rows < 0, -100, rows)[:, 1:].flatten()
    expected = functional.cross_entropy(logits[:, :-1].flatten(0, 1), labels, ignore_index=-100)
    found = next_token_loss(logits, rows)
    torch.testing.assert_close(found, expected)
    (gradient,) = torch.autograd.grad(expected, logits, retain_graph=True)
    torch.testing.assert_close(torch.autograd.grad(found, logits)[0], gradient)


def test_rows_without_an_answer_have_no_loss_and_whole_rows_the_one_that_they_had() -> None:
    logits = torch.randn(2, 8, 300)
    tokens = torch.randint(0, 300, (2, 8))
    assert next_token_loss(logits, ~tokens) == 0
    expected = functional.cross_entropy(logits[:, :-1].flatten(0, 1), tokens[:, 1:].flatten())
    torch.testing.assert_close(next_token_loss(logits, tokens), expected)


def test_what_is_watched_is_the_answers_too(tiny) -> None:
    rows = instruction_rows(PAIRS[:1], tiny_tokenizer(), 64)
    with torch.no_grad():
        logits = tiny.model(input_ids=as_read(rows)).logits
    found = Watch(texts={"answers": rows}).losses(tiny.model)["answers"]
    assert found == pytest.approx(float(next_token_loss(logits, rows)), rel=1e-5)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("not json", "line 2: must be a JSON object with instruction and answer, got 'not json'"),
        (
            '{"text": "flood"}',
            "line 2: must have instruction and answer, got text; of documents, make a data set first",
        ),
        ("[1]", "line 2: must have instruction and answer, got list"),
        ('{"instruction": "What?", "answer": ""}', "line 2, answer: must be text, got ''"),
        ('{"instruction": 3, "answer": "Yes."}', "line 2, instruction: must be text, got 3"),
        ('{"instruction": "...", "answer": "Yes."}', "line 2, instruction: must be text, got '...'"),
    ],
)
def test_a_line_that_is_no_instruction_is_refused_with_its_number(tmp_path: Path, line: str, message: str) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text(json.dumps({"instruction": "Who?", "answer": "I.", "id": 4}) + "\n" + line + "\n")
    with pytest.raises(UserError) as error:
        read_instructions(file)
    assert message in str(error.value) and str(file) in str(error.value)


def test_a_file_is_read_with_any_line_ends_and_an_empty_one_refused(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_bytes(b'\xef\xbb\xbf{"instruction": " Who? ", "answer": "I."}\r\n\r\n')
    assert read_instructions(file) == [Pair("Who?", "I.")]
    file.write_text("\n")
    with pytest.raises(UserError, match="must hold instructions"):
        read_instructions(file)
