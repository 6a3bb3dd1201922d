"""The command line: bad configuration is refused at once, by name, without loading anything heavy."""

from __future__ import annotations

import inspect
import json
import os
import re
import signal
import subprocess
import sys
import textwrap
from dataclasses import fields
from pathlib import Path

import pytest

from edgequant.__main__ import WORKFLOWS, main, parse, workflow
from edgequant.command_line.options import options_of as options_by_name
from edgequant.command_line.renamed_options import RENAMED
from edgequant.errors import UserError
from edgequant.workflows.settings import RunSettings

# arguments, and what the message has to say
REFUSED = {
    "unknown workflow": (["qta"], ["workflow 'qta' is unknown", "Did you mean qat?", "finetune", "doctor"]),
    "unknown key": (["qat", "--sheme", "w8"], ["--sheme is unknown", "Did you mean --scheme?", "training.steps"]),
    "unknown nested key": (["qat", "--training.stepz", "3"], ["--training.stepz", "Did you mean --training.steps?"]),
    "key without its group": (["qat", "--learning_rate", "1"], ["--learning_rate", "--training.learning_rate"]),
    "wrong type": (["qat", "--training.steps", "many"], ["training.steps", "many", "int"]),
    "float for int": (["qat", "--training.steps", "2.5"], ["training.steps", "2.5", "int"]),
    "negative steps": (["qat", "--training.steps", "-5"], ["training.steps must be at least 1, got -5"]),
    "share above one": (
        ["qat", "--qat.freeze_observers_at", "3"],
        ["qat.freeze_observers_at must be", "0 to 1, got 3"],
    ),
    "unknown choice": (["qat", "--calibration.observer", "median"], ["median", "moving_average_minmax", "percentile"]),
    "unknown scheme": (["qat", "--scheme", "w4a8-g23x"], ["scheme 'w4a8-g23x' is unknown", "w4a8-g32", "w8a8-static"]),
    "scheme not for training": (["qat", "--scheme", "bnb-nf4"], ["bnb-nf4", "ptq"]),
    "group that does not divide": (
        ["qat", "--model", "tiny", "--scheme", "w4-g96"],
        ["group_size 96", "128 input features of model.layers.0.self_attn.q_proj", "w4-g32, w4-g64, w4-g128 or w4"],
    ),
    "old option": (["qat", "--text", "x"], ["option text is now called dataset"]),
    "old nested option": (["qat", "--quantization.start", "x"], ["quantization.start is now called qat.init_from"]),
    "old option of ptq": (["ptq", "--quantization.damping=1"], ["is now called ptq.dampening_frac"]),
    "old name of a text": (["qat", "--model", "tiny", "--dataset", "generated"], ["is now called self-generated"]),
    "old method": (["ptq", "--method", "gptq+block"], ["'block' is now called signround"]),
    "no such device": (["evaluate", "--device", "gpu"], ["device must be auto, cpu, cuda or cuda:N, got 'gpu'"]),
    "no such dtype": (["baseline", "--dtype", "bf16"], ["dtype must be one of", "bfloat16", "got 'bf16'"]),
    "another length than training's": (
        ["qat", "--model", "tiny", "--calibration.sequence_length", "512"],
        ["calibration.sequence_length must be training.sequence_length (128)", "got 512"],
    ),
    "unknown model": (["qat", "--model", "nope"], ["model 'nope' is unknown", "smollm2-135m", "hub id"]),
    "missing folder": (["qat", "--model", "./nope"], ["model './nope' not found"]),
    "unknown text": (
        ["qat", "--model", "tiny", "--dataset", "nope"],
        ["got 'nope'", "dataset must be", "disaster", "wikitext-2"],
    ),
    "ptq: one bad scheme of several": (["ptq", "--scheme", "w8,w99"], ["scheme 'w99' is unknown"]),
    "ptq: unknown method": (["ptq", "--method", "magic"], ["magic", "rtn"]),
    "ptq: unknown model": (["ptq", "--model", "nope"], ["model 'nope' is unknown"]),
    "finetune: unknown base": (["finetune", "--base", "int3"], ["int3", "bnb-nf4"]),
    "finetune: impossible rank": (
        ["finetune", "--lora.rank", "-1"],
        ["lora.rank must be 0 (no adapters) or more", "got -1"],
    ),
    "finetune: unknown model": (["finetune", "--model", "nope"], ["model 'nope' is unknown"]),
    "pipeline: unknown phase": (["pipeline", "--phases", "[corpus,bake]"], ["'bake'", "finetune"]),
    "pipeline: unknown scheme": (["pipeline", "--scheme", "int4"], ["scheme 'int4' is unknown"]),
    **{
        f"{name}: unknown key": ([name, "--no_such_key", "1"], ["--no_such_key is unknown", "There are: "])
        for name in WORKFLOWS
    },
}
DRIVER = """
import contextlib, io, json, sys, time
from edgequant.__main__ import main
answers = {}
for name, arguments in json.load(sys.stdin).items():
    before = set(sys.modules)
    said, started = io.StringIO(), time.perf_counter()
    with contextlib.redirect_stderr(said):
        status = main(arguments)
    new = set(sys.modules) - before
    heavy = sorted(new & {"torch", "transformers", "mlflow", "ray", "datasets", "peft", "pandas"})
    answers[name] = [status, said.getvalue(), time.perf_counter() - started, heavy]
print(json.dumps(answers))
"""


