"""Errors that nobody foresaw: of files, libraries and the system in one line, of this program with their traceback."""

from __future__ import annotations

import errno
import io
import json
import os
import shlex
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest
import safetensors
import torch

import edgequant
from edgequant import __main__, tracking
from edgequant.command_line.library_errors import told
from edgequant.errors import UserError
from edgequant.folders import mark_folder
from edgequant.models import resolve
from edgequant.models.load_errors import told_in_one_line
from edgequant.models.sources import layer_inputs
from edgequant.quantization.scheme import check_group_sizes, parse_scheme
from edgequant.training.settings import LoraSettings
from edgequant.workflows import corpus, evaluate, finetune, ptq
from edgequant.workflows.adaptation.ways import Written, way_of
from edgequant.workflows.steps.summary import quantize_next
from edgequant.yaml_files import parse_yaml, read_yaml

ROOT = Path(__file__).resolve().parents[2]


def raised(call, *arguments) -> Exception:
    with pytest.raises(Exception) as caught:
        call(*arguments)
    return caught.value


def test_what_a_user_can_mend_is_told_and_a_fault_of_ours_is_not(tmp_path):
    (tmp_path / "cut.safetensors").write_bytes(b"\x10\0\0\0\0\0\0\0{")
    damaged = raised(safetensors.safe_open, str(tmp_path / "cut.safetensors"), "pt")
    assert "damaged or cut off" in str(told(damaged))
    assert told(PermissionError(errno.EACCES, "Permission denied", "x.txt")) == (
        "'x.txt': Permission denied; change its permissions, or name another"
    )
    assert "name one that exists" in str(told(raised(open, tmp_path / "none")))
    assert "out of memory" in str(told(torch.cuda.OutOfMemoryError("CUDA out of memory. Tried")))
    assert "could not be read" in str(told(raised(json.loads, "{")))
    full = safetensors.SafetensorError("I/O error: No space left on device (os error 28)")
    assert str(told(full)).endswith("free some space, or name another place")
    for fault in (KeyError("x"), TypeError("x"), AssertionError("x"), ZeroDivisionError("x"), AttributeError("x")):
        assert told(fault) is None


def test_the_command_line_prints_such_an_error_in_one_line(monkeypatch, capsys):
    def fails(*, model: str = "tiny") -> None:
        """Fail.

        Args:
            model: any.
        """
        raise PermissionError(errno.EACCES, "Permission denied", "weights\nof mine")

    monkeypatch.setattr(__main__, "workflow", lambda _: fails)
    assert __main__.main(["export"]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "Permission denied" in said and "Traceback" not in said


def test_a_librarys_error_at_loading_names_the_model_and_a_fault_of_ours_stays():
    loads = told_in_one_line(lambda source: json.loads(source))
    assert "model '{' could not be loaded (JSONDecodeError" in str(raised(loads, "{"))
    own: dict = {"__name__": "edgequant.models.anything"}
    exec("def fails(source):\n    raise KeyError(source)", own)
    assert isinstance(raised(told_in_one_line(own["fails"]), "x"), KeyError)
    assert "model must be a name, a path or a URI, got 3" in str(raised(loads, 3))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a: 1\nb: {c: 1, c: 2}", "key 'c' stands there twice"),
        ("- a", "got a list"),
        ("a: [", "line 1"),
        ("!!python/object/apply:os.system [ls]", "could not determine a constructor"),
        ("1: 2", "keys that are names, got 1"),
        ("a: " + "9" * 5000, "is not YAML"),
    ],
)
def test_a_small_file_that_is_none_is_refused_with_the_place(text, said):
    with pytest.raises(UserError, match=r"^recipe 'r.yaml'") as refused:
        parse_yaml(text, "recipe 'r.yaml'", "a: 1")
    assert said in str(refused.value) and "\n" not in str(refused.value)


