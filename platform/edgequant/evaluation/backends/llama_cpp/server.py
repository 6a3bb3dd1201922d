"""llama.cpp's own server within this process: OpenAI's chats and completions. Light, as `library`."""

from __future__ import annotations

import secrets
from pathlib import Path
from typing import Any

from edgequant.errors import UserError
from edgequant.evaluation.backends.llama_cpp.library import load_library
from edgequant.machine.cores import physical_cores

CONTEXT = 4096  # tokens at most: a whole context of a small model may take more memory than its weights


def start_server(file: Path, *, lora: Path | None = None, threads: int | None = None, parallel: int = 1) -> Any:
    """Load a GGUF file; the server's `handle_chat_completions` and `handle_completions` take requests as dicts.

    Args:
        lora: a LoRA file to put beside it.
        threads: CPU threads; None takes the physical cores.
        parallel: requests that are answered at once; each has a context of 4,096 tokens.

    Raises:
        UserError: xllamacpp is absent, or llama.cpp does not load the file.
    """
    load_library()
    import xllamacpp

    settings = xllamacpp.CommonParams()
    settings.model.path = str(file)
    if lora is not None:
        settings.lora_adapters = [xllamacpp.CommonAdapterLoraInfo(str(lora), 1.0)]
    settings.n_ctx, settings.n_parallel = CONTEXT * parallel, parallel
    settings.warmup, settings.verbosity, settings.prefill_assistant = False, -1, False
    settings.api_keys = [secrets.token_urlsafe()]  # it listens on a port too, where nobody else is to ask
    settings.cache_ram_mib = 0  # else it keeps up to 8 GB of earlier prompts
    settings.cpuparams.n_threads = threads or physical_cores()
    try:
        return xllamacpp.Server(settings)
    except RuntimeError as error:
        raise UserError(f"llama.cpp could not load {file}: {error}; export the model again") from error


def file_beside(folder: Path) -> Path | None:
    """The GGUF file that lies beside a checkpoint's weights, the first by name; None where there is none."""
    return next(iter(sorted(folder.glob("*.gguf"))), None)
