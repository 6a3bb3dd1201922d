"""A trial that is out of memory is tried once more with half the micro-batch, then recorded; the search goes on."""

from __future__ import annotations

from types import SimpleNamespace

import fake_candidates
import pytest
from search_specs import search_spec

from edgequant.training.settings import TrainingSettings
from edgequant_tune.callbacks import OUT_OF_MEMORY, TimeBudget, TrialCallback
from edgequant_tune.cluster.memory import halved, lacks_memory
from edgequant_tune.trial import HALVED, run_trial


def reports(tmp_path, train, **training):
    settings = TrainingSettings(steps=2, learning_rate=1e-4, **training)
    spec = search_spec(train, output=str(tmp_path / "out"), training=settings)
    found: list[dict] = []
    run_trial(spec.trial, {"learning_rate": 1e-4}, "0001", found.append)
    return found


@pytest.mark.parametrize(
    ("batch", "accumulation", "then"), [(8, 1, (4, 2)), (8, 3, (4, 6)), (9, 1, (3, 3)), (3, 2, (1, 6)), (1, 4, None)]
)
def test_half_the_micro_batch_draws_as_many_sequences_in_a_step(batch, accumulation, then):
    training = TrainingSettings(steps=1, batch_size=batch, gradient_accumulation=accumulation)
    smaller = halved(training)
    assert (smaller and (smaller.batch_size, smaller.gradient_accumulation)) == then
    assert smaller is None or smaller.sequences_per_step == training.sequences_per_step


def test_a_trial_that_lacked_memory_finishes_with_half_the_micro_batch_and_says_so(tmp_path):
    last = reports(tmp_path, fake_candidates.large, batch_size=8)[-1]
    assert last["complete"] and last["as_trained"] == {"batch_size": 4, "gradient_accumulation": 2}
    assert reports(tmp_path, fake_candidates.large, batch_size=4)[-1]["as_trained"] == {}


@pytest.mark.parametrize(("batch", "said"), [(3, "with batch_size 1 and gradient_accumulation 3 too")])
def test_a_trial_that_lacks_memory_twice_is_recorded_as_such(tmp_path, batch, said):
    last = reports(tmp_path, fake_candidates.large, batch_size=batch)[-1]
    assert not last["complete"] and last["failed"].strip().splitlines()[-1] == f"MemoryError: out of memory, {said}"


def test_a_trial_that_fails_for_another_reason_is_not_repeated(tmp_path):
    calls = []

    def fails(*_):
        calls.append(1)
        raise ValueError("rank 3 does not divide")

    assert "rank 3" in reports(tmp_path, fails, batch_size=8)[-1]["failed"] and len(calls) == 1


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB", True),
        ("RuntimeError: [enforce fail at alloc_cpu.cpp:118] DefaultCPUAllocator: can't allocate memory: 9 bytes", True),
        ("Task was killed due to the node running low on memory.", True),
        ("ray.exceptions.ActorDiedError: The actor died unexpectedly before finishing this task.", False),
        ("ValueError: batch_size must be at least 1, got 0", False),
    ],
)
def test_what_says_that_memory_ran_out(text, expected):
    assert lacks_memory(text) is expected


def test_a_process_that_rays_monitor_killed_begins_again_with_half_the_micro_batch():
    ended = []
    record = SimpleNamespace()
    callback = TrialCallback(SimpleNamespace(records={"0001": record}), None, None, TimeBudget(None))
    killed = SimpleNamespace(
        config={"edgequant_trial": "0001"}, get_error=lambda: "killed due to the node running low on memory"
    )
    callback.on_trial_recover(0, [], killed)
    assert killed.config[HALVED] is True
    crashed = SimpleNamespace(config={"edgequant_trial": "0001"}, get_error=lambda: "Segmentation fault")
    callback.on_trial_recover(0, [], crashed)
    assert HALVED not in crashed.config
    callback._known = lambda trial, **outcome: outcome
    callback._end = lambda outcome, text: ended.append(outcome["error"])
    callback.on_trial_error(0, [], killed)
    callback.on_trial_error(0, [], crashed)
    assert ended == [OUT_OF_MEMORY, "the worker process died twice: Segmentation fault"]


@pytest.mark.long
def test_a_process_that_dies_in_ray_costs_its_trial_alone(tmp_path, store, ray_here):
    from edgequant import tracking
    from edgequant_tune.driver import run_search

    space = {"batch_size": {"choice": [8, 16]}}
    with tracking.workflow_run("tune", {"test": 1}) as run:
        spec = search_spec(
            fake_candidates.large, output=str(tmp_path / "out"), space=space, trials=2, concurrent_trials=1,
            training=TrainingSettings(steps=2, learning_rate=1e-4, batch_size=16),
        ).on(ray_here, run.id)  # fmt: skip
        records = run_search(spec, run)
    by_batch = {record.values["batch_size"]: record for record in records}
    assert by_batch[16].status == "failed" and "died twice" in by_batch[16].error
    assert by_batch[8].status == "finished" and by_batch[8].as_trained["batch_size"] == 4
