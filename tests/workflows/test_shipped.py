"""What ships: `export` keeps integers by itself, `ptq` and `qat` say how large that is and put it beside the rest."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import gguf
import pytest

from edgequant import models, tracking
from edgequant.errors import UserError
from edgequant.export.choice import choose_target
from edgequant.models.manifest import verify
from edgequant.models.onnx import library
from edgequant.quantization import checkpoint
from edgequant.quantization.calibration import CalibrationSettings
from edgequant.quantization.ptq.quantize import quantize
from edgequant.quantization.scheme import parse_scheme
from edgequant.workflows.export import export
from edgequant.workflows.ptq import ptq
from edgequant.workflows.qat import qat
from edgequant.workflows.settings import RunSettings

FOLDER = "compressed-tensors" if library.missing() else "onnx"  # where no GGUF file holds the integers
SMALL = CalibrationSettings(num_calibration_samples=4, sequence_length=32)
needs_onnx = pytest.mark.skipif(library.missing() is not None, reason="onnxruntime-genai is not installed as pinned")
CPU = RunSettings(device="cpu", dtype="float32")


@pytest.fixture(autouse=True)
def own_store(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'store.db'}")


@pytest.fixture
def saved(tiny, tmp_path) -> Any:
    def made(scheme: str) -> Path:
        parsed, parameters = parse_scheme(scheme), tiny.model.num_parameters()
        quantize(tiny.model, parsed, method="mse_clip")
        checkpoint.save(tiny.model, tiny.tokenizer, tmp_path / "c", parsed, parameters=parameters, made_from="tiny")
        return tmp_path / "c"

    return made


def kinds(file: Path) -> set[str]:
    """Formats of the matrices."""
    return {tensor.tensor_type.name for tensor in gguf.GGUFReader(file).tensors if len(tensor.shape) > 1}


@pytest.mark.parametrize(
    ("scheme", "format", "keeps"),
    [
        ("q4_0+embq4_0", "q4_0", True),
        ("q8_0+embq4_0", "q8_0", True),
        ("q4_1+embq8_0", "q4_1", True),
        ("w4a8-g32+emb4", "q4_1", True),
        ("w4-g64", "q4_1", True),
        ("w4-g32-sym+emb4", "q4_0", True),
        ("w8-g32-sym", "q8_0", True),
        ("w4-g32-sym+emb4@4.5bpp", "q4_0", True),
        ("w4-g32+emb4@4.5bpp", "compressed-tensors", True),
        ("w8a8-static", "compressed-tensors", True),
        ("w3-g64", "compressed-tensors", True),
        ("q4_0+emb8", "compressed-tensors", True),
        ("q4_1+emb8", "q4_1", False),
        ("bnb-nf4", "q8_0", False),
    ],
)
def test_auto_is_the_format_that_keeps_the_integers(scheme: str, format: str, keeps: bool) -> None:
    target = choose_target(parse_scheme(scheme))
    assert (target.format, not target.encoded_again(parse_scheme(scheme)) and scheme[:3] != "bnb") == (format, keeps)


def test_what_llama_cpp_cannot_run_becomes_a_folder_or_is_refused() -> None:
    refused = UserError("architecture for GGUF must be one of llama, got 'gpt_neox'")
    target = choose_target(parse_scheme("q4_0"), refused=refused)
    assert target.format == "compressed-tensors" and "gpt_neox" in target.line(parse_scheme("q4_0"))
    for scheme in (None, parse_scheme("q4_1"), parse_scheme("bnb-nf4")):
        with pytest.raises(UserError, match="gpt_neox"):
            choose_target(scheme, refused=refused)


@pytest.mark.parametrize(
    ("scheme", "options", "file", "said", "written"),
    [
        ("q4_0+embq8_0", {}, "tiny-q4_0.gguf", "format: q4_0 keeps all integers", {"Q4_0", "Q8_0"}),
        ("q4_1+emb8", {}, "tiny-q4_1.gguf", "q4_1+emb8 again: embedding and head as q8_0", {"Q4_1", "Q8_0"}),
        ("q4_0", {"format": "q8_0"}, "tiny-q8_0.gguf", "the integers of q4_0 again: linears as q8_0", {"Q8_0"}),
        (
            "q4_0+embq4_0", {"embedding_format": "f16"}, "tiny-q4_0.gguf", "again: embedding and head as f16",
            {"Q4_0", "F16"},
        ),
    ],
)  # fmt: skip
def test_integers_are_never_encoded_again_unsaid(saved, tmp_path, capsys, scheme, options, file, said, written) -> None:
    """The line stands before the work and after it; where all integers stay, it says that."""
    export(model=str(saved(scheme)), output=str(tmp_path / "out"), check=False, **options)
    printed = capsys.readouterr().out
    assert printed.count(said) == 2 and printed.index(said) < printed.index("export: tiny as")
    assert kinds(tmp_path / "out" / file) == written


def test_integers_of_a_gguf_file_are_said_to_be_encoded_again(tiny, tmp_path, capsys) -> None:
    export(model="tiny", format="q4_0", output=str(tmp_path / "out"), check=False)
    assert "again" not in capsys.readouterr().out.partition("export: tiny")[0]
    export(model=str(tmp_path / "out" / "tiny-q4_0.gguf"), output=str(tmp_path / "second"), check=False)
    assert capsys.readouterr().out.count("q8_0 encodes the numbers of the GGUF file again") == 2


def test_a_registered_version_is_exported_as_its_scheme_says(saved, tmp_path, capsys) -> None:
    with tracking.workflow_run("qat", {}):
        tracking.register_checkpoint(saved("w8a8"), "edgequant-tiny", tags={})
    export(check=False)
    (run,) = tracking.find_runs(workflow="export")
    assert run.tags["edgequant.format"] == FOLDER and "models:/edgequant-tiny/1" in capsys.readouterr().out


def test_what_no_gguf_file_holds_becomes_an_onnx_folder_where_one_can_be_written() -> None:
    for scheme in ("w8a8", "w3-g64", "w4-g32+emb8", "w4-g32+emb4@4.5bpp"):
        assert choose_target(parse_scheme(scheme), runs_in_onnx=True).format == "onnx"
    for scheme, format in (("w8a8-static", "compressed-tensors"), ("q4_0", "q4_0"), ("q4_1+emb8", "q4_1")):
        assert choose_target(parse_scheme(scheme), runs_in_onnx=True).format == format
    refused = UserError("sliding windows are none of llama.cpp's qwen2")
    assert choose_target(parse_scheme("q4_0"), refused=refused, runs_in_onnx=True).format == "onnx"


def test_ptq_says_what_ships_writes_it_and_registers_it(quick, tmp_path, capsys) -> None:
    made = tmp_path / "made"
    options: dict[str, Any] = {"calibration": SMALL, "evaluation": quick, "run": CPU, "output": str(made)}
    for _ in range(2):  # the second takes the first one's place, file and all
        result = ptq(model="tiny", scheme="q4_0+embq4_0", export="gguf", register=True, **options)
    (file,) = made.glob("*.gguf")
    parameters = models.load("tiny").model.num_parameters()
    assert file.name == "tiny-q4_0.gguf" and kinds(file) == {"Q4_0"}
    assert result.metrics["deploy/size_gb"] == file.stat().st_size / 1e9
    assert result.metrics["deploy/reduction_vs_fp16"] == pytest.approx(100 - 50 * file.stat().st_size / parameters)
    assert result.rows[1]["deploy/format"] == "q4_0" and str(file) in capsys.readouterr().out
    (_, version) = sorted(
        tracking.client().search_model_versions("name = 'edgequant-tiny'"), key=lambda v: int(v.version)
    )
    assert version.tags["edgequant.deploy_format"] == "q4_0" and "deploy/reduction_vs_fp16" in version.tags
    carried = tracking.download("models:/edgequant-tiny/2")
    assert (carried / file.name).read_bytes() == file.read_bytes()
    assert verify(carried)["sha256"][file.name] == version.tags["edgequant.gguf_sha256"]
    file.unlink()
    verify(made)  # somebody took the file elsewhere
    (carried / file.name).write_bytes(b"another")
    with pytest.raises(UserError, match=r"tiny-q4_0\.gguf is damaged"):
        verify(carried)


@pytest.mark.long
def test_sizes_are_those_of_what_export_writes_and_none_where_nothing_keeps_the_integers(
    quick, tmp_path, capsys
) -> None:
    schemes = ["w4a8-g32+emb4", "w8a8", "q4_1+emb8"]
    options: dict[str, Any] = {"calibration": SMALL, "evaluation": quick, "run": CPU}
    result = ptq(model="tiny", scheme=",".join(schemes), output=str(tmp_path / "made"), **options)
    rows = {row["scheme"]: row for row in result.rows}
    assert [rows[scheme].get("deploy/format") for scheme in schemes] == ["q4_1", FOLDER, "none"]
    assert "q4_1+emb8: no shipped size: no format keeps the integers" in capsys.readouterr().out
    assert "deploy/size_gb" not in rows["q4_1+emb8"] and "deploy/size_gb" not in rows["none"]
    for scheme in schemes[:2]:
        written = Path(
            export(model=str(tmp_path / "made" / scheme), output=str(tmp_path / scheme), check=False).checkpoint
        )
        size = sum(file.stat().st_size for file in ([written] if written.is_file() else written.rglob("*")))
        assert rows[scheme]["deploy/size_gb"] == size / 1e9
    assert not list(tmp_path.glob("**/.shipped*"))


@needs_onnx
@pytest.mark.parametrize("export_as", [pytest.param("onnx", marks=pytest.mark.long), "gguf,onnx"])
def test_ptq_puts_an_onnx_folder_beside_the_checkpoint(export_as, quick, tmp_path, capsys) -> None:
    made = tmp_path / "made"
    options: dict[str, Any] = {"calibration": SMALL, "evaluation": quick, "run": CPU, "output": str(made)}
    for _ in range(2):  # the second takes the first one's place, folder and all
        result = ptq(model="tiny", scheme="w4-g32+emb4", export=export_as, register=True, **options)
    folder, listed = made / "onnx", verify(made)["sha256"]
    assert str(folder) in capsys.readouterr().out and (folder / "genai_config.json").is_file()
    assert {f"onnx/{path.name}" for path in folder.iterdir()} == {name for name in listed if name.startswith("onnx/")}
    size = sum(path.stat().st_size for path in folder.iterdir())
    format = "q4_1" if export_as != "onnx" else "onnx"
    assert result.rows[1]["deploy/format"] == format and len(list(made.glob("*.gguf"))) == (format != "onnx")
    assert (result.metrics["deploy/size_gb"] == size / 1e9) == (format == "onnx")
    carried = tracking.download("models:/edgequant-tiny/2")
    version = tracking.client().get_model_version("edgequant-tiny", "2")
    assert listed["onnx/model.onnx.data"] == version.tags["edgequant.onnx_sha256"]
    (carried / "onnx" / "model.onnx").write_bytes(b"another")
    with pytest.raises(UserError, match=r"onnx/model\.onnx is damaged"):
        verify(carried)
    shutil.rmtree(folder)
    verify(made)  # somebody took the folder elsewhere


@pytest.mark.long
def test_qat_delivers_the_file_beside_the_checkpoint(quick, short, tmp_path) -> None:
    out = tmp_path / "out"
    result = qat(
        model="tiny", scheme="q4_0+embq4_0", training=replace(short, steps=2), evaluation=quick, run=CPU,
        output=str(out), export="gguf",
    )  # fmt: skip
    file = out / "tiny-q4_0.gguf"
    assert result.metrics["deploy/size_gb"] == file.stat().st_size / 1e9
    (row,) = [row for row in result.rows if row["delivered"] == "yes"]
    assert (row["deploy/format"], row["deploy/size_gb"]) == ("q4_0", file.stat().st_size / 1e9)
    (version,) = tracking.client().search_model_versions("name = 'edgequant-tiny'")
    assert (tracking.download(f"models:/edgequant-tiny/{version.version}") / file.name).is_file()
    assert "tiny-q4_0.gguf" in json.loads((out / "edgequant.json").read_text())["sha256"]


@pytest.mark.parametrize(
    ("scheme", "export_as", "message"),
    [
        ("w8a8", "gguf", "export gguf needs a scheme .* got w8a8"),
        ("q4_0,bnb-nf4", "gguf", "got bnb-nf4"),
        ("w4-g32+emb4@4.5bpp", "gguf", "got w4-g32"),
        ("q4_0", "onxx", "export must be gguf, onnx or gguf,onnx, or null for neither, got 'onxx'"),
        ("q4_0", "gguf,gguf", "export must be gguf, onnx or gguf,onnx, or null for neither, got 'gguf,gguf'"),
        ("q4_0", "", "export must be gguf, onnx or gguf,onnx, or null for neither, got ''"),
        pytest.param("q4_1", "gguf,onnx", "scheme q4_1 cannot be written as onnx", marks=needs_onnx),
    ],
)
def test_a_file_that_cannot_be_is_refused_before_a_run_begins(scheme, export_as, message) -> None:
    with pytest.raises(UserError, match=message):
        ptq(model="tiny", scheme=scheme, export=export_as)
    assert not tracking.find_runs(workflow="ptq")
