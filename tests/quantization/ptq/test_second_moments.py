"""How much that calibration text says of pairs of inputs is believed, and what errors of a tied embedding cost."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from random_architectures import make
from torch.nn import functional

from edgequant.quantization.layers.convert import prepare
from edgequant.quantization.layers.fake_quantized import fake_quantized_layers
from edgequant.quantization.layers.fixed_weights import IdentityQuantizer
from edgequant.quantization.ptq.block_stream import BlockStream
from edgequant.quantization.ptq.second_moments import FOLDS, SHARES, SecondMoment, SecondMomentSum, chance_share
from edgequant.quantization.ptq.tied_embedding import moment_of_both_uses
from edgequant.quantization.scheme import parse_scheme


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def likeliest(inputs: np.ndarray) -> float:
    """The share under which each quarter is likeliest by the other three, by the density written out."""
    scaled = inputs / np.sqrt((inputs**2).mean(0))
    folds, losses = np.array_split(scaled, FOLDS), []
    for share in SHARES:
        loss = 0.0
        for left_out in range(FOLDS):
            seen = np.concatenate([fold for index, fold in enumerate(folds) if index != left_out])
            matrix = (1 - share) * seen.T @ seen / len(seen) + share * np.eye(scaled.shape[1])
            loss += sum(row @ np.linalg.inv(matrix) @ row + np.linalg.slogdet(matrix)[1] for row in folds[left_out])
        losses.append(loss)
    return SHARES[int(np.argmin(losses))]


@pytest.mark.parametrize("tokens", [24, 97, 400])
def test_the_share_is_the_one_under_which_text_left_out_is_likeliest(tokens):
    inputs = normal(tokens, 12) + normal(tokens, 3, seed=2) @ normal(3, 12, seed=1)
    assert chance_share(inputs) == pytest.approx(likeliest(inputs.double().numpy()), abs=0.026)


def test_what_is_independent_is_chance_and_what_always_goes_together_is_not():
    together = normal(8192, 16) @ normal(16, 64, seed=1) + normal(8192, 64, seed=2)
    assert chance_share(normal(256, 64)) > 0.9
    assert chance_share(together) <= 0.05
    assert chance_share(together[:48]) > 2 * chance_share(together)


def test_what_goes_together_within_a_document_alone_is_mostly_chance():
    """However many tokens there are of it."""
    common = normal(FOLDS * 2048, 1).expand(-1, 32)
    signs = normal(FOLDS, 32, seed=1).sign().repeat_interleave(2048, 0)
    noise = 0.5 * normal(FOLDS * 2048, 32, seed=2)
    assert chance_share(common * signs[:1] + noise) <= 0.05
    assert chance_share(common * signs + noise) > 0.3


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
    assert parts.moment().chance == whole.moment().chance


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
