"""An interrupted PTQ run goes on behind the decoder blocks that it finished, and ends with the same integers."""

from __future__ import annotations

import copy

import pytest
import torch

from edgequant.quantization.calibration import CalibrationSettings
from edgequant.quantization.ptq.quantize import quantize
from edgequant.quantization.ptq.rounding import Gptq
from edgequant.quantization.ptq.settings import PtqSettings
from edgequant.quantization.scheme import parse_scheme

SETTINGS = {
    "settings": PtqSettings(alphas=4),
    "calibration_settings": CalibrationSettings(batch_size=2, precision="float32"),
}


class Crash(Exception):
    pass


@pytest.fixture
def count(monkeypatch):
    """Names of the blocks that GPTQ worked on; `fail_at` makes it crash there."""
    original = Gptq.apply
    state = {"done": [], "fail_at": None}

    def apply(self, block):
        if block.name == state["fail_at"]:
            raise Crash
        state["done"].append(block.name)
        original(self, block)

    monkeypatch.setattr(Gptq, "apply", apply)
    return state


def run(tiny, folder, *, seed=0, scheme="w8a8-static+emb8", method="awq+gptq"):
    tokens = torch.randint(0, 256, (4, 32), generator=torch.Generator().manual_seed(seed))
    model = copy.deepcopy(tiny.model)
    errors = quantize(model, parse_scheme(scheme), calibration=[tokens], method=method, **SETTINGS, work_folder=folder)
    return model.state_dict(), errors


def test_a_crashed_run_goes_on_and_ends_as_an_uninterrupted_one(_tiny, tmp_path, count):
    expected, errors = run(_tiny, None)
    count["done"].clear()
    count["fail_at"] = "model.layers.1"
    with pytest.raises(Crash):
        run(_tiny, tmp_path)
    count["fail_at"] = None
    found, found_errors = run(_tiny, tmp_path)
    assert count["done"] == ["model.layers.0", "model.layers.1"]
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert found_errors == errors


@pytest.mark.parametrize("change", [{"seed": 1}, {"scheme": "w4-g32"}, {"method": "gptq"}])
def test_finished_blocks_of_another_calibration_scheme_or_method_are_not_taken(_tiny, tmp_path, count, change):
    run(_tiny, tmp_path)
    count["done"].clear()
    run(_tiny, tmp_path, **change)
    assert count["done"] == ["model.layers.0", "model.layers.1"]


def test_finished_blocks_of_another_model_are_not_taken(tiny, tmp_path, count):
    run(tiny, tmp_path)
    count["done"].clear()
    with torch.no_grad():
        tiny.model.model.layers[1].mlp.down_proj.weight[3, 5] += 0.1
    run(tiny, tmp_path)
    assert count["done"] == ["model.layers.0", "model.layers.1"]


def test_only_whole_files_lie_in_the_work_folder(_tiny, tmp_path, count):
    run(_tiny, tmp_path)
    names = sorted(file.name for file in tmp_path.rglob("*") if file.is_file())
    assert names == ["block-0000.safetensors", "block-0001.safetensors"]
