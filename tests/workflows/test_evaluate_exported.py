"""A compressed-tensors folder is a model source like any other: same predictions, true size, its scheme's name."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from library_versions import needs_transformers

from edgequant import models
from edgequant.evaluation.backends.footprint import footprint_metrics
from edgequant.evaluation.backends.token_losses import LMHead
from edgequant.evaluation.settings import EvaluationSettings
from edgequant.export.compressed_tensors.write import write_compressed_tensors
from edgequant.export.tensors_folder import WEIGHTS
from edgequant.models import devices
from edgequant.quantization import checkpoint
from edgequant.quantization.layers.integer import IntegerLinear
from edgequant.quantization.ptq.quantize import quantize
from edgequant.quantization.scheme import parse_scheme
from edgequant.workflows.evaluate import Target, evaluate, load_target
from edgequant.workflows.settings import RunSettings

IDS = torch.randint(0, 256, (2, 64), generator=torch.Generator().manual_seed(3))


@pytest.fixture
def exported(tiny, tmp_path) -> Callable[[str], tuple[Path, Path]]:
    """Folders of a checkpoint and of what was exported from it."""

    def made(scheme: str) -> tuple[Path, Path]:
        if "+emb" in scheme:
            needs_transformers("5.23", "read a compressed-tensors folder with a quantised embedding")
        parameters = tiny.model.num_parameters()
        quantize(tiny.model, parse_scheme(scheme))
        ours, plain = tmp_path / "checkpoint", tmp_path / "plain"
        parsed = parse_scheme(scheme)
        checkpoint.save(tiny.model, tiny.tokenizer, ours, parsed, parameters=parameters, made_from="tiny")
        write_compressed_tensors(models.load(str(ours), device="cpu"), plain)
        return ours, plain

    return made


def target_of(folder: Path) -> Target:
    return load_target(str(folder), runtime="torch", device="cpu", dtype="auto")


@torch.no_grad()
def scored(target: Target) -> torch.Tensor:
    """Logits as evaluation computes them: the decoder alone, then the head over rows of tokens."""
    head = LMHead(target.model)
    hidden = head.hidden(IDS)
    assert hidden is not None
    return head.logits(hidden.flatten(0, 1))


@torch.no_grad()
def hidden(target: Target) -> torch.Tensor:
    return target.model.get_decoder()(input_ids=IDS)[0]


def without_rounding(target: Target) -> Target:
    """Our checkpoint, its activations left as they are."""
    for module in target.model.modules():
        if isinstance(module, IntegerLinear):
            module.activation = None
    return target


@pytest.mark.parametrize("scheme", ["w4-g32+emb4", "q8_0", "w8a8+emb8"])
def test_it_is_scored_as_the_checkpoint_is(scheme, exported):
    """Near-ties that fall the other way do less than all rounding of activations (tests/near_ties.py)."""
    ours, plain = (target_of(folder) for folder in exported(scheme))
    expected, found = scored(ours), scored(plain)
    noise = (scored(without_rounding(ours)) - expected).std()
    assert (found - expected).std() <= max(noise, 1e-6 * expected.std())


def test_the_decoder_may_be_called_before_the_model(exported):
    """Compressed weights are given back while loading, not by the first call of the whole model."""
    ours, plain = (target_of(folder) for folder in exported("w8a8+emb8"))
    expected, found = (hidden(target) for target in (ours, plain))
    assert (found - expected).std() <= (hidden(without_rounding(ours)) - expected).std()


def test_auto_computes_in_float32_wherever_bfloat16_is_native(exported, monkeypatch):
    monkeypatch.setattr(devices, "computes_bfloat16", lambda _: True)
    _, plain = exported("w8a8")
    assert target_of(plain).model.dtype == torch.float32


def test_its_size_is_what_lies_on_disk_over_the_parameters_of_the_architecture(exported, tiny):
    parameters = tiny.model.num_parameters()
    _, plain = exported("w4-g32+emb4")
    target = target_of(plain)
    size = (plain / WEIGHTS).stat().st_size
    metrics = footprint_metrics(target.model, target.checkpoint)
    assert metrics["size/checkpoint_gb"] == size / 1e9
    assert metrics["size/bits_per_parameter"] == pytest.approx(8 * size / parameters)
    assert (target.name, target.scheme) == ("tiny", "w4-g32+emb4")


def test_the_workflow_measures_it(exported, store):
    _, plain = exported("w4a8-g32")
    settings = EvaluationSettings(
        tasks=("latency",),
        latency_prompt_lengths=(16,),
        latency_new_tokens=2,
        latency_repetitions=2,
        latency_warmup=0,
    )
    evaluate(model=str(plain), evaluation=settings, run=RunSettings(device="cpu"))
    (run,) = store.search_runs(["1"], "tags.`edgequant.variant` = 'quantized'")
    assert run.data.tags["edgequant.scheme"] == "w4a8-g32"
    assert run.data.metrics["size/checkpoint_gb"] == (plain / WEIGHTS).stat().st_size / 1e9
