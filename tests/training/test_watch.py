"""Held-out text watched in training: looks, the best state, limits, patience, divergence, what it costs."""

from __future__ import annotations

import copy
import json
import math
import random
from dataclasses import replace

import pytest
import torch

from edgequant.training.loop import train
from edgequant.training.settings import TrainingSettings
from edgequant.training.watch import Look, Watch, Watching, rows_to_watch

SETTINGS = TrainingSettings(
    steps=12, batch_size=4, sequence_length=32, learning_rate=5e-3, precision="float32", patience=0, eval_steps=3
)


@pytest.fixture
def counting() -> torch.Tensor:
    """[16, 32] tokens that count upwards: what `sequences` teaches."""
    starts = torch.randint(0, 250, (16, 1), generator=torch.Generator().manual_seed(5))
    return (starts + torch.arange(32)) % 250


@pytest.fixture
def noise() -> torch.Tensor:
    """[16, 32] tokens that `sequences` never has."""
    return torch.randint(250, 264, (16, 32), generator=torch.Generator().manual_seed(6))


@pytest.fixture
def forgetful(tiny, noise, tmp_path):
    """A model that knows `noise`, and would forget it."""
    settings = replace(SETTINGS, steps=60, learning_rate=1e-2, eval_steps=None)
    train(tiny.model, noise, settings, tmp_path / "before")
    return tiny.model


def loss_of(model, rows) -> float:
    """Mean next-token loss by torch's own cross-entropy."""
    with torch.no_grad():
        logits = model(input_ids=rows).logits[:, :-1].flatten(0, 1)
    return float(torch.nn.functional.cross_entropy(logits, rows[:, 1:].flatten()))


def test_looks_are_mean_next_token_losses_from_before_the_first_step_on(tiny, sequences, counting, noise, tmp_path):
    before = loss_of(tiny.model, counting), loss_of(tiny.model, noise)
    seen = {}
    watch = Watch(texts={"counting": counting, "noise": noise})
    result = train(
        tiny.model, sequences, SETTINGS, tmp_path, watch=watch,
        on_look=lambda step, losses: seen.update({(step, name): loss for name, loss in losses.items()}),
    )  # fmt: skip
    assert [look.step for look in result.looks] == [0, 3, 6, 9, 12]
    assert result.looks[0].losses == {"counting": pytest.approx(before[0]), "noise": pytest.approx(before[1])}
    assert seen == {(look.step, f"watched/{k}_loss"): v for look in result.looks for k, v in look.losses.items()}


@pytest.mark.parametrize(
    ("rows", "size", "compiled", "shapes"),
    [(3, 8, False, [3]), (3, 8, True, [8]), (8, 8, False, [8]), (10, 4, False, [4, 4, 4])],
)
def test_no_row_is_read_twice_but_to_fill_a_batch(tiny, counting, monkeypatch, rows, size, compiled, shapes):
    """A text of fewer rows than a batch is filled up for compiled code alone, which knows the training's shape."""
    monkeypatch.setattr("edgequant.training.watch.is_compiled", lambda _: compiled)
    read: list[int] = []
    handle = tiny.model.register_forward_pre_hook(
        lambda _model, _inputs, named: read.append(len(named["input_ids"])), with_kwargs=True
    )
    found = Watch(texts={"counting": counting[:rows]}, batch_size=size).losses(tiny.model)
    handle.remove()
    assert read == shapes
    assert found["counting"] == pytest.approx(loss_of(tiny.model, counting[:rows]), rel=1e-5)


def test_the_model_ends_as_it_was_at_its_best_look(tiny, sequences, counting, tmp_path):
    result = train(tiny.model, sequences, SETTINGS, tmp_path, watch=Watch(texts={"counting": counting}))
    best = min(result.looks, key=lambda look: look.losses["counting"])
    assert result.best_step == best.step > 0
    assert loss_of(tiny.model, counting) == pytest.approx(best.losses["counting"], abs=1e-5)


def test_a_model_that_only_gets_worse_ends_as_it_began_to_the_last_bit(forgetful, sequences, noise, tmp_path):
    start = copy.deepcopy(forgetful.state_dict())
    settings = replace(SETTINGS, learning_rate=2e-2, warmup_fraction=0.0)
    result = train(forgetful, sequences, settings, tmp_path, watch=Watch(texts={"noise": noise}))
    assert result.best_step == 0 and result.looks[-1].losses["noise"] > result.looks[0].losses["noise"] + 0.1
    assert all(torch.equal(start[name], tensor) for name, tensor in forgetful.state_dict().items())


def test_a_state_within_its_limits_comes_before_one_with_a_lower_mean(noise):
    watch = Watch(texts={"a": noise, "b": noise}, limits={"b": 2.0})
    assert watch.rank({"a": 9.0, "b": 2.0}) < watch.rank({"a": 1.0, "b": 2.1})
    assert watch.rank({"a": 1.0, "b": 1.9}) < watch.rank({"a": 1.2, "b": 1.9})
    assert watch.rank({"a": 9.0, "b": 2.0}) < watch.rank({"a": math.nan, "b": 1.0})


