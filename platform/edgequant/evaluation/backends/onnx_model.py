"""ONNX folders in onnxruntime-genai behind the evaluation's interface."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from edgequant import files, models
from edgequant.evaluation.backends.alone import Alone
from edgequant.evaluation.backends.footprint import GB, size_metrics
from edgequant.evaluation.backends.generation import stop_tokens
from edgequant.evaluation.backends.language_model import Generated
from edgequant.evaluation.backends.onnx.sequence import GenaiModel, GenaiSequence, Logits, check_folder
from edgequant.evaluation.backends.onnx.timed_alone import time_alone
from edgequant.evaluation.backends.runtime_model import RuntimeModel
from edgequant.evaluation.backends.tokenized import WithTokenizer, bos_token
from edgequant.machine.cores import physical_cores
from edgequant.models.onnx.folder import PARAMETERS, SCHEME, read_genai_config
from edgequant.models.onnx.library import PACKAGES

DEFAULT_CONTEXT = 4096


class OnnxModel(RuntimeModel, WithTokenizer):
    """Scores and generates with onnxruntime-genai, in the arithmetic that a device would run.

    Requests are taken in the order of their tokens, so that what neighbours share is read once. At most 32 MiB of
    logits exist at once, whatever the context and the vocabulary. Times and memory are those of fresh processes.

    Args:
        folder: that `edgequant export --format onnx` wrote, or another with genai_config.json and a tokenizer.
        context_length: longest sequence; None takes the folder's own, at most 4,096.
        threads: CPU threads; None takes the physical cores that this process may use.
        bos: as `TransformersModel`.

    Raises:
        UserError: onnxruntime-genai is absent, or the folder cannot be loaded.

    Example:
        evaluate_model(OnnxModel("folder"), None, data, EvaluationSettings(limit=200))
    """

    on_gpu = False

    def __init__(
        self, folder: str | Path, *, context_length: int | None = None, threads: int | None = None, bos: str = "auto"
    ) -> None:
        self.folder, self._threads = Path(folder), threads or physical_cores()
        self._name = self.folder.name
        check_folder(self.folder)
        self._model = GenaiModel(self.folder, threads=self._threads)
        self.tokenizer: Any = models.load_tokenizer(str(folder))
        self.context_length = min(context_length or DEFAULT_CONTEXT, self._model.context_length)
        self._sequence = GenaiSequence(self._model, context=self.context_length)
        self.bos = bos_token(self.tokenizer, self._model.type, bos)
        ends = (self.bos, self.tokenizer.bos_token_id, self.tokenizer.eos_token_id, 0)
        self.start_token = next(token for token in ends if token is not None)

    @property
    def description(self) -> dict[str, str]:
        return {
            "model": self.folder.name,
            "dtype": self.scheme,
            "device": "cpu",
            "threads": str(self._threads),
            "bos": str(self.bos),
            "onnxruntime": f"{PACKAGES['onnxruntime']}, onnxruntime-genai {PACKAGES['onnxruntime-genai']}",
        }

    @property
    def scheme(self) -> str:
        """The scheme of the checkpoint that the folder was made of; `onnx` where it was made elsewhere."""
        return self._said.get(SCHEME, "onnx")

    def generate(self, prompts: Sequence[Sequence[int]], max_new_tokens: int) -> Iterator[tuple[int, Generated]]:
        for index in sorted(range(len(prompts)), key=lambda at: list(prompts[at])):
            tokens: list[int] = []
            for token in self.greedy(prompts[index], max_new_tokens):
                tokens.append(token)
                if token in self._stop:
                    break
            yield index, Generated(self.decode(tokens).split("\n")[0], len(tokens))

    def weights_digest(self) -> str:
        named = [path for path in sorted(self.folder.iterdir()) if ".onnx" in path.name and path.is_file()]
        return files.sha256_of_bytes("".join(files.sha256_of(path) for path in named))

    def footprint(self, checkpoint: Path | None = None) -> dict[str, float]:
        """All files' bytes, which are resident too, if laid out anew; peak memory of a fresh process."""
        size = files.bytes_of(self.folder)
        parameters = self._said.get(PARAMETERS)
        sizes = size_metrics(size, int(parameters)) if parameters else {"size/checkpoint_gb": size / GB}
        return sizes | {"size/resident_gb": size / GB, "size/peak_rss_gb": self._peak() / GB}

    def _array(self, logits: Logits, rows: int) -> Logits:
        return logits.reshape(rows, -1)

    def _time_alone(self, prompt_length: int, new_tokens: int, seed: int) -> Alone:
        return time_alone(
            self.folder, threads=self._threads, prompt_length=prompt_length, new_tokens=new_tokens, seed=seed
        )

    @cached_property
    def _said(self) -> dict[str, str]:
        """What the graph says of itself."""
        import onnx

        graph = onnx.load(
            str(self.folder / read_genai_config(self.folder)["decoder"]["filename"]), load_external_data=False
        )
        return {entry.key: entry.value for entry in graph.metadata_props}

    @cached_property
    def _stop(self) -> set[int]:
        from transformers import GenerationConfig

        there = (self.folder / "generation_config.json").is_file()
        config = GenerationConfig.from_pretrained(str(self.folder)) if there else None
        return set(stop_tokens(self.tokenizer, config, self._model.vocabulary).nonzero().flatten().tolist())
