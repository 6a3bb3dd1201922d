"""Empty data, questions beyond the context, NaN, no chat template: an error or a count, never a silent cut."""

from __future__ import annotations

import copy
import math
import re
from pathlib import Path

import pytest
import torch

from edgequant.errors import UserError
from edgequant.evaluation.backends.language_model import DecodeTiming
from edgequant.evaluation.backends.transformers_model import TransformersModel
from edgequant.evaluation.evidence import checked
from edgequant.evaluation.settings import EvaluationSettings
from edgequant.evaluation.statistics.intervals import Bootstrap
from edgequant.evaluation.suite import evaluate_model
from edgequant.evaluation.tasks.boolq import boolq_items, boolq_metrics
from edgequant.evaluation.tasks.squad import squad_items, squad_metrics
from edgequant.evaluation.tasks.task import Evaluation, Metric, Task

LICENSE = (Path(__file__).parents[2] / "LICENSE").read_text()
QUICK = {"bootstrap_resamples": 20}


@pytest.fixture
def long_question(questions):
    return {**questions[0], "id": "long", "passage": "x" * 2000, "context": "x" * 2000}


def test_questions_beyond_the_context_count_as_wrong_and_are_counted(
    small_model, byte_tokenizer, questions, long_question
):
    scorer = TransformersModel(small_model("llama"), byte_tokenizer)
    items = boolq_items(scorer, [questions[0], long_question])
    assert [item["over_long"] for item in items] == [False, True]
    assert items[1]["correct"] == 0 and math.isnan(items[1]["margin"]) and items[1]["tokens"] > 1024
    metrics = boolq_metrics("boolq/", items, Bootstrap(20))
    assert metrics["boolq/over_long"] == 1 and not math.isnan(metrics["boolq/log_odds_margin"])
    answers = squad_items(scorer, [questions[0], long_question])
    assert [item["answered"] for item in answers] == [True, False]
    assert squad_metrics("squad/", answers, Bootstrap(20))["squad/over_long"] == 1


def test_over_long_questions_are_reported_in_the_notes(small_model, byte_tokenizer, questions, long_question):
    data = {"boolq": [*questions, long_question]}
    evaluation = evaluate_model(
        small_model("llama"), byte_tokenizer, data, EvaluationSettings(tasks=("boolq",), **QUICK)
    )
    assert any("boolq: 1 of 13 are longer" in note for note in evaluation.notes)


def test_no_log_likelihood_is_cut_short_by_the_context(small_model, byte_tokenizer, questions):
    """A question of exactly the context's length is scored; one token more is not."""
    scorer = TransformersModel(small_model("llama"), byte_tokenizer)
    row = {**questions[0], "passage": ""}
    spare = 1024 - boolq_items(scorer, [row])[0]["tokens"]
    exact, beyond = ({**row, "passage": "x" * length} for length in (spare, spare + 1))
    assert [item["over_long"] for item in boolq_items(scorer, [exact, beyond])] == [False, True]


@pytest.mark.parametrize("task", ["boolq", "squad", "domain_perplexity"])
def test_empty_data_say_so(small_model, byte_tokenizer, task):
    data = {"boolq": [], "squad": [], "domain": []}
    with pytest.raises(UserError, match=r"empty|no documents"):
        evaluate_model(small_model("llama"), byte_tokenizer, data, EvaluationSettings(tasks=(task,)))


def test_absent_data_leave_a_note_and_the_other_tasks(small_model, byte_tokenizer, questions):
    settings = EvaluationSettings(tasks=("perplexity", "boolq"), **QUICK)
    evaluation = evaluate_model(small_model("llama"), byte_tokenizer, {"boolq": questions}, settings)
    assert "boolq/accuracy" in evaluation.metrics and "wikitext2/perplexity" not in evaluation.metrics
    assert any(note.startswith("perplexity was left out") for note in evaluation.notes)


