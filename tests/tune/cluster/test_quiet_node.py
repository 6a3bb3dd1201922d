"""Times are measured alone: nobody works on the node meanwhile, one measures at a time, on as many cores as asked."""

from __future__ import annotations

import fcntl
import os
import threading
import time
from contextlib import nullcontext

import pytest
from search_specs import search_spec

from edgequant.errors import UserError
from edgequant_tune.cluster.quiet_node import NodeLock, pinned
from edgequant_tune.cluster.resources import LATENCY_SLOT

TIMED = ["domain/perplexity", "latency/decode_ms_per_token"]


def test_who_measures_is_alone_and_comes_before_those_who_work_on(tmp_path):
    """Locks of several open files behave as those of several processes."""
    said: list[str] = []
    stop = threading.Event()

    def trains(name):
        lock = NodeLock(tmp_path)
        with lock.working():
            while not stop.is_set():
                said.append(f"{name} begins")
                time.sleep(0.002)
                said.append(f"{name} ends")
                lock.pause_if_wanted()

    threads = [threading.Thread(target=trains, args=(name,)) for name in "ab"]
    for thread in threads:
        thread.start()
    mine = NodeLock(tmp_path)
    with mine.working():
        time.sleep(0.05)
        for _ in range(3):
            with mine.measuring():
                said.append("measured")
                time.sleep(0.03)
                said.append("measured")
            time.sleep(0.02)
    stop.set()
    for thread in threads:
        thread.join(5)
    assert said.count("measured") == 6 and len(said) > 20
    working: set[str] = set()
    for line in said:
        name, _, what = line.partition(" ")
        if line == "measured":
            assert not working, said
        else:
            (working.add if what == "begins" else working.discard)(name)
    pairs = [i for i, line in enumerate(said) if line == "measured"]
    assert all(second == first + 1 for first, second in zip(pairs[::2], pairs[1::2], strict=True))


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this system pins no processes")
def test_a_measurement_keeps_to_its_cores_and_gives_the_others_back():
    import torch

    before, threads = os.sched_getaffinity(0), torch.get_num_threads()
    with pinned(1):
        assert len(os.sched_getaffinity(0)) == 1 and torch.get_num_threads() == 1
    assert (os.sched_getaffinity(0), torch.get_num_threads()) == (before, threads)


def test_times_on_nodes_that_cannot_be_had_alone_are_refused():
    spec = search_spec(objectives=TIMED)
    with pytest.raises(UserError, match=r"which 1 of 2 nodes have not; start these with `ray start --resources"):
        spec.on([{"CPU": 2.0, LATENCY_SLOT: 1.0}, {"CPU": 2.0}], "run")
    assert spec.on([{"CPU": 2.0, LATENCY_SLOT: 1.0}, {"CPU": 0.5}], "run").trial.is_timed  # no trial fits the other
    assert not search_spec().on({"CPU": 2.0}, "run").trial.is_timed


def test_a_trials_times_are_measured_last_and_alone(tmp_path, monkeypatch):
    from edgequant import models
    from edgequant.evaluation import suite
    from edgequant.evaluation.settings import EvaluationSettings
    from edgequant_tune import train_candidate

    seen: list[tuple[str, ...]] = []
    real = suite.evaluate_model

    def watched(model, tokenizer, data, settings, **more):
        seen.append(settings.tasks)
        with pytest.raises(BlockingIOError) if settings.tasks == ("latency",) else nullcontext():
            fcntl.flock(NodeLock()._work, fcntl.LOCK_SH | fcntl.LOCK_NB)
        return real(model, tokenizer, data, settings, **more)

    monkeypatch.setattr(suite, "evaluate_model", watched)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    quick = EvaluationSettings(limit=20, window=256, bootstrap_resamples=20, latency_repetitions=5)
    spec = search_spec(objectives=TIMED, evaluation=quick)
    loaded = models.load("tiny", dtype="float32", device="cpu")
    from edgequant.workflows.steps.data import evaluation_data

    data = evaluation_data(("domain_perplexity",), None)
    found = train_candidate.measured_metrics(spec.trial, loaded.model, loaded.tokenizer, data, None)
    assert seen == [("domain_perplexity",), ("latency",)]
    low, value, high = (found[f"latency/decode_ms_per_token{end}"] for end in ("_ci_low", "", "_ci_high"))
    assert 0 < low <= value <= high and "domain/perplexity" in found
