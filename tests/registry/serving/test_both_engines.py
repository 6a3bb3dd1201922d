"""What torch and llama.cpp have in common: pieces that make up the answer, and work that stops when nobody waits."""

from __future__ import annotations

import shutil
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from edgequant import models
from edgequant.evaluation.backends.generation import BatchDecoding
from edgequant.export.shipped import ship
from edgequant_registry.serving.load_engine import load_engine
from edgequant_registry.serving.refusal import BadRequestError, UnansweredError, server_ends
from edgequant_registry.serving.requests import parse
from edgequant_registry.serving.waiting import Waiting

DRAWN = {"prompt": "Boil", "max_tokens": 60, "temperature": 1.3, "seed": 5}


@pytest.fixture(scope="module", params=["torch", "llama.cpp"])
def engine(request: Any, checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    if request.param == "torch":
        return load_engine(checkpoint)
    pytest.importorskip("xllamacpp")
    folder = tmp_path_factory.mktemp("exported") / "checkpoint"
    shutil.copytree(checkpoint, folder)
    ship(models.load(str(folder), device="cpu", dtype="float32"), folder, "gguf")
    return load_engine(folder)


def pieces_of(engine: Any, sent: dict[str, Any]) -> tuple[list[Any], list[tuple[int, str]]]:
    said: list[tuple[int, str]] = []
    return engine.answer(parse(sent), Waiting(), lambda at, text: said.append((at, text))), said


def test_the_pieces_that_are_said_make_up_the_answer(engine: Any) -> None:
    answers, said = pieces_of(engine, DRAWN | {"prompt": ["Boil", "The water is"]})
    assert [answer.completion_tokens for answer in answers] == [60, 60] and len(said) > 20
    for at, answer in enumerate(answers):
        assert "".join(text for number, text in said if number == at) == answer.text


def test_no_piece_holds_what_stands_behind_a_text_of_stop_or_begins_one(engine: Any) -> None:
    (whole,), _ = pieces_of(engine, DRAWN)
    at = next(at for at in range(5, 50) if whole.text[at : at + 3].isascii() and whole.text[at : at + 3].isprintable())
    stop = whole.text[at : at + 3]
    (cut,), said = pieces_of(engine, DRAWN | {"stop": [stop, "never said"]})
    assert cut.finish_reason == "stop" and cut.text == whole.text[: whole.text.find(stop)]
    assert "".join(text for _, text in said) == cut.text and 0 < cut.completion_tokens < whole.completion_tokens


def test_a_prompt_may_be_token_ids_which_are_the_models(engine: Any) -> None:
    answers, _ = pieces_of(engine, {"prompt": [[5, 6, 7], [9]], "max_tokens": 3})
    assert [(one.prompt_tokens, one.completion_tokens) for one in answers] == [(3, 3), (1, 3)]
    for wrong in (10**7, -1, 2**70):
        with pytest.raises(BadRequestError):
            pieces_of(engine, {"prompt": [5, wrong], "max_tokens": 3})


def test_new_tokens_end_where_the_context_does_however_many_were_asked_for(engine: Any) -> None:
    for asked in (50, 2**62):
        (answer,), _ = pieces_of(engine, {"prompt": "a" * 2030, "max_tokens": asked})
        assert answer.finish_reason == "length" and answer.prompt_tokens + answer.completion_tokens == 2048


def test_any_whole_number_is_a_seed(engine: Any) -> None:
    for seed in (-1, -(2**63), 2**63 - 1, 2**32 - 1):
        first, again = (pieces_of(engine, DRAWN | {"max_tokens": 20, "seed": seed})[0] for _ in range(2))
        assert first == again


def test_the_work_stops_when_the_client_goes_and_the_next_is_answered(
    engine: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Counted in decoding steps of torch, and in tokens that llama.cpp hands over."""
    steps, step = [0], BatchDecoding.step

    def counted(self: Any, tokens: Any) -> Any:
        steps[0] += 1
        return step(self, tokens)

    monkeypatch.setattr(BatchDecoding, "step", counted)
    waiting, said, errors = Waiting(), [], []

    def ask() -> None:
        try:
            engine.answer(
                parse({"prompt": ["Boil"] * 3, "max_tokens": 2000}), waiting, lambda *piece: said.append(piece)
            )
        except UnansweredError as error:
            errors.append(error)

    thread = threading.Thread(target=ask)
    thread.start()
    while len(said) < 5:
        time.sleep(0.002)
    waiting.leave()
    thread.join(5)
    assert [error.status for error in errors] == [499]
    done = (steps[0], len(said))
    time.sleep(0.1)
    assert (steps[0], len(said)) == done and max(done) < 1000
    assert pieces_of(engine, {"prompt": "A", "max_tokens": 2})


def test_the_work_stops_when_the_time_is_over_or_the_server_ends(engine: Any) -> None:
    with pytest.raises(UnansweredError, match=r"not answered within 0.05 s .* ask for fewer tokens") as late:
        engine.answer(parse({"prompt": ["A"] * 4, "max_tokens": 2000}), Waiting(0.05))
    ending = Waiting(60)
    ending.end_in(0.05, server_ends())
    with pytest.raises(UnansweredError, match="the server is ending") as ended:
        engine.answer(parse({"prompt": ["A"] * 4, "max_tokens": 2000}), ending)
    assert (late.value.status, ended.value.status) == (504, 503)
