"""The training loop: it learns, on the schedule it names, and says so when it cannot."""

from __future__ import annotations

import copy
import math
from dataclasses import replace

import pytest
import torch

from edgequant import models
from edgequant.errors import UserError
from edgequant.quantization.ptq.quantize import quantize
from edgequant.quantization.scheme import parse_scheme
from edgequant.training.loop import train
from edgequant.training.settings import TrainingSettings

SHORT = TrainingSettings(
    steps=6, batch_size=4, sequence_length=32, learning_rate=5e-3, precision="float32", warmup_fraction=0.0
)


def losses_of(model, sequences, settings, folder, **more) -> list[float]:
    seen: list[float] = []
    train(model, sequences, settings, folder, on_log=lambda _, m: seen.append(m["train/loss"]), **more)
    return seen


def test_loss_falls_from_that_of_guessing(tiny, sequences, tmp_path):
    losses = losses_of(tiny.model, sequences, replace(SHORT, steps=40, learning_rate=1e-2), tmp_path)
    assert losses[0] == pytest.approx(math.log(264), rel=0.05)
    assert losses[-1] < 0.5 * losses[0]


def test_result_reports_steps_and_the_mean_loss_of_the_last_tenth(tiny, sequences, tmp_path):
    losses: list[float] = []
    settings = replace(SHORT, steps=20)
    result = train(tiny.model, sequences, settings, tmp_path, on_log=lambda _, m: losses.append(m["train/loss"]))
    assert result.steps == len(losses) == 20
    assert result.loss == pytest.approx(sum(losses[-2:]) / 2)
    assert result.tokens_per_second > 0


def test_model_is_trained_in_place_and_left_in_evaluation_mode(tiny, sequences, tmp_path):
    before = copy.deepcopy(tiny.model.state_dict())
    train(tiny.model, sequences, replace(SHORT, steps=1), tmp_path)
    assert not tiny.model.training
    assert not torch.equal(before["model.norm.weight"], tiny.model.state_dict()["model.norm.weight"])


def test_text_shorter_than_the_training_starts_over(tiny, sequences, tmp_path):
    result = train(tiny.model, sequences[:3], replace(SHORT, steps=5), tmp_path)
    assert result.steps == 5


def test_learning_rate_follows_warm_up_and_cosine(tiny, sequences, tmp_path):
    rates: dict[int, float] = {}
    settings = replace(SHORT, steps=10, warmup_fraction=0.2)
    train(
        tiny.model, sequences, settings, tmp_path, on_log=lambda step, m: rates.update({step: m["train/learning_rate"]})
    )
    warm_up = 2

    def rate(step: int) -> float:  # of the step that was just taken, or of the next one: transformers logs either
        if step < warm_up:
            return 5e-3 * step / warm_up
        return 5e-3 * (1 + math.cos(math.pi * (step - warm_up) / (10 - warm_up))) / 2

    logged = [rates[step] for step in range(1, 11)]
    assert logged == pytest.approx([rate(s - 1) for s in range(1, 11)]) or logged == pytest.approx(
        [rate(s) for s in range(1, 11)]
    )


@pytest.mark.long
def test_accumulated_gradients_are_those_of_the_large_batch(tiny, sequences, tmp_path):
    large, small = copy.deepcopy(tiny.model), copy.deepcopy(tiny.model)
    whole = losses_of(large, sequences, replace(SHORT, batch_size=8), tmp_path / "a")
    parts = losses_of(small, sequences, replace(SHORT, batch_size=2, gradient_accumulation=4), tmp_path / "b")
    assert parts == pytest.approx(whole, rel=1e-4)
    for one, other in zip(large.parameters(), small.parameters(), strict=True):
        # Adam turns a gradient's sign into a whole step: what hardly has a gradient may differ by more than rounding
        assert ((one - other).abs() > 1e-4).float().mean() < 0.01


