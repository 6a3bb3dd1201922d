"""GGUF files through llama.cpp (optional package llama-cpp-python) behind the evaluation's interface."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from edgequant import files
from edgequant.errors import UserError
from edgequant.evaluation.backends.footprint import GB, size_metrics
from edgequant.evaluation.backends.language_model import Choice, DecodeTiming, Generated, Window

_BATCH = 512
DEFAULT_CONTEXT = 4096


class LlamaCppModel:
    """Scores and generates with llama.cpp, in the integer arithmetic that a device would run.

    Requests are taken in the order of their tokens, so that what neighbours share is read once.

    Args:
        path: a .gguf file.
        context_length: longest sequence; None takes the file's own, at most 4,096 (scores need 4 bytes per position
            and vocabulary entry).
        threads: CPU threads; None takes the cores this process may use.
        gpu_layers: layers on the GPU, -1 for all, where llama-cpp-python was built for one.

    Raises:
        UserError: llama-cpp-python is absent, or the file cannot be loaded.

    Example:
        evaluate_model(LlamaCppModel("model.gguf"), None, data, EvaluationSettings(limit=200))
    """

    def __init__(
        self, path: str | Path, *, context_length: int | None = None, threads: int | None = None, gpu_layers: int = 0
    ) -> None:
        self.path, self._library = Path(path), _import_llama_cpp()
        self._threads = threads or len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
        self._gpu_layers = gpu_layers
        self.on_gpu = gpu_layers != 0
        self._repacks = _repacking_works(self.path)
        self._generator = self._open(context_length or DEFAULT_CONTEXT)
        self._metadata = self._generator.metadata
        architecture = self._metadata.get("general.architecture")
        trained = int(self._metadata.get(f"{architecture}.context_length", DEFAULT_CONTEXT))
        self.context_length = min(context_length or DEFAULT_CONTEXT, trained)
        adds_bos = self._library.llama_vocab_get_add_bos(self._generator._model.vocab)
        ends = (self._generator.token_bos(), self._generator.token_eos(), 0)
        self.bos = ends[0] if adds_bos else None
        self.start_token = next(token for token in ends if token >= 0)

    @property
    def description(self) -> dict[str, str]:
        return {
            "model": self.path.name,
            "dtype": self.file_type,
            "device": "gpu" if self.on_gpu else "cpu",
            "threads": str(self._threads),
            "bos": str(self.bos),
            "llama_cpp": self._library.__version__,
            "repacked": str(self._repacks),
        }

    @property
    def file_type(self) -> str:
        """The file's dominant tensor type as llama.cpp names it, e.g. `q4_1`."""
        import gguf

        number = int(self._metadata.get("general.file_type", -1))
        names = {kind.value: kind.name.removeprefix("MOSTLY_").removeprefix("ALL_") for kind in gguf.LlamaFileType}
        return names.get(number, "gguf").lower()

    @property
    def decode_methods(self) -> tuple[str, ...]:
        return ("generate",)  # llama.cpp's cache is static anyway

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        prefix = [] if self.bos is None else [self.bos]
        rows = [self._generator.tokenize(text.encode(), add_bos=False, special=True) for text in texts]
        return [list(row) if row[:1] == prefix else prefix + list(row) for row in rows]

    def encode_choices(self, contexts: Sequence[str], continuations: Sequence[str]) -> list[Choice]:
        choices = []
        for context in contexts:
            start, *wholes = self.encode(
                [context.rstrip(), *(context + continuation for continuation in continuations)]
            )
            choices.append(Choice(tuple(start), tuple(tuple(whole[len(start) :]) for whole in wholes)))
        return choices

    def decode(self, tokens: Sequence[int]) -> str:
        return self._generator.detokenize(list(tokens)).decode(errors="replace")

    def render_chat(self, question: str) -> str:
        template = self._metadata.get("tokenizer.chat_template")
        if not template:
            raise UserError(f"{self.path.name} has no chat template; leave chat_template off for a base model")
        from llama_cpp.llama_chat_format import Jinja2ChatFormatter

        eos, bos = (
            self._generator._model.token_get_text(token) for token in (self._generator.token_eos(), self.start_token)
        )
        formatter = Jinja2ChatFormatter(template=template, eos_token=eos, bos_token=bos, add_generation_prompt=True)
        return formatter(messages=[{"role": "user", "content": question}]).prompt

    def losses(self, windows: Sequence[Window]) -> Iterator[tuple[int, float]]:
        for index in sorted(range(len(windows)), key=lambda at: windows[at].tokens):
            window = windows[index]
            logs = self._log_probabilities(window.tokens, len(window.tokens) - window.scored)
            yield index, -float(logs.sum())

    def log_likelihoods(self, choices: Sequence[Choice]) -> Iterator[tuple[int, tuple[float, ...]]]:
        for index in sorted(range(len(choices)), key=lambda at: choices[at].context):
            choice = choices[index]
            first = len(choice.context)
            rows = [self._log_probabilities(choice.context + part, first) for part in choice.continuations]
            yield index, tuple(float(row.sum()) for row in rows)

    def generate(self, prompts: Sequence[Sequence[int]], max_new_tokens: int) -> Iterator[tuple[int, Generated]]:
        for index in sorted(range(len(prompts)), key=lambda at: list(prompts[at])):
            tokens: list[int] = []
            # Greedy; a prompt that begins like the one before keeps its cache.
            for token in self._generator.generate(list(prompts[index]), temp=0.0, top_k=1, repeat_penalty=1.0):
                tokens.append(token)
                if self._ends(token) or "\n" in self.decode([token]) or len(tokens) == max_new_tokens:
                    break
            text = self.decode([token for token in tokens if not self._ends(token)])
            yield index, Generated(text.split("\n")[0], len(tokens))

    def decode_timings(
        self, method: str, prompt_length: int, batch_size: int, new_tokens: int, repetitions: int, seed: int
    ) -> Iterator[DecodeTiming]:
        if batch_size != 1:
            return
        prompt = np.random.default_rng(seed).integers(0, self._generator.n_vocab(), prompt_length).tolist()
        for _ in range(repetitions):
            self._generator.reset()
            start = time.perf_counter()
            decoded = self._generator.generate(prompt, temp=0.0, top_k=1, repeat_penalty=1.0, reset=False)
            moments = [time.perf_counter() - start for _ in islice(decoded, new_tokens)]
            yield DecodeTiming(moments[0], moments[-1], new_tokens)

    def weights_digest(self) -> str:
        return files.sha256_of(self.path)

    def footprint(self, checkpoint: Path | None = None) -> dict[str, float]:
        """The file's bytes; llama.cpp maps the file, so those are what is resident, too."""
        size = self.path.stat().st_size
        parameters = int(self._library.llama_model_n_params(self._generator._model.model))
        return size_metrics(size, parameters) | {"size/resident_gb": size / GB}

    def _log_probabilities(self, tokens: Sequence[int], first: int) -> np.ndarray:
        """Log-probability in nats of each token from position `first` on, given all before it."""
        self._scorer_reads(tokens[:-1])
        logits = self._scorer.scores[first - 1 : len(tokens) - 1].astype(np.float64)
        if np.isnan(logits).any():
            raise UserError(f"{self.path.name} gives NaN logits; its weights are broken")
        top = logits.max(axis=1)
        normalizer = top + np.log(np.exp(logits - top[:, None]).sum(axis=1))
        return logits[np.arange(len(logits)), list(tokens[first:])] - normalizer

    def _scorer_reads(self, tokens: Sequence[int]) -> None:
        seen = self._scorer.input_ids[: self._scorer.n_tokens].tolist()
        common = next((at for at, pair in enumerate(zip(seen, tokens, strict=False)) if pair[0] != pair[1]), None)
        common = min(len(seen), len(tokens)) if common is None else common
        self._scorer.n_tokens = common  # the next evaluation drops the cache beyond
        if common < len(tokens):
            self._scorer.eval(list(tokens[common:]))

    @cached_property
    def _scorer(self) -> Any:
        return self._open(self.context_length, logits_all=True)

    def _ends(self, token: int) -> bool:
        return bool(self._library.llama_vocab_is_eog(self._generator._model.vocab, token))

    def _open(self, context: int, **options: Any) -> Any:
        try:
            with _default_parameters(self._library, use_extra_bufts=self._repacks):
                return self._library.Llama(
                    str(self.path), n_ctx=context, n_batch=_BATCH, n_threads=self._threads,
                    n_threads_batch=self._threads, n_gpu_layers=self._gpu_layers, swa_full=True, verbose=False,
                    **options,
                )  # fmt: skip
        except (ValueError, OSError) as error:
            raise UserError(
                f"{self.path} could not be loaded by llama.cpp ({error}); is it a whole .gguf file?"
            ) from None


