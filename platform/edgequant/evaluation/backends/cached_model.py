"""Scores remembered request by request, so that an interrupted evaluation resumes and a repeated one is read.

A score is a function of the weights, the arithmetic and the exact tokens that the model was given. Those make the key,
so a changed prompt, protocol, tokenizer, data set or limit asks other questions and can never meet an old answer.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from edgequant.evaluation.backends.language_model import Choice, Generated, LanguageModel, Window
from edgequant.files import source_digest

_ARITHMETIC = ("model", "dtype", "device", "torch", "transformers", "llama_cpp", "onnxruntime")


class CachedModel:
    """A language model whose losses, log-likelihoods and answers are kept in a folder; timings never are.

    Every batch is on disk before the next one starts. Two processes may share the folder.

    Args:
        model: what computes the scores that are not there yet.
        folder: where they are kept, one file per model and kind of score.

    Example:
        model = CachedModel(TransformersModel(model, tokenizer), files.cache_dir() / "scores")
    """

    def __init__(self, model: LanguageModel, folder: str | Path) -> None:
        self._model, self._folder = model, Path(folder)
        self.reused = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)

    @cached_property
    def key(self) -> str:
        """What decides a score besides the tokens: weights, model class, dtype, device, library versions, this code."""
        parts = {name: self._model.description.get(name) for name in _ARITHMETIC}
        parts |= {"weights": self._model.weights_digest(), "code": _code_digest()}
        return _sha256(json.dumps(parts, sort_keys=True))[:24]

    def losses(self, windows: Sequence[Window]) -> Iterator[tuple[int, float]]:
        keys = [_sha256(f"{window.scored}:{window.tokens}") for window in windows]
        compute = lambda missing: self._model.losses([windows[index] for index in missing])  # noqa: E731
        yield from self._remembered("losses", keys, compute)

    def log_likelihoods(self, choices: Sequence[Choice]) -> Iterator[tuple[int, tuple[float, ...]]]:
        keys = [_sha256(f"{choice.context}:{choice.continuations}") for choice in choices]
        compute = lambda missing: self._model.log_likelihoods([choices[index] for index in missing])  # noqa: E731
        for index, value in self._remembered("log_likelihoods", keys, compute):
            yield index, tuple(value)

    def generate(self, prompts: Sequence[Sequence[int]], max_new_tokens: int) -> Iterator[tuple[int, Generated]]:
        keys = [_sha256(f"{max_new_tokens}:{list(prompt)}") for prompt in prompts]

        def compute(missing: list[int]) -> Iterator[tuple[int, list]]:
            for index, answer in self._model.generate([prompts[index] for index in missing], max_new_tokens):
                yield index, [answer.text, answer.tokens]

        for index, (text, tokens) in self._remembered("generate", keys, compute):
            yield index, Generated(text, tokens)

    def _remembered(self, kind: str, keys: list[str], compute: Any) -> Iterator[tuple[int, Any]]:
        path = self._folder / self.key / f"{kind}.jsonl"
        known = _read(path)
        missing = [index for index, key in enumerate(keys) if key not in known]
        self.reused += len(keys) - len(missing)
        yield from ((index, known[key]) for index, key in enumerate(keys) if key in known)
        if not missing:
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("ab") as file:
            for at, value in compute(missing):
                key = keys[missing[at]]
                row = {"key": key, "value": value, "check": _check(key, json.dumps(value))}
                file.write(json.dumps(row).encode() + b"\n")
                file.flush()  # a killed process loses nothing that was yielded
                yield missing[at], value
            os.fsync(file.fileno())


def _read(path: Path) -> dict[str, Any]:
    """Kept scores by key. A line that a killed process left half written, or a disk changed, is skipped."""
    known: dict[str, Any] = {}
    if path.exists():
        for line in path.read_bytes().splitlines():
            try:
                row = json.loads(line)
                if row["check"] == _check(row["key"], json.dumps(row["value"])):
                    known[row["key"]] = row["value"]
            except (ValueError, KeyError, TypeError):
                continue
    return known


def _check(key: str, value: str) -> str:
    return _sha256(f"{key}:{value}")[:16]


def _code_digest() -> str:
    """Of all of the evaluation's source: other code may give other scores."""
    return source_digest("edgequant.evaluation")


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
