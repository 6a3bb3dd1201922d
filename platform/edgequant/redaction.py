"""Passwords, keys and tokens taken out of what is printed, logged or filed. Light: the standard library alone."""

from __future__ import annotations

import os
import re
from collections.abc import Callable

HIDDEN = "***"
IN_ADDRESS = re.compile(r"(://[^\s/@:]*):[^\s/]*@")
IN_QUERY = re.compile(r"([?&;](?:\w*password|passwd|pwd|\w*token|\w*secret\w*|api_?key)=)[^&;\s'\"]+", re.I)
NAMES = re.compile(r"TOKEN(?!IZER)|PASSW|SECRET|ACCESS_KEY|API_?KEY|PRIVATE_KEY", re.I)  # of variables that hold one
SHORTEST = 8  # characters: a shorter value may well be a word


def without_password(text: str) -> str:
    """A text with `***` in place of every password of an address in it, before the host or in its query."""
    return IN_QUERY.sub(rf"\1{HIDDEN}", IN_ADDRESS.sub(rf"\1:{HIDDEN}@", text))


def without_secrets(text: str) -> str:
    """The same, and in place of what the environment holds in HF_TOKEN, AWS_SECRET_ACCESS_KEY, MLFLOW_TRACKING_PASSWORD
    and the like: a library's error may repeat what it was given."""
    return hiding_secrets()(text)


def hiding_secrets() -> Callable[[str], str]:
    """`without_secrets` of what the environment holds now, for many short texts: to look through it takes longer."""
    secrets = sorted(_secrets(), key=len, reverse=True)

    def hide(text: str) -> str:
        for value in secrets:
            text = text.replace(value, HIDDEN)
        return without_password(text)

    return hide


def _secrets() -> set[str]:
    found = {value.strip() for name, value in os.environ.items() if NAMES.search(name)}
    return {value for value in found if len(value) >= SHORTEST and not value.startswith("/")}  # the name of a file
