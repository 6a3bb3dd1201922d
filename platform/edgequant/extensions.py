"""What other installed packages add: tasks and PTQ methods, found by their entry points. Light: no torch.

A package adds one with two lines of its pyproject.toml and one file:

    [project.entry-points."edgequant.tasks"]
    copa = "my_package.copa:COPA"
"""

from __future__ import annotations

from functools import cache
from importlib.metadata import entry_points
from typing import Any

from edgequant.errors import UserError

TASKS = "edgequant.tasks"
PTQ_METHODS = "edgequant.ptq_methods"


@cache
def extensions(group: str, kind: type) -> tuple[Any, ...]:
    """The objects that installed packages register under an entry-point group, in the order of their names.

    Args:
        group: TASKS or PTQ_METHODS.
        kind: the class that each has to be of.

    Raises:
        UserError: an entry point that cannot be imported, or is of another class; names it and the package.
    """
    return tuple(_loaded(point, kind) for point in sorted(entry_points(group=group), key=lambda point: point.name))


def _loaded(point: Any, kind: type) -> Any:
    package = point.dist.name if point.dist else "an installed package"
    try:
        found = point.load()
    except Exception as error:
        raise UserError(
            f"{point.group} {point.name!r} of {package} cannot be loaded ({type(error).__name__}: {error}); mend or "
            f"uninstall {package}"
        ) from error
    if not isinstance(found, kind):
        raise UserError(
            f"{point.group} {point.name!r} of {package} must be a {kind.__name__}, got {type(found).__name__}"
        )
    return found
