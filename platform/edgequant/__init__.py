"""edgequant: make small language models small enough for edge devices, and prove that they still work.

After `import edgequant`, `transformers.AutoModelForCausalLM.from_pretrained` loads edgequant checkpoints. `load`,
`parse_scheme`, `quantize`, `prepare`, `convert`, `evaluate` and `save` are imported when they are first used: see
`edgequant.api`.
"""

from __future__ import annotations

import importlib.machinery
import sys
from collections.abc import Sequence
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from edgequant.api import convert, evaluate, load, parse_scheme, prepare, quantize, save

__version__ = "0.1.0"
__all__ = ["__version__", "convert", "evaluate", "load", "parse_scheme", "prepare", "quantize", "save"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'edgequant' has no attribute {name!r}")
    from edgequant import api

    return getattr(api, name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


_REGISTRY = "transformers.quantizers.auto"


class _RegisterOnImport:
    """Registers our quantiser as soon as transformers' registry is imported, and not before.

    Importing transformers takes seconds; the command line should not pay them to reject a misspelt option. A finder by
    its method alone: `importlib.abc`, whose class would say so, takes a third of the start of a process that is timed.
    """

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if fullname != _REGISTRY:
            return None
        sys.meta_path.remove(self)
        spec = importlib.machinery.PathFinder.find_spec(fullname, path)
        if spec is not None and spec.loader is not None:
            original: Any = spec.loader
            execute = original.exec_module

            def execute_then_register(module: ModuleType) -> None:
                execute(module)
                _register()

            original.exec_module = execute_then_register
        return spec


def _register() -> None:
    import edgequant.quantization.transformers_quantizer  # noqa: F401 - registers itself


if _REGISTRY in sys.modules:
    _register()
else:
    sys.meta_path.insert(0, _RegisterOnImport())