def test_weight_decay_pulls_matrices_and_leaves_vectors(tiny, sequences, tmp_path):
    plain, decayed = copy.deepcopy(tiny.model), copy.deepcopy(tiny.model)
    start = copy.deepcopy(tiny.model.state_dict())
    settings = replace(SHORT, steps=1, learning_rate=1e-2)
    train(plain, sequences, settings, tmp_path / "a")
    train(decayed, sequences, replace(settings, weight_decay=0.5), tmp_path / "b")
    for name, parameter in decayed.named_parameters():
        pulled = 1e-2 * 0.5 * start[name] if parameter.dim() > 1 else torch.zeros_like(parameter)
        torch.testing.assert_close(plain.get_parameter(name) - parameter, pulled, rtol=1e-3, atol=1e-7)


def test_gradients_are_clipped_to_the_given_norm(tiny, sequences, tmp_path, monkeypatch):
    norms = []
    settings = replace(SHORT, steps=2, max_grad_norm=1e-3)
    clip = torch.nn.utils.clip_grad_norm_
    monkeypatch.setattr(
        torch.nn.utils, "clip_grad_norm_", lambda p, n, *a, **k: norms.append(float(n)) or clip(p, n, *a, **k)
    )
    train(tiny.model, sequences, settings, tmp_path)
    assert norms == [1e-3, 1e-3]


def test_master_weights_stay_float32_under_bfloat16_autocast(tiny, sequences, tmp_path):
    types = set()
    tiny.model.model.layers[0].mlp.up_proj.register_forward_hook(lambda m, i, o: types.add(o.dtype))
    losses = losses_of(tiny.model, sequences, replace(SHORT, precision="bfloat16", learning_rate=1e-5), tmp_path)
    assert types == {torch.bfloat16}
    assert {p.dtype for p in tiny.model.parameters()} == {torch.float32}
    assert losses[0] == pytest.approx(math.log(264), rel=0.05)


def test_a_second_training_of_a_model_is_in_the_same_precision(tiny, sequences, tmp_path):
    """As after the trials of `learning_rate: auto`: accelerate passes over a model that it has prepared before."""
    types = []
    tiny.model.model.layers[0].mlp.up_proj.register_forward_hook(lambda m, i, o: types.append(o.dtype))
    for name in ("first", "second"):
        train(tiny.model, sequences, replace(SHORT, steps=1, precision="bfloat16"), tmp_path / name)
    assert types == 2 * [torch.bfloat16]


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_training_leaves_nothing_behind_on_a_model(tiny, sequences, tmp_path, precision):
    parts = dict(tiny.model.named_modules())
    before = {name: set(vars(part)) for name, part in parts.items()}
    train(tiny.model, sequences, replace(SHORT, steps=2, precision=precision), tmp_path)
    assert {name: set(vars(part)) for name, part in parts.items()} == before


def test_updates_below_bfloat16_resolution_are_kept(tiny, sequences, tmp_path):
    before = tiny.model.lm_head.weight.detach().clone()
    train(tiny.model, sequences, replace(SHORT, precision="bfloat16", learning_rate=1e-6), tmp_path)
    moved = (tiny.model.lm_head.weight - before).abs()
    assert 0 < moved.max() < 2e-5
    assert not torch.equal(before, tiny.model.lm_head.weight)


def test_distillation_alone_brings_the_student_to_its_teacher(tiny, sequences, tmp_path):
    student = copy.deepcopy(tiny.model)
    with torch.no_grad():
        for parameter in student.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(3)) * 0.02)
    losses = losses_of(
        student,
        sequences,
        replace(SHORT, steps=20, distillation_weight=1.0, learning_rate=1e-3),
        tmp_path,
        teacher=tiny.model,
    )
    assert losses[-1] < 0.3 * losses[0]


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_teacher_computes_in_the_precision_of_its_student(tiny, sequences, tmp_path, precision):
    """In another one a model would not be its own perfect student, and float32 would take longer."""
    settings = replace(SHORT, steps=1, distillation_weight=1.0, precision=precision)
    found = []
    teacher = copy.deepcopy(tiny.model)
    teacher.lm_head.register_forward_hook(lambda _module, _inputs, output: found.append(str(output.dtype)))
    itself = losses_of(tiny.model, sequences, settings, tmp_path, teacher=teacher)
    assert set(found) == {f"torch.{precision}"}
    assert itself == pytest.approx([0.0], abs=1e-6)


