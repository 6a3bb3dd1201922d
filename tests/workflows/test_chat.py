"""`edgequant chat`: an answer of llama.cpp to a prompt, from a file, from a checkpoint and from what lies beside it."""

from __future__ import annotations

import copy
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from small_models import small

from edgequant import api, models
from edgequant.errors import UserError
from edgequant.export.gguf.write import write_gguf
from edgequant.workflows.chat import chat, file_of

pytest.importorskip("xllamacpp")


def checkpoint(tiny: Any, folder: Path, scheme: str) -> Path:
    model = copy.deepcopy(tiny.model)
    api.quantize(model, scheme)
    api.save(model, tiny.tokenizer, folder)
    return folder


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """In place of llama.cpp's: keeps what it is asked, and answers 'dry land'."""
    asked = SimpleNamespace(chats=[], completions=[])

    def answer(kept: list[Any], text: Any) -> Any:
        def handle(request: dict[str, Any], take: Any) -> None:
            kept.append(request)
            for word in ("dry", " land"):
                take({"choices": [text(word)]})

        return handle

    asked.handle_chat_completions = answer(asked.chats, lambda word: {"delta": {"content": word}})
    asked.handle_completions = answer(asked.completions, lambda word: {"text": word})
    monkeypatch.setattr("edgequant.workflows.chat.start_server", lambda *_, **__: asked)
    return asked


def test_a_prompt_is_answered_in_llama_cpp(tiny: Any, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    folder = checkpoint(tiny, tmp_path / "small", "q4_0+embq4_0")
    said = []
    for _ in range(4):  # llama.cpp draws tokens, and a model of random weights may end its answer at once
        chat(model=str(folder), prompt="The water", max_new_tokens=24, threads=1)
        first, *answer = capfd.readouterr().out.splitlines()
        assert first.startswith("format: q4_0 keeps all integers")
        said.append("".join(answer))
    assert any(said)


def test_lines_are_answered_until_an_empty_one(
    tiny: Any, server: SimpleNamespace, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = iter(["Where?", "And then?", ""])
    monkeypatch.setattr("builtins.input", lambda _: next(lines))
    monkeypatch.setattr("edgequant.workflows.chat.has_template", lambda _: True)
    chat(model="tiny", max_new_tokens=3)
    assert capsys.readouterr().out.endswith("dry land\ndry land\n")
    said = {"role": "assistant", "content": "dry land"}
    first, second = ({"role": "user", "content": asked} for asked in ("Where?", "And then?"))
    assert [request["messages"] for request in server.chats] == [[first], [first, said, second]]
    assert {request["max_tokens"] for request in server.chats} == {3}


def test_without_a_chat_template_the_text_goes_on(
    server: SimpleNamespace, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("edgequant.workflows.chat.has_template", lambda _: False)
    chat(model="tiny", prompt="The water")
    assert [request["prompt"] for request in server.completions] == ["The water"] and not server.chats
    assert capsys.readouterr().out.endswith("dry land\n")


def test_a_file_beside_the_weights_is_taken_and_what_llama_cpp_cannot_run_is_refused(tiny: Any, tmp_path: Path) -> None:
    folder = checkpoint(tiny, tmp_path / "small", "w4-g32")
    (tmp_path / "scratch").mkdir()
    source = models.resolve(str(folder))
    written = file_of(source, tmp_path / "scratch")
    assert written.parent == tmp_path / "scratch"
    beside = folder / "tiny-q4_1.gguf"
    beside.write_bytes(written.read_bytes())
    assert file_of(source, tmp_path / "scratch") == beside
    other = checkpoint(tiny, tmp_path / "eight", "w8a8")
    with pytest.raises(UserError, match=r"model must be one that llama\.cpp runs, got 'eight'"):
        file_of(models.resolve(str(other)), tmp_path / "scratch")


@pytest.mark.parametrize("template", [True, False])
def test_a_prompt_that_is_longer_than_the_context_is_refused_in_one_line(
    template: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_gguf(small("qwen2"), tmp_path / "m.gguf", "f16")
    monkeypatch.setattr("edgequant.workflows.chat.has_template", lambda _: template)
    with pytest.raises(UserError, match=r"^the prompt has \d+ tokens and the model's context 256: shorten it$"):
        chat(model=str(tmp_path / "m.gguf"), prompt="water " * 400, threads=1)
    assert capsys.readouterr().out == ""


def test_a_refused_turn_is_told_and_dropped(
    server: SimpleNamespace, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    answered, lines = server.handle_chat_completions, iter(["Where?", "Too long", "Too odd", "And then?", ""])
    told = {
        "Too long": {"message": "request (263 tokens) exceeds", "n_prompt_tokens": 263, "n_ctx": 128},
        "Too odd": {"code": 500, "message": "no\nslot"},
    }

    def handle(request: dict[str, Any], take: Any) -> None:
        if (error := told.get(request["messages"][-1]["content"])) is None:
            answered(request, take)
        else:
            assert take({"error": error})

    server.handle_chat_completions = handle
    monkeypatch.setattr("builtins.input", lambda _: next(lines))
    monkeypatch.setattr("edgequant.workflows.chat.has_template", lambda _: True)
    chat(model="tiny", max_new_tokens=3)
    captured = capsys.readouterr()
    assert captured.out.endswith("dry land\ndry land\n")
    assert [line.removeprefix("edgequant chat: ") for line in captured.err.splitlines()[-2:]] == [
        "the conversation has 263 tokens and the model's context 128: shorten the question or begin anew",
        "llama.cpp gave no answer: no slot; ask otherwise",
    ]
    assert [message["content"] for message in server.chats[-1]["messages"]] == ["Where?", "dry land", "And then?"]


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"prompt": "  "}, "prompt must be a question"),
        ({"max_new_tokens": 0}, "max_new_tokens must be 1 or more, got 0"),
        ({"threads": 0}, "threads must be 1 or more, got 0"),
        ({"model": "no-such-model"}, "model 'no-such-model' is unknown"),
    ],
)
def test_what_cannot_be_answered_is_refused(given: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        chat(**{"model": "tiny", **given})
