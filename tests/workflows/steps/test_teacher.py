"""A larger model of the same tokenizer teaches; one of another tokenizer is refused by a line that names both."""

from __future__ import annotations

import copy
from types import SimpleNamespace

import pytest
import torch
from tokenizers import Tokenizer, normalizers
from transformers import PreTrainedTokenizerFast

from edgequant.errors import UserError
from edgequant.models.folders import save_folder
from edgequant.models.tiny import tiny_model, tiny_tokenizer
from edgequant.training.distillation import divergence
from edgequant.training.loop import train
from edgequant.training.settings import TrainingSettings
from edgequant.workflows.steps.teacher import load_teacher


def resized(vocabulary: int):
    model = tiny_model(seed=3)
    model.resize_token_embeddings(vocabulary)
    return model


@pytest.fixture
def sequences() -> torch.Tensor:
    """[24, 32] tokens: bytes that count upwards from seeded starts."""
    starts = torch.randint(0, 250, (24, 1), generator=torch.Generator().manual_seed(0))
    return (starts + torch.arange(32)) % 250


@pytest.fixture
def saved(tmp_path):
    """Write a model and the tiny tokenizer as a folder; returns its path."""

    def save(model) -> str:
        save_folder(model, tiny_tokenizer(), tmp_path / "large")
        return str(tmp_path / "large")

    return save


@pytest.mark.parametrize("vocabulary", [258, 264, 300])
def test_a_padded_vocabulary_is_cut_to_what_both_predict(tiny, saved, sequences, vocabulary):
    large = resized(vocabulary)
    teacher = load_teacher(saved(large), tiny.tokenizer, tiny.model, "cpu")
    shared = min(vocabulary, 264)
    with torch.no_grad():
        found, expected = (model.float()(input_ids=sequences[:2]).logits for model in (teacher, large))
    assert found.shape[-1] == int(teacher.config.vocab_size) == shared
    # weights are in bfloat16 where the CPU has it
    torch.testing.assert_close(found, expected[..., :shared], rtol=0.05, atol=0.02)
    assert not any(parameter.requires_grad for parameter in teacher.parameters())


@pytest.mark.parametrize("vocabulary", [258, 300])
def test_a_student_learns_from_a_teacher_of_another_padding(tiny, saved, sequences, tmp_path, vocabulary):
    teacher = load_teacher(saved(resized(vocabulary)), tiny.tokenizer, tiny.model, "cpu")
    settings = TrainingSettings(
        steps=30, batch_size=4, sequence_length=32, learning_rate=1e-2, distillation_weight=1.0, save_steps=0
    )
    losses = []
    student = copy.deepcopy(tiny.model).requires_grad_(True)
    train(
        student, sequences, settings, tmp_path / "training", teacher=teacher,
        on_log=lambda _, metrics: losses.append(metrics["train/loss"]),
    )  # fmt: skip
    assert losses[-1] < 0.7 * losses[0]


def test_the_divergence_leaves_out_what_the_teacher_does_not_predict():
    student, teacher = torch.randn(5, 12, requires_grad=True), torch.randn(5, 9)
    value = divergence(student, teacher, 2.0)
    p, q = torch.softmax(teacher / 2, -1), torch.softmax(student[:, :9] / 2, -1)
    expected = 4 * (p * (p / q).log()).sum(-1).mean()
    torch.testing.assert_close(value, expected)
    (gradient,) = torch.autograd.grad(value, student, retain_graph=True)
    torch.testing.assert_close(gradient, torch.autograd.grad(expected, student)[0])
    assert (gradient[:, 9:] == 0).all()


def other_tokenizer(swap: bool):
    """The tiny tokenizer with two bytes exchanged, or one that reads capitals as small letters."""
    tokenizer = tiny_tokenizer()
    state = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
    if swap:
        text = state.to_str().replace('"a":', '"%":', 1).replace('"b":', '"a":', 1).replace('"%":', '"b":', 1)
        state = Tokenizer.from_str(text)
    else:
        state.normalizer = normalizers.Lowercase()
    return PreTrainedTokenizerFast(tokenizer_object=state, eos_token="<|endoftext|>", pad_token="<|padding|>")


@pytest.mark.parametrize("swap", [True, False])
def test_another_tokenizer_is_refused_by_a_line_that_names_both(tiny, saved, swap):
    source = saved(tiny_model(seed=3))
    tiny.model.name_or_path = "small"
    with pytest.raises(UserError, match=r"teacher .*large.* and student 'small' must have one tokenizer") as refused:
        load_teacher(source, other_tokenizer(swap), tiny.model, "cpu")
    assert "\n" not in str(refused.value)


def test_a_student_that_lacks_tokens_is_refused(tiny, saved):
    small = SimpleNamespace(config=SimpleNamespace(vocab_size=200), name_or_path="small")
    with pytest.raises(UserError, match=r"must both predict the 258 tokens of their tokenizer, one predicts 200"):
        load_teacher(saved(tiny_model(seed=3)), tiny.tokenizer, small, "cpu")
