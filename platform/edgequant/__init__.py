"""edgequant: make small language models small enough for edge devices, and prove that they still work.

After `import edgequant`, `transformers.AutoModelForCausalLM.from_pretrained` loads edgequant checkpoints.
"""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import sys
from collections.abc import Sequence
from types import ModuleType
from typing import Any

_REGISTRY = "transformers.quantizers.auto"


class _RegisterOnImport(importlib.abc.MetaPathFinder):
    """Registers our quantiser as soon as transformers' registry is imported, and not before.

    Importing transformers takes seconds; the command line should not pay them to reject a misspelt option.
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
