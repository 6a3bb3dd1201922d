"""Every field and every option with values that nobody means: refused by name in one line, or taken; never a traceback.

The work is stubbed out behind the checks: a workflow ends where its run would begin.
"""

from __future__ import annotations

import math
import os
from dataclasses import fields, is_dataclass
from functools import cache
from typing import Any, get_args, get_origin

import pytest

from edgequant import __main__
from edgequant.command_line.options import options_of
from edgequant.corpora.settings import CorpusSettings
from edgequant.errors import UserError
from edgequant.evaluation.settings import EvaluationSettings
from edgequant.quantization.calibration import CalibrationSettings
from edgequant.quantization.ptq.settings import PtqSettings
from edgequant.quantization.qat.settings import QatSettings
from edgequant.settings_checks import alternatives
from edgequant.training.settings import LoraSettings, TrainingSettings
from edgequant.workflows.settings import RunSettings

SETTINGS = {
    EvaluationSettings: "evaluation.", CorpusSettings: "settings.", TrainingSettings: "training.",
    LoraSettings: "lora.", CalibrationSettings: "calibration.", PtqSettings: "ptq.", QatSettings: "qat.",
    RunSettings: "",
}  # fmt: skip
FIELDS = [(settings, item.name) for settings in SETTINGS for item in fields(settings)]
ODD: list[Any] = [
    math.nan, math.inf, -math.inf, -1, -0.5, 0, 1e300, 10**400, 2**63, True, None, "", "nan", "none", "1", "a\nb", b"x",
    [], ["x"], [math.nan], {}, {"a": 1}, object(), (0,), (None,), complex(1),
]  # fmt: skip
# What a command line or a recipe may hold, as text.
TEXTS = ("nan", "-1", "1e3", "9" * 400, "", "None", "[", "{a: [1]}", "a\nb")
STANDS_FOR = {  # one entry point whose groups of options stand for all that have them
    "evaluate": "evaluation.", "finetune": ("training.", "lora."), "qat": ("qat.", "calibration."), "ptq": "ptq.",
    "corpus": "settings.",
}  # fmt: skip


def options() -> list[tuple[str, str, Any]]:
    """(entry point, option, type): its own options of each, each group of settings once."""
    found = []
    for name in __main__.WORKFLOWS:
        for option, kind in options_of(__main__.workflow(name)).items():
            if "." not in option or option.startswith(STANDS_FOR.get(name, "-")):
                found.append((name, option, kind))
    return found


OPTIONS = options()


def refusal(call: Any, *arguments: Any, **named: Any) -> str | None:
    """What was said in refusing; None where it was taken. Anything but a UserError fails the test."""
    try:
        call(*arguments, **named)
    except UserError as error:
        return str(error)
    return None


@pytest.mark.parametrize(("settings", "field"), FIELDS, ids=[f"{one.__name__}.{name}" for one, name in FIELDS])
def test_a_field_takes_a_value_or_refuses_it_by_its_name_in_one_line(settings, field):
    for value in ODD:
        said = refusal(settings, **{field: value})
        if said is None:
            kept = getattr(settings(**{field: value}), field)
            assert not (isinstance(kept, float) and not math.isfinite(kept)), f"{field} took {value}"
            assert isinstance(value, bool) <= isinstance(kept, bool)
        else:
            assert field in said and SETTINGS[settings] in said, said
            assert "\n" not in said and len(said) < 700, said


def test_numbers_are_of_their_kind_and_in_their_range():
    assert "training.steps must be a whole number (int) or null, got 2.0; write 2" in str(
        refusal(TrainingSettings, steps=2.0)
    )
    refused = [
        (TrainingSettings, "steps", 0), (TrainingSettings, "batch_size", 0), (TrainingSettings, "learning_rate", -1e-5),
        (TrainingSettings, "learning_rate", True), (TrainingSettings, "weight_decay", math.nan),
        (EvaluationSettings, "limit", 0), (EvaluationSettings, "seed", 2**32), (EvaluationSettings, "confidence", 1.0),
        (CalibrationSettings, "num_calibration_samples", 0), (LoraSettings, "alpha", math.inf),
        (PtqSettings, "dampening_frac", math.nan), (QatSettings, "max_task_loss", math.nan),
        (CorpusSettings, "file_timeout_s", math.inf), (RunSettings, "seed", -1), (RunSettings, "resume", "yes"),
    ]  # fmt: skip
    taken = [f"{field}={value}" for settings, field, value in refused if refusal(settings, **{field: value}) is None]
    assert taken == []
    assert RunSettings(seed=2**32 - 1).seed == 2**32 - 1
    assert EvaluationSettings(tasks=["boolq"]).tasks == ("boolq",)


