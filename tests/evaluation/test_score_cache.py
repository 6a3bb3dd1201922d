"""Kept scores: reused only for the same question to the same model, and kept when the evaluation is killed."""

from __future__ import annotations

import copy

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

from edgequant.evaluation.backends.cached_model import CachedModel
from edgequant.evaluation.backends.language_model import Window
from edgequant.evaluation.backends.transformers_model import TransformersModel
from edgequant.evaluation.settings import EvaluationSettings
from edgequant.evaluation.suite import evaluate_model
from edgequant.evaluation.tasks.squad import squad_items
from edgequant.models import cast, weights_digest
from edgequant.quantization.layers.convert import convert, prepare
from edgequant.quantization.scheme import parse_scheme


def _settings(folder, **changes):
    defaults = {"tasks": ("perplexity", "boolq", "squad"), "bootstrap_resamples": 20, "window": 128}
    return EvaluationSettings(**{**defaults, "cache_dir": str(folder), **changes})


@pytest.fixture
def data(questions):
    return {"wikitext2": ["the river rose and fell " * 40], "boolq": questions, "squad": questions}


def _reused(evaluation):
    return next((int(note.split()[0]) for note in evaluation.notes if "scores were read" in note), 0)


def _sampled(evaluation):
    return {name: value for name, value in evaluation.metrics.items() if not name.startswith("size/")}


def test_a_second_evaluation_reads_every_score_and_gives_the_same_metrics(small_model, byte_tokenizer, data, tmp_path):
    first = evaluate_model(small_model("llama"), byte_tokenizer, data, _settings(tmp_path))
    second = evaluate_model(small_model("llama"), byte_tokenizer, data, _settings(tmp_path))
    windows = int(first.metrics["wikitext2/windows"])
    assert _reused(first) == 0 and _reused(second) == windows + 24
    assert _sampled(first) == _sampled(second)
    assert first.items == second.items


@pytest.mark.parametrize(
    "change",
    [
        {"window": 64},
        {"bos": "always"},
        {"num_fewshot": 1, "tasks": ("squad",)},
        {"max_new_tokens": 5, "tasks": ("squad",)},
    ],
    ids=lambda change: next(iter(change)),
)
def test_a_changed_protocol_never_returns_an_old_score(small_model, byte_tokenizer, data, tmp_path, change):
    evaluate_model(small_model("llama"), byte_tokenizer, data, _settings(tmp_path))
    changed = evaluate_model(small_model("llama"), byte_tokenizer, data, _settings(tmp_path, **change))
    fresh = evaluate_model(small_model("llama"), byte_tokenizer, data, _settings(tmp_path / "new", **change))
    assert _sampled(changed) == _sampled(fresh)
    assert _reused(changed) == (24 if change == {"window": 64} else 0)  # other windows, the same questions


def test_other_weights_another_dtype_and_another_window_are_other_models(small_model, byte_tokenizer, tmp_path):
    def key(model):
        return CachedModel(TransformersModel(model, byte_tokenizer), tmp_path).key

    model = small_model("llama")
    moved = copy.deepcopy(model)
    with torch.no_grad():
        moved.model.layers[0].mlp.up_proj.weight[0, 0] += 1e-4
    wider = copy.deepcopy(model)
    wider.config.rope_parameters = {**model.config.rope_parameters, "rope_theta": 5e4}
    keys = [key(model), key(moved), key(copy.deepcopy(model).to(torch.bfloat16)), key(wider)]
    assert len(set(keys)) == 4
    assert key(copy.deepcopy(model)) == keys[0]


def test_a_model_that_was_saved_moved_and_cast_is_the_same_model(small_model, byte_tokenizer, tmp_path):
    def key(model):
        return CachedModel(TransformersModel(model, byte_tokenizer), tmp_path).key

    model = small_model("llama")
    model.save_pretrained(tmp_path / "saved")
    loaded = [
        AutoModelForCausalLM.from_pretrained(tmp_path / "saved", dtype=dtype) for dtype in ("float32", "bfloat16")
    ]
    assert key(loaded[0]) == key(model) != key(loaded[1])
    assert key(cast(copy.deepcopy(model), "bfloat16")) == key(loaded[1])
    rounded = copy.deepcopy(model).to(torch.bfloat16)  # whose rotary frequencies are rounded too, unlike `cast`'s
    assert key(rounded) != key(loaded[1])


def test_other_ends_of_a_text_are_another_key(small_model, byte_tokenizer, tmp_path):
    def key(model, tokenizer):
        return CachedModel(TransformersModel(model, tokenizer), tmp_path).key

    model, tokenizer = small_model("llama"), copy.deepcopy(byte_tokenizer)
    ends, before = copy.deepcopy(model), key(model, tokenizer)
    ends.generation_config.eos_token_id = [7, 9]
    tokenizer.eos_token = tokenizer.convert_ids_to_tokens(11)
    assert len({before, key(ends, byte_tokenizer), key(model, tokenizer)}) == 3