def test_numbers_with_powers_are_numbers_and_merged_keys_are_no_doubles(tmp_path):
    (tmp_path / "r.yaml").write_bytes("\ufeffa: 1e-5\nb: &b {c: 2E3}\nd: {<<: *b, c: 3}\n".encode())
    assert read_yaml(tmp_path / "r.yaml", "recipe", "a: 1") == {"a": 1e-5, "b": {"c": 2000.0}, "d": {"c": 3}}


def test_a_store_is_refused_before_a_run_and_left_as_it_was(store, tmp_path, monkeypatch):
    other = tmp_path / "customers.db"
    database = sqlite3.connect(other)
    database.execute("CREATE TABLE customers (name TEXT)")
    database.close()
    before = other.read_bytes()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{other}")
    with pytest.raises(UserError, match="another program's database"), tracking.workflow_run("qat", {}):
        pass
    assert other.read_bytes() == before
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    with tracking.workflow_run("qat", {}) as run:
        pass
    assert store.get_run(run.id).info.status == "FINISHED"


TOKENS = torch.zeros(2, 8, dtype=torch.int64)


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda m, t: edgequant.load(3), "model must be a name"),
        (lambda m, t: edgequant.load("tiny", dtype=torch.bfloat16), "write bfloat16"),
        (lambda m, t: edgequant.load("tiny", device=0), "device must be auto, cpu, cuda or cuda:N"),
        (lambda m, t: edgequant.load("~nobody-here/x"), "could not be loaded"),
        (lambda m, t: edgequant.load("a/" * 3000), "could not be loaded"),
        (lambda m, t: edgequant.quantize("tiny", "w4-g32"), "edgequant.load('tiny') gives one"),
        (lambda m, t: edgequant.quantize(m, 4), "scheme must be a name"),
        (lambda m, t: edgequant.quantize(m, "w4-g32", method=None), "method must be a str, got None"),
        (lambda m, t: edgequant.quantize(m, "w4-g32", settings={"alphas": 3}), "settings must be a PtqSettings"),
        (lambda m, t: edgequant.quantize(m, "w4-g32", calibration=3), "calibration must be a list"),
        (lambda m, t: edgequant.quantize(m, "w4-g32", calibration=[TOKENS[:0]]), "int64 [0, 8]"),
        (lambda m, t: edgequant.quantize(m, "w4-g32", calibration=[TOKENS + 999]), "0 to 263, got 999"),
        (lambda m, t: edgequant.prepare(m, "w4a8-g32", observer="median"), "observer must be one of"),
        (lambda m, t: edgequant.prepare(m, "w4a8-g32", learnable_scales="yes"), "learnable_scales must be true"),
        (lambda m, t: edgequant.convert("tiny"), "model must be a causal language model"),
        (lambda m, t: edgequant.evaluate(m, t, limt=3), "Did you mean limit?"),
        (lambda m, t: edgequant.evaluate(m, t, tasks=3), "tasks must be a sequence of names"),
        (lambda m, t: edgequant.evaluate(m, None), "tokenizer must be one of transformers, got None"),
        (lambda m, t: edgequant.evaluate(m, t, data_dir="no-such-folder"), "data_dir 'no-such-folder' not found"),
        (lambda m, t: edgequant.save(m, t, ""), "folder must be a path, got ''"),
        (lambda m, t: edgequant.save(m, t, __file__), "is a file; name another"),
        (lambda m, t: edgequant.parse_scheme(None), "scheme must be a name"),
    ],
)
def test_a_script_is_told_what_it_handed_over_and_the_model_is_unchanged(tiny, call, said, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # to save to '' once emptied the working folder
    before = {name: type(module) for name, module in tiny.model.named_modules()}
    with pytest.raises(UserError) as refused:
        call(tiny.model, tiny.tokenizer)
    assert said in str(refused.value) and "\n" not in str(refused.value)
    assert {name: type(module) for name, module in tiny.model.named_modules()} == before


def test_ctrl_c_is_one_line_and_the_shells_status(monkeypatch, capsys):
    def interrupted(**_options):
        raise KeyboardInterrupt

    monkeypatch.setattr(__main__, "parse", lambda *_: {})
    monkeypatch.setattr(__main__, "workflow", lambda _: interrupted)
    assert __main__.main(["ptq"]) == 130
    assert capsys.readouterr().err == "edgequant ptq: interrupted\n"


def test_a_terminal_without_dashes_gets_a_question_mark(monkeypatch):
    written = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written, encoding="ascii"))
    monkeypatch.setattr(__main__, "parse", lambda *_: {})
    monkeypatch.setattr(__main__, "workflow", lambda _: lambda: print("a – b"))
    assert __main__.main(["ptq"]) == 0
    sys.stdout.flush()
    assert written.getvalue() == b"a ? b\n"


