"""Whose model something was made from, and on which terms."""

from __future__ import annotations

import json

import pytest

from edgequant import tracking
from edgequant.models.origin import NOT_STATED, Origin, origin
from edgequant.models.sources import HUB_MODELS


@pytest.mark.parametrize(
    ("source", "base", "license"),
    [
        ("smollm2-135m", "HuggingFaceTB/SmolLM2-135M-Instruct", "apache-2.0"),
        ("qwen2.5-0.5b", "Qwen/Qwen2.5-0.5B", "apache-2.0"),
        ("microsoft/phi-1_5", "microsoft/phi-1_5", "mit"),
        ("gemma-3-1b-it", "google/gemma-3-1b-it", "gemma"),
        ("someone/unheard-of", "someone/unheard-of", NOT_STATED),
        ("no such model", "no such model", NOT_STATED),
    ],
)
def test_hub_models_go_by_their_id_and_known_licence(source, base, license):
    assert origin(source) == Origin(base, license)


def test_every_model_with_a_short_name_has_a_licence():
    assert all(origin(name).license != NOT_STATED for name in (*HUB_MODELS, "smollm2-135m", "tiny"))


@pytest.mark.parametrize(
    ("card", "expected"),
    [
        ("---\nlicense: llama3.2\nbase_model: meta-llama/L\n---\n# x", ("meta-llama/L", "llama3.2")),
        ("---\nlicense: [mit]\nbase_model:\n- a/b\n- c/d\n---\n", ("a/b", "mit")),
        ("---\nlicense: other\nlicense_name: my-terms\n---\n", ("folder", "my-terms")),
        ("---\nlicense: other\n---\n", ("folder", "other")),
        ("# no front matter", ("folder", NOT_STATED)),
        ("---\nlicense: [unclosed\n---\n", ("folder", NOT_STATED)),
        ("---\n- a list\n---\n", ("folder", NOT_STATED)),
        ("---", ("folder", NOT_STATED)),
        ("---\nlicense: 7\nbase_model: {}\n---\n", ("folder", NOT_STATED)),
        (None, ("folder", NOT_STATED)),
    ],
)  # fmt: skip
def test_a_folders_card_says_base_model_and_licence(tmp_path, card, expected):
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"model_type": "llama"}))
    if card is not None:
        (folder / "README.md").write_text(card)
    found = origin(str(folder))
    assert (found.base_model, found.license) == expected


def test_a_registered_version_says_whose_it_is_by_its_card(store, tmp_path):
    folder = tmp_path / "checkpoint"
    folder.mkdir()
    (folder / "README.md").write_text("---\nlicense: mit\nbase_model: a/b\n---\n")
    with tracking.workflow_run("ptq", {}):
        tracking.register_checkpoint(folder, "edgequant-b", tags={})
    assert origin("models:/edgequant-b/1") == Origin("a/b", "mit")
    assert origin("models:/edgequant-b/2") == Origin("b", NOT_STATED)


def test_a_card_that_is_no_text_costs_the_licence_alone(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "README.md").write_bytes(b"---\xff\xfe\x00")
    assert origin(str(tmp_path)).license == NOT_STATED
