"""Adapters on a checkpoint's integers: the same model at first, trained through them, merged without a change."""

from __future__ import annotations

import copy
import shutil

import pytest
import torch
from small_models import checkpoint_of, small

from edgequant import models
from edgequant.errors import UserError
from edgequant.models.same_function.comparison import probe_logits, probe_tokens, relative_difference
from edgequant.quantization import checkpoint
from edgequant.quantization.adapters.integer_model import (
    adapt_integers,
    merge_into_integers,
    restore_integers,
    share_of_moved,
)
from edgequant.quantization.adapters.step_updates import SteppedCodesQuantizer
from edgequant.quantization.arithmetic.affine import QuantizedWeight
from edgequant.quantization.layers.fake_quantized import fake_quantized_linears
from edgequant.quantization.scheme import parse_scheme
from edgequant.training.loop import train
from edgequant.training.settings import TrainingSettings

# Of every kind: integer and real zero points, none, half levels, three levels, scales of scales, integer products.
SCHEMES = ["w4a8-g32+emb4", "w4-g32", "q4_1", "q4_0", "w2-g64", "w1.58-g64", "w8", "w8a8-static", "w8a8"]


@pytest.fixture(scope="module")
def floating():
    return small("llama", tied=True)


@pytest.fixture
def sequences() -> torch.Tensor:
    """[24, 32] tokens: bytes that count upwards from seeded starts."""
    starts = torch.randint(0, 250, (24, 1), generator=torch.Generator().manual_seed(0))
    return (starts + torch.arange(32)) % 250


