"""`edgequant.tracking` that records nothing: the steps of a workflow run without MLflow, and write no store."""

from __future__ import annotations

import sys
from contextlib import nullcontext
from types import ModuleType
from typing import Any


class _Silent(ModuleType):
    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return _nothing


def _nothing(*_arguments: Any, **_named: Any) -> Any:
    return nullcontext()  # of what is opened with `with`, as `variant_run`


def record_nothing() -> None:
    """Put it in place of the real one; to be called before a workflow's steps are imported.

    Raises:
        RuntimeError: the real one is imported already.
    """
    import edgequant

    if "edgequant.tracking" in sys.modules and not isinstance(sys.modules["edgequant.tracking"], _Silent):
        raise RuntimeError("record_nothing must be called before edgequant.tracking is imported")
    tracking = _Silent("edgequant.tracking")
    tracking.__path__ = []  # a package, for `from edgequant.tracking.logging import ...`
    sys.modules["edgequant.tracking"] = edgequant.tracking = tracking  # type: ignore[attr-defined]
    for name in ("logging", "runs", "search"):
        module = _Silent(f"edgequant.tracking.{name}")
        sys.modules[module.__name__] = module
        setattr(tracking, name, module)
