"""`learning_rate: auto`: the rate that a few short trainings find, whatever the size of a model's weights."""

from __future__ import annotations

import copy
import math
from dataclasses import replace

import pytest
import torch

from edgequant.errors import UserError
from edgequant.quantization.layers.convert import prepare
from edgequant.quantization.scheme import parse_scheme
from edgequant.training import rate_test
from edgequant.training.loop import train
from edgequant.training.rate_test import RateTest, find_learning_rate, group_of, relative_rates, typical_weight
from edgequant.training.settings import TrainingSettings
from edgequant.training.watch import Watch

SETTINGS = TrainingSettings(steps=40, batch_size=4, sequence_length=32, precision="float32", warmup_fraction=0.1)


@pytest.fixture
def counting() -> torch.Tensor:
    starts = torch.randint(0, 250, (16, 1), generator=torch.Generator().manual_seed(5))
    return (starts + torch.arange(32)) % 250


def final_loss(model, sequences, counting, settings, test, folder) -> float:
    with test.rates(model):
        result = train(model, sequences, test.applied_to(settings), folder, watch=Watch(texts={"text": counting}))
    return result.looks[-1].losses["text"]


@pytest.mark.long
def test_the_rate_found_trains_nearly_as_well_as_the_best_of_a_grid(_tiny, sequences, counting, tmp_path):
    model = copy.deepcopy(_tiny.model)
    found = find_learning_rate(model, sequences, SETTINGS, Watch(texts={"text": counting}))
    auto = final_loss(copy.deepcopy(_tiny.model), sequences, counting, SETTINGS, found, tmp_path / "auto")
    grid = [
        final_loss(
            copy.deepcopy(_tiny.model), sequences, counting, replace(SETTINGS, learning_rate=rate), RateTest(),
            tmp_path / str(rate),
        )
        for rate in (1e-5, 1e-4, 1e-3, 1e-2)
    ]  # fmt: skip
    assert auto <= min(grid) + 0.25 * (max(grid) - min(grid))
    assert max(grid) > min(grid) + 0.5


@pytest.mark.long
def test_the_model_is_left_as_it_was(tiny, sequences, counting):
    before = copy.deepcopy(tiny.model.state_dict())
    find_learning_rate(tiny.model, sequences, SETTINGS, Watch(texts={"text": counting}))
    assert all(torch.equal(before[name], tensor) for name, tensor in tiny.model.state_dict().items())
    assert not any(hasattr(parameter, "learning_rate_factor") for parameter in tiny.model.parameters())


def test_rates_are_relative_to_the_size_of_the_weights(tiny):
    typical = typical_weight(tiny.model)
    assert typical == pytest.approx(0.02, rel=0.1)  # tiny's initial standard deviation
    with torch.no_grad():
        for parameter in tiny.model.parameters():
            parameter.mul_(8)
    assert typical_weight(tiny.model) == pytest.approx(8 * typical)


def test_a_large_matrix_and_a_large_norm_move_in_proportion_and_scales_as_they_did(tiny):
    prepare(tiny.model, parse_scheme("w4-g32"), learnable_scales=True)
    layer = tiny.model.model.layers[0]
    with torch.no_grad():
        layer.mlp.up_proj.weight.mul_(4)
        layer.input_layernorm.weight.fill_(0.32)
    with relative_rates(tiny.model, {"norms": 2.0}):
        assert layer.mlp.up_proj.weight.learning_rate_factor == pytest.approx(4.0, rel=0.2)
        assert layer.mlp.down_proj.weight.learning_rate_factor == pytest.approx(1.0, rel=0.2)
        assert layer.input_layernorm.weight.learning_rate_factor == pytest.approx(2 * 0.32 / 0.02, rel=0.2)
        scale = layer.mlp.up_proj.quantizer.relative_scale
        assert group_of(scale) == "scales" and scale.learning_rate_factor == pytest.approx(10 * 0.2 / 0.02, rel=0.3)
    assert scale.learning_rate_factor == 10.0 and not hasattr(layer.input_layernorm.weight, "learning_rate_factor")


def test_a_time_budget_cuts_the_steps_at_the_speed_that_was_measured():
    settings = replace(SETTINGS, max_minutes=0.5, learning_rate=1e-3)
    assert RateTest(seconds_per_step=2.0).applied_to(settings).steps == 15
    assert RateTest(seconds_per_step=0.01).applied_to(settings).steps == 40


def test_steps_follow_from_epochs_and_token_budgets():
    settings = TrainingSettings(batch_size=4, sequence_length=128)
    assert settings.for_text(1000, "cuda").steps == 250
    assert settings.for_text(1000, "cpu").steps == 10_240 // 512
    assert replace(settings, max_tokens=None).for_text(1000, "cpu").steps == 250
    assert replace(settings, epochs=2.0, max_tokens=51_200).for_text(1000, "cpu").steps == 100
    assert replace(settings, epochs=0.001).for_text(1000, "cpu").steps == 1
    assert replace(settings, steps=7).for_text(1000, "cpu").steps == 7


def test_auto_is_refused_where_no_text_is_held_out(tiny, sequences, tmp_path):
    with pytest.raises(UserError, match=r"training\.learning_rate auto is found on held-out text"):
        train(tiny.model, sequences, SETTINGS, tmp_path)


@pytest.mark.long
def test_every_rate_that_diverges_is_passed_over(tiny, sequences, counting, monkeypatch):
    monkeypatch.setattr("edgequant.training.rate_test.FIRST", 1e32)
    monkeypatch.setattr("edgequant.training.rate_test.FACTOR", 1e9)  # few trials
    monkeypatch.setattr("edgequant.training.rate_test.HIGHEST", math.inf)
    found = find_learning_rate(tiny.model, sequences, SETTINGS, Watch(texts={"text": counting}))
    assert any(math.isinf(row["mean_loss"]) for row in found.rows) and math.isfinite(found.rate)


@pytest.mark.parametrize(
    ("steps", "after", "expected"),
    [
        (400, {0: -0.1, 1: -0.2, 2: 0.5}, 1),  # higher ones win more, until one does harm
        (400, {0: 0.5, -1: 0.1, -2: -0.001}, -2),
        (400, {0: 0.0022, -1: -0.005}, -1),  # a trial of 20 steps may not lose what one of 4 may
        (80, {0: 0.0022, 1: 0.5}, 0),
        (400, {0: 0.5, -1: 0.4, -2: 0.3, -3: 0.2, -4: 0.1}, -4),  # all do harm: the one that does least
        (400, {0: -0.1, 1: -0.099, 2: -0.09}, 1),  # as well as any other, within the tolerance
    ],
)
def test_the_highest_rate_is_taken_that_does_no_harm(tiny, sequences, counting, monkeypatch, steps, after, expected):
    """Rates in steps of FACTOR from FIRST, each with what a trial at it adds to the held-out loss."""
    trials = rate_test._Trials(
        tiny.model,
        sequences,
        replace(SETTINGS, steps=steps),
        Watch(texts={"text": counting}),
        None,
        None,
        0,
        "",
        None,
        None,
    )
    before = trials.watch.losses(tiny.model)["text"]
    power = lambda rate: round(math.log(rate / rate_test.FIRST, rate_test.FACTOR))  # noqa: E731
    monkeypatch.setattr(trials, "_score", lambda rate: before + after[power(rate)])
    assert power(trials._highest_harmless_rate()) == expected
