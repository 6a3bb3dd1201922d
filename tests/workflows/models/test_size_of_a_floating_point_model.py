"""A floating-point model has one size, that of its weights as they came, whichever command measures it in what."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from edgequant import models
from edgequant.evaluation.backends.footprint import footprint_metrics
from edgequant.models.adapters.quantized_base import bitsandbytes_config
from edgequant.quantization.calibration import CalibrationSettings
from edgequant.quantization.qat.settings import QatSettings
from edgequant.training.settings import LoraSettings
from edgequant.workflows.baseline import baseline
from edgequant.workflows.finetune import finetune
from edgequant.workflows.ptq import ptq
from edgequant.workflows.qat import qat
from edgequant.workflows.settings import RunSettings

SMALL = CalibrationSettings(num_calibration_samples=4)
RUN = RunSettings(device="cpu", dtype="float32")


@pytest.fixture
def half(tiny, tmp_path):
    """`tiny` as a folder in float16."""
    folder = tmp_path / "half"
    models.cast(tiny.model, "float16").save_pretrained(folder)
    tiny.tokenizer.save_pretrained(folder)
    return folder


def test_every_command_gives_a_model_in_half_precision_sixteen_bits_on_a_cpu(half, store, quick, short):
    settings, name = replace(quick, tasks=("domain_perplexity",)), str(half)
    common = {"model": name, "evaluation": settings, "run": RUN}
    made = [
        baseline(**common),
        ptq(**common, scheme="w8", method="rtn", calibration=SMALL),
        qat(
            **common, scheme="w8", adapt=True, calibration=SMALL, training=replace(short, steps=2),
            qat=QatSettings(init_from="rtn"),
        ),
        finetune(**common, training=replace(short, steps=2), lora=LoraSettings(rank=2)),
    ]  # fmt: skip
    rows = [row for result in made for row in result.rows if row["variant"] in ("baseline", "control")]
    stored = (half / "model.safetensors").stat().st_size
    assert [row["variant"] for row in rows] == ["baseline", "baseline", "baseline", "control", "baseline"]
    assert {row["size/checkpoint_gb"] for row in rows} == {stored / 1e9}
    assert all(16 <= row["size/bits_per_parameter"] < 16.3 for row in rows)
    assert all(-2 < row["size/reduction_vs_fp16"] <= 0 for row in rows)


def test_what_is_in_memory_is_told_beside_it(half):
    loaded = models.load(str(half), dtype="float32", device="cpu")
    sizes = footprint_metrics(loaded.model, loaded.stored)
    assert loaded.stored == half and loaded.model.dtype == torch.float32
    assert sizes["size/resident_gb"] > 1.9 * sizes["size/checkpoint_gb"]


def test_a_built_in_model_has_no_stored_weights_and_neither_have_weights_rounded_while_they_were_read(half):
    options = {"quantization_config": bitsandbytes_config("bnb-nf4", "float32")}
    assert models.load("tiny", dtype="float32", device="cpu").stored is None
    assert models.load(str(half), dtype="float32", device="cpu", load_options=options).stored is None


def test_beside_integers_that_are_adapted_the_model_they_were_made_from_has_that_size_too(
    half, store, quick, short, tmp_path
):
    settings, integers = replace(quick, tasks=("domain_perplexity",)), str(tmp_path / "w8")
    common = {"evaluation": settings, "run": RUN}
    ptq(model=str(half), scheme="w8", method="rtn", calibration=SMALL, output=integers, **common)
    made = finetune(model=integers, training=replace(short, steps=2), lora=LoraSettings(rank=2), **common)
    (row,) = (row for row in made.rows if row["variant"] == "baseline")
    assert row["size/checkpoint_gb"] == (half / "model.safetensors").stat().st_size / 1e9
