"""A training that was interrupted and resumed ends with the bits of one that was not."""

from __future__ import annotations

import copy
import dataclasses
import json
import shutil
from pathlib import Path

import pytest
import torch

from edgequant.errors import UserError
from edgequant.quantization.layers.convert import calibrate, has_static_ranges, prepare, set_phase
from edgequant.quantization.scheme import parse_scheme
from edgequant.training.checkpoints import MANIFEST, newest_whole, text_digest
from edgequant.training.loop import train
from edgequant.training.settings import TrainingSettings

SETTINGS = TrainingSettings(
    steps=8, batch_size=2, sequence_length=32, learning_rate=3e-3, precision="float32", save_steps=3
)


class Killed(Exception):
    """The process went away."""


def phases(model):
    return lambda done, steps: set_phase(model, quantize_inputs=done >= 2, observe=done < 0.8 * steps)


def run(model, sequences, folder: Path, *, kill_at: int | None = None, resume: bool = False, teacher=None):
    def on_log(step, _metrics):
        if step == kill_at:
            raise Killed

    return train(
        model, sequences, SETTINGS, folder, teacher=teacher, seed=5, resume=resume, on_step=phases(model), on_log=on_log
    )


def prepared(floating, scheme: str | None, sequences, learned: bool):
    model = copy.deepcopy(floating)
    if scheme is not None:
        prepare(model, parse_scheme(scheme), learnable_scales=learned)
        if has_static_ranges(model):
            calibrate(model, [sequences[:4]])
    return model


@pytest.mark.parametrize(
    ("scheme", "learned"),
    [
        (None, False),
        pytest.param("w8a8-static+emb8", False, marks=pytest.mark.long),
        pytest.param("w8a8-static", True, marks=pytest.mark.long),
        ("w4a8-g32+emb4", True),
    ],
)
def test_resumed_training_ends_with_the_same_bits(tiny, sequences, tmp_path, scheme, learned):
    whole = prepared(tiny.model, scheme, sequences, learned)
    expected = run(whole, sequences, tmp_path / "whole")
    with pytest.raises(Killed):
        run(prepared(tiny.model, scheme, sequences, learned), sequences, tmp_path / "cut", kill_at=5)
    resumed = prepared(tiny.model, scheme, sequences, learned)
    found = run(resumed, sequences, tmp_path / "cut", resume=True)
    assert found.steps == expected.steps == 8
    assert found.loss == expected.loss
    wanted, got = whole.state_dict(), resumed.state_dict()
    assert wanted.keys() == got.keys()
    assert [name for name in wanted if not torch.equal(wanted[name], got[name])] == []


def test_static_ranges_are_part_of_what_is_resumed(tiny, sequences, tmp_path):
    """Without them the resumed model would start from the ranges of calibration: the test above could not tell."""
    model = prepared(tiny.model, "w8a8-static", sequences, False)
    ranges = {name: buffer.clone() for name, buffer in model.named_buffers() if "observer" in name}
    run(model, sequences, tmp_path)
    after = dict(model.named_buffers())
    assert ranges
    assert all(not torch.equal(after[name], buffer) for name, buffer in ranges.items())


def test_frozen_ranges_no_longer_follow_the_data(tiny, sequences, tmp_path):
    model = prepared(tiny.model, "w8a8-static", sequences, False)
    seen: dict[int, torch.Tensor] = {}
    follow = phases(model)

    def on_step(done: int, steps: int) -> None:
        follow(done, steps)
        seen[done] = model.model.layers[1].mlp.down_proj.input_quantizer.observer.high.clone()

    train(model, sequences, SETTINGS, tmp_path, on_step=on_step)
    assert not torch.equal(seen[1], seen[2])
    assert torch.equal(seen[7], model.model.layers[1].mlp.down_proj.input_quantizer.observer.high)


def test_resuming_where_nothing_was_saved_starts_at_the_beginning(tiny, sequences, tmp_path):
    assert run(tiny.model, sequences, tmp_path / "new", resume=True).steps == 8


@pytest.fixture(scope="module")
def cut(_tiny, tmp_path_factory):
    """A training that was killed at its seventh step: its folder, and the loss of one that was not."""
    torch.manual_seed(0)
    rows = torch.randint(5, 250, (16, 32))
    folder = tmp_path_factory.mktemp("cut")
    whole = run(copy.deepcopy(_tiny.model), rows, folder / "whole")
    with pytest.raises(Killed):
        run(copy.deepcopy(_tiny.model), rows, folder / "cut", kill_at=7)
    return folder / "cut", rows, whole.loss


def test_the_two_newest_checkpoints_are_kept_and_each_lists_its_files(cut):
    folder, _, _ = cut
    assert sorted(path.name for path in folder.glob("checkpoint-*")) == ["checkpoint-3", "checkpoint-6"]
    for path in folder.glob("checkpoint-*"):
        listed = json.loads((path / MANIFEST).read_text())["files"]
        assert {*listed, MANIFEST} == {file.name for file in path.iterdir()} and "optimizer.pt" in listed


def emptied(path: Path) -> None:
    path.write_bytes(b"")