@contextmanager
def _default_parameters(library: Any, **changes: Any) -> Iterator[None]:
    """llama-cpp-python passes only some of llama.cpp's model parameters on; the rest come from the defaults."""
    original = library.llama_cpp.llama_model_default_params

    def changed() -> Any:
        parameters = original()
        for name, value in changes.items():
            setattr(parameters, name, value)
        return parameters

    library.llama_cpp.llama_model_default_params = changed
    try:
        yield
    finally:
        library.llama_cpp.llama_model_default_params = original


def _repacking_works(path: Path) -> bool:
    """Whether one token survives with repacked weights, tried in a process of its own.

    A virtual machine may announce AMX without letting processes use it; llama.cpp then dies with a segmentation fault.
    """
    program = "import sys, llama_cpp; m = llama_cpp.Llama(sys.argv[1], n_ctx=64, verbose=False); m.eval([1, 1, 1])"
    paths = os.pathsep.join(entry for entry in sys.path if entry)
    tried = subprocess.run(
        [sys.executable, "-c", program, str(path)], capture_output=True, env={**os.environ, "PYTHONPATH": paths}
    )
    return (
        tried.returncode >= 0
    )  # a negative code is a signal; anything else shows again, with its message, when loading


def _import_llama_cpp() -> Any:
    try:
        import llama_cpp
    except ImportError:
        raise UserError(
            "running a GGUF file through llama.cpp needs llama-cpp-python: pip install llama-cpp-python; "
            "or leave runtime at torch, which evaluates the file's de-quantised weights"
        ) from None
    return llama_cpp
