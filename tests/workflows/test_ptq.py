"""`ptq` on `tiny`: every kind of scheme side by side, each checkpoint measured as it was reloaded."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from edgequant import models, tracking
from edgequant.errors import UserError
from edgequant.quantization import checkpoint
from edgequant.quantization.calibration import CalibrationSettings
from edgequant.workflows.ptq import ptq
from edgequant.workflows.settings import RunSettings

SMALL = CalibrationSettings(num_calibration_samples=4, sequence_length=32)
SCHEMES = ("w4a8-g32+emb4", "w8a8-static", "q8_0", "bnb-int8", "bnb-nf4")


@pytest.fixture(scope="module")
def finished(open_store, tmp_path_factory, quick):
    """(client, parent run, a run per scheme, folder)"""
    folder = tmp_path_factory.mktemp("ptq")
    with open_store(folder) as client:
        ptq(
            model="tiny", scheme=",".join(SCHEMES), calibration=SMALL, evaluation=quick,
            run=RunSettings(device="cpu", dtype="float32"), output=str(folder / "made"), register=True,
        )  # fmt: skip
        runs = tracking.find_runs(experiment="edgequant")
        (parent,) = [run for run in runs if run.workflow == "ptq"]
        children = {run.tags["edgequant.scheme"]: run for run in runs if run.tags.get(tracking.PARENT_TAG) == parent.id}
        yield client, parent, children, folder


def test_the_model_and_every_scheme_are_nested_runs(finished):
    _, parent, children, _ = finished
    assert set(children) == {"none", *SCHEMES}
    for scheme, run in children.items():
        assert run.tags["edgequant.variant"] == ("baseline" if scheme == "none" else "ptq")
        assert (run.tags["edgequant.phase"], run.status) == ("ptq", "FINISHED")
        assert {"domain/perplexity", "latency/decode_ms_per_token", "size/bits_per_parameter"} <= set(run.metrics)
    assert parent.metrics["domain/perplexity"] == children[SCHEMES[0]].metrics["domain/perplexity"]


def test_every_checkpoint_lies_in_its_folder_and_has_the_size_that_was_logged(finished):
    _, _, children, folder = finished
    for scheme in SCHEMES:
        files = [*(folder / "made" / scheme).glob("*.safetensors")]
        assert files
        size = sum(file.stat().st_size for file in files)
        assert children[scheme].metrics["size/checkpoint_gb"] == pytest.approx(size / 1e9)


def test_every_checkpoint_loads_again_and_eight_bits_are_nearer_to_the_model_than_four(finished):
    tokens = torch.arange(256)[None]
    _, _, _, folder = finished
    floating = models.load("tiny", dtype="float32", device="cpu").model(input_ids=tokens).logits
    off = {}
    for scheme in SCHEMES:
        with torch.no_grad():
            logits = models.load(str(folder / "made" / scheme), device="cpu").model(input_ids=tokens).logits
        off[scheme] = float((logits.float() - floating).std() / floating.std())
    assert min(off.values()) > 0 and max(off.values()) < 0.3
    assert off["q8_0"] < off["w4a8-g32+emb4"] and off["bnb-int8"] < off["bnb-nf4"]


def test_the_summary_has_a_row_for_each(finished):
    client, parent, _, _ = finished
    rows = json.loads(Path(client.download_artifacts(parent.id, "summary.json")).read_text())
    assert [row["scheme"] for row in rows] == ["none", *SCHEMES]


def test_each_checkpoint_is_registered_under_the_models_name(finished):
    client, *_ = finished
    versions = client.search_model_versions("name = 'edgequant-tiny'")
    assert {version.tags["edgequant.scheme"] for version in versions} == set(SCHEMES)


def test_one_scheme_goes_straight_into_the_output_folder(store, tmp_path, quick):
    ptq(
        model="tiny", scheme="w8", calibration=SMALL, evaluation=replace(quick, tasks=("domain_perplexity",)),
        run=RunSettings(device="cpu"), output=str(tmp_path / "only"),
    )  # fmt: skip
    assert checkpoint.open_checkpoint(tmp_path / "only").scheme.name == "w8"


@pytest.mark.long
@pytest.mark.parametrize("method", ["gptq", "awq"])
def test_a_scheme_is_quantized_the_same_alone_and_after_another(store, tmp_path, quick, method):
    """What one scheme leaves in the work folder must not reach the next."""
    settings = {"calibration": SMALL, "evaluation": replace(quick, tasks=("domain_perplexity",))}
    settings["run"] = RunSettings(device="cpu")
    ptq(model="tiny", scheme="w3-g64", method=method, output=str(tmp_path / "alone"), **settings)
    ptq(model="tiny", scheme="w4-g32,w3-g64", method=method, output=str(tmp_path / "both"), **settings)
    alone, after = (load_file(tmp_path / path / "model.safetensors") for path in ("alone", "both/w3-g64"))
    assert alone.keys() == after.keys()
    assert [name for name in alone if not torch.equal(alone[name], after[name])] == []


def test_the_calibration_text_is_an_input_of_the_run(finished):
    client, parent, _, _ = finished
    given = {
        i.dataset.name: {tag.key: tag.value for tag in i.tags} for i in client.get_run(parent.id).inputs.dataset_inputs
    }
    assert "disaster" in given and given["domain"]["mlflow.data.context"] == "evaluation"


def test_a_scheme_with_a_mistake_stops_before_anything_is_loaded(store, quick):
    with pytest.raises(UserError, match=r"group_size 100 .*q_proj"):
        ptq(model="tiny", scheme="w8,w4-g100", evaluation=quick)
    assert tracking.find_runs() == []


@pytest.mark.parametrize(("lines", "told"), [(3, "all that {} has"), (40, "")])
def test_a_text_shorter_than_a_calibration_sequence_is_calibrated_on_whole(store, tmp_path, quick, capsys, lines, told):
    text = tmp_path / "short.txt"
    text.write_text("\n".join(f"{line:03d} " + "water and shelter; " * 5 for line in range(lines)))
    found = ptq(model="tiny", scheme="w4-g32", dataset=str(text), evaluation=quick, run=RunSettings(device="cpu"))
    printed = capsys.readouterr().out
    assert Path(found.checkpoint).is_dir()
    assert (told.format(text) in " ".join(printed.split())) and ("instead of 512" in printed) is bool(told)


def test_a_length_that_was_asked_for_is_kept(store, tmp_path, quick):
    text = tmp_path / "short.txt"
    text.write_text("water and shelter; " * 15)
    asked = CalibrationSettings(sequence_length=2000)
    with pytest.raises(UserError, match="not one row of sequence_length 2000"):
        ptq(model="tiny", scheme="w4-g32", dataset=str(text), evaluation=quick, calibration=asked)
