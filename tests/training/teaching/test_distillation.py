"""The losses against PyTorch's own, on more positions than one chunk holds."""

import numpy as np
import pytest
import torch
from torch.nn import functional

from edgequant.training.distillation import CHUNK, divergence, next_token_loss


@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0])
@pytest.mark.parametrize("positions", [3, CHUNK, 2 * CHUNK + 17])
def test_divergence_is_temperature_squared_times_the_mean_kl_of_torch(temperature, positions):
    student, teacher = torch.randn(2, positions, 50, dtype=torch.float64).unbind()
    expected = functional.kl_div(
        functional.log_softmax(student / temperature, -1),
        functional.softmax(teacher / temperature, -1),
        reduction="batchmean",
    )
    found = divergence(student.float(), teacher.float(), temperature)
    assert float(found) == pytest.approx(float(expected * temperature**2), rel=1e-4)


def test_divergence_is_the_sum_that_its_definition_says():
    student, teacher = np.array([[0.0, 1.0, 2.0]]), np.array([[1.0, 1.0, 0.0]])
    q, p = (np.exp(x) / np.exp(x).sum() for x in (student, teacher))
    assert float(divergence(torch.tensor(student), torch.tensor(teacher), 1.0)) == pytest.approx(
        float((p * np.log(p / q)).sum()), rel=1e-6
    )


def test_divergence_of_equal_logits_is_zero_with_zero_gradient():
    logits = torch.randn(40, 30)
    student = logits.clone().requires_grad_()
    divergence(student, logits, 2.0).backward()
    assert student.grad.abs().max() < 1e-7


def test_divergence_pulls_the_student_by_the_difference_of_probabilities():
    """d/dz T^2 KL(p || softmax(z / T)) = T (softmax(z / T) - p), divided by the positions."""
    student, teacher = torch.randn(8, 12, requires_grad=True), torch.randn(8, 12)
    divergence(student, teacher, 3.0).backward()
    expected = 3.0 * (torch.softmax(student / 3, -1) - torch.softmax(teacher / 3, -1)) / 8
    torch.testing.assert_close(student.grad, expected.detach(), rtol=1e-4, atol=1e-6)


def test_divergence_of_bfloat16_logits_is_summed_in_float32():
    student, teacher = torch.randn(2, 3000, 40).to(torch.bfloat16).unbind()
    expected = divergence(student.double(), teacher.double(), 1.0)
    assert float(divergence(student, teacher, 1.0)) == pytest.approx(float(expected), rel=1e-4)


def test_next_token_loss_is_transformers_own(tiny):
    tokens = torch.randint(0, 250, (3, 64))
    with torch.no_grad():
        output = tiny.model(input_ids=tokens, labels=tokens)
    assert float(next_token_loss(output.logits, tokens)) == pytest.approx(float(output.loss), rel=1e-6)


def test_next_token_loss_chunks_without_changing_the_mean():
    logits, tokens = torch.randn(2, CHUNK + 300, 20), torch.randint(0, 20, (2, CHUNK + 300))
    expected = functional.cross_entropy(logits[:, :-1].flatten(0, 1), tokens[:, 1:].flatten())
    assert float(next_token_loss(logits, tokens)) == pytest.approx(float(expected), rel=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_gradient_of_the_next_token_loss_is_that_of_torch(dtype):
    tokens = torch.randint(0, 40, (3, CHUNK // 2 + 5))
    logits = torch.randn(3, CHUNK // 2 + 5, 40).to(dtype)
    ours, theirs = logits.clone().requires_grad_(), logits.clone().requires_grad_()
    (2.5 * next_token_loss(ours, tokens)).backward()
    expected = functional.cross_entropy(theirs[:, :-1].flatten(0, 1).float(), tokens[:, 1:].flatten())
    (2.5 * expected).backward()
    assert ours.grad.dtype == dtype
    torch.testing.assert_close(ours.grad, theirs.grad, rtol=2**-7 if dtype == torch.bfloat16 else 1e-5, atol=1e-7)
    assert not ours.grad[:, -1].any()  # nothing follows a sequence's last token


def test_a_loss_gives_its_gradient_once():
    logits = torch.randn(2, 8, 20, requires_grad=True)
    loss = next_token_loss(logits, torch.randint(0, 20, (2, 8)))
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="run the forward pass again"):
        loss.backward()


def test_both_losses_of_the_same_logits_add_their_gradients():
    tokens, teacher = torch.randint(0, 20, (2, 8)), torch.randn(16, 20)
    logits = torch.randn(2, 8, 20, requires_grad=True)
    (alone,) = torch.autograd.grad(next_token_loss(logits, tokens), logits)
    (other,) = torch.autograd.grad(divergence(logits.flatten(0, 1), teacher, 2.0), logits)
    (0.3 * next_token_loss(logits, tokens) + 0.7 * divergence(logits.flatten(0, 1), teacher, 2.0)).backward()
    torch.testing.assert_close(logits.grad, 0.3 * alone + 0.7 * other)
