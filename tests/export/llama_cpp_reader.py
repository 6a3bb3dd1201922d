"""llama.cpp's own answer, through xllamacpp's server, in a process of its own."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

XLLAMACPP = """
import json, sys, urllib.request, numpy, xllamacpp
parameters = xllamacpp.CommonParams()
parameters.model.path, parameters.n_ctx, parameters.n_gpu_layers, parameters.warmup = sys.argv[1], 256, 0, False
parameters.n_parallel, parameters.cpuparams.n_threads, parameters.no_extra_bufts = 1, 1, True
parameters.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
if len(sys.argv) > 7:
    parameters.lora_adapters = [xllamacpp.CommonAdapterLoraInfo(sys.argv[7], 1.0)]
parameters.cache_type_k = parameters.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
server = xllamacpp.Server(parameters)
ids, ends, size = json.loads(sys.argv[2]), json.loads(sys.argv[3]), int(sys.argv[4])
rows = []
for end in ends:
    asked = {"prompt": ids[:end], "n_predict": 1, "n_probs": size, "temperature": 1.0, "samplers": ["temperature"]}
    for seed in range(50):  # a drawn token that is no text comes without its probabilities
        answer = server.handle_completions(asked | {"cache_prompt": False, "seed": seed})
        answer = json.loads(answer) if isinstance(answer, str) else answer
        if found := answer["choices"][0]["logprobs"]:
            break
    row = numpy.full(size, numpy.nan)
    for one in found["content"][0]["top_logprobs"]:
        row[one["id"]] = one["logprob"]
    rows.append(row)
numpy.save(sys.argv[5], rows)
body = json.dumps({"content": sys.argv[6], "add_special": True, "parse_special": False}).encode()
request = urllib.request.Request(server.listening_address + "/tokenize", body, {"Content-Type": "application/json"})
print("TOKENS " + json.dumps(json.load(urllib.request.urlopen(request))["tokens"]))
"""
INSTALLED = importlib.util.find_spec("xllamacpp") is not None
needs_llama_cpp = pytest.mark.skipif(not INSTALLED, reason="xllamacpp is not installed")


def read_by_llama_cpp(
    file: Path, ids: Sequence[int], ends: Sequence[int], vocabulary: int, text: str = "a", lora: Path | None = None
) -> tuple[np.ndarray, list[int]]:
    """Log-probabilities of the next token behind the first `end` tokens [ends, vocabulary], and a text's tokens.

    With `lora`, a LoRA file, put beside the model.

    Raises:
        RuntimeError: llama.cpp does not load the file; its own last words.
    """
    saved = file.with_suffix(".npy")
    arguments = [str(file), json.dumps(list(ids)), json.dumps(list(ends)), str(vocabulary), str(saved), text]
    arguments += [] if lora is None else [str(lora)]
    done = subprocess.run([sys.executable, "-c", XLLAMACPP, *arguments], capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(done.stderr[-2000:])
    tokens = next(line for line in done.stdout.splitlines() if line.startswith("TOKENS "))
    return np.load(saved), json.loads(tokens.removeprefix("TOKENS "))
