"""Compiled blocks train what uncompiled ones train, and only where that was asked for or pays."""

from __future__ import annotations

import copy
import importlib.util
import shutil

import pytest
import torch
from torch import nn

from edgequant.quantization.layers.convert import calibrate, has_static_ranges, prepare, set_phase
from edgequant.quantization.scheme import parse_scheme
from edgequant.training import compilation
from edgequant.training.compilation import compiled_blocks, repeated_blocks, should_compile
from edgequant.training.loop import train
from edgequant.training.settings import TrainingSettings


@pytest.fixture
def traced(monkeypatch) -> None:
    """Blocks are traced and differentiated as one graph, then run by PyTorch's own kernels: no compiler is needed."""
    monkeypatch.setattr(compilation, "BACKEND", "aot_eager")


def trained(floating, sequences, folder, scheme: str | None, compiled: bool | None, distillation: float = 0.0):
    model = copy.deepcopy(floating).requires_grad_(True)
    phase = None
    if scheme:
        prepare(model, parse_scheme(scheme), learnable_scales=scheme.startswith("w3"))
        if has_static_ranges(model):
            calibrate(model, [sequences[:8]])

        def phase(done, steps):
            set_phase(model, quantize_inputs=done > 0, observe=done < 2, reuse_weights=True)

    settings = TrainingSettings(
        steps=3, batch_size=2, gradient_accumulation=2, sequence_length=32, learning_rate=3e-3, precision="float32",
        save_steps=0, compile=compiled, distillation_weight=distillation,
    )  # fmt: skip
    losses: list[float] = []
    teacher = floating if distillation else None
    train(
        model,
        sequences,
        settings,
        folder,
        teacher=teacher,
        on_step=phase,
        on_log=lambda _, m: losses.append(m["train/loss"]),
    )
    return model, losses


@pytest.mark.parametrize(
    ("scheme", "distillation"),
    [
        (None, 0.0),
        ("w4a8-g32+emb4", 0.0),
        pytest.param("w8a8-static", 0.0, marks=pytest.mark.long),
        pytest.param("w3-g64", 0.5, marks=pytest.mark.long),
    ],
)
def test_compiled_blocks_train_to_the_same_weights(tiny, sequences, tmp_path, traced, scheme, distillation):
    plain, expected = trained(tiny.model, sequences, tmp_path / "plain", scheme, False, distillation)
    compiled, losses = trained(tiny.model, sequences, tmp_path / "compiled", scheme, True, distillation)
    assert losses == pytest.approx(expected, rel=1e-6)
    for (name, tensor), other in zip(compiled.state_dict().items(), plain.state_dict().values(), strict=True):
        torch.testing.assert_close(tensor.float(), other.float(), rtol=1e-4, atol=1e-5, msg=name)


def test_names_and_modules_are_as_before_when_training_is_over(tiny, sequences, tmp_path, traced):
    names = list(tiny.model.state_dict())
    model, _ = trained(tiny.model, sequences, tmp_path, None, True)
    assert list(model.state_dict()) == names
    assert all(module._compiled_call_impl is None for module in model.modules())


def test_a_failing_backend_is_passed_over_only_where_nobody_asked(tiny, monkeypatch):
    def broken(graph, inputs):
        raise RuntimeError("no compiler here")

    monkeypatch.setattr(compilation, "BACKEND", broken)
    torch._dynamo.reset()
    tokens = torch.randint(0, 250, (1, 16))
    expected = tiny.model(input_ids=tokens).logits
    with compiled_blocks(tiny.model, tolerant=True):
        torch.testing.assert_close(tiny.model(input_ids=tokens).logits, expected)
    torch._dynamo.reset()
    with compiled_blocks(tiny.model), pytest.raises(Exception, match="no compiler here"):
        tiny.model(input_ids=tokens)


def test_the_decoder_layers_are_what_repeats(tiny):
    assert repeated_blocks(tiny.model) == list(tiny.model.model.layers)
    assert repeated_blocks(nn.Linear(2, 2)) == []


@pytest.mark.parametrize(
    ("device", "passes", "compiler", "expected"),
    [
        ("cpu", 10_000, True, False),
        ("cuda", 10, True, False),
        ("cuda", 10_000, False, False),
        ("cuda", 200, True, True),
    ],
)
def test_compiling_pays_on_a_gpu_in_long_trainings_with_its_compiler_only(
    monkeypatch, device, passes, compiler, expected
):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object() if compiler else None)
    assert should_compile(torch.device(device), passes) is expected


@pytest.mark.long
@pytest.mark.skipif(shutil.which("g++") is None, reason="Inductor needs a C++ compiler on the CPU")
def test_compiled_scales_are_those_that_a_checkpoint_can_store():
    """Inductor by itself drops the rounding to float16 in the middle of a fused loop."""
    scheme = parse_scheme("w4-g32")
    block = nn.Sequential(nn.Linear(64, 32, bias=False))
    model = nn.ModuleDict({"layers": nn.ModuleList([block, copy.deepcopy(block)])})
    prepare(model, scheme)
    values = torch.randn(4, 64)
    with torch.no_grad():
        expected = model["layers"][0](values)
        with compiled_blocks(model):
            found = model["layers"][0](values)
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)