@pytest.fixture(scope="module")
def answers(tmp_path_factory, root) -> dict[str, list]:
    """All refusals in one fresh process: what the first of them imports needlessly shows beside its name."""
    folder = tmp_path_factory.mktemp("cli")
    given = json.dumps({name: arguments for name, (arguments, _) in REFUSED.items()})
    paths = ":".join(str(root / source) for source in ("platform", "tune", "registry"))
    done = subprocess.run(
        [sys.executable, "-c", DRIVER],
        input=given,
        capture_output=True,
        text=True,
        cwd=folder,
        env={"PYTHONPATH": paths},
    )
    assert done.returncode == 0, done.stderr
    assert list(folder.iterdir()) == []  # no store, no outputs
    return json.loads(done.stdout)


@pytest.mark.parametrize("name", REFUSED)
def test_bad_configuration_is_refused_with_its_value_and_the_valid_ones(answers, name):
    status, said, seconds, _ = answers[name]
    assert status == 2
    assert [part for part in REFUSED[name][1] if part not in said] == [], said
    assert said.count("\n") == 1 and "Traceback" not in said
    assert seconds < 5


def test_no_refusal_imports_anything_heavy(answers):
    assert {name: heavy for name, (*_, heavy) in answers.items() if heavy} == {}


def test_refusal_by_the_real_command_takes_less_than_five_seconds(edgequant):
    import time

    started = time.perf_counter()
    done = edgequant("qat", "--config", "missing.yaml")
    assert done.returncode == 2 and "missing.yaml" in done.stderr
    done = edgequant("qat", "--scheme", "w4a8-g32+emb44")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("edgequant qat: scheme 'w4a8-g32+emb44' is unknown.")
    assert time.perf_counter() - started < 10


def test_without_arguments_every_workflow_is_listed_with_its_purpose(capsys):
    assert main([]) == main(["--help"]) == 0
    listed = capsys.readouterr().out
    for name in WORKFLOWS:
        line = next(line for line in listed.splitlines() if line.split()[:1] == [name])
        assert len(line.split()) > 3


@pytest.mark.parametrize("name", WORKFLOWS)
def test_help_shows_the_workflows_purpose_and_explains_every_option(name, capsys):
    with pytest.raises(SystemExit) as left:
        main([name, "--help"])
    assert left.value.code == 0
    text = " ".join(capsys.readouterr().out.split())
    assert " ".join(workflow(name).__doc__.split("\n")[0].split()) in text
    for key in options_of(workflow(name)):
        assert f"--{key}" in text, key
    bare = re.findall(r"--[\w.]+ \w+ \(type", text)  # an option without a word about it
    assert bare == []


def options_of(function) -> list[str]:
    """Its parameters; the run settings are options without a prefix."""
    names = list(inspect.signature(function).parameters)
    return [option for name in names for option in ([f.name for f in fields(RunSettings)] if name == "run" else [name])]


def parsed(name: str, *arguments: str) -> dict:
    return parse(name, workflow(name), list(arguments))


def test_nested_keys_reach_the_settings():
    values = parsed("qat", "--training.steps", "7", "--calibration.observer", "mse", "--evaluation.limit", "null")
    assert values["training"].steps == 7
    assert values["calibration"].observer == "mse"
    assert values["evaluation"].limit is None