def test_another_spelling_is_another_key(small_model, byte_tokenizer, tmp_path):
    def key(tokenizer):
        return CachedModel(TransformersModel(model, tokenizer), tmp_path).key

    model, special = small_model("llama"), copy.deepcopy(byte_tokenizer)
    special.add_special_tokens({"additional_special_tokens": [byte_tokenizer.convert_ids_to_tokens(70)]})
    assert len(special) == len(byte_tokenizer)  # the same vocabulary; one of it is left out of answers
    assert key(special) != key(byte_tokenizer) == key(copy.deepcopy(byte_tokenizer))


def test_what_no_configuration_tells_is_part_of_the_digest(small_model):
    def adapted(alpha):
        torch.manual_seed(0)
        config = LoraConfig(r=4, lora_alpha=alpha, target_modules=["q_proj"], init_lora_weights=False)
        return get_peft_model(copy.deepcopy(small_model("llama")), config)

    model = adapted(4)
    assert weights_digest(model) == weights_digest(adapted(4)) != weights_digest(adapted(64))
    on = weights_digest(model)
    with model.disable_adapter():
        assert weights_digest(model) != on

    def in_integers(scheme):
        model = copy.deepcopy(small_model("llama"))
        prepare(model, parse_scheme(scheme))
        convert(model)
        return model

    integers = in_integers("w4-g32")
    before = weights_digest(integers)
    assert before != weights_digest(in_integers("w4a8-g32"))
    integers(torch.arange(12)[None])  # what layers note of a call is not of the model
    assert weights_digest(integers) == before


def test_library_versions_and_this_rooms_code_are_part_of_the_key(small_model, byte_tokenizer, tmp_path, monkeypatch):
    from edgequant.evaluation.backends import cached_model

    def key():
        return CachedModel(TransformersModel(small_model("llama"), byte_tokenizer), tmp_path).key

    before = key()
    monkeypatch.setattr(torch, "__version__", "99.0")
    other_library = key()
    monkeypatch.undo()
    monkeypatch.setattr(cached_model, "_code_digest", lambda: "another")
    assert len({before, other_library, key()}) == 3


def test_a_larger_limit_only_computes_what_is_new(small_model, byte_tokenizer, data, tmp_path):
    evaluate_model(small_model("llama"), byte_tokenizer, data, _settings(tmp_path, tasks=("boolq",), limit=5))
    more = evaluate_model(small_model("llama"), byte_tokenizer, data, _settings(tmp_path, tasks=("boolq",), limit=9))
    assert _reused(more) == 5 and more.metrics["boolq/items"] == 9


def test_an_interrupted_evaluation_keeps_what_it_had_and_goes_on(
    small_model, byte_tokenizer, questions, tmp_path, monkeypatch
):
    def scorer():
        return CachedModel(TransformersModel(small_model("phi"), byte_tokenizer, max_batch_tokens=900), tmp_path)

    expected = squad_items(TransformersModel(small_model("phi"), byte_tokenizer), questions)
    interrupted, batches = scorer(), []
    original = TransformersModel._answers

    def killed_in_the_third_batch(self, rows):
        batches.append(len(rows))
        if len(batches) == 3:
            raise KeyboardInterrupt
        return original(self, rows)

    monkeypatch.setattr(TransformersModel, "_answers", killed_in_the_third_batch)
    with pytest.raises(KeyboardInterrupt):
        squad_items(interrupted, questions)
    monkeypatch.undo()
    resumed = scorer()
    assert squad_items(resumed, questions) == expected
    assert resumed.reused == sum(batches[:2]) > 0


def test_a_half_written_line_is_computed_again(small_model, byte_tokenizer, questions, tmp_path):
    scorer = CachedModel(TransformersModel(small_model("llama"), byte_tokenizer), tmp_path)
    expected = squad_items(scorer, questions)
    file = tmp_path / scorer.key / "generate.jsonl"
    file.write_bytes(file.read_bytes()[:-20])
    again = CachedModel(TransformersModel(small_model("llama"), byte_tokenizer), tmp_path)
    assert squad_items(again, questions) == expected
    assert again.reused == len(questions) - 1


@pytest.mark.parametrize("byte", [b"\xb7", b"9"])
def test_a_line_that_a_disk_changed_is_computed_again(small_model, byte_tokenizer, tmp_path, byte):
    windows = [Window(tokens=tuple(range(10 + n, 30 + n)), scored=19) for n in range(3)]
    scorer = CachedModel(TransformersModel(small_model("llama"), byte_tokenizer), tmp_path)
    expected = dict(scorer.losses(windows))
    file = tmp_path / scorer.key / "losses.jsonl"
    text = file.read_bytes()
    at = text.index(b".") + 1  # a digit of the first loss
    assert text[at : at + 1] != byte
    file.write_bytes(text[:at] + byte + text[at + 1 :])
    again = CachedModel(TransformersModel(small_model("llama"), byte_tokenizer), tmp_path)
    assert dict(again.losses(windows)) == expected and again.reused == 2
