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
