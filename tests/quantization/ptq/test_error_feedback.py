"""Rounding towards the floating-point model's outputs on the inputs that are there: by numbers, and on a model."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from edgequant.quantization.ptq.error_feedback import RIDGES, Drift


def text(seed: int, tokens: int = 400, features: int = 24) -> Tensor:
    return torch.randn(tokens, features, generator=torch.Generator().manual_seed(seed))


def test_what_a_linear_map_of_the_inputs_knows_of_their_drift_is_made_up_for() -> None:
    """X = X' A, so that W X is reached by the weight W A^T; the ridge takes a little of it."""
    turned = torch.eye(24) + 0.2 * text(1, 24)
    weight, drift = text(2, 10), Drift()
    for seed in (3, 4):
        drift.add(text(seed), text(seed) @ turned)
    (correction,) = drift.corrections([weight])
    unseen = text(5)
    before = (unseen @ weight.t() - unseen @ turned @ weight.t()).square().sum()
    after = (unseen @ (weight + correction).t() - unseen @ turned @ weight.t()).square().sum()
    assert after < 0.01 * before


def test_the_map_is_the_ridge_regression_of_the_drift_on_the_inputs() -> None:
    turned = torch.eye(24) + 0.2 * text(1, 24)
    inputs, weight, drift = text(3), text(2, 30), Drift()
    drift.add(inputs, inputs @ turned)
    (correction,) = drift.corrections([weight])
    matches = []
    for ridge in RIDGES:
        penalty = (ridge * inputs.square().mean(0).sum() / 24 * len(inputs)) ** 0.5 * torch.eye(24)
        system = torch.cat([inputs, penalty]).double()
        wanted = torch.cat([inputs @ turned - inputs, torch.zeros(24, 24)]).double()
        expected = weight.double() @ torch.linalg.lstsq(system, wanted).solution.t()
        matches.append(torch.allclose(correction.double(), expected, atol=1e-4))
    assert sum(matches) == 1


def test_drift_that_is_chance_is_left_alone() -> None:
    drift = Drift()
    drift.add(text(1), text(1) + text(2))
    assert all(not part.any() for part in drift.corrections([text(3, 5), text(4, 7)]))


@pytest.mark.parametrize("rows", [(5, 70), (100, 60)])
def test_layers_that_share_an_input_are_corrected_as_one(rows: tuple[int, int]) -> None:
    drift, weights = Drift(), [text(8, count) for count in rows]
    drift.add(text(1), 1.1 * text(1))
    parts = drift.corrections(weights)
    assert [part.shape for part in parts] == [weight.shape for weight in weights]
    for part, weight in zip(parts, weights, strict=True):
        assert torch.allclose(part, 0.1 * weight, atol=0.05)


def test_gptq_leaves_weights_as_they_came_and_ends_nearer_to_the_floating_point_model(
    tiny_wide: tuple[torch.nn.Module, list[Tensor], Tensor],
) -> None:
    import copy

    from edgequant.quantization.layers.fake_quantized import fake_quantized_layers
    from edgequant.quantization.ptq.quantize import choose_integers
    from edgequant.quantization.ptq.settings import PtqSettings
    from edgequant.quantization.scheme import parse_scheme

    model, calibration, unseen = tiny_wide
    errors = {}
    with torch.no_grad():
        aim = model(input_ids=unseen).logits
        for asymmetric in (False, True):
            rounded = copy.deepcopy(model)
            settings = PtqSettings(asymmetric_calibration=asymmetric)
            choose_integers(rounded, parse_scheme("w3-g32"), calibration, "gptq", settings)
            errors[asymmetric] = float((rounded(input_ids=unseen).logits - aim).square().mean())
            for name, layer in fake_quantized_layers(rounded).items():
                assert torch.equal(layer.weight, model.get_submodule(name).weight)
    assert errors[True] < errors[False]


@pytest.fixture(scope="module")
def tiny_wide() -> tuple[torch.nn.Module, list[Tensor], Tensor]:
    """A random model of four blocks, text that it wrote, and more of it."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=64, hidden_size=64, intermediate_size=128, num_hidden_layers=4, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=128, initializer_range=0.2, tie_word_embeddings=False,
    )  # fmt: skip
    model = LlamaForCausalLM(config).eval()
    written = model.generate(
        torch.randint(0, 64, (24, 1)), attention_mask=torch.ones(24, 1, dtype=torch.int64), do_sample=True,
        min_new_tokens=63, max_new_tokens=63, pad_token_id=0,
    )  # fmt: skip
    return model, list(written[:16].split(8)), written[16:]