def shaken(adapted, spread=0.3):
    """Numbers in all that trains, large enough for a good part of the integers to move."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in adapted.model.named_parameters():
            if parameter.requires_grad:
                size = spread if name.endswith((".a", ".b")) else 0.03
                parameter.add_(torch.randn(parameter.shape, generator=generator) * size)


def bytes_of(model):
    return {name: (tensor.shape, tensor.dtype) for name, tensor in model.state_dict().items()}


@pytest.mark.parametrize("scheme", SCHEMES)
def test_what_was_trained_is_what_is_merged_saved_and_reloaded(floating, scheme, tmp_path):
    loaded = checkpoint_of(floating, scheme, tmp_path / "base")
    tokens, before = probe_tokens(loaded.model, loaded.tokenizer), bytes_of(loaded.model)
    original = probe_logits(loaded.model, tokens)
    adapted = adapt_integers(loaded.model, rank=4, alpha=4.0)
    rounded = 0.01 if "a8" in scheme else 1e-5  # activations at the border of two integers
    assert relative_difference(original, probe_logits(adapted.model, tokens)) < rounded
    shaken(adapted)
    trained = probe_logits(adapted.model, tokens)
    assert relative_difference(original, trained) > 4 * rounded and share_of_moved(adapted) > 0.1
    assert merge_into_integers(adapted, loaded.tokenizer) < rounded
    assert bytes_of(loaded.model) == before  # the same scheme, the same size
    parsed = parse_scheme(scheme)
    checkpoint.save(loaded.model, loaded.tokenizer, tmp_path / "merged", parsed, parameters=1, made_from="tiny")
    reloaded = models.load(str(tmp_path / "merged"), device="cpu")
    assert relative_difference(trained, probe_logits(reloaded.model, tokens)) < rounded
    sizes = [checkpoint.QuantizedCheckpoint(tmp_path / name, parsed, 1).weight_bytes for name in ("base", "merged")]
    assert sizes[0] == sizes[1]


def test_gradients_are_those_of_the_update_before_rounding():
    """By hand: of y = sum(G * S (q + round(f B A) - Z)), dS = sum G (q' - Z), dB = f (G S) A^T within the range."""
    spec = parse_scheme("w4-g32").weight
    generator = torch.Generator().manual_seed(0)
    codes = torch.randint(-8, 8, (6, 2, 32), generator=generator).to(torch.int8)
    scale = torch.rand(6, 2, 1, generator=generator) + 0.5
    start = QuantizedWeight(codes, scale.half().float(), torch.zeros(6, 2, 1))
    quantizer = SteppedCodesQuantizer(spec, start, 64, 3, 6.0, generator)
    with torch.no_grad():
        quantizer.b.copy_(torch.randn(6, 3, generator=generator))
    weight, upstream = quantizer.packed_codes(start), torch.randn(6, 64, generator=generator)
    simulated = quantizer(weight)
    (simulated * upstream).sum().backward()
    wanted = torch.round(codes.reshape(6, 64) + 2.0 * quantizer.b @ quantizer.a).detach()
    reached, spread = wanted.clamp(-8, 7), start.scale.expand(6, 2, 32).reshape(6, 64)
    torch.testing.assert_close(simulated.detach(), reached * spread)
    passing = 2.0 * upstream * spread * (reached == wanted)
    torch.testing.assert_close(quantizer.b.grad, passing @ quantizer.a.detach().t())
    torch.testing.assert_close(quantizer.a.grad, quantizer.b.detach().t() @ passing)
    expected = (upstream * reached).reshape(6, 2, 32).sum(-1, keepdim=True) * start.scale
    torch.testing.assert_close(quantizer.relative_scale.grad, expected)


@pytest.mark.long
def test_training_within_the_integers_of_a_tied_model_resumes(floating, sequences, tmp_path):
    """Its head and its embedding have the same integers, which a training checkpoint of transformers cannot share."""
    checkpoint_of(floating, "w4a8-g32+emb4", tmp_path / "base")
    settings = TrainingSettings(
        steps=4, batch_size=2, sequence_length=32, learning_rate=1e-2, precision="float32", save_steps=2
    )

    def trained(**more):
        adapted = adapt_integers(models.load(str(tmp_path / "base"), device="cpu").model, rank=4, alpha=8.0)
        train(adapted.model, sequences, settings, tmp_path / "training", **more)
        return adapted.model

    def stop(step, _):
        if step == 3:
            raise KeyboardInterrupt

    whole = trained().state_dict()
    shutil.rmtree(tmp_path / "training")
    with pytest.raises(KeyboardInterrupt):
        trained(on_step=stop)
    assert (tmp_path / "training" / "checkpoint-2").is_dir()
    resumed = trained(resume=True).state_dict()
    assert all(torch.equal(tensor, resumed[name]) for name, tensor in whole.items())


def test_training_moves_integers_and_scales_and_nothing_else(tiny, sequences, tmp_path):
    loaded = checkpoint_of(tiny, "w4a8-g32+emb4", tmp_path / "base")
    kept = copy.deepcopy(loaded.model.state_dict())
    adapted = adapt_integers(loaded.model, rank=4, alpha=8.0, targets="down_proj,q_proj")
    settings = TrainingSettings(steps=8, batch_size=2, sequence_length=32, learning_rate=1e-2, precision="float32")
    result = train(adapted.model, sequences, settings, tmp_path / "training")
    assert result.loss < 5.6 and share_of_moved(adapted) > 0.01
    merge_into_integers(adapted)
    changed = {name for name, tensor in loaded.model.state_dict().items() if not torch.equal(tensor, kept[name])}
    assert {name.split(".")[-3] for name in changed} == {"down_proj", "q_proj"}
    assert {name.split(".")[-1] for name in changed} == {"codes", "scale"}


@pytest.mark.long
def test_a_resumed_training_ends_as_an_uninterrupted_one(tiny, sequences, tmp_path):
    folder = tmp_path / "base"
    checkpoint_of(tiny, "w4-g32", folder)
    settings = TrainingSettings(
        steps=6, batch_size=2, sequence_length=32, learning_rate=1e-2, precision="float32", save_steps=2
    )

    def run(place, **options):
        adapted = adapt_integers(models.load(str(folder), dtype="float32", device="cpu").model, rank=2, alpha=4.0)
        return train(adapted.model, sequences, settings, tmp_path / place, **options).loss

    def stop(step, _metrics):
        if step == 5:
            raise InterruptedError

    whole = run("whole")
    with pytest.raises(InterruptedError):
        run("cut", on_log=stop)
    assert run("cut", resume=True) == whole


@pytest.mark.long
def test_blocks_that_are_computed_again_in_the_backward_pass_train_alike(tiny, sequences, tmp_path):
    checkpoint_of(tiny, "w4a8-g32+emb4", tmp_path / "base")
    losses = []
    for saves in (False, True):
        model = models.load(str(tmp_path / "base"), dtype="float32", device="cpu").model
        settings = TrainingSettings(
            steps=4, batch_size=2, sequence_length=32, learning_rate=1e-2, precision="float32",
            gradient_checkpointing=saves,
        )  # fmt: skip
        losses.append(train(adapt_integers(model, rank=2, alpha=4.0).model, sequences, settings, tmp_path / "t").loss)
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


def test_without_targets_the_integers_can_be_trained_past_and_put_back(floating, tmp_path):
    loaded = checkpoint_of(floating, "w4-g32", tmp_path / "base")
    tokens = probe_tokens(loaded.model)
    before = probe_logits(loaded.model, tokens)
    adapted = adapt_integers(loaded.model, rank=0, alpha=1.0, targets="")
    assert not [name for name, parameter in adapted.model.named_parameters() if parameter.requires_grad]
    assert len(fake_quantized_linears(adapted.model)) == len(adapted.originals)
    restore_integers(adapted)
    assert loaded.model.is_quantized and torch.equal(before, probe_logits(loaded.model, tokens))


def test_targets_that_are_none_of_the_integer_linears_are_refused(floating, tmp_path):
    loaded = checkpoint_of(floating, "w4-g32", tmp_path / "base")
    with pytest.raises(UserError, match=r"lora.targets 'q_proj,wq' does not fit: 'wq' is none of .* q_proj"):
        adapt_integers(loaded.model, rank=2, alpha=4.0, targets="q_proj,wq")
