"""Requests for chats and completions as OpenAI's clients write them, checked before anything is computed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

from edgequant_registry.serving.refusal import BadRequestError

DEFAULT_TOKENS = 256
HOTTEST = 2.0
ROLES = ("system", "user", "assistant")
SAME_AS = {"max_completion_tokens": "max_tokens"}  # OpenAI's newer name
OPTIONS = ("max_tokens", "temperature", "top_p", "stop", "seed")
# Of what clients send, what changes no answer here.
WITHOUT_EFFECT = {
    "model", "user", "metadata", "store", "service_tier", "stream_options", "safety_identifier", "prompt_cache_key",
    "parallel_tool_calls", "tool_choice",
}  # fmt: skip
# What is not offered, and the values that ask for nothing.
NOT_OFFERED: dict[str, tuple[Any, ...]] = {
    "stream": (False,), "n": (1,), "best_of": (1,), "echo": (False,), "logprobs": (False,), "top_logprobs": (0,),
    "suffix": ("",), "frequency_penalty": (0,), "presence_penalty": (0,), "logit_bias": ({},), "tools": ([],),
    "functions": ([],), "response_format": ({"type": "text"},),
}  # fmt: skip
KNOWN = ("messages", "prompt", *OPTIONS, *SAME_AS)

Message = dict[str, str]


@dataclass(frozen=True)
class Request:
    """One request.

    Attributes:
        messages: of a chat, oldest first, each with `role` and `content`; empty for a completion.
        prompts: texts to go on with; none of a chat.
        max_tokens: new tokens, at most; fewer where the context ends.
        temperature: 0 takes the likeliest token each time.
        top_p: tokens are drawn from the likeliest ones that together have this probability.
        stop: texts before which an answer ends.
        seed: of what is drawn; None draws differently each time.
    """

    messages: tuple[Message, ...] = ()
    prompts: tuple[str, ...] = ()
    max_tokens: int = DEFAULT_TOKENS
    temperature: float = 0.0
    top_p: float = 1.0
    stop: tuple[str, ...] = ()
    seed: int | None = None


def parse(sent: Any) -> Request:
    """Check a request; what is null counts as left out.

    Raises:
        BadRequestError: names the field, what was expected, what was sent.
    """
    if not isinstance(sent, Mapping):
        raise BadRequestError(f"a request must be an object with messages or a prompt, got {_shown(sent)}")
    given = {str(key): value for key, value in sent.items() if value is not None}
    _refuse_unknown(given)
    if ("messages" in given) == ("prompt" in given):
        found = "both" if "messages" in given else "neither"
        raise BadRequestError(f"a request must have messages (a chat) or prompt (a text to go on with), got {found}")
    for newer, name in SAME_AS.items():
        if newer in given:
            given[name] = given.pop(newer)
    messages = _messages(given["messages"]) if "messages" in given else ()
    prompts = _prompts(given["prompt"]) if "prompt" in given else ()
    return Request(
        messages, prompts,
        max_tokens=_whole(given, "max_tokens", DEFAULT_TOKENS, least=1),
        temperature=_number(given, "temperature", 0.0, (0.0, HOTTEST)),
        top_p=_number(given, "top_p", 1.0, (0.0, 1.0), beyond=True),
        stop=_stops(given.get("stop", ())),
        seed=_whole(given, "seed", 0, least=0) if "seed" in given else None,
    )  # fmt: skip


def _refuse_unknown(given: Mapping[str, Any]) -> None:
    for name, value in given.items():
        if name in NOT_OFFERED:
            if not any(_same(value, neutral) for neutral in NOT_OFFERED[name]):
                raise BadRequestError(f"{name} must be left out, which is not offered here, got {_shown(value)}", name)
        elif name not in KNOWN and name not in WITHOUT_EFFECT:
            near = get_close_matches(name, KNOWN, n=1)
            hint = f"did you mean {near[0]}?" if near else f"there are: {', '.join(KNOWN)}"
            raise BadRequestError(f"{name} is unknown; {hint}", name)


def _same(value: Any, neutral: Any) -> bool:
    """Equal, and no truth value for a number or the other way round."""
    return bool(value == neutral) and isinstance(value, bool) == isinstance(neutral, bool)


def _messages(sent: Any) -> tuple[Message, ...]:
    if not _is_list(sent) or not sent:
        raise BadRequestError(f"messages must be a list of at least one message, got {_shown(sent)}", "messages")
    return tuple(_message(message, f"messages[{at}]") for at, message in enumerate(sent))


def _message(sent: Any, where: str) -> Message:
    if not isinstance(sent, Mapping):
        raise BadRequestError(f"{where} must be an object with role and content, got {_shown(sent)}", where)
    role = "system" if sent.get("role") == "developer" else sent.get("role")  # OpenAI's newer name
    if role not in ROLES:
        raise BadRequestError(f"{where}.role must be {', '.join(ROLES)}, got {_shown(role)}", where)
    return {"role": str(role), "content": _content(sent.get("content"), f"{where}.content")}


def _content(sent: Any, where: str) -> str:
    """A text, or the list of texts that some clients make of it."""
    if not _is_list(sent):
        return _text(sent, where)
    parts = [part.get("text") if isinstance(part, Mapping) and part.get("type") == "text" else None for part in sent]
    if not parts or None in parts:
        raise BadRequestError(f"{where} must be a text or parts of type text, got {_shown(sent)}", where)
    return "\n".join(_text(part, where) for part in parts)


def _prompts(sent: Any) -> tuple[str, ...]:
    texts = list(sent) if _is_list(sent) else [sent]
    found = tuple(_text(text, "prompt") for text in texts)
    if not found or not all(found):
        raise BadRequestError("prompt must be a text or a list of texts, none of them empty", "prompt")
    return found


def _text(sent: Any, where: str) -> str:
    if not isinstance(sent, str):
        raise BadRequestError(f"{where} must be a text, got {_shown(sent)}", where)
    try:
        sent.encode()
    except UnicodeEncodeError:
        raise BadRequestError(f"{where} must be Unicode text, got a half of a surrogate pair", where) from None
    return sent


def _stops(sent: Any) -> tuple[str, ...]:
    texts = tuple(_text(text, "stop") for text in (sent if _is_list(sent) else [sent]))
    if not all(texts):
        raise BadRequestError("stop must be a text or a list of texts, none of them empty", "stop")
    return texts


def _whole(given: Mapping[str, Any], name: str, default: int, least: int) -> int:
    value = given.get(name, default)
    value = int(value) if isinstance(value, float) and value.is_integer() else value  # as data frames hold it
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value < 2**63:
        raise BadRequestError(f"{name} must be a whole number, {least} or more, got {_shown(value)}", name)
    return value


def _number(
    given: Mapping[str, Any], name: str, default: float, bounds: tuple[float, float], *, beyond: bool = False
) -> float:
    """`beyond`: the lower bound itself is too little."""
    value, (low, high) = given.get(name, default), bounds
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if not is_number or not low <= value <= high or (beyond and value == low):
        within = f"above {low:g} and at most {high:g}" if beyond else f"from {low:g} to {high:g}"
        raise BadRequestError(f"{name} must be a number {within}, got {_shown(value)}", name)
    return float(value)


def _is_list(sent: Any) -> bool:
    return isinstance(sent, list | tuple)


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
