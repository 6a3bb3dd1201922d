"""A GGUF file in llama.cpp and one sequence in its memory. Light, as `library`."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from edgequant.errors import UserError
from edgequant.evaluation.backends.llama_cpp.library import Batch, changed, load_library, said

_BATCH = 512
_EXACT_BATCH = 128  # without flash attention, scores of this many positions against the whole context stand in memory
_LOGITS_AT_ONCE = 32 << 20  # bytes
_WITHOUT_FLASH_ATTENTION = 0


class Gguf:
    """A model that llama.cpp has loaded, and its vocabulary.

    Args:
        path: a .gguf file.
        repack: whether weights may be laid out anew for this CPU.
        gpu_layers: layers on the GPU, -1 for all, where the library was built for one.

    Raises:
        UserError: xllamacpp is absent; llama.cpp does not load the file.
    """

    def __init__(self, path: str | Path, *, repack: bool = True, gpu_layers: int = 0) -> None:
        self.path, self.library = Path(path), load_library()
        defaults = self.library.llama_model_default_params()
        parameters = changed(defaults, use_extra_bufts=repack, n_gpu_layers=gpu_layers)
        said.clear()
        self.model = self.library.llama_model_load_from_file(str(path).encode(), parameters)
        if not self.model:
            told = next((line for line in said if "error" in line.lower()), said[-1] if said else "no reason given")
            raise UserError(f"{path} could not be loaded by llama.cpp ({told}); is it a whole .gguf file?")
        self.vocabulary = self.library.llama_model_get_vocab(self.model)
        self.size = int(self.library.llama_vocab_n_tokens(self.vocabulary))

    def metadata(self, key: str) -> str | None:
        """The value under a key of the file, as text."""
        length = self.library.llama_model_meta_val_str(self.model, key.encode(), None, 0)
        if length < 0:
            return None
        buffer = ctypes.create_string_buffer(length + 1)
        self.library.llama_model_meta_val_str(self.model, key.encode(), buffer, length + 1)
        return buffer.value.decode(errors="replace")

    def special_token(self, name: str) -> int | None:
        """The id of `bos` or `eos` as the file states it; None where it states none, and llama.cpp takes a guess.

        The guess is a number that means something in another vocabulary (11 for byte-level BPE, 1 for SentencePiece).
        """
        stated = self.metadata(f"tokenizer.ggml.{name}_token_id")
        token = -1 if stated is None else int(stated)
        return token if 0 <= token < self.size else None

    def tokenize(self, text: str) -> list[int]:
        """Token ids of a text, without what a sequence begins with."""
        encoded = text.encode()
        room = len(encoded) + 16
        tokens = (ctypes.c_int32 * room)()
        count = self.library.llama_tokenize(self.vocabulary, encoded, len(encoded), tokens, room, False, True)
        if count < 0:
            raise UserError(f"{self.path.name}: llama.cpp could not tokenise {text[:40]!r}")
        return list(tokens[:count])

    def piece(self, token: int) -> bytes:
        """The bytes that a token stands for; none for a special one."""
        buffer = ctypes.create_string_buffer(256)
        length = self.library.llama_token_to_piece(self.vocabulary, token, buffer, len(buffer), 0, False)
        if length < 0:
            buffer = ctypes.create_string_buffer(-length)
            length = self.library.llama_token_to_piece(self.vocabulary, token, buffer, len(buffer), 0, False)
        return buffer.raw[:length]

    def close(self) -> None:
        """Give the memory back; the object is of no use any more."""
        if self.model:
            self.library.llama_model_free(self.model)
            self.model = None


class Rows(NamedTuple):
    """Logits behind positions one after the other: [positions, vocabulary] floats that the next read overwrites."""

    positions: range
    logits: Any


class Sequence0:
    """The one sequence that a context of llama.cpp holds, and what was read into it last.

    At most 32 MiB of logits exist at once, whatever the length (one row at least); llama.cpp is told so.

    Args:
        context: longest sequence in tokens.
        threads: CPU threads, for prompts and for single tokens.
        outputs: rows of logits at once; None takes as many as the bound allows.
        exact: without flash attention, whose logits depend on how a text is cut into batches (on SmolLM2 by up to 1 on
            a CPU); without it they are equal bit for bit. False is llama.cpp as it comes.
    """

    def __init__(
        self, gguf: Gguf, *, context: int, threads: int, outputs: int | None = None, exact: bool = True
    ) -> None:
        self._gguf, self._library = gguf, gguf.library
        self._batch = _EXACT_BATCH if exact else _BATCH
        self.outputs = outputs or max(1, min(self._batch, _LOGITS_AT_ONCE // (4 * gguf.size)))
        defaults = self._library.llama_context_default_params()
        parameters = changed(
            defaults, n_ctx=context, n_batch=self._batch, n_ubatch=self._batch, n_outputs_max=self.outputs,
            n_outputs_max_per_seq=self.outputs, n_threads=threads, n_threads_batch=threads,
            flash_attn_type=_WITHOUT_FLASH_ATTENTION if exact else defaults.flash_attn_type,
        )  # fmt: skip
        self._context = self._library.llama_init_from_model(gguf.model, parameters)
        if not self._context:
            told = said[-1] if said else "no reason given"
            raise UserError(f"{gguf.path.name}: llama.cpp gave no context of {context} tokens ({told})")
        self._memory = self._library.llama_get_memory(self._context)
        self._greedy: Any = None
        self._held: list[int] = []

    def rows(self, tokens: Sequence[int], first: int) -> Iterator[Rows]:
        """Read tokens and give the logits behind each position from `first` on, as many rows at once as are allowed.

        What the sequence held before is kept as far as it is the same, up to `first`.
        """
        start = self._keep(tokens, first)
        while start < len(tokens):
            end = min(start + self._batch, max(start, first) + self.outputs, len(tokens))
            wanted = range(min(max(start, first), end), end)
            self._decode(tokens[start:end], wanted.start - start)
            if wanted:
                yield Rows(wanted, self._library.llama_get_logits_ith(self._context, wanted.start - start))
            start = end

    def next(self, token: int) -> Any:
        """Read one token more, behind those that are held; the logits behind it."""
        self._decode([token], 0)
        return self._library.llama_get_logits_ith(self._context, 0)

    def likeliest(self) -> int:
        """The likeliest token behind the last one that was read, as llama.cpp's greedy sampler says."""
        self._greedy = self._greedy or self._library.llama_sampler_init_greedy()
        return int(self._library.llama_sampler_sample(self._greedy, self._context, -1))

    def read(self, tokens: Sequence[int]) -> None:
        """Read tokens behind those that are held; logits are there behind the last one."""
        for start in range(0, len(tokens), self._batch):
            part = tokens[start : start + self._batch]
            self._decode(part, len(part) - 1)

    def clear(self) -> None:
        """Forget everything."""
        self._library.llama_memory_clear(self._memory, True)
        self._held = []

    def close(self) -> None:
        """Give the memory back; the object is of no use any more."""
        if self._context:
            self._library.llama_free(self._context)
            self._context = None

    def _keep(self, tokens: Sequence[int], most: int) -> int:
        pairs = zip(self._held, tokens[:most], strict=False)
        common = next((at for at, (old, new) in enumerate(pairs) if old != new), min(len(self._held), most))
        common = min(common, len(tokens))
        if not self._library.llama_memory_seq_rm(self._memory, 0, common, -1):  # a recurrent state cannot be cut
            self.clear()
            return 0
        del self._held[common:]
        return common

    def _decode(self, tokens: Sequence[int], first_output: int) -> None:
        count = len(tokens)
        ids = (ctypes.c_int32 * count)(*tokens)
        outputs = (ctypes.c_int8 * count)(*([0] * first_output + [1] * (count - first_output)))
        batch = Batch(n_tokens=count, token=ids, logits=outputs)
        if code := self._library.llama_decode(self._context, batch):
            told = said[-1] if said else "no reason given"
            raise UserError(f"{self._gguf.path.name}: llama.cpp could not read {count} tokens (code {code}: {told})")
        self._held += tokens