@pytest.mark.parametrize("task", ["perplexity", "boolq", "squad"])
def test_nan_logits_are_an_error_that_names_the_model(small_model, byte_tokenizer, questions, task):
    broken = copy.deepcopy(small_model("llama"))
    with torch.no_grad():
        broken.model.norm.weight.fill_(math.nan)
    data = {"wikitext2": ["x" * 3000], "boolq": questions, "squad": questions}
    with pytest.raises(UserError, match="LlamaForCausalLM gives NaN logits"):
        evaluate_model(broken, byte_tokenizer, data, EvaluationSettings(tasks=(task,)))


def test_a_perplexity_beyond_all_numbers_is_an_error_and_no_result(small_model, byte_tokenizer):
    """Its logits are finite: they are a million times too large, as after a training that diverged."""
    broken = copy.deepcopy(small_model("llama"))
    with torch.no_grad():
        broken.lm_head.weight.mul_(1e6)
    settings = EvaluationSettings(tasks=("perplexity",), **QUICK)
    with pytest.raises(UserError, match="wikitext2/perplexity must be a finite number, got inf"):
        evaluate_model(broken, byte_tokenizer, {"wikitext2": [LICENSE * 3]}, settings)


def test_other_metrics_that_are_no_numbers_are_left_out_with_a_note(small_model, byte_tokenizer):
    def score(model, data, settings):
        return Evaluation({"odd/right": 1.0, "odd/beside": math.nan, "odd/right_ci_low": math.inf})

    task = Task(name="odd", score=score, protocol="p", display={"odd/right": Metric("right")})
    found = checked(task, task.score(None, {}, QUICK))
    assert found.metrics == {"odd/right": 1.0}
    assert "odd/beside was left out: it is nan" in found.notes
    assert "odd/right has no confidence interval: that takes two items that differ" in found.notes


def test_one_new_token_says_nothing_of_decoding(small_model, byte_tokenizer):
    settings = EvaluationSettings(
        tasks=("latency",), latency_new_tokens=1, latency_repetitions=1, latency_warmup=0,
        latency_prompt_lengths=(8,), latency_methods=("generate",),
    )  # fmt: skip
    found = evaluate_model(small_model("llama"), byte_tokenizer, {}, settings)
    assert "latency/decode_ms_per_token" not in found.metrics and found.metrics["latency/time_to_first_token_ms"] > 0
    assert "latency/decode_ms_per_token was left out: 1 new tokens do not tell it; decode more" in found.notes


def test_decoding_that_took_less_than_its_first_token_is_noise_and_left_out(small_model, byte_tokenizer, monkeypatch):
    noise = [DecodeTiming(first_token=0.02, total=0.015, new_tokens=4)] * 3
    monkeypatch.setattr(TransformersModel, "decode_timings", lambda *_: noise)
    settings = EvaluationSettings(tasks=("latency",), latency_repetitions=3, latency_warmup=0)
    found = evaluate_model(small_model("llama"), byte_tokenizer, {}, settings).metrics
    assert found["latency/time_to_first_token_ms"] == 20 and not [name for name in found if "/decode" in name]


def test_no_time_at_all_is_an_error(small_model, byte_tokenizer, monkeypatch):
    monkeypatch.setattr("time.perf_counter", lambda: 0.0)
    settings = EvaluationSettings(tasks=("latency",), latency_new_tokens=2, latency_repetitions=1, latency_warmup=0)
    with pytest.raises(UserError, match=r"latency/\w+ must be above 0, got 0: nothing was timed"):
        evaluate_model(small_model("llama"), byte_tokenizer, {}, settings)


def test_a_model_without_chat_template_says_so(small_model, byte_tokenizer, questions):
    settings = EvaluationSettings(tasks=("boolq",), chat_template=True)
    with pytest.raises(UserError, match="no chat template"):
        evaluate_model(small_model("llama"), byte_tokenizer, {"boolq": questions}, settings)


