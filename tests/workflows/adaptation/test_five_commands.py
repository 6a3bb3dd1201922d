"""finetune, ptq, finetune on the integers, export, promote: each command is the one that the command before printed."""

from __future__ import annotations

import contextlib
import io
import shlex
from pathlib import Path

import pytest

from edgequant import __main__, models
from edgequant.quantization import checkpoint

MEASURING = {"tasks": "[domain_perplexity]", "limit": "20", "window": "256", "bootstrap_resamples": "20"}
QUICK = [word for name, value in MEASURING.items() for word in (f"--evaluation.{name}", value)]
PLACE = ["--device", "cpu", "--dtype", "float32"]
SHORT = ["--training.steps", "6", "--training.batch_size", "2", "--training.sequence_length", "64"]
BEYOND = {
    "finetune": [*SHORT, *QUICK, *PLACE],
    "ptq": [*QUICK, *PLACE, "--method", "rtn", "--calibration.num_calibration_samples", "2"],
}


@pytest.fixture(scope="module")
def walk(open_store, tmp_path_factory):
    """The commands of the walk, as printed, with what each printed."""
    folder = tmp_path_factory.mktemp("walk")
    with open_store(folder):
        said: list[tuple[list[str], str]] = []
        command = ["edgequant", "finetune", "--model", "tiny"]
        while command[0] == "edgequant" and len(said) < 6:
            with contextlib.redirect_stdout(io.StringIO()) as printed:
                assert __main__.main([*command[1:], *BEYOND.get(command[1], [])]) == 0
            said.append((command, printed.getvalue()))
            command = next(shlex.split(line[4:]) for line in printed.getvalue().splitlines() if line.startswith("next"))
        yield said


def test_five_commands_each_the_next_ones_input(walk):
    said = walk
    assert [command[1] for command, _ in said] == ["finetune", "ptq", "finetune", "export", "promote"]


def test_the_adapted_integers_have_the_size_and_scheme_of_ptqs(walk):
    said = walk
    rounded, adapted = Path(said[2][0][3]), newest_merged(said)
    first, second = checkpoint.open_checkpoint(rounded), checkpoint.open_checkpoint(adapted)
    assert second.scheme == first.scheme and second.weight_bytes == first.weight_bytes
    assert second.parameters == first.parameters


def test_what_was_adapted_in_integers_is_registered_under_its_bases_name_and_promoted(walk):
    said = walk
    assert said[3][0][2:] == ["--model", "models:/edgequant-tiny/1"]
    assert said[4][0][2:] == ["--model", "edgequant-tiny", "--version", "1"]
    assert "edgequant-tiny@champion" in said[4][1]
    assert models.resolve(str(newest_merged(said))).name == "tiny"


def test_the_exported_file_holds_the_adapted_integers(walk):
    said = walk
    assert "15 of 15 quantised matrices keep the checkpoint's integers" in said[3][1]


def newest_merged(said) -> Path:
    folders = Path("outputs/finetune").glob("*/merged")
    return next(folder for folder in folders if (folder / "README.md").is_file())  # the card of what is registered
