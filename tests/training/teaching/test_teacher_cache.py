"""The cached teacher: what it keeps, what it costs in accuracy, and that training asks it only what it knows."""

from __future__ import annotations

import copy
import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st

from edgequant.errors import UserError
from edgequant.training import teacher_cache, trainer
from edgequant.training.distillation import CHUNK, divergence, top_k_divergence
from edgequant.training.loop import train
from edgequant.training.settings import TrainingSettings
from edgequant.training.teacher_cache import CachedTeacher, cached_teacher, drawn_sequences, top_predictions

VOCABULARY = 264  # of `tiny`
SETTINGS = TrainingSettings(
    steps=6, batch_size=2, sequence_length=32, learning_rate=2e-2, precision="float32", distillation_weight=0.7,
    teacher_top_k=VOCABULARY, save_steps=0,
)  # fmt: skip


@pytest.fixture
def teacher(tiny):
    """Surer of itself than the model that learns."""
    model = copy.deepcopy(tiny.model)
    with torch.no_grad():
        model.model.norm.weight.mul_(3)
    return model


def both(positions: int, vocabulary: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(2, positions, vocabulary, generator=generator).mul(2).unbind()


@given(temperature=st.floats(0.5, 4), seed=st.integers(0, 99))
@examples(deadline=None, max_examples=20)
def test_over_the_whole_vocabulary_it_is_the_full_divergence(temperature, seed):
    student, taught = both(CHUNK + 7, 40, seed)
    found = top_k_divergence(student, *top_predictions(taught, 40, temperature), temperature)
    assert float(found) == pytest.approx(float(divergence(student, taught, temperature)), rel=1e-3, abs=1e-3)


@given(k=st.integers(1, 39), temperature=st.floats(0.5, 4), seed=st.integers(0, 99))
@examples(deadline=None, max_examples=40)
def test_k_tokens_and_one_class_for_the_others_are_what_the_formula_says(k, temperature, seed):
    student, taught = both(20, 40, seed)
    p, q = (torch.softmax(logits.double() / temperature, -1) for logits in (taught, student))
    order = p.argsort(-1, descending=True)[:, :k]
    p, q = (torch.cat([x.gather(-1, order), 1 - x.gather(-1, order).sum(-1, keepdim=True)], -1) for x in (p, q))
    expected = float((p * (p / q).log()).sum(-1).mean() * temperature**2)
    found = float(top_k_divergence(student, *top_predictions(taught, k, temperature), temperature))
    assert found == pytest.approx(expected, rel=2e-3, abs=2e-3)
    assert found <= float(divergence(student, taught, temperature)) + 2e-3  # a lower bound


@pytest.mark.parametrize("k", [5, 40])
def test_the_gradient_is_that_of_the_divergence_of_the_merged_classes(k):
    student, taught = both(8, 40, 1)
    student.requires_grad_()
    log_probabilities, indices = top_predictions(taught, k, 2.0)
    top_k_divergence(student, log_probabilities, indices, 2.0).backward()
    found = student.grad.clone()
    student.grad = None
    q = torch.softmax(student / 2.0, -1)
    ours = torch.cat([q.gather(-1, indices.long()), 1 - q.gather(-1, indices.long()).sum(-1, keepdim=True)], -1)
    theirs = torch.softmax(log_probabilities.float(), -1)
    kept = slice(None) if k < 40 else slice(k)
    (theirs * -ours.clamp(min=1e-30).log())[:, kept].sum().mul(4.0 / 8).backward()
    torch.testing.assert_close(found, student.grad, rtol=1e-3, atol=1e-5)


def test_a_teacher_that_is_certain_leaves_a_finite_loss_and_gradient():
    student, taught = torch.zeros(4, 40, requires_grad=True), torch.full((4, 40), -200.0)
    taught[:, 3] = 200.0
    loss = top_k_divergence(student, *top_predictions(taught, 4, 1.0), 1.0)
    loss.backward()
    assert loss.item() == pytest.approx(math.log(40), rel=1e-4) and student.grad.isfinite().all()


def losses(model, sequences, settings, folder, teacher) -> list[float]:
    seen: list[float] = []
    train(model, sequences, settings, folder, teacher=teacher, seed=4, on_log=lambda _, m: seen.append(m["train/loss"]))
    return seen


def test_training_with_the_whole_vocabulary_kept_is_training_with_the_teacher(
    tiny, teacher, sequences, tmp_path, cache
):
    live = losses(
        copy.deepcopy(tiny.model).requires_grad_(True), sequences, replace(SETTINGS, teacher_top_k=0), tmp_path, teacher
    )
    assert not (cache / "teacher").exists()
    kept = losses(tiny.model.requires_grad_(True), sequences, SETTINGS, tmp_path, teacher)
    assert kept == pytest.approx(live, abs=2e-3)
    assert max(live) - min(live) > 0.1  # the tolerance is small beside what training does


def test_a_later_run_reads_and_does_not_ask_the_teacher_again(tiny, teacher, sequences, tmp_path, cache, capsys):
    first = losses(copy.deepcopy(tiny.model).requires_grad_(True), sequences, SETTINGS, tmp_path, teacher)
    assert "reused" not in capsys.readouterr().out
    asked: list[int] = []
    teacher.register_forward_hook(lambda *_: asked.append(1))
    second = losses(tiny.model.requires_grad_(True), sequences, SETTINGS, tmp_path, teacher)
    assert "teacher: reused its predictions on 12 sequences" in capsys.readouterr().out
    assert not asked and first == second


@pytest.mark.long
def test_training_interrupted_and_resumed_with_a_cached_teacher_ends_the_same(
    tiny, teacher, sequences, tmp_path, cache
):
    settings = replace(SETTINGS, save_steps=2)

    def kill(step, _metrics):
        if step == 5:
            raise KeyboardInterrupt

    models = [copy.deepcopy(tiny.model).requires_grad_(True) for _ in range(3)]
    whole = train(models[0], sequences, settings, tmp_path / "whole", teacher=teacher)
    with pytest.raises(KeyboardInterrupt):
        train(models[1], sequences, settings, tmp_path / "cut", teacher=teacher, on_log=kill)
    resumed = train(models[2], sequences, settings, tmp_path / "cut", teacher=teacher, resume=True)
    assert resumed.loss == whole.loss
    assert all(torch.equal(a, b) for a, b in zip(models[0].parameters(), models[2].parameters(), strict=True))


@pytest.mark.parametrize("change", ["weights", "tokens", "k", "temperature", "precision"])
def test_whatever_changes_the_predictions_is_part_of_their_key(teacher, sequences, cache, change):
    settings = replace(SETTINGS, teacher_top_k=8)
    cached_teacher(teacher, sequences, settings, seed=0)
    if change == "weights":
        with torch.no_grad():
            teacher.model.norm.weight[0] += 1e-3
    elif change == "tokens":
        sequences = (sequences + 1) % 250
    else:
        values = {
            "k": {"teacher_top_k": 9},
            "temperature": {"temperature": 1.5},
            "precision": {"precision": "bfloat16"},
        }
        settings = replace(settings, **values[change])
    cached_teacher(teacher, sequences, settings, seed=0)
    assert len(list((cache / "teacher").iterdir())) == 2


def test_what_is_kept_is_small_and_only_what_will_be_drawn(teacher, sequences, cache):
    found = cached_teacher(teacher, sequences, replace(SETTINGS, teacher_top_k=8), seed=0)
    assert found.log_probabilities.shape == (12, 32, 9) and found.log_probabilities.dtype == torch.float16
    assert found.indices.shape == (12, 32, 8) and found.indices.dtype == torch.int32
    (file,) = (cache / "teacher").iterdir()
    assert file.stat().st_size < 12 * 32 * (9 * 2 + 8 * 4) + 1000


def test_predictions_are_the_teachers_own(teacher, sequences, cache):
    found = cached_teacher(teacher, sequences, replace(SETTINGS, teacher_top_k=3), seed=0)
    with torch.no_grad():
        logits = teacher(input_ids=sequences[found.drawn]).logits
    expected = torch.log_softmax(logits, -1).topk(3)
    assert torch.equal(found.indices.long(), expected.indices)
    torch.testing.assert_close(found.log_probabilities[..., :3].float(), expected.values, rtol=1e-3, atol=1e-3)
    assert found.log_probabilities.float().exp().sum(-1).allclose(torch.ones(()), atol=5e-3)


@pytest.mark.parametrize("steps", [3, 20])
def test_the_sequences_asked_about_are_the_ones_that_training_draws(tiny, sequences, tmp_path, monkeypatch, steps):
    settings = replace(SETTINGS, steps=steps, gradient_accumulation=2, teacher_top_k=0, distillation_weight=0.0)
    seen: set[int] = set()
    compute = trainer.LanguageModelTrainer.compute_loss

    def record(self, model, inputs, *rest, **more):
        seen.update(inputs["sequence"].tolist())
        for number, row in zip(inputs["sequence"].tolist(), inputs["input_ids"], strict=True):
            assert torch.equal(row, sequences[number])
        return compute(self, model, inputs, *rest, **more)

    monkeypatch.setattr(trainer.LanguageModelTrainer, "compute_loss", record)
    train(tiny.model.requires_grad_(True), sequences, settings, tmp_path, seed=9)
    assert sorted(seen) == drawn_sequences(len(sequences), settings, 9).tolist()


def test_a_sequence_that_was_not_asked_about_is_an_error():
    known = CachedTeacher(torch.zeros(2, 4, 3).half(), torch.zeros(2, 4, 2).int(), torch.tensor([1, 5]), 1.0)
    assert known.divergence(torch.randn(4, 10), torch.tensor([5])).isfinite()
    for unknown in (0, 3, 9):
        with pytest.raises(ValueError, match=rf"lack some of the sequences \[{unknown}\]"):
            known.divergence(torch.randn(4, 10), torch.tensor([unknown]))


def test_more_tokens_than_there_are_is_refused(teacher, sequences, cache):
    with pytest.raises(
        UserError, match=r"teacher_top_k must be at most the model's vocabulary of 264, got 265; use 32 to 256"
    ):
        cached_teacher(teacher, sequences, replace(SETTINGS, teacher_top_k=265), seed=0)
    with pytest.raises(UserError, match=r"training.teacher_top_k must be at least 0, got -1"):
        TrainingSettings(teacher_top_k=-1)


def test_an_interrupted_computation_leaves_nothing_behind(teacher, sequences, cache, monkeypatch):
    def fail(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(teacher_cache, "save_file", fail)
    with pytest.raises(KeyboardInterrupt):
        cached_teacher(teacher, sequences, SETTINGS, seed=0)
    assert not list((cache / "teacher").iterdir())
