"""Text on which a model goes on predicting what another one does, while it learns other text."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from edgequant.training.loop import train
from edgequant.training.settings import TrainingSettings
from edgequant.training.trainer import Anchor, collate

ONE_STEP = TrainingSettings(
    steps=1, batch_size=24, sequence_length=32, learning_rate=1e-3, precision="float32", warmup_fraction=0.0
)


@pytest.fixture
def other(tiny: Any) -> Any:
    """The tiny model with other predictions."""
    torch.manual_seed(1)
    other = copy.deepcopy(tiny.model)
    for parameter in other.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    return other.eval()


def anchored_rows(*rows: int) -> Tensor:
    return torch.zeros(24, dtype=torch.bool).index_fill(0, torch.tensor(rows, dtype=torch.int64), True)


def first_loss(model: Any, sequences: Tensor, folder: Path, **options: Any) -> float:
    seen: list[float] = []
    settings = options.pop("settings", ONE_STEP)
    train(
        copy.deepcopy(model), sequences, settings, folder, on_log=lambda _, m: seen.append(m["train/loss"]), **options
    )
    return seen[0]


@torch.no_grad()
def expected(model: Any, other: Any, sequences: Tensor, rows: Tensor) -> float:
    """Row by row: divergence from the other model on the anchored ones, cross-entropy on all others."""
    losses = []
    for tokens, anchored in zip(sequences, rows, strict=True):
        ours, theirs = (each(input_ids=tokens[None]).logits[0].log_softmax(-1) for each in (model, other))
        if anchored:
            losses.append(functional.kl_div(ours, theirs, reduction="batchmean", log_target=True))
        else:
            losses.append(functional.nll_loss(ours[:-1], tokens[1:]))
    return float(torch.stack(losses).mean())


@pytest.mark.parametrize("rows", [(0, 3, 4, 20), tuple(range(24)), ()])
def test_anchored_rows_count_by_the_other_models_predictions_and_others_by_their_words(
    tiny: Any, other: Any, sequences: Tensor, tmp_path: Path, rows: tuple[int, ...]
) -> None:
    anchor = Anchor(other, anchored_rows(*rows))
    found = first_loss(tiny.model, sequences, tmp_path, anchor=anchor)
    assert found == pytest.approx(expected(tiny.model, other, sequences, anchor.rows), rel=1e-4)


@pytest.mark.long
def test_a_teacher_teaches_the_other_rows(tiny: Any, other: Any, sequences: Tensor, tmp_path: Path) -> None:
    """Its own copy as the teacher there, and as the anchor elsewhere: nothing is left to learn."""
    settings, rows = replace(ONE_STEP, distillation_weight=1.0), anchored_rows(1, 2)
    same = {"teacher": tiny.model, "settings": settings}
    assert first_loss(tiny.model, sequences, tmp_path, anchor=Anchor(tiny.model, rows), **same) < 1e-6
    assert first_loss(tiny.model, sequences, tmp_path, anchor=Anchor(other, rows), **same) > 1e-3


@pytest.mark.long
def test_predictions_kept_on_disk_are_those_of_the_anchored_rows_alone(
    tiny: Any, other: Any, sequences: Tensor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    anchor, vocabulary = Anchor(other, anchored_rows(0, 5)), int(tiny.model.config.vocab_size)
    live = first_loss(tiny.model, sequences, tmp_path, anchor=anchor)
    settings = replace(ONE_STEP, teacher_top_k=vocabulary)
    kept = first_loss(tiny.model, sequences, tmp_path, anchor=anchor, settings=settings)
    assert kept == pytest.approx(live, rel=1e-3)


@pytest.mark.long
def test_a_model_that_learns_one_text_forgets_less_of_another_on_which_it_is_anchored(
    tiny: Any, sequences: Tensor, tmp_path: Path
) -> None:
    settings = replace(ONE_STEP, steps=30, batch_size=8, learning_rate=3e-3)
    generated = tiny.model.generate(
        sequences[:12, :2], min_new_tokens=30, max_new_tokens=30, do_sample=True, pad_token_id=0
    )
    text, rows = torch.cat([generated, sequences[12:]]), torch.arange(24) < 12
    moved = []
    for anchor in (None, Anchor(tiny.model, rows)):
        trained = copy.deepcopy(tiny.model)
        train(trained, text, settings, tmp_path, anchor=anchor)
        moved.append(expected(trained, tiny.model, generated, torch.ones(12, dtype=torch.bool)))
    assert moved[1] < 0.8 * moved[0]


def test_a_batch_has_its_anchored_sequences_first_and_says_how_many(sequences: Tensor) -> None:
    rows = [{"input_ids": sequences[at], "sequence": torch.tensor(at)} for at in (3, 1, 2)]
    batch = collate(rows, anchored_rows(2))
    assert batch["sequence"].tolist() == [2, 3, 1] and batch["anchored"] == 1
    assert torch.equal(batch["input_ids"][0], sequences[2])
    assert "anchored" not in collate(rows)
