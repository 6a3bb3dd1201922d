"""Within a pipeline the same is timed once; another model, another protocol and the next pipeline are timed anew."""

from __future__ import annotations

import pytest

from edgequant.evaluation.backends.alone import Alone
from edgequant.evaluation.efficiency import shipped
from edgequant.evaluation.efficiency.timed_once import SAID, once, timed_once
from edgequant.evaluation.settings import EvaluationSettings
from edgequant.evaluation.suite import evaluate_model
from edgequant.models.tiny import tiny_model, tiny_tokenizer

SETTINGS = EvaluationSettings(
    tasks=("latency",), latency_prompt_lengths=(4,), latency_batch_sizes=(1,), latency_methods=("generate",),
    latency_new_tokens=2, latency_repetitions=2, latency_warmup=0,
)  # fmt: skip


@pytest.fixture
def processes(monkeypatch):
    """Files of which a process was started, each of which would tell other figures than the one before."""
    started: list[str] = []

    def timer(file, **_):
        def time_one(seed, within=()):
            started.append(file.name)
            return Alone(load=len(started), first_token=1.0, total=2.0, new_tokens=2, peak_rss=1000)

        return time_one

    monkeypatch.setattr(shipped, "_timer", timer)
    return started


def file_of(folder, name, content):
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def test_the_same_bytes_are_timed_once_wherever_they_lie(tmp_path, processes):
    one, same = file_of(tmp_path, "qat/a.gguf", b"weights"), file_of(tmp_path, "compare/b.gguf", b"weights")
    with timed_once():
        first = shipped.shipped_metrics(one, threads=1, repetitions=2)
        assert shipped.shipped_metrics(same, threads=1, repetitions=2) == first
    assert processes == ["a.gguf"] * 3  # one that is not counted


def test_a_folder_is_told_by_the_names_and_bytes_of_its_files(tmp_path, processes):
    for name, file in (("a", "model.onnx"), ("b", "model.onnx"), ("c", "other.onnx")):
        file_of(tmp_path, f"{name}/{file}", b"weights")
    with timed_once():
        for name in "abc":
            shipped.shipped_metrics(tmp_path / name, threads=1, repetitions=1)
    assert processes == ["a"] * 2 + ["c"] * 2


def test_other_bytes_threads_lengths_and_repetitions_are_timed(tmp_path, processes):
    one, other = file_of(tmp_path, "a.gguf", b"weights"), file_of(tmp_path, "b.gguf", b"others")
    asked = [
        (one, {}), (other, {}), (one, {"threads": 2}), (one, {"prompt_length": 7}), (one, {"new_tokens": 3}),
        (one, {"repetitions": 3}),
    ]  # fmt: skip
    with timed_once():
        for file, changed in asked:
            before = len(processes)
            shipped.shipped_metrics(file, **{"threads": 1, "repetitions": 2, **changed})
            assert len(processes) > before, (file, changed)


def test_outside_of_a_pipeline_and_in_the_next_one_everything_is_timed(tmp_path, processes):
    file = file_of(tmp_path, "a.gguf", b"weights")
    for _ in range(2):
        shipped.shipped_metrics(file, threads=1, repetitions=1)
    for _ in range(2):
        with timed_once():
            shipped.shipped_metrics(file, threads=1, repetitions=1)
    assert len(processes) == 2 * 4


def test_what_failed_is_tried_again():
    def refused():
        raise ValueError

    with timed_once():
        with pytest.raises(ValueError):
            once(dict, refused)
        assert once(dict, lambda: 1) == (1, False)
        assert once(dict, lambda: 2) == (1, True)


def test_an_unchanged_model_has_the_latency_it_had_and_the_notes_say_so():
    with timed_once():
        first, again = (evaluate_model(tiny_model(), tiny_tokenizer(), {}, SETTINGS) for _ in range(2))
        other = evaluate_model(tiny_model(seed=1), tiny_tokenizer(), {}, SETTINGS)
    latency = [{k: v for k, v in each.metrics.items() if k.startswith("latency/")} for each in (first, again, other)]
    assert latency[0] == latency[1] and again.items["latency"] == first.items["latency"]
    assert latency[0] != latency[2]
    assert [any(SAID in note for note in each.notes) for each in (first, again, other)] == [False, True, False]
