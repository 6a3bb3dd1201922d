"""Promotion: policies and options."""

from __future__ import annotations

import os

from of_settings import command, refused
from situation import Place


def named_pipe(place: Place) -> str:
    os.mkfifo(place.folder / "policy.yaml")
    return place.edgequant("promote", "--policy", "policy.yaml")


def policy(place: Place) -> str:
    (place.folder / "policy.yaml").write_text("gates:\n- {metric: squad/f1, min: .nan}\n")
    return place.edgequant("promote", "--policy", "policy.yaml")


def not_utf8(place: Place) -> str:
    (place.folder / "policy.yaml").write_bytes(b"name: \xff\xfe\ngates: []\n")
    return place.edgequant("promote", "--policy", "policy.yaml")


def unknown_metric(place: Place) -> str:
    (place.folder / "policy.yaml").write_text("gates:\n- {metric: squad/f11, min: 50, optional: true}\n")
    return place.edgequant("promote", "--policy", "policy.yaml")


def instead_of_nothing(place: Place) -> str:
    gate = "{metric: squad/f1, against: baseline, max_loss: 2, instead_of: domain/perplexity}"
    (place.folder / "policy.yaml").write_text(f"gates:\n- {gate}\n")
    return place.edgequant("promote", "--policy", "policy.yaml")


SITUATIONS = [
    refused(
        "a policy that is a pipe",
        "promote --policy PIPE",
        "edgequant promote: policy 'policy.yaml' must be a file, got no regular file (a pipe or device); name a file",
        named_pipe,
    ),
    refused(
        "a policy that is not UTF-8",
        "promote --policy FILE",
        "edgequant promote: policy 'policy.yaml' must be UTF-8 text, got 0xff at byte 6; ...",
        not_utf8,
    ),
    refused(
        "a policy whose name is nearly right",
        "promote --policy defalt",
        "edgequant promote: policy 'defalt' not found; did you mean default? ...",
        command("promote", "--policy", "defalt"),
    ),
    refused(
        "a promotion where nothing was registered",
        "promote",
        "edgequant promote: no edgequant-* model is registered in ...; `edgequant qat` and `edgequant tune` register "
        "one, ...",
        command("promote"),
    ),
    refused(
        "a bound that is no number",
        "promote --policy FILE",
        "edgequant promote: gate 1 (squad/f1): min must be a number, got nan",
        policy,
    ),
    refused(
        "a metric that nobody measures",
        "promote --policy FILE",
        "edgequant promote: gate 1 (squad/f11): metric 'squad/f11' is unknown; did you mean squad/f1? ...",
        unknown_metric,
    ),
    refused(
        "a gate that stands in for what has no chance level",
        "promote --policy FILE",
        "edgequant promote: gate 1 (squad/f1): instead_of must be one of boolq/accuracy, ..., got 'domain/perplexity'",
        instead_of_nothing,
    ),
    refused(
        "a rollback that goes nowhere",
        "promote --rollback true --steps 0",
        "edgequant promote: steps must be at least 1, got 0; a rollback goes back",
        command("promote", "--rollback", "true", "--steps", "0"),
    ),
    refused(
        "a history that changes something",
        "promote --history true --rollback true",
        "edgequant promote: history only shows, and takes neither rollback nor dry_run nor version",
        command("promote", "--history", "true", "--rollback", "true"),
    ),
    refused(
        "an alias that promotions keep themselves",
        "promote --alias previous_champion",
        "edgequant promote: alias must not begin with previous_, which promote keeps itself, got 'previous_champion'",
        command("promote", "--alias", "previous_champion"),
    ),
    refused(
        "data to measure on again that are not there",
        "promote --data_dir nowhere",
        "edgequant promote: data_dir must be a folder with wikitext-2/, boolq/ and squad/ in their official formats, "
        "got 'nowhere': not found; ...",
        command("promote", "--data_dir", "nowhere"),
    ),
    refused(
        "data to measure on again, and nothing to be measured",
        "promote --data_dir DATA --remeasure false",
        "edgequant promote: data_dir is read to measure again, got 'DATA' with remeasure false, rollback or history, "
        "which measure nothing; leave it out",
        command("promote", "--data_dir", "DATA", "--remeasure", "false"),
    ),
]
