"""The command that a report shows makes the run again: parsed, it gives the configuration that the run had."""

from __future__ import annotations

import shlex
from dataclasses import asdict, is_dataclass

import pytest
import yaml

from edgequant import tracking
from edgequant.__main__ import parse, workflow
from edgequant.evaluation.settings import EvaluationSettings
from edgequant.reporting.findings import commands
from edgequant.reporting.findings.commands import command
from edgequant.reporting.gathering import MEASURING_WORKFLOWS
from edgequant.training.settings import TrainingSettings
from edgequant.workflows.report import defaults_of
from edgequant.workflows.settings import RunSettings, configuration

GIVEN = {
    "qat": {
        "model": "a folder/it's $HOME; rm -rf `x`", "scheme": "w8a8-static", "adapt": True, "register": False,
        "training": TrainingSettings(steps=3, learning_rate=2e-4, batch_size=8, distillation_weight=0.0),
        "evaluation": EvaluationSettings(tasks=("domain_perplexity",), limit=None, latency_prompt_lengths=(8, 16)),
        "run": RunSettings(seed=7, device="cpu"),
    },
    "ptq": {"scheme": "w4-g32,w8a8", "size_budget": "megabytes=80"},
    "baseline": {"model": "tiny,smollm2-135m"},
    "finetune": {"model": "größe-模型"},
    "evaluate": {"model": "-starts-with-a-hyphen"},
}  # fmt: skip


@pytest.fixture(autouse=True)
def in_a_shell_that_finds_us(monkeypatch):
    monkeypatch.setattr(commands, "runnable", lambda text: text)


def configured(given: dict) -> dict:
    """What a run files as its configuration, read back."""
    values = configuration(given) if "run" in given else given
    plain = {key: asdict(value) if is_dataclass(value) else value for key, value in values.items()}
    return dict(tracking.flatten(yaml.safe_load(yaml.safe_dump(plain_lists(plain)))))


def plain_lists(value):
    if isinstance(value, dict):
        return {key: plain_lists(each) for key, each in value.items()}
    return [plain_lists(each) for each in value] if isinstance(value, list | tuple) else value


def filed(monkeypatch, config: dict) -> None:
    monkeypatch.setattr(commands, "_configuration", lambda run_id: config)


@pytest.mark.parametrize("name", MEASURING_WORKFLOWS)
def test_a_command_gives_the_configuration_that_the_run_had(name, monkeypatch):
    function = workflow(name)
    defaults = defaults_of(name)
    given = configured(parse(name, function, _options(GIVEN[name])))
    filed(monkeypatch, given)
    found = command(name, "id", defaults)
    words = shlex.split(found.text)
    assert words[:2] == ["edgequant", name] and found.note == ""
    assert configured(parse(name, function, words[2:])) == given


def _options(given: dict) -> list[str]:
    """Options as somebody would type them."""
    flat = configured(given)
    return [f"--{key}={value if isinstance(value, str) else yaml_text(value)}" for key, value in flat.items()]


def yaml_text(value) -> str:
    return yaml.safe_dump(value, default_flow_style=True).splitlines()[0]


def test_what_is_as_by_default_is_not_said_and_resuming_neither(monkeypatch):
    defaults = defaults_of("qat")
    filed(monkeypatch, configured({**defaults, "resume": True, "model": "tiny"}))
    assert command("qat", "id", defaults).text == "edgequant qat --model tiny"


def test_settings_that_this_version_does_not_have_are_left_out_and_named(monkeypatch):
    defaults = defaults_of("qat")
    filed(monkeypatch, {**configured(defaults), "training.warmup_steps": 3, "seed": 5})
    found = command("qat", "id", defaults)
    assert found.text == "edgequant qat --seed 5" and "training.warmup_steps" in found.note


def test_without_a_configuration_no_command_is_made_up(monkeypatch):
    filed(monkeypatch, None)
    assert command("qat", "id", defaults_of("qat")) == ("", "its configuration was not kept")


def test_every_setting_is_said_of_a_workflow_whose_defaults_are_not_known(monkeypatch):
    filed(monkeypatch, {"model": "tiny", "trials": 3, "output": None})
    assert command("tune", "id", None).text == "edgequant tune --model tiny --trials 3"
