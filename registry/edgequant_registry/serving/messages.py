"""The messages of a chat: roles, and texts or the parts that OpenAI's clients make of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from edgequant_registry.serving.refusal import BadRequestError

ROLES = ("system", "user", "assistant")
SAME_ROLE = {"developer": "system"}  # OpenAI's newer name
KEYS = ("role", "content")
WITHOUT_EFFECT = ("name",)
# What an assistant's message holds when a client sends back what it was answered: nothing.
NOT_OFFERED = ("refusal", "annotations", "audio", "function_call", "tool_calls", "tool_call_id", "reasoning_content")

Message = dict[str, str]


def messages_of(sent: Any) -> tuple[Message, ...]:
    """Check messages, oldest first.

    Raises:
        BadRequestError: names the message, what was expected, what was sent.
    """
    if not is_list(sent) or not sent:
        raise BadRequestError(f"messages must be a list of at least one message, got {shown(sent)}", "messages")
    return tuple(_message(message, f"messages[{at}]") for at, message in enumerate(sent))


def text_of(sent: Any, where: str) -> str:
    """A text that can be written as UTF-8."""
    if not isinstance(sent, str):
        raise BadRequestError(f"{where} must be a text, got {shown(sent)}", where)
    try:
        sent.encode()
    except UnicodeEncodeError:
        raise BadRequestError(f"{where} must be Unicode text, got a half of a surrogate pair", where) from None
    return sent


def is_list(sent: Any) -> bool:
    return isinstance(sent, list | tuple)


def shown(value: Any) -> str:
    """A value on one line, short; what is large is not written out first."""
    if isinstance(value, str | bytes) and len(value) > 60:
        value = value[:60]
    elif isinstance(value, list | tuple | Mapping) and len(value) > 20:
        return f"{len(value)} values"
    try:
        text = repr(value)
    except (ValueError, RecursionError):  # a number of thousands of digits, lists in lists without end
        return f"a value of type {type(value).__name__}"
    return text if len(text) <= 60 else f"{text[:57]}..."


def _message(sent: Any, where: str) -> Message:
    if not isinstance(sent, Mapping):
        raise BadRequestError(f"{where} must be an object with role and content, got {shown(sent)}", where)
    _refuse_unknown(sent, where)
    role = sent.get("role")
    role = SAME_ROLE.get(role, role) if isinstance(role, str) else role
    if role not in ROLES:
        raise BadRequestError(f"{where}.role must be {', '.join(ROLES)}, got {shown(role)}", where)
    return {"role": str(role), "content": _content(sent.get("content"), f"{where}.content")}


def _refuse_unknown(sent: Mapping[str, Any], where: str) -> None:
    for key, value in sent.items():
        if key in NOT_OFFERED and value not in (None, []):
            raise BadRequestError(
                f"{where}.{key} must be left out, which is not offered here, got {shown(value)}", where
            )
        if key not in (*KEYS, *WITHOUT_EFFECT, *NOT_OFFERED):
            raise BadRequestError(f"{where}.{shown(key)[1:-1]} is unknown; there are: {', '.join(KEYS)}", where)


def _content(sent: Any, where: str) -> str:
    """A text, or the list of texts that some clients make of it."""
    if not is_list(sent):
        return text_of(sent, where)
    parts = [part.get("text") if isinstance(part, Mapping) and part.get("type") == "text" else None for part in sent]
    if not parts or None in parts:
        raise BadRequestError(f"{where} must be a text or parts of type text, got {shown(sent)}", where)
    return "\n".join(text_of(part, where) for part in parts)