@pytest.mark.parametrize("top_k", [0, 264])
def test_a_teacher_in_float16_teaches_a_student_in_bfloat16(tiny, sequences, cache, tmp_path, top_k):
    settings = replace(SHORT, steps=1, distillation_weight=1.0, precision="bfloat16", teacher_top_k=top_k)
    teacher = copy.deepcopy(tiny.model)
    quantize(teacher, parse_scheme("w8a8"))  # its integer products give what autocast would not take
    (loss,) = losses_of(tiny.model, sequences, settings, tmp_path, teacher=models.cast(teacher, "float16"))
    assert 0 < loss < 1e-2


def test_divergence_is_an_error_that_names_loss_step_and_learning_rate(tiny, sequences, tmp_path):
    with pytest.raises(UserError, match=r"diverged: loss nan at step \d+; lower training\.learning_rate \(1e\+25\)"):
        train(tiny.model, sequences, replace(SHORT, learning_rate=1e25), tmp_path)


def test_nothing_to_train_is_an_error(tiny, sequences, tmp_path):
    with pytest.raises(UserError, match="nothing to train"):
        train(tiny.model.requires_grad_(False), sequences, SHORT, tmp_path)


def test_steps_are_announced_before_they_are_taken(tiny, sequences, tmp_path):
    announced = []
    train(tiny.model, sequences, SHORT, tmp_path, on_step=lambda done, steps: announced.append((done, steps)))
    assert announced == [(done, 6) for done in range(6)]


@pytest.mark.long
def test_the_seed_sets_the_order_of_the_text(tiny, sequences, tmp_path):
    runs = [losses_of(copy.deepcopy(tiny.model), sequences, SHORT, tmp_path, seed=seed) for seed in (0, 0, 1)]
    assert runs[0] == runs[1] != runs[2]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"steps": 0}, r"training\.steps must be at least 1, got 0"),
        ({"steps": -3}, r"training\.steps .* got -3"),
        ({"batch_size": 0}, r"training\.batch_size must be at least 1, got 0"),
        ({"learning_rate": 0.0}, r"training\.learning_rate must be above 0, got 0\.0"),
        ({"learning_rate": float("nan")}, r"training\.learning_rate .* got nan"),
        ({"warmup_fraction": 1.5}, r"training\.warmup_fraction .* between 0 and 1, got 1\.5"),
        ({"distillation_weight": -0.1}, r"training\.distillation_weight must be a share .* got -0\.1"),
        ({"save_steps": -1}, r"training\.save_steps .* got -1"),
        ({"sequence_length": 1}, r"training\.sequence_length must be at least 2, got 1"),
    ],
)
def test_impossible_settings_are_refused_where_they_are_made(values, message):
    with pytest.raises(UserError, match=message):
        TrainingSettings(**values)


def test_a_model_trained_in_bfloat16_computes_in_its_own_type_afterwards(tiny, sequences, tmp_path):
    """transformers.Trainer wraps its forward pass in autocast and leaves it so."""
    train(tiny.model, sequences, replace(SHORT, precision="bfloat16"), tmp_path)
    fresh = type(tiny.model)(tiny.model.config).eval()
    fresh.load_state_dict(tiny.model.state_dict())
    tiny.model.eval()
    with torch.no_grad():
        found, expected = (model(input_ids=sequences[:2]).logits for model in (tiny.model, fresh))
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
