"""An ONNX folder in onnxruntime-genai and one sequence in its memory. Light: part of what a timed process holds."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from edgequant.errors import UserError
from edgequant.models.onnx.folder import check_unchanged, read_genai_config
from edgequant.models.onnx.library import check_installed

Logits = np.ndarray[Any, Any]
_BATCH = 128
_LOGITS_AT_ONCE = 32 << 20  # bytes


class GenaiModel:
    """A model that onnxruntime-genai has loaded.

    Args:
        folder: with genai_config.json.
        threads: CPU threads.
        spins: whether threads that wait spin, as ONNX Runtime has it; where other processes want the cores too, they
            had better sleep.

    Raises:
        UserError: onnxruntime-genai is absent; it does not load the folder.
    """

    def __init__(self, folder: str | Path, *, threads: int, spins: bool = False) -> None:
        check_installed("runtime onnx")
        import onnxruntime_genai

        self.folder, self.library = Path(folder), onnxruntime_genai
        settings = read_genai_config(self.folder)
        self.vocabulary, self.context_length = int(settings["vocab_size"]), int(settings["context_length"])
        self.type = str(settings.get("type", ""))
        options = {"intra_op_num_threads": threads, "session.intra_op.allow_spinning": str(int(spins))}
        try:
            config = onnxruntime_genai.Config(str(folder))
            config.overlay(json.dumps({"model": {"decoder": {"session_options": options}}}))
            self.model = onnxruntime_genai.Model(config)
        except Exception as error:  # the library raises RuntimeError alone, whatever is wrong
            raise _cannot(self.folder, "be loaded", error) from error

    def generator(self, length: int, *, least: int = 0) -> Any:
        """One that decodes greedily, with a cache for `length` tokens; `least` of them come before any end."""
        parameters = self.library.GeneratorParams(self.model)
        greedy = {"do_sample": False, "num_beams": 1, "batch_size": 1, "repetition_penalty": 1.0}
        parameters.set_search_options(max_length=length, min_length=least, **greedy)
        return self.library.Generator(self.model, parameters)


class Rows(NamedTuple):
    """Logits behind positions one after the other: [positions, vocabulary] float32."""

    positions: range
    logits: Logits


class GenaiSequence:
    """The one sequence that a generator holds, and what was read into it last.

    The graph gives the logits behind each token that it reads; tokens are read in parts, so that at most 32 MiB of
    logits exist at once, whatever the length (one row at least).

    Args:
        context: longest sequence in tokens.
        outputs: rows of logits at once; None takes as many as the bound allows.
    """

    def __init__(self, model: GenaiModel, *, context: int, outputs: int | None = None) -> None:
        self._model, self._generator = model, model.generator(context)
        self.outputs = outputs or max(1, min(_BATCH, _LOGITS_AT_ONCE // (4 * model.vocabulary)))
        self._held: list[int] = []

    def rows(self, tokens: Sequence[int], first: int) -> Iterator[Rows]:
        """Read tokens and give the logits behind each position from `first` on, as many rows at once as are allowed.

        What the sequence held before is kept as far as it is the same, up to `first`.
        """
        start = self._keep(tokens, first)
        while start < len(tokens):
            end = min(start + self.outputs, len(tokens))
            logits = self._read(tokens[start:end])
            if end > first:
                wanted = range(max(start, first), end)
                yield Rows(wanted, logits[wanted.start - start :])
            start = end

    def next(self, token: int) -> Logits:
        """Read one token more, behind those that are held; the logits behind it [vocabulary]."""
        logits: Logits = self._read([token])[-1]
        return logits

    def _keep(self, tokens: Sequence[int], most: int) -> int:
        pairs = zip(self._held, tokens[:most], strict=False)
        kept = next((at for at, (held, token) in enumerate(pairs) if held != token), min(len(self._held), most))
        if kept < len(self._held):
            self._generator.rewind_to(kept)
            del self._held[kept:]
        return kept

    def _read(self, tokens: Sequence[int]) -> Logits:
        try:
            self._generator.append_tokens(np.asarray(tokens, np.int32))
        except Exception as error:  # as above
            raise _cannot(self._model.folder, f"read {len(self._held) + len(tokens)} tokens", error) from error
        self._held += tokens
        logits: Logits = self._generator.get_output("logits")[0]
        return logits


def check_folder(folder: Path) -> None:
    """Refuse a folder that cannot be what was written, before anything is loaded.

    Raises:
        UserError: onnxruntime-genai is absent; a file that is missing or was changed; a configuration without sizes.
    """
    check_installed("runtime onnx")
    read_genai_config(folder)
    check_unchanged(folder)


def _cannot(folder: Path, do: str, error: Exception) -> UserError:
    told = (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
    return UserError(
        f"{folder.name} could not {do} in onnxruntime-genai ({told}); is it a whole folder of this version?"
    )