def test_the_command_line_overrides_the_recipe_and_the_recipe_the_defaults(tmp_path):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("scheme: w8\ntraining:\n  steps: 5\n  batch_size: 3\n")
    values = parsed("qat", "--config", str(recipe), "--training.steps", "9")
    assert (values["scheme"], values["training"].steps, values["training"].batch_size) == ("w8", 9, 3)
    assert values["training"].sequence_length == parsed("qat")["training"].sequence_length
    assert "config" not in values


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("schem: w8\n", "schem"),
        ("training:\n  stepps: 4\n", "stepps"),
        ("training:\n  steps: [1, 2]\n", "steps"),
        ("scheme: [\n", "recipe.yaml"),
    ],
)
def test_a_recipes_mistakes_are_named(tmp_path, content, said):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(content)
    with pytest.raises(UserError, match=said):
        parsed("qat", "--config", str(recipe))


def test_an_old_key_of_a_recipe_is_refused_with_its_new_name(tmp_path):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("scheme: w8\ntraining: {distillation: 0.5}\n")
    with pytest.raises(
        UserError, match=r"recipe.yaml: key training.distillation is now called training.distillation_w"
    ):
        parsed("qat", "--config", str(recipe))


def test_every_new_name_is_an_option_and_no_old_one_is():
    for name, renamed in RENAMED.items():
        known = set(options_by_name(workflow(name)))
        assert set(renamed.values()) <= known, name
        assert not set(renamed) & known, name


def test_status_of_a_workflow_becomes_the_exit_status(monkeypatch):
    def no(*, model: str = "tiny") -> int:
        """Say no.

        Args:
            model: any.
        """
        return 1

    monkeypatch.setattr("edgequant.__main__.workflow", lambda _: no)
    assert main(["promote"]) == 1


def test_an_error_of_ours_is_one_line_and_any_other_keeps_its_traceback(monkeypatch, capsys):
    def fails(*, user: bool = True) -> None:
        """Fail.

        Args:
            user: by the user's fault.
        """
        raise UserError("the thing is wrong") if user else ZeroDivisionError

    monkeypatch.setattr("edgequant.__main__.workflow", lambda _: fails)
    assert main(["export"]) == 2
    assert capsys.readouterr().err == "edgequant export: the thing is wrong\n"
    with pytest.raises(ZeroDivisionError):
        main(["export", "--user", "false"])


def test_for_a_shell_a_fault_of_the_program_is_no_refusal_and_a_refusal_is_no_fault(monkeypatch, capsys):
    from edgequant.command_line.shell import run

    def ends_with(what):
        def main():
            raise what

        monkeypatch.setattr("edgequant.__main__.main", main)
        return run

    monkeypatch.setattr(signal, "SIG_DFL", signal.default_int_handler)  # for what runs behind this test
    assert ends_with(ZeroDivisionError("of ours"))() == 2
    assert "Traceback" in (said := capsys.readouterr().err) and "ZeroDivisionError: of ours" in said
    with pytest.raises(SystemExit) as left:
        ends_with(SystemExit(1))()
    assert left.value.code == 1


def test_a_program_ends_with_its_status_behind_what_libraries_do_at_the_end_and_takes_nothing_apart(tmp_path):
    code = """
        import atexit, sys
        import edgequant.__main__
        from edgequant.command_line import shell

        class Torn:
            def __del__(self):
                open("torn", "w").close()

        sys.of_the_program = Torn()  # lives until the interpreter itself is taken apart
        edgequant.__main__.main = lambda: (atexit.register(lambda: print("the libraries' end")), 3)[1]
        shell.program()
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (3, "the libraries' end\n"), done.stderr
    assert not (tmp_path / "torn").exists()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full, where every write finds a full disk")
def test_output_that_could_not_be_written_is_no_success(tmp_path):
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "edgequant", "--help"], cwd=tmp_path, stdout=full, stderr=subprocess.PIPE, text=True,
            env=environment, check=False,
        )  # fmt: skip
    assert done.returncode == 120 and "output was lost: No space left on device" in done.stderr


def test_it_runs_as_a_module_from_any_folder(edgequant, tmp_path):
    done = edgequant()
    assert done.returncode == 0 and "edgequant WORKFLOW" in done.stdout
    assert list(Path(tmp_path).iterdir()) == []
