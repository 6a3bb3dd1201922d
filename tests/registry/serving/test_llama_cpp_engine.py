"""Answers by llama.cpp, where the exported file lies beside the checkpoint."""

from __future__ import annotations

import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from edgequant import models
from edgequant.errors import UserError
from edgequant.export.shipped import ship
from edgequant_registry.serving.load_engine import load_engine
from edgequant_registry.serving.refusal import BadRequestError
from edgequant_registry.serving.requests import parse
from edgequant_registry.serving.waiting import Waiting

pytest.importorskip("xllamacpp")


def ask(engine: Any, sent: dict[str, Any], **waiting: Any) -> Any:
    return engine.answer(parse(sent), Waiting(**waiting))


@pytest.fixture(scope="module")
def folder(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The checkpoint with its GGUF file beside the weights."""
    folder = tmp_path_factory.mktemp("exported") / "checkpoint"
    shutil.copytree(checkpoint, folder)
    ship(models.load(str(folder), device="cpu", dtype="float32"), folder, "gguf")
    return folder


@pytest.fixture(scope="module")
def engine(folder: Path) -> Any:
    return load_engine(folder)


def test_llama_cpp_serves_where_its_file_lies_beside_the_weights_and_torch_elsewhere(
    engine: Any, folder: Path, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert engine.name == "llama.cpp" and load_engine(checkpoint).name == "torch"
    monkeypatch.setattr("edgequant_registry.serving.load_engine.version", lambda: None)  # xllamacpp is absent
    assert load_engine(folder).name == "torch"


def test_a_completion_has_its_length_its_usage_and_its_end(engine: Any) -> None:
    (answer,) = ask(engine, {"prompt": "The water is", "max_tokens": 6})
    assert answer.finish_reason == "length" and (answer.prompt_tokens, answer.completion_tokens) == (12, 6)
    (whole,) = ask(engine, {"prompt": "Boil", "max_tokens": 30, "temperature": 1.2, "seed": 5})
    again, drawn = (
        ask(engine, {"prompt": "Boil", "max_tokens": 30, "temperature": 1.2, "seed": seed})[0] for seed in (5, 6)
    )
    assert again.text == whole.text != drawn.text
    stop = next(character for character in whole.text[3:] if character.isascii() and character.isprintable())
    (cut,) = ask(engine, {"prompt": "Boil", "max_tokens": 30, "temperature": 1.2, "seed": 5, "stop": stop})
    assert cut.text == whole.text[: whole.text.find(stop)] and cut.finish_reason == "stop"


def test_requests_of_several_threads_are_each_answered(engine: Any) -> None:
    with ThreadPoolExecutor(6) as pool:
        requests = [parse({"prompt": ["The water is", "Boil"], "max_tokens": count}) for count in range(1, 9)]
        answers = list(pool.map(lambda each: engine.answer(each, Waiting()), requests))
    assert [[one.completion_tokens for one in pair] for pair in answers] == [[count, count] for count in range(1, 9)]


def test_what_it_cannot_answer_is_refused_as_by_torch(engine: Any) -> None:
    with pytest.raises(BadRequestError, match="this one has none; send a prompt"):
        ask(engine, {"messages": [{"role": "user", "content": "Where?"}]})
    with pytest.raises(BadRequestError, match=r"the prompt has 5000 tokens, .* must fit a context of 2048"):
        ask(engine, {"prompt": "a" * 5000})


def test_what_no_tokens_could_make_short_enough_is_not_cut_into_tokens(engine: Any) -> None:
    """llama.cpp keeps what it took for it: with three such prompts at once, 700 MB."""
    with pytest.raises(BadRequestError, match=r"at least \d+ tokens, .* must fit a context of 2048"):
        ask(engine, {"prompt": "Water " * 500_000})


def test_a_damaged_file_is_not_served(folder: Path, tmp_path: Path) -> None:
    damaged = tmp_path / "damaged"
    shutil.copytree(folder, damaged)
    (file,) = damaged.glob("*.gguf")
    file.write_bytes(file.read_bytes()[:-1] + b"\0")
    with pytest.raises(UserError, match=r"\.gguf is damaged"):
        load_engine(damaged)