@pytest.mark.parametrize("path", ["my data/out", "~/out", "größe", "plain/out", "it's"])
def test_the_next_command_is_what_a_shell_hands_back(path):
    folder, source = Path(path), resolve("tiny")
    way = way_of(source, "tiny", "float", LoraSettings(), apart=False, dtype="auto", device="cpu")
    commands = [
        corpus.next_command(path),
        ptq.next_command(path, parse_scheme("w8"), folder),
        ptq.next_command("tiny", parse_scheme("bnb-nf4"), folder),
        evaluate.next_command(path, "none"),
        *(finetune.next_command(Written(None, folder, whole, {}), way, None) for whole in (True, False)),
    ]
    for command in commands:
        assert path in shlex.split(command), command


@pytest.mark.parametrize("sizes, scheme", [((64, 128), ""), ((96, 200), "w4a8-g8+emb4"), ((72, 100), "w4a8+emb8")])
def test_the_next_command_names_a_scheme_whose_groups_fit_the_model(tmp_path, sizes, scheme):
    config = dict(zip(("hidden_size", "intermediate_size"), sizes, strict=True)) | {"num_attention_heads": 1}
    (tmp_path / "config.json").write_text(json.dumps(config | {"model_type": "llama"}))
    named = f" --scheme {scheme}" if scheme else ""
    assert evaluate.next_command(str(tmp_path), "none") == f"edgequant ptq --model {tmp_path}{named}"
    assert quantize_next("qat", str(tmp_path)) == f"edgequant qat --model {tmp_path}{named}"
    way = way_of(resolve("tiny"), "tiny", "float", LoraSettings(), apart=False, dtype="auto", device="cpu")
    adapted = finetune.next_command(Written(None, tmp_path, True, {}), way, None)
    assert adapted == f"edgequant ptq --model {tmp_path} --scheme {scheme or 'w4a8-g32+emb4'}"
    check_group_sizes(parse_scheme(adapted.split()[-1]), layer_inputs(str(tmp_path)))  # is not refused


def test_the_next_command_of_what_is_quantised_is_none_that_refuses_it(tmp_path):
    assert evaluate.next_command(str(tmp_path), "w8") == f"edgequant export --model {shlex.quote(str(tmp_path))}"
    assert evaluate.next_command(str(tmp_path), "bnb-nf4") is None
    for kind in ("gptq", "compressed-tensors"):  # what `export` wrote
        mark_folder(tmp_path, kind, {})
        assert evaluate.next_command(str(tmp_path), "w8") is None
    assert ptq.next_command("tiny", parse_scheme("bnb-nf4"), tmp_path).startswith("edgequant evaluate --model ")


def test_a_python_without_edgequant_s_packages_is_told_in_one_line(tmp_path):
    (tmp_path / "sitecustomize.py").write_text("import sys\nsys.modules['psutil'] = None\n")
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(tmp_path), str(ROOT / "platform")])}
    command = [sys.executable, "-m", "edgequant", "baseline", "--model", "tiny"]
    done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, check=False)
    (line,) = done.stderr.splitlines()
    assert done.returncode == 2 and f"{sys.executable} has no package 'psutil'" in line and "first in PATH" in line
