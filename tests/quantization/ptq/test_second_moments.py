"""How much that calibration text says of pairs of inputs is believed, and what errors of a tied embedding cost."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from random_architectures import make
from torch.nn import functional

from edgequant.quantization.layers.convert import prepare
from edgequant.quantization.layers.fake_quantized import fake_quantized_layers
from edgequant.quantization.layers.fixed_weights import IdentityQuantizer
from edgequant.quantization.ptq.block_stream import BlockStream
from edgequant.quantization.ptq.second_moments import PIECES, SecondMoment, SecondMomentSum, chance_share
from edgequant.quantization.ptq.tied_embedding import moment_of_both_uses
from edgequant.quantization.scheme import parse_scheme


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def spelled_out(inputs: np.ndarray, pieces: int) -> float:
    """Schäfer and Strimmer's equation 10 pair by pair, the variance of a mean taken from a sample of means."""
    scaled = inputs / np.sqrt((inputs**2).mean(0))
    variances, squares = 0.0, 0.0
    for i, j in itertools.permutations(range(inputs.shape[1]), 2):
        of_pieces = [(part[:, i] * part[:, j]).mean() for part in np.split(scaled, pieces)]
        variances += np.var(of_pieces, ddof=1) / pieces
        squares += np.mean(of_pieces) ** 2
    return min(1.0, variances / squares)


def test_the_share_is_that_of_the_formula_pair_by_pair():
    inputs = normal(PIECES * 6, 5) @ normal(5, 5, seed=1)
    assert chance_share(inputs) == pytest.approx(spelled_out(inputs.double().numpy(), PIECES), rel=1e-4)


def test_what_is_independent_is_chance_and_what_always_goes_together_is_not():
    together = normal(4096, 8) @ normal(8, 64, seed=1)
    assert chance_share(normal(256, 64)) > 0.9
    assert chance_share(together) < 0.02
    assert chance_share(together[:256]) > 4 * chance_share(together)


def test_what_goes_together_in_one_document_alone_is_mostly_chance():
    """However many tokens there are of it."""
    first = normal(4096, 1).expand(-1, 32) + 0.1 * normal(4096, 32)
    turned = first * torch.tensor([1.0, -1.0]).repeat(16)
    assert chance_share(torch.cat([first, turned])) > 5 * chance_share(torch.cat([first, first]))
    others = normal((PIECES - 1) * 4096, 32, seed=1)
    assert chance_share(torch.cat([others, first])) > 0.7


@pytest.mark.parametrize("inputs", [normal(1, 8), normal(64, 1), torch.zeros(64, 8)], ids=["token", "input", "silent"])
def test_nothing_is_believed_where_nothing_can_be_told(inputs):
    assert chance_share(inputs) == 1.0


def test_silent_inputs_change_nothing():
    inputs = normal(320, 8) @ normal(8, 8, seed=1)
    silent = torch.cat([inputs, torch.zeros(320, 3)], dim=1)
    assert chance_share(silent) == pytest.approx(chance_share(inputs), rel=1e-5)


def test_a_sum_is_the_mean_of_all_that_was_added_in_whatever_parts():
    inputs = normal(400, 12) @ normal(12, 12, seed=1)
    whole, parts = SecondMomentSum(), SecondMomentSum()
    whole.add(inputs)
    for part in inputs.split(70):
        parts.add(part)
    torch.testing.assert_close(parts.moment().mean, inputs.t() @ inputs / 400)
    assert parts.moment().chance == pytest.approx(whole.moment().chance, rel=1e-4)


def test_what_is_not_believed_leaves_the_squares_of_inputs():
    moment = SecondMoment(torch.tensor([[4.0, 2.0], [2.0, 3.0]]), chance=0.25)
    torch.testing.assert_close(moment.without_chance(), torch.tensor([[4.0, 1.5], [1.5, 3.0]]))
    torch.testing.assert_close(moment.without_chance(1.0), torch.tensor([[4.0, 0.0], [0.0, 3.0]]))
    torch.testing.assert_close(moment.without_chance(0.0), moment.mean)


@pytest.mark.parametrize("architecture", ["qwen2", "gemma3"])
def test_errors_of_a_tied_embedding_cost_what_the_loss_says(architecture):
    """As input: the loss moves by d^T g when the row of a token that comes once moves by d, the head left alone."""
    model = make(architecture, tied=True)
    ids = torch.randperm(90, generator=torch.Generator().manual_seed(0))[:24].reshape(1, -1) + 5
    weight = model.get_input_embeddings().weight.detach().clone()
    scale = float(getattr(model.get_input_embeddings(), "embed_scale", 1.0))
    rows = (functional.embedding(ids, weight) * scale).requires_grad_()
    output = model(inputs_embeds=rows, output_hidden_states=True)
    losses = functional.cross_entropy(output.logits[0, :-1], ids[0, 1:], reduction="sum")
    hidden = output.hidden_states[-1][0].detach()
    doubt = 1 - output.logits[0].detach().softmax(-1).square().sum(-1)
    gradient = torch.autograd.grad(losses, rows)[0][0] * scale
    expected = ((hidden * doubt[:, None]).t() @ hidden + gradient.t() @ gradient) / ids.numel()

    prepare(model, parse_scheme("w4-g32+emb4"))
    layers = fake_quantized_layers(model)
    for layer in layers.values():
        layer.quantizer = IdentityQuantizer(layer.spec)
    with torch.no_grad():
        found = moment_of_both_uses(
            BlockStream(model, [ids]), model.get_input_embeddings(), model.get_output_embeddings()
        )
    torch.testing.assert_close(found.mean, expected, rtol=1e-3, atol=1e-5 * float(expected.abs().max()))