def test_training_ends_when_held_out_text_has_not_gained_for_long(forgetful, sequences, noise, tmp_path):
    settings = replace(SETTINGS, steps=60, patience=2)
    result = train(forgetful, sequences, settings, tmp_path, watch=Watch(texts={"noise": noise}))
    assert result.steps < 60 and "no better look at held-out text in 2" in result.ended


def test_a_high_rate_s_noise_does_not_end_the_first_half_of_a_training(tiny, noise):
    """What a high rate hides shows when it falls: a look below the start's loss plus a little ends nothing before."""
    watching = Watching(Watch(texts={"noise": noise}), tiny.model, "float32")
    watching.looks = [Look(step, {"noise": loss}) for step, loss in ((0, 4.0), (10, 4.05), (20, 4.09), (40, 4.02))]
    watching.best = watching.looks[0]
    assert watching.looks_without_gain(80) == 1 and watching.looks_without_gain(20) == 3
    watching.looks += [Look(41, {"noise": 4.2})]
    assert watching.looks_without_gain(100) == 1, "so far above the start that no lower rate wins it back"


def test_a_training_that_diverges_ends_with_the_best_state_and_says_so(tiny, sequences, counting, tmp_path):
    start = copy.deepcopy(tiny.model.state_dict())
    settings = replace(SETTINGS, learning_rate=1e30, warmup_fraction=0.0, eval_steps=100)
    result = train(tiny.model, sequences, settings, tmp_path, watch=Watch(texts={"counting": counting}))
    assert result.ended.startswith("it diverged (loss nan at step")
    assert all(torch.equal(start[name], tensor) for name, tensor in tiny.model.state_dict().items())


@pytest.mark.parametrize("seed", range(8))
def test_whatever_rate_length_and_text_a_training_never_ends_worse_than_it_began(_tiny, seed, tmp_path):
    draw = random.Random(seed)
    generator = torch.Generator().manual_seed(seed)
    texts = {name: torch.randint(0, draw.choice((3, 250)), (4, 32), generator=generator) for name in ("a", "b")}
    trained = texts["a"] if draw.random() < 0.5 else torch.randint(0, 250, (6, 32), generator=generator)
    settings = replace(
        SETTINGS, learning_rate=10 ** draw.uniform(-5, 1), steps=draw.randint(1, 30), eval_steps=draw.randint(1, 40),
        patience=draw.randint(0, 3), batch_size=draw.randint(1, 4),
    )  # fmt: skip
    model, watch = copy.deepcopy(_tiny.model), Watch(texts=texts)
    before = watch.losses(model)
    train(model, trained, settings, tmp_path, watch=watch)
    assert watch.rank(watch.losses(model)) <= (False, watch.rank(before)[1] + 1e-5)


def test_looking_takes_no_more_than_a_twentieth_of_a_training_of_some_length():
    settings = TrainingSettings(steps=400, batch_size=16, sequence_length=512)
    rows = rows_to_watch(settings, 10_000, 2, taught=True)
    watch = Watch(texts={name: torch.zeros(rows, 512, dtype=torch.int64) for name in "ab"})
    looks = 1 + math.ceil(400 / watch.interval(settings, taught=True))
    assert looks >= 5
    assert looks * 2 * rows <= 0.05 * 4 * settings.sequences  # a step: forward, backward (2), teacher (1)


@pytest.mark.long
def test_an_interrupted_training_goes_on_with_its_looks_and_its_best_state(tiny, sequences, counting, tmp_path):
    watch, settings = Watch(texts={"counting": counting}), replace(SETTINGS, save_steps=6)
    whole_model = copy.deepcopy(tiny.model)
    whole = train(whole_model, sequences, settings, tmp_path / "whole", watch=watch)

    class Interrupted(Exception):
        pass

    def interrupt(done: int, _steps: int) -> None:
        if done == 8:
            raise Interrupted

    cut_model = copy.deepcopy(tiny.model)
    with pytest.raises(Interrupted):
        train(cut_model, sequences, settings, tmp_path / "cut", watch=watch, on_step=interrupt)
    again = copy.deepcopy(tiny.model)
    resumed = train(again, sequences, settings, tmp_path / "cut", watch=watch, resume=True)
    assert resumed.looks == whole.looks and resumed.best_step == whole.best_step
    states = zip(whole_model.state_dict().values(), again.state_dict().values(), strict=True)
    assert all(torch.equal(one, other) for one, other in states)


@pytest.mark.long
def test_a_checkpoint_without_its_looks_is_not_gone_on_with(tiny, sequences, counting, tmp_path):
    settings = replace(SETTINGS, save_steps=6)
    train(copy.deepcopy(tiny.model), sequences, settings, tmp_path, watch=Watch(texts={"counting": counting}))
    for file in tmp_path.glob("checkpoint-*/watch.json"):
        assert json.loads(file.read_text())["looks"]
        file.unlink()
    steps: list[int] = []
    watch = Watch(texts={"counting": counting})
    train(
        tiny.model, sequences, settings, tmp_path, watch=watch, resume=True, on_step=lambda done, _: steps.append(done)
    )
    assert steps[0] == 0