def test_the_chat_template_frames_the_question(small_model, byte_tokenizer, questions):
    chatty = copy.deepcopy(byte_tokenizer)
    chatty.chat_template = "{% for m in messages %}<u>{{ m.content }}</u>{% endfor %}{{ '\n<a>\n' }}"
    scorer = TransformersModel(small_model("llama"), chatty)
    choice = scorer.encode_choices([scorer.render_chat("wet?")], ("no", "yes"))[0]
    assert scorer.decode(choice.context + choice.continuations[1]) == "<u>wet?</u>\n<a>\nyes"
    settings = EvaluationSettings(tasks=("boolq", "squad"), chat_template=True, **QUICK)
    data = {"boolq": questions, "squad": questions}
    assert evaluate_model(small_model("llama"), chatty, data, settings).metrics["squad/items"] == len(questions)


def test_a_model_in_training_is_handed_back_in_training(small_model, byte_tokenizer, questions):
    model = copy.deepcopy(small_model("llama")).train()
    evaluate_model(model, byte_tokenizer, {"boolq": questions}, EvaluationSettings(tasks=("boolq",), **QUICK))
    assert model.training


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"tasks": ("speed",)}, "'speed' is unknown"),
        ({"limit": 0}, "limit must be at least 1, got 0"),
        ({"window": 1}, "window must be at least 2, .* got 1"),
        ({"window": 10, "stride": 11}, "stride must be from 1 to window 10, got 11"),
        ({"wikitext_protocol": "lines"}, "wikitext_protocol must be raw, paragraphs or documents, got 'lines'"),
        ({"num_fewshot": 2}, "num_fewshot must be 0 or 1, got 2"),
        ({"confidence": 95}, "confidence must be between 0 and 1, .* got 95"),
        ({"latency_prompt_lengths": ()}, "latency_prompt_lengths"),
        ({"bos": "yes"}, "bos must be auto, always or never, got 'yes'"),
    ],
)
def test_settings_that_cannot_work_are_refused_before_anything_is_loaded(settings, message):
    with pytest.raises(UserError, match=message):
        EvaluationSettings(**settings)


def test_settings_import_nothing_heavy():
    import subprocess
    import sys

    program = (
        "import sys, edgequant.evaluation.settings, edgequant.workflows.evaluate, edgequant.workflows.baseline;"
        "print([m for m in ('torch', 'transformers', 'mlflow', 'datasets', 'pandas', 'sklearn') if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        check=True,
        env={"PYTHONPATH": ":".join(sys.path)},
    )
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("answer", ["false", "yes", None, 2])
def test_an_answer_that_is_no_bool_is_refused_and_not_taken_for_yes(small_model, byte_tokenizer, questions, answer):
    rows = [*questions[:2], questions[2] | {"answer": answer}]
    with pytest.raises(UserError, match=re.escape(f"must be True or False, got {answer!r}")):
        evaluate_model(small_model("llama"), byte_tokenizer, {"boolq": rows}, EvaluationSettings(tasks=("boolq",)))


@pytest.mark.parametrize(
    "changes, said",
    [
        ({"id": "q00"}, "id of a question must be its own, got 'q00' twice"),
        ({"answers": {"text": [], "answer_start": []}}, r"must be one or more texts, got \[\]"),
        ({"answers": {"text": "two metres", "answer_start": []}}, "must be one or more texts, got 'two metres'"),
        ({"answers": {"text": [None], "answer_start": [0]}}, r"must be one or more texts, got \[None\]"),
    ],
)
def test_questions_without_an_answer_or_an_id_of_their_own_are_refused(
    small_model, byte_tokenizer, questions, changes, said
):
    rows = [questions[0] | {"id": "q00"}, questions[1] | changes]
    with pytest.raises(UserError, match=said):
        evaluate_model(small_model("llama"), byte_tokenizer, {"squad": rows}, EvaluationSettings(tasks=("squad",)))