@pytest.fixture(scope="module", autouse=True)
def parsers_are_made_once():
    """A parser takes a twentieth of a second; a thousand of them a minute."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(__main__, "make_parser", cache(__main__.make_parser))
        yield


def wrong_for(kind: Any) -> list[str]:
    """Texts that no option of this type can mean."""
    parts = alternatives(kind)
    if is_dataclass(kind):
        return ["", "no-such-file.yaml", "{no_such_key: 1}", "{"]
    if str in parts:
        return [""] + (["None"] if type(None) in parts else [])
    numbers = ["", "many", "1.5.5", "nan", "[1]", "{a: 1}"] if {int, float, bool} & {*parts} else []
    whole = ["1.5", "1e3"] if int in parts and float not in parts else []
    lists = ["", "x", "3"] if any(get_origin(part) in (tuple, list) for part in parts) else []
    return [*numbers, *whole, *lists] or ["", "no-such-choice"]


@pytest.mark.parametrize(("name", "option", "kind"), OPTIONS, ids=[f"{name} --{option}" for name, option, _ in OPTIONS])
def test_an_option_refuses_what_it_cannot_mean_with_its_name_and_the_value(name, option, kind):
    for text in wrong_for(kind):
        said = refusal(__main__.parse, name, __main__.workflow(name), [f"--{option}={text}"])
        assert said is not None, f"--{option}={text!r} was taken"
        assert option in said or (option == "config" and "recipe" in said), said
        shown = text.strip("{}[]").partition(":")[0]
        assert shown in said, said
        assert "\n" not in said and "Union" not in said and "<class" not in said, said


class ReachedError(Exception):
    """A workflow was about to begin its run."""


@pytest.fixture
def no_work(monkeypatch, store):
    """Every workflow ends where its run would begin."""
    import edgequant.tracking
    import edgequant.workflows.chat
    import edgequant.workflows.doctor

    def begin(*_: Any, **__: Any) -> None:
        raise ReachedError

    monkeypatch.setattr(edgequant.tracking, "workflow_run", begin)
    monkeypatch.setattr(edgequant.workflows.doctor, "checks", begin)
    monkeypatch.setattr(edgequant.workflows.chat, "file_of", begin)


OWN = [
    (name, option)
    for name, option, kind in OPTIONS
    if "." not in option and not is_dataclass(kind) and option not in ("resume", "register", "check", "cache")
]


@pytest.mark.parametrize("name", sorted({name for name, _ in OWN}))
def test_an_entry_point_reaches_its_run_or_says_in_one_line_why_not(name, no_work, capsys):
    model = [] if "model" not in dict(own(name)) or name == "promote" else ["--model", "tiny"]
    for option, kind in own(name):
        for text in TEXTS:
            if get_origin(kind) in (tuple, list) and get_args(kind)[0] is str and not text:
                continue
            try:
                status = __main__.main([name, *model, f"--{option}={text}"])
            except ReachedError:
                continue
            said = capsys.readouterr().err
            assert status == 2 and said.count("\n") == 1, f"--{option}={text!r}: {status} {said}"


def own(name: str) -> list[tuple[str, Any]]:
    kinds = {(each, option): kind for each, option, kind in OPTIONS}
    return [(option, kinds[each, option]) for each, option in OWN if each == name]


def test_a_path_that_is_no_utf8_is_refused_before_a_library_meets_it(tmp_path, capfd):
    name = os.fsdecode(b"k\xf6ln")  # as a shell hands on a name in Latin-1
    (tmp_path / "recipe.yaml").write_text('output: "k\\uDCF6ln"\n')
    for arguments in (["--output", name], ["--model", name], ["--config", str(tmp_path / "recipe.yaml")]):
        assert __main__.main(["ptq", *arguments]) == 2
        (line,) = capfd.readouterr().err.splitlines()
        assert "must be UTF-8 text, got 'k\\udcf6ln'; rename the file or folder, or set LC_ALL=C.UTF-8" in line
