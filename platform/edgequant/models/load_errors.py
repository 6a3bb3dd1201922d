"""One line for whatever a library raises while it reads a model; a fault of this program keeps its traceback."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any, TypeVar

from edgequant.errors import UserError, first_line
from edgequant.models.sources import ModelSource

Loading = TypeVar("Loading", bound=Callable[..., Any])
OURS = ("edgequant", "edgequant_tune", "edgequant_registry")


def told_in_one_line(load: Loading) -> Loading:
    """A function that loads what its first argument names, raising `UserError` where a library fails at it."""

    @wraps(load)
    def loading(source: Any, *arguments: Any, **options: Any) -> Any:
        source = str(source) if isinstance(source, Path) else source
        if not isinstance(source, str | ModelSource):
            raise UserError(f"model must be a name, a path or a URI, got {source!r:.80}; give such as 'tiny'")
        try:
            return load(source, *arguments, **options)
        except UserError:
            raise
        except Exception as error:
            if is_raised_by_us(error):
                raise
            raise UserError(_line(source, error)) from error

    return loading  # type: ignore[return-value]


def is_raised_by_us(error: BaseException) -> bool:
    """Whether the line that raised it stands in this program."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    module = str(trace.tb_frame.f_globals.get("__name__", "")) if trace is not None else ""
    return module.partition(".")[0] in OURS


def _line(source: str | ModelSource, error: Exception) -> str:
    location = source if isinstance(source, str) else source.location
    told = first_line(error)
    why = f"{type(error).__name__}: {told}" if told else type(error).__name__
    shown = location if len(location) <= 200 else f"{location[:60]}..."
    return (
        f"model {shown!r} could not be loaded ({why[:300]}); its files may be damaged, cut off or of a kind that is "
        "not known: copy it again, or give another"
    )
