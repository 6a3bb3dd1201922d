"""Which of the runtimes that are installed serves a checkpoint."""

from __future__ import annotations

from pathlib import Path

from edgequant.evaluation.backends.llama_cpp.library import version
from edgequant.evaluation.backends.llama_cpp.server import file_beside
from edgequant.machine.cores import wait_without_spinning
from edgequant_registry.serving.answers import Engine


def load_engine(folder: Path) -> Engine:
    """llama.cpp where a GGUF file lies in the folder and xllamacpp is installed, else torch.

    Raises:
        UserError: a file is damaged, or the model cannot be loaded.
    """
    file = file_beside(folder)
    wait_without_spinning()  # requests and the server's own thread want the cores too
    if file is not None and version() is not None:
        from edgequant_registry.serving.llama_cpp_engine import LlamaCppEngine

        return LlamaCppEngine(folder, file)
    from edgequant_registry.serving.torch_engine import TorchEngine

    return TorchEngine(folder)
