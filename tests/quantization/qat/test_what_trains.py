"""`qat.trainable: auto`: scales alone in short trainings that start from PTQ's integers, and at which rate."""

from __future__ import annotations

import copy

import pytest
import torch

from edgequant.quantization.qat.frozen_weights import freeze_weights
from edgequant.quantization.qat.ptq_initialization import prepare_from_ptq
from edgequant.quantization.qat.settings import FEW_STEPS, QatSettings
from edgequant.quantization.scheme import parse_scheme
from edgequant.training.rate_test import ALONE, STEPS_FOR_TEST, RateTest, find_learning_rate
from edgequant.training.settings import TrainingSettings
from edgequant.training.watch import Watch


@pytest.mark.parametrize(
    ("settings", "steps", "expected"),
    [
        (QatSettings(), FEW_STEPS - 1, "scales"),
        (QatSettings(), FEW_STEPS, "all"),
        (QatSettings(trainable="all"), 1, "all"),
        (QatSettings(trainable="scales"), 1000, "scales"),
        (QatSettings(init_from="rtn"), 1, "all"),
        (QatSettings(learnable_scales=False), 1, "all"),
        (QatSettings(lora_rank=4), 1, "all"),
        (QatSettings(sparsity=0.5), 1, "all"),
    ],
)
def test_what_trains_depends_on_start_and_length(settings: QatSettings, steps: int, expected: str) -> None:
    assert settings.trains("gptq" if settings.init_from == "auto" else settings.init_from, steps) == expected


def test_scales_and_norms_that_train_alone_move_at_their_share_of_the_rate_that_they_have_beside_weights(tiny) -> None:
    assert STEPS_FOR_TEST == FEW_STEPS, "shorter trainings have no test of rates"
    rows = torch.randint(0, 200, (8, 32), generator=torch.Generator().manual_seed(0))
    settings = TrainingSettings(steps=4, batch_size=2, sequence_length=32, learning_rate="auto")
    rates: dict[str, dict[str, float]] = {}
    for name in ("all", "scales"):
        model = copy.deepcopy(tiny.model)
        prepare_from_ptq(model, parse_scheme("w4-g32"), method="mse_clip", calibration=[rows])
        model.requires_grad_(True)
        if name == "scales":
            freeze_weights(model)
        found = find_learning_rate(model, rows, settings, Watch(texts={"text": rows}))
        rates[name] = applied(model, found)
    shared = [name for name in rates["scales"] if name.endswith(("norm.weight", "scale"))]
    assert len(shared) > 10
    for name in shared:
        assert rates["scales"][name] / rates["all"][name] == pytest.approx(ALONE, rel=0.5), name  # of steps of sqrt(2)


def applied(model: torch.nn.Module, found: RateTest) -> dict[str, float]:
    with found.rates(model):
        return {
            name: found.rate * parameter.learning_rate_factor  # type: ignore[attr-defined]
            for name, parameter in model.named_parameters()
            if parameter.requires_grad
        }
