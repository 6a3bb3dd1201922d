"""Requests for chats and completions as OpenAI's clients write them, checked before anything is computed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

from edgequant_registry.serving.limits import Limits
from edgequant_registry.serving.messages import Message, is_list, messages_of, shown, text_of
from edgequant_registry.serving.refusal import BadRequestError

DEFAULT_TOKENS = 256
HOTTEST = 2.0
MOST_STOPS = 4  # as OpenAI's
LARGEST = 2**63 - 1
SAME_AS = {"max_completion_tokens": "max_tokens"}  # OpenAI's newer name
OPTIONS = ("max_tokens", "temperature", "top_p", "stop", "seed", "stream", "stream_options")
# Of what clients send, what changes no answer here, and what it has to be.
WITHOUT_EFFECT: dict[str, type | tuple[type, ...]] = {
    "model": str, "user": str, "metadata": Mapping, "store": bool, "service_tier": str, "safety_identifier": str,
    "prompt_cache_key": str, "prompt_cache_retention": str, "parallel_tool_calls": bool, "tool_choice": (str, Mapping),
}  # fmt: skip
# What is not offered, and the values that ask for nothing.
NOT_OFFERED: dict[str, tuple[Any, ...]] = {
    "n": (1,), "best_of": (1,), "echo": (False,), "logprobs": (False,), "top_logprobs": (0,),
    "suffix": ("",), "frequency_penalty": (0,), "presence_penalty": (0,), "logit_bias": ({},), "tools": ([],),
    "functions": ([],), "function_call": ("none",), "response_format": ({"type": "text"},), "audio": (),
    "modalities": (["text"],), "prediction": (), "web_search_options": (), "reasoning_effort": ("none",),
    "verbosity": ("medium",),
}  # fmt: skip
KNOWN = ("messages", "prompt", *OPTIONS, *SAME_AS)

Prompt = str | tuple[int, ...]


@dataclass(frozen=True)
class Request:
    """One request.

    Attributes:
        messages: of a chat, oldest first, each with `role` and `content`; empty for a completion.
        prompts: texts to go on with, or their token ids; none of a chat.
        max_tokens: new tokens, at most; fewer where the context ends.
        temperature: 0 takes the likeliest token each time.
        top_p: tokens are drawn from the likeliest ones that together have this probability.
        stop: texts before which an answer ends.
        seed: of what is drawn; None draws differently each time.
        stream: whether the answer is sent as it comes.
        include_usage: whether a stream ends with the counts of tokens.
    """

    messages: tuple[Message, ...] = ()
    prompts: tuple[Prompt, ...] = ()
    max_tokens: int = DEFAULT_TOKENS
    temperature: float = 0.0
    top_p: float = 1.0
    stop: tuple[str, ...] = ()
    seed: int | None = None
    stream: bool = False
    include_usage: bool = False


def parse(sent: Any, limits: Limits | None = None) -> Request:
    """Check a request; what is null counts as left out.

    Raises:
        BadRequestError: names the field, what was expected, what was sent.
    """
    if not isinstance(sent, Mapping):
        raise BadRequestError(f"a request must be an object with messages or a prompt, got {shown(sent)}")
    given = {str(key): value for key, value in sent.items() if value is not None}
    _refuse_unknown(given)
    if ("messages" in given) == ("prompt" in given):
        found = "both" if "messages" in given else "neither"
        raise BadRequestError(f"a request must have messages (a chat) or prompt (a text to go on with), got {found}")
    for newer, name in SAME_AS.items():
        if newer in given:
            given[name] = given.pop(newer)
    most = (limits or Limits()).most_prompts
    stream = _truth(given, "stream")
    return Request(
        messages_of(given["messages"]) if "messages" in given else (),
        _prompts(given["prompt"], most) if "prompt" in given else (),
        max_tokens=_whole(given, "max_tokens", DEFAULT_TOKENS, least=1),
        temperature=_number(given, "temperature", 0.0, (0.0, HOTTEST)),
        top_p=_number(given, "top_p", 1.0, (0.0, 1.0), beyond=True),
        stop=_stops(given.get("stop", ())),
        seed=_whole(given, "seed", 0, least=-LARGEST - 1) if "seed" in given else None,
        stream=stream,
        include_usage=_include_usage(given, stream),
    )  # fmt: skip


def _refuse_unknown(given: Mapping[str, Any]) -> None:
    for name, value in given.items():
        if name in NOT_OFFERED:
            if not any(_same(value, neutral) for neutral in NOT_OFFERED[name]):
                raise BadRequestError(f"{name} must be left out, which is not offered here, got {shown(value)}", name)
        elif name in WITHOUT_EFFECT:
            if not isinstance(value, WITHOUT_EFFECT[name]):
                raise BadRequestError(f"{name} must be of another type (it changes nothing), got {shown(value)}", name)
        elif name not in KNOWN:
            near = get_close_matches(name[:60], KNOWN, n=1)
            hint = f"did you mean {near[0]}?" if near else f"there are: {', '.join(KNOWN)}"
            raise BadRequestError(f"{shown(name)[1:-1]} is unknown; {hint}")


def _same(value: Any, neutral: Any) -> bool:
    """Equal, and no truth value for a number or the other way round."""
    return bool(value == neutral) and isinstance(value, bool) == isinstance(neutral, bool)


def _prompts(sent: Any, most: int) -> tuple[Prompt, ...]:
    one = not is_list(sent) or (len(sent) > 0 and _is_token(sent[0]))
    prompts = [sent] if one else list(sent)
    if len(prompts) > most:
        raise BadRequestError(
            f"prompt must be at most {most} prompts, got {len(prompts)}; send several requests", "prompt"
        )
    found = tuple(_prompt(prompt) for prompt in prompts)
    if not found or not all(found):
        raise BadRequestError("prompt must be a text or a list of texts, none of them empty", "prompt")
    return found


def _prompt(sent: Any) -> Prompt:
    if not is_list(sent):
        return text_of(sent, "prompt")
    if not all(map(_is_token, sent)):
        raise BadRequestError(f"prompt must be texts or lists of token ids, got {shown(sent)}", "prompt")
    return tuple(sent)


def _is_token(sent: Any) -> bool:
    return isinstance(sent, int) and not isinstance(sent, bool)


def _stops(sent: Any) -> tuple[str, ...]:
    texts = tuple(text_of(text, "stop") for text in (sent if is_list(sent) else [sent]))
    if not all(texts):
        raise BadRequestError("stop must be a text or a list of texts, none of them empty", "stop")
    if len(texts) > MOST_STOPS:
        raise BadRequestError(f"stop must be at most {MOST_STOPS} texts, got {len(texts)}", "stop")
    return texts


def _include_usage(given: Mapping[str, Any], stream: bool) -> bool:
    options = given.get("stream_options", {})
    known = {"include_usage", "include_obfuscation"}
    if not isinstance(options, Mapping) or not set(options) <= known:
        raise BadRequestError(
            f"stream_options must be an object with include_usage, got {shown(options)}", "stream_options"
        )
    if "stream_options" in given and not stream:
        raise BadRequestError("stream_options need stream: true; set it, or leave them out", "stream_options")
    return _truth({name: value for name, value in options.items() if value is not None}, "include_usage")


def _truth(given: Mapping[str, Any], name: str) -> bool:
    value = given.get(name, False)
    if not isinstance(value, bool):
        raise BadRequestError(f"{name} must be true or false, got {shown(value)}", name)
    return value


def _whole(given: Mapping[str, Any], name: str, default: int, least: int) -> int:
    value = given.get(name, default)
    value = int(value) if isinstance(value, float) and value.is_integer() else value  # as data frames hold it
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= LARGEST:
        wanted = f"from {least} to {LARGEST}" if isinstance(value, int) and abs(value) > LARGEST else f"{least} or more"
        raise BadRequestError(f"{name} must be a whole number, {wanted}, got {shown(value)}", name)
    return value


def _number(
    given: Mapping[str, Any], name: str, default: float, bounds: tuple[float, float], *, beyond: bool = False
) -> float:
    """`beyond`: the lower bound itself is too little."""
    value, (low, high) = given.get(name, default), bounds
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if not is_number or not low <= value <= high or (beyond and value == low):
        within = f"above {low:g} and at most {high:g}" if beyond else f"from {low:g} to {high:g}"
        raise BadRequestError(f"{name} must be a number {within}, got {shown(value)}", name)
    return float(value)
