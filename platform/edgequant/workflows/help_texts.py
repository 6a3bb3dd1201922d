"""Parts of help texts that depend on the installed packages: `{ptq_methods}` in a docstring stands for such a part."""

from __future__ import annotations

from collections.abc import Callable

from edgequant.quantization.ptq.methods import describe_methods

PLACEHOLDERS: dict[str, Callable[[], str]] = {"{ptq_methods}": describe_methods}


def filled(text: str) -> str:
    """A help text with every placeholder replaced; what stands for it is looked up only if it is there.

    Raises:
        UserError: an installed package's entry is broken, by name.
    """
    for placeholder, describe in PLACEHOLDERS.items():
        if placeholder in text:
            text = text.replace(placeholder, describe())
    return text
