"""`ptq` and `qat` under a size budget on `tiny`: what is written fits; the run says which layer got how many bits."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from edgequant import tracking
from edgequant.errors import UserError
from edgequant.quantization import checkpoint
from edgequant.quantization.calibration import CalibrationSettings
from edgequant.quantization.scheme import parse_scheme
from edgequant.workflows.ptq import ptq
from edgequant.workflows.qat import qat
from edgequant.workflows.settings import RunSettings
from edgequant.workflows.steps import layer_bits

MIXED = "w4-g32+emb4@4.6bpp"
BUDGET = "bits_per_parameter=4.6"
COMMON = {"model": "tiny", "run": RunSettings(device="cpu", dtype="bfloat16"), "size_budget": BUDGET}


@pytest.fixture(scope="module")
def perplexity_only(quick):
    return replace(quick, tasks=("domain_perplexity",))


@pytest.fixture(scope="module")
def rounded(open_store, tmp_path_factory, perplexity_only):
    """(client, runs by scheme, folder) of a `ptq` run."""
    folder = tmp_path_factory.mktemp("ptq")
    with open_store(folder) as client:
        ptq(
            **COMMON, scheme="w4-g32+emb4,q8_0",
            calibration=CalibrationSettings(num_calibration_samples=4, sequence_length=32),
            evaluation=perplexity_only, output=str(folder / "made"), register=True,
        )  # fmt: skip
        yield client, {run.tags.get("edgequant.scheme"): run for run in tracking.find_runs()}, folder


def test_a_budget_reaches_the_schemes_that_can_follow_it(rounded):
    _, runs, folder = rounded
    assert {MIXED, "q8_0", "none"} <= set(runs)
    opened = checkpoint.open_checkpoint(folder / "made" / MIXED).scheme
    assert opened.name == MIXED and len({bits for _, bits in opened.layer_bits}) > 1
    assert not checkpoint.open_checkpoint(folder / "made" / "q8_0").scheme.layer_bits


def test_what_is_measured_is_within_the_budget_and_near_it(rounded):
    _, runs, _ = rounded
    assert 4.6 * 0.97 < runs[MIXED].metrics["size/bits_per_parameter"] <= 4.6
    assert runs["q8_0"].metrics["size/bits_per_parameter"] > 8


def test_the_run_tells_every_layers_bits_and_sensitivity(rounded):
    client, runs, folder = rounded
    table = json.loads(Path(client.download_artifacts(runs[MIXED].id, "layer_bits.json")).read_text())
    rows = [dict(zip(table["columns"], values, strict=True)) for values in table["data"]]
    chosen = dict(checkpoint.open_checkpoint(folder / "made" / MIXED).scheme.layer_bits)
    assert {row["layer"]: row["bits"] for row in rows} == {n: b for n, b in chosen.items() if n != "lm_head"}
    assert all(row["parameters"] > 0 and row["sensitivity"] == row[f"sensitivity_{row['bits']}"] for row in rows)
    figure = Path(client.download_artifacts(runs[MIXED].id, "layer_bits.html")).read_text()
    assert "self_attn.q_proj" in figure and "Bits by layer" in figure
    assert "layer_bits.json" not in [file.path for file in client.list_artifacts(runs["q8_0"].id)]


def test_a_mixed_checkpoint_is_registered_with_its_scheme(rounded):
    client, _, _ = rounded
    versions = client.search_model_versions("name = 'edgequant-tiny'")
    assert MIXED in {version.tags["edgequant.scheme"] for version in versions}


@pytest.mark.long
def test_training_under_a_budget_deploys_the_bits_that_it_trained(store, tmp_path, perplexity_only, short, capsys):
    qat(
        **COMMON, scheme="w4-g32+emb4", training=short, evaluation=perplexity_only,
        output=str(tmp_path / "made"), register=False,
    )  # fmt: skip
    (parent,) = [run for run in tracking.find_runs() if run.workflow == "qat"]
    assert parent.metrics["size/bits_per_parameter"] <= 4.6
    trained = next(run for run in tracking.find_runs() if run.tags.get("edgequant.variant") == "qat")
    assert trained.metrics["parity/argmax_agreement"] > 0.9
    assert "layer_bits.html" in [file.path for file in store.list_artifacts(parent.id)]
    assert checkpoint.open_checkpoint(tmp_path / "made").scheme.name == MIXED
    assert MIXED in capsys.readouterr().out


def test_a_resumed_run_keeps_the_bits_that_it_had(_tiny, tmp_path):
    scheme, rows = parse_scheme(MIXED), torch.arange(128).view(2, 64)
    first = layer_bits.resolve_layer_bits(scheme, _tiny.model, rows, tmp_path, dtype="bfloat16")
    other_rows = rows.flip(0, 1) + 50
    assert (
        layer_bits.resolve_layer_bits(scheme, _tiny.model, other_rows, tmp_path, dtype="bfloat16", resume=True) == first
    )


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"size_budget": "4.5"}, "bits_per_parameter=4.5 or megabytes=80"),
        ({"size_budget": "bits_per_parameter=2.5"}, "must be above 3 bits per parameter"),
        ({"size_budget": "megabytes=-1"}, "above 0"),
        ({"size_budget": "megabytes=1e300"}, "must be 0.001 to 1,000,000 megabytes, got 1e\\+300"),
        ({"size_budget": "bits_per_parameter=80"}, "must be 0 to 32 bits_per_parameter, got 80"),
        ({"scheme": "q4_0,bnb-nf4"}, "bits are fixed"),
    ],
)
def test_an_impossible_budget_stops_before_anything_is_loaded(store, wrong, message):
    with pytest.raises(UserError, match=message):
        ptq(**{"scheme": "w4-g32+emb4", **COMMON, **wrong})
    assert tracking.find_runs() == []


def test_a_budget_that_this_model_cannot_meet_names_those_that_it_can(store, perplexity_only, short):
    with pytest.raises(UserError, match=r"give bits_per_parameter=[\d.]+ to bits_per_parameter="):
        qat(**COMMON | {"size_budget": "bits_per_parameter=3.1"}, training=short, evaluation=perplexity_only)
