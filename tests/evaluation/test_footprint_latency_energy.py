"""Sizes, timings and energy: what is counted, and under which names."""

from __future__ import annotations

import copy

import pytest
import torch

from edgequant.errors import UserError
from edgequant.evaluation.backends.decoding import StaticDecoder
from edgequant.evaluation.backends.footprint import (
    PeakMemory,
    checkpoint_bytes,
    footprint_metrics,
    resident_parameter_bytes,
    unquantized_parameters,
)
from edgequant.evaluation.backends.language_model import DecodeTiming
from edgequant.evaluation.backends.transformers_model import TransformersModel
from edgequant.evaluation.efficiency import energy
from edgequant.evaluation.efficiency.latency import decode_milliseconds, latency_metrics, latency_protocol
from edgequant.evaluation.efficiency.latency_lengths import fitting_lengths
from edgequant.evaluation.settings import EvaluationSettings
from edgequant.evaluation.tasks.latency import LATENCY, shortened


def test_half_precision_is_sixteen_bits_and_saves_nothing_against_itself(small_model):
    model = copy.deepcopy(small_model("llama")).to(torch.bfloat16)
    metrics = footprint_metrics(model)
    assert metrics["size/bits_per_parameter"] == 16
    assert metrics["size/reduction_vs_fp16"] == 0
    assert metrics["size/reduction_vs_fp32"] == 50
    assert metrics["size/checkpoint_gb"] == 2 * sum(p.numel() for p in model.parameters()) / 1e9


def test_tied_weights_count_once(small_model):
    model = small_model("gemma3")
    tied = model.get_input_embeddings().weight
    assert model.get_output_embeddings().weight is tied
    assert unquantized_parameters(model) == sum(p.numel() for p in {id(p): p for p in model.parameters()}.values())
    assert resident_parameter_bytes(model) == 4 * unquantized_parameters(model)


def test_a_checkpoints_weight_files_are_what_counts(small_model, tmp_path):
    small_model("qwen2").save_pretrained(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}" * 1000)
    on_disk = (tmp_path / "model.safetensors").stat().st_size
    assert checkpoint_bytes(tmp_path) == on_disk
    (tmp_path / "pytorch_model.bin").write_bytes(b"x" * 10_000)  # the same weights in an older format
    assert checkpoint_bytes(tmp_path) == on_disk
    metrics = footprint_metrics(small_model("qwen2"), tmp_path)
    assert metrics["size/checkpoint_gb"] == on_disk / 1e9
    with pytest.raises(FileNotFoundError):
        checkpoint_bytes(tmp_path / "nothing")


def test_a_packed_model_says_how_many_parameters_it_stands_for(small_model):
    packed = copy.deepcopy(small_model("qwen2"))
    packed.config.num_parameters_unquantized = 1_000_000
    metrics = footprint_metrics(packed)
    assert metrics["size/bits_per_parameter"] == 8 * resident_parameter_bytes(packed) / 1_000_000


def test_peak_memory_sees_a_large_allocation():
    with PeakMemory() as small:
        pass
    with PeakMemory() as large:
        block = torch.ones(100_000_000)
        del block
    assert large.rss - small.rss > 300_000_000


def test_decode_time_is_what_follows_the_first_token_over_the_tokens_after_it():
    assert decode_milliseconds(DecodeTiming(first_token=0.2, total=1.2, new_tokens=11)) == pytest.approx(100)


@pytest.mark.parametrize("architecture", ["qwen2", "llama", "phi", "gemma3"])
def test_the_static_cache_decodes_the_same_tokens_as_generate(small_model, architecture):
    model = small_model(architecture)
    prompt = torch.randint(0, 256, (2, 40), generator=torch.Generator().manual_seed(0))
    expected = model.generate(
        prompt,
        attention_mask=torch.ones_like(prompt),
        max_new_tokens=10,
        min_new_tokens=10,
        do_sample=False,
        pad_token_id=0,
    )[:, 40:]
    decoder = StaticDecoder(model, 50)
    for _ in range(2):  # a second prompt starts from a clean cache
        first = decoder.begin(prompt)
        assert torch.equal(torch.cat([first, decoder.advance(9)], dim=1), expected)


