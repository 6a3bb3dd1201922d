"""A control that learns a text and forgets no more of any other than is accepted."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch

from edgequant.workflows.steps.held_out import HeldOut, keep_from_forgetting


def test_a_trained_model_goes_back_until_it_forgets_no_more_than_is_accepted(tiny: Any, capsys: Any) -> None:
    """On the straight line between both models, as far along it as the guard text allows."""
    torch.manual_seed(0)
    start, trained = copy.deepcopy(tiny.model), copy.deepcopy(tiny.model)
    for parameter in trained.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    ended = copy.deepcopy(trained)
    first = torch.randint(0, 250, (8, 1))
    rows = start.generate(first, min_new_tokens=31, max_new_tokens=31, do_sample=True, pad_token_id=0)
    held = HeldOut(texts={"validation": rows[:2], "guard": rows}, reported=[], name="own")
    guard = lambda model: held.losses(model, precision="auto")["guard"]  # noqa: E731
    most = 100 * (math.exp((guard(ended) - guard(start)) / 4) - 1)
    kept = keep_from_forgetting(trained, start, held, most)
    assert 1 / 16 <= kept < 1 and f"keeps {kept:.0%}" in capsys.readouterr().out
    for name, parameter in trained.named_parameters():
        line = torch.lerp(start.get_parameter(name), ended.get_parameter(name), kept)
        assert torch.equal(parameter, line)
    limit = guard(start) + math.log1p(most / 100)
    assert guard(trained) <= limit
    further = copy.deepcopy(start)
    for name, parameter in further.named_parameters():
        parameter.data.lerp_(ended.get_parameter(name), kept + 1 / 16)
    assert guard(further) > limit


@pytest.mark.parametrize("most", [None, 1e6])
def test_a_model_that_forgets_little_keeps_all_that_it_learned(tiny: Any, most: float | None) -> None:
    trained = copy.deepcopy(tiny.model)
    trained.model.norm.weight.data += 0.01
    ended = copy.deepcopy(trained.state_dict())
    held = HeldOut(texts={"guard": torch.randint(0, 250, (4, 16))}, reported=[], name="own")
    assert keep_from_forgetting(trained, tiny.model, held, most) == 1
    assert all(torch.equal(value, ended[name]) for name, value in trained.state_dict().items())
