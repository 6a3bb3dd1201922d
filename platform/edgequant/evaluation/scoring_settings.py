"""How questions are put and answers are scored: what every task is given. Light: imports neither torch nor numpy."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from edgequant.errors import UserError
from edgequant.settings_checks import check_seed, check_types

MOST_RESAMPLES = 100_000  # of each interval; more takes hours and changes no digit that is shown


@dataclass(frozen=True, kw_only=True)
class ScoringSettings:
    """Protocols and budgets of one evaluation.

    Raises:
        UserError: a value that no task can work with, before anything is loaded.
    """

    limit: int | None = None
    """Draw this many questions of each set and limit/20 perplexity windows (at least one); None takes all."""

    seed: int = 0
    """Draws the subset, the bootstrap resamples and the latency prompts."""

    window: int | None = None
    """Perplexity window in tokens; None takes 2,048, or the model's context where that is shorter."""

    stride: int | None = None
    """Distance between window starts; None is the window itself. Smaller gives every token more context."""

    wikitext_protocol: Literal["raw", "paragraphs", "documents"] = "raw"
    """raw: the file's own line ends. paragraphs: '\\n\\n'.join(rows), as in the GPTQ papers. documents: page by page,
    detokenised, per word, as lm-evaluation-harness does (adds wikitext2/word_perplexity)."""

    bos: Literal["auto", "always", "never"] = "auto"
    """Begin every sequence with BOS: auto does so where the tokenizer itself does, and for Gemma."""

    chat_template: bool = False
    """Put BoolQ, SQuAD and domain questions through the tokenizer's chat template, for instruct models."""

    num_fewshot: Literal[0, 1] = 0
    """Worked examples before each SQuAD question: the one-shot example is always another paragraph's."""

    max_new_tokens: int = 32
    """Longest generated answer, in tokens; it ends earlier at the first line end."""

    max_batch_tokens: int | None = None
    """Tokens per forward pass, padding included; None finds it by memory. Results do not depend on it."""

    latency_prompt_lengths: tuple[int, ...] | None = None
    """Prompt lengths in tokens, the first is the headline; None: (512, 128) on a GPU, (128,) on a CPU, less in a
    shorter context."""

    latency_batch_sizes: tuple[int, ...] | None = None
    """Batch sizes, the first is the headline; None: (1, 8) on a GPU, (1,) on a CPU."""

    latency_methods: tuple[Literal["generate", "static"], ...] = ("generate", "static")
    """Plain `generate`, and decoding through a static cache (on a GPU as a CUDA graph) where the model allows it."""

    latency_new_tokens: int | None = None
    """Decoded tokens per repetition; None: 128 on a GPU, 32 on a CPU, less in a shorter context."""

    latency_repetitions: int = 5
    """Timed repetitions after the warm-up; medians and 90th percentiles are taken over them."""

    latency_warmup: int = 2
    """Untimed repetitions first."""

    bootstrap_resamples: int = 1000
    """Resamples behind intervals that no formula gives: F1's, mostly."""

    confidence: float = 0.95
    """Coverage of the intervals."""

    def __post_init__(self) -> None:
        check_types(self, "evaluation")
        check_seed(self.seed, "evaluation.seed")
        self._check_positive()
        self._check_perplexity()

    def _check_positive(self) -> None:
        counts = ("limit", "max_new_tokens", "max_batch_tokens", "latency_new_tokens", "latency_repetitions")
        for name in (*counts, "bootstrap_resamples"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UserError(f"evaluation.{name} must be at least 1, got {value}")
        if self.bootstrap_resamples > MOST_RESAMPLES:
            raise UserError(
                f"evaluation.bootstrap_resamples must be at most {MOST_RESAMPLES}, got {self.bootstrap_resamples}"
            )
        for name in ("latency_prompt_lengths", "latency_batch_sizes"):
            values = getattr(self, name)
            if values is not None and (not values or min(values) < 1):
                raise UserError(f"evaluation.{name} must be one or more numbers of at least 1, got {values}")
        if not self.latency_methods:
            raise UserError("evaluation.latency_methods must name generate, static or both, got none")
        if self.latency_warmup < 0:
            raise UserError(f"evaluation.latency_warmup must be 0 or more, got {self.latency_warmup}")
        if not 0 < self.confidence < 1:
            raise UserError(f"evaluation.confidence must be between 0 and 1, such as 0.95, got {self.confidence}")

    def _check_perplexity(self) -> None:
        if self.window is not None and self.window < 2:
            raise UserError(
                f"evaluation.window must be at least 2, such as 2048, got {self.window}, which leaves no token to "
                "predict"
            )
        if self.stride is not None and not 0 < self.stride <= (self.window or self.stride):
            raise UserError(f"evaluation.stride must be from 1 to window {self.window}, got {self.stride}")
        if self.stride is not None and self.wikitext_protocol == "documents":
            raise UserError(
                "evaluation.stride must be left out with wikitext_protocol documents, whose windows never overlap, "
                f"got {self.stride}"
            )
