"""Rows of several documents: with block masks a token sees its own document alone, as if that had a row of its own."""

from __future__ import annotations

import copy
import itertools
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from random_architectures import LINEARS_PER_LAYER, make

from edgequant.errors import UserError
from edgequant.training.distillation import document_positions, reading
from edgequant.training.loop import train
from edgequant.training.settings import TrainingSettings

END = 5


def rows() -> torch.Tensor:
    tokens = torch.randint(6, 100, (2, 24), generator=torch.Generator().manual_seed(0))
    tokens[0, 9], tokens[1, 4], tokens[1, 15] = END, END, END
    return tokens


def test_positions_begin_anew_behind_every_end_and_at_the_begin_of_a_row():
    tokens = torch.tensor([[7, 7, END, 7, END, END, 7, 7], [END, 7, 7, 7, 7, 7, 7, END]])
    assert document_positions(tokens, END).tolist() == [[0, 1, 2, 0, 1, 0, 0, 1], [0, 0, 1, 2, 3, 4, 5, 6]]


def test_an_end_within_a_conversation_that_is_read_and_not_learnt_ends_nothing():
    conversation = torch.tensor([[~7, ~7, ~END, 8, 8, END, ~7, ~END, 8, END]])  # question and answer, twice
    assert document_positions(conversation, END).tolist() == [[0, 1, 2, 3, 4, 5, 0, 1, 2, 3]]
    assert reading(conversation, END)["input_ids"].tolist() == [[7, 7, END, 8, 8, END, 7, END, 8, END]]


@pytest.mark.parametrize("kind", LINEARS_PER_LAYER)
def test_a_document_in_a_row_is_read_as_in_a_row_of_its_own(kind: str) -> None:
    model, tokens = make(kind, tied=True).eval(), rows()
    alone = model(input_ids=tokens[1:, 5:16], use_cache=False).logits
    apart = model(**reading(tokens, END), use_cache=False).logits
    together = model(**reading(tokens, None), use_cache=False).logits
    torch.testing.assert_close(apart[1:, 5:16], alone, rtol=1e-4, atol=1e-4)
    assert (together[1:, 5:16] - alone).abs().max() > 1e-3


@pytest.mark.long
@pytest.mark.parametrize("top_k", [0, 8])
def test_a_training_and_its_teacher_see_documents_apart(tiny, tmp_path: Path, monkeypatch, top_k: int) -> None:
    monkeypatch.setenv("EDGEQUANT_CACHE", str(tmp_path / "cache"))
    settings = TrainingSettings(
        steps=1, batch_size=2, sequence_length=24, learning_rate=1e-3, distillation_weight=1.0, precision="float32",
        teacher_top_k=top_k,
    )  # fmt: skip
    found = {}
    for asked in (False, True):
        teacher, student = (copy.deepcopy(tiny.model) for _ in range(2))
        with torch.no_grad():
            student.model.layers[0].mlp.down_proj.weight.mul_(0.5)
        settings = replace(settings, block_masks=asked)
        place = tmp_path / str(asked)
        found[asked] = train(student, rows(), settings, place, teacher=teacher.eval(), document_end=END).loss
    if not top_k:  # of which the divergence is a lower bound
        assert found[True] == pytest.approx(losses_apart(tiny, rows()), rel=1e-3)
    assert found[False] != pytest.approx(found[True], rel=1e-4)


def losses_apart(tiny, tokens: torch.Tensor) -> float:
    """KL(teacher || student) over all positions, document by document."""
    teacher, student = (copy.deepcopy(tiny.model).eval() for _ in range(2))
    with torch.no_grad():
        student.model.layers[0].mlp.down_proj.weight.mul_(0.5)
        total = 0.0
        for row in tokens:
            ends = [-1, *(row == END).nonzero().flatten().tolist(), len(row) - 1]
            for begin, end in itertools.pairwise(ends):
                part = row[None, begin + 1 : end + 1]
                ours, theirs = (m(input_ids=part, use_cache=False).logits.log_softmax(-1) for m in (student, teacher))
                total += float((theirs.exp() * (theirs - ours)).sum())
    return total / tokens.numel()


def test_without_an_end_of_sequence_token_nothing_can_be_kept_apart(tiny, tmp_path: Path) -> None:
    settings = TrainingSettings(steps=1, sequence_length=24, learning_rate=1e-3, block_masks=True)
    with pytest.raises(UserError, match=r"training\.block_masks needs a tokenizer with an end-of-sequence token"):
        train(tiny.model.requires_grad_(True), rows(), settings, tmp_path)
