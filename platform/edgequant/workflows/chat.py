"""`edgequant chat`: talk in llama.cpp with what ships. It makes no run.

edgequant chat --model CHECKPOINT                     # a line in, an answer out; an empty line ends it
edgequant chat --model small.gguf --prompt "How is flood water made safe to drink?"
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgequant.disk.leftovers import Scratch
from edgequant.errors import UserError
from edgequant.evaluation.backends.llama_cpp.server import file_beside, start_server
from edgequant.export.choice import AUTO
from edgequant.export.formats import FOLDERS
from edgequant.workflows.export import target_of, write
from edgequant.workflows.steps.register import default_model
from edgequant.workflows.validate import check_threads, is_adapter_over_integers

if TYPE_CHECKING:
    from edgequant.models.sources import ModelSource


def chat(
    *, model: str | None = None, prompt: str | None = None, max_new_tokens: int = 256, threads: int | None = None
) -> None:
    """Talk with a model in llama.cpp, as it ships.

    Args:
        model: .gguf file, or a model source as for `export`, which is written as a GGUF file first unless one lies
            beside its weights; a checkpoint keeps its integers. By default as `export`.
        prompt: is answered once; null: lines of the terminal or of a pipe, until an empty one.
        max_new_tokens: of an answer, at most.
        threads: CPU threads; null takes the physical cores.
    """
    check_settings(prompt, max_new_tokens, threads)
    from edgequant import models

    source = models.check_available(model or default_model())
    with Scratch() as scratch:
        file, lora = files_of(source, Path(scratch))
        server, conversation = start_server(file, lora=lora, threads=threads), has_template(file)
        messages: list[dict[str, str]] = []
        for asked in _prompts(prompt):
            turn = [*messages, {"role": "user", "content": asked}] if conversation else []
            try:
                said = answer(server, turn, asked, show=partial(print, end="", flush=True), max_tokens=max_new_tokens)
            except UserError as error:
                if prompt is not None:
                    raise
                print(f"edgequant chat: {error}", file=sys.stderr, flush=True)  # as if it had not been asked
                continue
            messages = [*turn, {"role": "assistant", "content": said}]


def check_settings(prompt: str | None, max_new_tokens: int, threads: int | None) -> None:
    """Refuse what cannot be answered, before anything is loaded.

    Raises:
        UserError: names the value and what was expected; or llama.cpp is not installed.
    """
    from edgequant.evaluation.backends.llama_cpp.library import load_library

    if prompt is not None and not prompt.strip():
        raise UserError("prompt must be a question or the beginning of a text, got nothing; leave it out to be asked")
    if max_new_tokens < 1:
        raise UserError(f"max_new_tokens must be 1 or more, got {max_new_tokens}")
    check_threads(threads, "llama.cpp")
    load_library()


def files_of(source: ModelSource, scratch: Path) -> tuple[Path, Path | None]:
    """The GGUF file of a model source, and of an adapter over a checkpoint's integers the LoRA file beside it."""
    from edgequant import models
    from edgequant.models.sources import adapter_base

    if not is_adapter_over_integers(source):
        return file_of(source, scratch), None
    from edgequant.export.gguf.lora import write_lora

    lora = write_lora(Path(source.location), scratch / "adapter.gguf").path
    return file_of(models.check_available(adapter_base(Path(source.location))), scratch), lora


def file_of(source: ModelSource, scratch: Path) -> Path:
    """The GGUF file of a model source: itself, one beside a checkpoint's weights, else one written into `scratch`.

    Raises:
        UserError: llama.cpp cannot run it.
    """
    from edgequant import models
    from edgequant.export.shipped import others_integers, scheme_of

    location = Path(source.location)
    if source.kind == "gguf":
        return location
    if source.kind == "folder" and (beside := file_beside(location)) is not None:
        return beside
    aim = target_of(source, AUTO, None)
    if aim.format in FOLDERS:
        raise UserError(f"model must be one that llama.cpp runs, got {source.name!r}: {aim.because}")
    loaded = models.load(source, dtype="float32", device="cpu")
    print(aim.line(scheme_of(loaded), others_integers(loaded)), flush=True)
    return write(loaded, scratch, aim).path


def has_template(file: Path) -> bool:
    """Whether a .gguf file says how a conversation is written."""
    from edgequant.models.gguf.contents import read_contents

    return "tokenizer.chat_template" in read_contents(file).fields


def _prompts(prompt: str | None) -> Iterator[str]:
    if prompt is not None:
        yield prompt
        return
    while True:
        try:
            asked = input("> " if sys.stdin.isatty() else "").strip()
        except EOFError:
            return
        if not asked:
            return
        yield asked


def answer(
    server: Any, messages: list[dict[str, str]], asked: str, *, show: Callable[[str], Any], **wanted: Any
) -> str:
    """What a llama.cpp server answers, or where a model has no chat template, how it continues the text.

    Args:
        messages: of the conversation, the last of them the question; none where there is no template.
        show: called with each piece as it comes.
        wanted: settings of the completion, such as `max_tokens`.

    Raises:
        UserError: it gives none, and why.
    """
    said: list[str] = []
    refused: list[UserError] = []

    def take(chunk: dict[str, Any]) -> bool:
        if "error" in chunk:
            refused.append(_refusal(chunk["error"], "conversation" if len(messages) > 1 else "prompt"))
            return True
        said.append(_said_in(chunk))
        show(said[-1])
        return False

    if messages:
        server.handle_chat_completions({"messages": messages, "stream": True, **wanted}, take)
    else:
        server.handle_completions({"prompt": asked, "stream": True, **wanted}, take)
    if said or not refused:
        show("\n")
    if refused:
        raise refused[0]
    return "".join(said)


def _said_in(chunk: dict[str, Any]) -> str:
    """The text of a chunk that llama.cpp's server streams, of a conversation or of a completion."""
    choice = (chunk.get("choices") or [{}])[0]
    return str(choice.get("delta", {}).get("content") or choice.get("text") or chunk.get("content") or "")


def _refusal(error: dict[str, Any], what: str) -> UserError:
    """What llama.cpp's server says instead of an answer, in one line."""
    tokens, context = error.get("n_prompt_tokens"), error.get("n_ctx")
    if tokens is None or context is None:
        reason = " ".join(str(error.get("message") or error).split())
        return UserError(f"llama.cpp gave no answer: {reason}; ask otherwise")
    fix = "shorten the question or begin anew" if what == "conversation" else "shorten it"
    return UserError(f"the {what} has {tokens} tokens and the model's context {context}: {fix}")