def test_every_shape_and_both_ways_of_decoding_are_reported(small_model, byte_tokenizer):
    model = TransformersModel(small_model("llama"), byte_tokenizer)
    protocol = latency_protocol(model, (16, 32), (1, 2), new_tokens=24, repetitions=2, warmup=1)
    metrics, rows = latency_metrics(model, protocol)
    names = {
        f"latency/{kind}{name}"
        for kind in ("", "static_")
        for name in ("decode_ms_per_token", "time_to_first_token_ms", "prefill_ms_per_token")
    }
    assert names | {f"{name}_p90" for name in names} <= set(metrics)
    assert {"latency/decode_ms_per_token_prompt32_batch2", "latency/static_decode_ms_per_token_prompt32_batch1"} <= set(
        metrics
    )
    assert all(metrics[name] <= metrics[f"{name}_p90"] for name in names)
    assert len(rows) == 2 * (2 * 2 + 2)  # plain generate at four shapes, the static cache at two


def test_a_prompt_beyond_the_context_says_what_to_shorten(small_model, byte_tokenizer):
    model = TransformersModel(small_model("llama"), byte_tokenizer)
    with pytest.raises(UserError, match="latency needs 1028 tokens"):
        latency_metrics(model, latency_protocol(model, (1000,), new_tokens=28))


@pytest.mark.parametrize(
    ("asked", "context", "on_gpu", "timed"),
    [
        ((None, None), 160, False, ((128,), 32)),
        ((None, None), 128, False, ((96,), 32)),
        (((128,), 32), 32, False, ((24,), 8)),  # as workflows hand the defaults on
        ((None, None), 256, True, ((192, 128), 64)),
        ((None, None), 64, True, ((48,), 16)),
        (((100,), None), 128, False, ((100,), 28)),
        ((None, 100), 128, False, ((28,), 100)),
        (((100,), 40), 128, False, ((100,), 40)),  # set by hand: kept, and refused where they are checked
    ],
)
def test_default_lengths_are_shortened_to_the_context_and_others_kept(asked, context, on_gpu, timed):
    assert fitting_lengths(*asked, context, on_gpu=on_gpu) == timed


def test_a_model_with_a_short_context_is_timed_and_a_note_says_how(small_model, byte_tokenizer):
    model = TransformersModel(small_model("llama"), byte_tokenizer)
    model.context_length = 64
    settings = EvaluationSettings(
        tasks=("latency",), latency_repetitions=1, latency_warmup=0, latency_methods=("generate",),
        latency_batch_sizes=(1,),
    )  # fmt: skip
    scored = LATENCY.score(model, {}, settings)
    assert [(row["prompt_length"], row["new_tokens"]) for row in scored.items["latency"]] == [(48, 16)]
    assert "timed with prompts of 48 and 16 new tokens" in scored.notes[1] and "context of 64" in scored.notes[1]
    model.context_length = 640
    assert shortened(model, settings, latency_protocol(model)) == []


def test_energy_that_is_only_guessed_is_not_reported(small_model, byte_tokenizer, monkeypatch):
    monkeypatch.setattr(energy, "_measures_cpu", lambda tracker: False)
    if torch.cuda.is_available():
        pytest.skip("a GPU's energy is measured, not guessed")
    model = TransformersModel(small_model("llama"), byte_tokenizer)
    assert energy.energy_metrics(model, prompt_length=8, new_tokens=2, repetitions=1, seed=0) == {}


@pytest.mark.gpu
def test_a_captured_graph_decodes_the_same_tokens(small_model):
    model = copy.deepcopy(small_model("llama")).cuda()
    prompt = torch.randint(0, 256, (1, 40), device="cuda")
    expected = model.generate(
        prompt,
        attention_mask=torch.ones_like(prompt),
        max_new_tokens=10,
        min_new_tokens=10,
        do_sample=False,
        pad_token_id=0,
    )[:, 40:]
    decoder = StaticDecoder(model, 50)
    for _ in range(2):
        first = decoder.begin(prompt)
        assert torch.equal(torch.cat([first, decoder.advance(9)], dim=1), expected)
    assert decoder.graph is not None