def halved(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def changed(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("damage", [emptied, halved, changed, Path.unlink])
def test_whatever_file_of_a_checkpoint_is_damaged_the_one_before_is_gone_on_with(cut, tmp_path, damage, capsys):
    folder, rows, _ = cut
    files = [path.name for path in (folder / "checkpoint-6").iterdir()]
    assert len(files) >= 6
    for name in files:
        shutil.copytree(folder, tmp_path / name)
        damage(tmp_path / name / "checkpoint-6" / name)
        found = newest_whole(tmp_path / name, text_digest(rows), "qat tiny")
        assert found == (tmp_path / name / "checkpoint-3", 3), name
        assert not (tmp_path / name / "checkpoint-6").exists()
        said = capsys.readouterr().out.splitlines()
        assert said[0].startswith("qat tiny: training checkpoint checkpoint-6 ") and "passed over" in said[0]
        assert said[1] == "qat tiny: goes on behind step 3, from checkpoint-3"


def test_a_damaged_checkpoint_costs_its_own_steps_and_changes_no_number(tiny, cut, tmp_path):
    folder, rows, loss = cut
    shutil.copytree(folder, tmp_path / "cut")
    halved(tmp_path / "cut" / "checkpoint-6" / "optimizer.pt")
    found = run(tiny.model, rows, tmp_path / "cut", resume=True)
    assert (found.steps, found.loss) == (8, loss)


@pytest.mark.parametrize("state", [None, "", '{"epoch": 0.5, "global_step'])
def test_a_checkpoint_that_was_being_written_is_passed_over(cut, tmp_path, state):
    folder, rows, _ = cut
    shutil.copytree(folder, tmp_path / "cut")
    half = tmp_path / "cut" / "checkpoint-7"
    half.mkdir()
    (half / "model.safetensors").write_bytes(b"half of it")
    if state is not None:
        (half / "trainer_state.json").write_text(state)
    assert newest_whole(tmp_path / "cut", text_digest(rows), "qat tiny") == (tmp_path / "cut" / "checkpoint-6", 6)


def test_text_that_has_changed_is_refused_before_a_step_is_trained(tiny, cut, tmp_path):
    folder, rows, _ = cut
    shutil.copytree(folder, tmp_path / "cut")
    other = rows.clone()
    other[3, 3] += 1
    before = copy.deepcopy(tiny.model.state_dict())
    with pytest.raises(UserError, match=r"the training text has changed since .*checkpoint-6.*without --resume true"):
        run(tiny.model, other, tmp_path / "cut", resume=True)
    assert all(torch.equal(before[name], tensor) for name, tensor in tiny.model.state_dict().items())


def test_behind_the_last_step_no_other_is_trained(tiny, sequences, tmp_path):
    """Trainer itself would do one more."""
    settings = dataclasses.replace(SETTINGS, save_steps=4)
    whole, seen = copy.deepcopy(tiny.model), []
    expected = train(whole, sequences, settings, tmp_path, seed=5)
    resumed = copy.deepcopy(tiny.model)
    found = train(resumed, sequences, settings, tmp_path, seed=5, resume=True, on_log=lambda step, _: seen.append(step))
    assert seen == [] and (found.steps, found.loss) == (8, expected.loss)
    assert "train/tokens_per_second" not in found.metrics
    assert all(torch.equal(tensor, resumed.state_dict()[name]) for name, tensor in whole.state_dict().items())


@pytest.mark.parametrize(
    ("steps", "save_steps", "interval"),
    [(32, None, 8), (21, None, 6), (19, None, 0), (1, None, 0), (9, 0, 0), (9, 4, 4)],
)
def test_checkpoints_are_written_four_times_in_a_training_of_some_length_unless_told_otherwise(
    steps, save_steps, interval
):
    assert TrainingSettings(steps=steps, save_steps=save_steps).checkpoint_interval == interval


@pytest.mark.long
def test_the_reported_loss_counts_the_steps_before_the_interruption(tiny, sequences, tmp_path):
    settings = TrainingSettings(
        steps=20, batch_size=1, sequence_length=8, learning_rate=1e-4, precision="float32", save_steps=9
    )
    losses: dict[int, float] = {}

    def record(step, metrics):
        if step == 19 and 18 in losses and 20 not in losses and not resumed:
            raise Killed
        losses[step] = metrics["train/loss"]

    resumed = False
    with pytest.raises(Killed):
        train(copy.deepcopy(tiny.model), sequences[:, :8], settings, tmp_path, on_log=record)
    resumed = True
    found = train(tiny.model, sequences[:, :8], settings, tmp_path, resume=True, on_log=record)
    assert found.loss == pytest.approx((losses[19] + losses[20]) / 2)  # the last tenth of all 20 steps


@pytest.mark.long
def test_distilled_training_resumes_to_the_same_loss(tiny, sequences, tmp_path):
    teacher = copy.deepcopy(tiny.model)
    with torch.no_grad():
        teacher.model.norm.weight.mul_(3)
    settings = TrainingSettings(
        steps=8,
        batch_size=2,
        sequence_length=32,
        learning_rate=1e-4,
        distillation_weight=0.7,
        precision="float32",
        save_steps=3,
    )
    whole, cut = copy.deepcopy(tiny.model), copy.deepcopy(tiny.model)
    expected = train(whole, sequences, settings, tmp_path / "a", teacher=teacher)

    def stop(step, _metrics):
        if step == 4:
            raise Killed

    with pytest.raises(Killed):
        train(cut, sequences, settings, tmp_path / "b", teacher=teacher, on_log=stop)
    found = train(copy.deepcopy(tiny.model), sequences, settings, tmp_path / "b", teacher=teacher, resume=True)
    assert found.loss == expected.loss
