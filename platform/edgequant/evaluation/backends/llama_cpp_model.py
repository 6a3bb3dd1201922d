"""GGUF files through llama.cpp (optional package xllamacpp) behind the evaluation's interface."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from edgequant import files
from edgequant.errors import UserError
from edgequant.evaluation.backends.alone import Alone
from edgequant.evaluation.backends.footprint import GB, size_metrics
from edgequant.evaluation.backends.language_model import Choice, Generated
from edgequant.evaluation.backends.llama_cpp.library import load_library, version
from edgequant.evaluation.backends.llama_cpp.sequence import Gguf, Sequence0
from edgequant.evaluation.backends.llama_cpp.timed_alone import repacking_works, time_alone
from edgequant.evaluation.backends.runtime_model import RuntimeModel
from edgequant.machine.cores import physical_cores

DEFAULT_CONTEXT = 4096


class LlamaCppModel(RuntimeModel):
    """Scores and generates with llama.cpp, in the integer arithmetic that a device would run.

    Requests are taken in the order of their tokens, so that what neighbours share is read once. At most 32 MiB of
    logits exist at once, whatever the context and the vocabulary. Times and memory are those of fresh processes.

    Args:
        path: a .gguf file.
        context_length: longest sequence; None takes the file's own, at most 4,096.
        threads: CPU threads; None takes the physical cores that this process may use.
        gpu_layers: layers on the GPU, -1 for all, where xllamacpp was built for one; without that, none.

    Raises:
        UserError: xllamacpp is absent, or the file cannot be loaded.

    Example:
        evaluate_model(LlamaCppModel("model.gguf"), None, data, EvaluationSettings(limit=200))
    """

    def __init__(
        self, path: str | Path, *, context_length: int | None = None, threads: int | None = None, gpu_layers: int = 0
    ) -> None:
        self.path, self._threads, self._library = Path(path), threads or physical_cores(), load_library()
        self._name = self.path.name
        self._gpu_layers = gpu_layers if self._library.llama_supports_gpu_offload() else 0
        self._repacks = repacking_works(self.path)
        self._gguf = Gguf(self.path, repack=self._repacks, gpu_layers=self._gpu_layers)
        self._vocabulary = self._gguf.vocabulary
        self.on_gpu = self._gpu_layers != 0
        trained = int(self._library.llama_model_n_ctx_train(self._gguf.model)) or DEFAULT_CONTEXT
        self.context_length = min(context_length or DEFAULT_CONTEXT, trained)
        self._sequence = Sequence0(self._gguf, context=self.context_length, threads=self._threads)
        self._special = {name: self._gguf.special_token(name) for name in ("bos", "eos")}
        self.bos = self._special["bos"] if self._library.llama_vocab_get_add_bos(self._vocabulary) else None
        self.start_token = next(token for token in (*self._special.values(), 0) if token is not None)

    @property
    def description(self) -> dict[str, str]:
        return {
            "model": self.path.name,
            "dtype": self.file_type,
            "device": "gpu" if self.on_gpu else "cpu",
            "threads": str(self._threads),
            "bos": str(self.bos),
            "llama_cpp": f"xllamacpp {version()}",
            "repacked": str(self._repacks),
        }

    @property
    def file_type(self) -> str:
        """The file's dominant tensor type as llama.cpp names it, e.g. `q4_1`."""
        import gguf

        number = int(self._gguf.metadata("general.file_type") or -1)
        names = {kind.value: kind.name.removeprefix("MOSTLY_").removeprefix("ALL_") for kind in gguf.LlamaFileType}
        return names.get(number, "gguf").lower()

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        prefix = [] if self.bos is None else [self.bos]
        rows = map(self._gguf.tokenize, texts)
        return [row if row[:1] == prefix else prefix + row for row in rows]

    def encode_choices(self, contexts: Sequence[str], continuations: Sequence[str]) -> list[Choice]:
        choices = []
        for context in contexts:
            start, *wholes = self.encode(
                [context.rstrip(), *(context + continuation for continuation in continuations)]
            )
            choices.append(Choice(tuple(start), tuple(tuple(whole[len(start) :]) for whole in wholes)))
        return choices

    def decode(self, tokens: Sequence[int]) -> str:
        text = b"".join(map(self._gguf.piece, tokens))
        after_bos = self.bos is not None and tuple(tokens[:1]) == (self.bos,)
        return (text.removeprefix(b" ") if after_bos else text).decode(errors="replace")

    def render_chat(self, question: str) -> str:
        from transformers.utils.chat_template_utils import render_jinja_template

        template = self._gguf.metadata("tokenizer.chat_template")
        if not template:
            raise UserError(f"{self.path.name} has no chat template; leave chat_template off for a base model")
        special: dict[str, Any] = {f"{name}_token": self._text_of(token) for name, token in self._special.items()}
        asked = [{"role": "user", "content": question}]
        special |= {"chat_template": template, "add_generation_prompt": True}
        rendered: Any = render_jinja_template([asked], **special)[0]
        return str(rendered[0])

    def generate(self, prompts: Sequence[Sequence[int]], max_new_tokens: int) -> Iterator[tuple[int, Generated]]:
        for index in sorted(range(len(prompts)), key=lambda at: list(prompts[at])):
            tokens: list[int] = []
            for token in self.greedy(prompts[index], max_new_tokens):
                tokens.append(token)
                if self._ends(token) or b"\n" in self._gguf.piece(token):
                    break
            text = self.decode([token for token in tokens if not self._ends(token)])
            yield index, Generated(text.split("\n")[0], len(tokens))

    def weights_digest(self) -> str:
        return files.sha256_of(self.path)

    def footprint(self, checkpoint: Path | None = None) -> dict[str, float]:
        """The file's bytes, which are resident too, since llama.cpp maps them; peak memory of a fresh process."""
        size = self.path.stat().st_size
        parameters = int(self._library.llama_model_n_params(self._gguf.model))
        peak = {"size/peak_rss_gb": self._peak() / GB}
        return size_metrics(size, parameters) | {"size/resident_gb": size / GB} | peak

    def _array(self, logits: Any, rows: int) -> np.ndarray:
        return np.ctypeslib.as_array(logits, (rows, self._gguf.size))

    def _time_alone(self, prompt_length: int, new_tokens: int, seed: int) -> Alone:
        return time_alone(
            self.path, threads=self._threads, prompt_length=prompt_length, new_tokens=new_tokens, seed=seed,
            repack=self._repacks, gpu_layers=self._gpu_layers,
        )  # fmt: skip

    def _text_of(self, token: int | None) -> str:
        """A special token's text; none where the file has no such token."""
        text = b"" if token is None else self._library.llama_vocab_get_text(self._vocabulary, token)
        return text.decode(errors="replace")

    def _ends(self, token: int) -> bool:
        return bool(self._library.llama_vocab_is_eog(self._vocabulary, token))
