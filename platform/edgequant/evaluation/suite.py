"""One call that measures everything: `evaluate_model(model, tokenizer, data, settings)`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from edgequant.errors import UserError
from edgequant.evaluation.tasks.boolq import boolq_items, boolq_metrics
from edgequant.evaluation.energy import energy_metrics
from edgequant.evaluation.footprint import PeakMemory
from edgequant.evaluation.intervals import Bootstrap
from edgequant.evaluation.language_model import LanguageModel
from edgequant.evaluation.latency import LatencyProtocol, latency_metrics, latency_protocol
from edgequant.evaluation.tasks.perplexity import (
    document_perplexity,
    domain_metrics,
    perplexity_metrics,
    wikitext_perplexity,
)
from edgequant.evaluation.sampling import draw, draw_evenly
from edgequant.evaluation.score_cache import RememberingModel
from edgequant.evaluation.settings import EvaluationSettings
from edgequant.evaluation.tasks.squad import one_shot_examples, squad_items, squad_metrics


@dataclass(frozen=True, kw_only=True)
class EvaluationData:
    """What to score; None leaves a measure out. Rows are as on the hub.

    Attributes:
        wikitext2: rows of the split, line by line.
        boolq: `question`, `passage`, `answer`.
        squad: `id`, `title`, `context`, `question`, `answers`.
        domain: (functional domain, text) documents.
        domain_boolean: domain questions as BoolQ rows.
        domain_span: domain questions as SQuAD rows.
    """

    wikitext2: list[str] | None = None
    boolq: list[dict] | None = None
    squad: list[dict] | None = None
    domain: list[tuple[str, str]] | None = None
    domain_boolean: list[dict] | None = None
    domain_span: list[dict] | None = None


@dataclass(frozen=True)
class Evaluation:
    """What was measured: flat metrics, a table per measure with one row per item, and remarks for the reader."""

    metrics: dict[str, float] = field(default_factory=dict)
    items: dict[str, list[dict]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def evaluate_model(
    model: Any,
    tokenizer: Any,
    data: EvaluationData,
    settings: EvaluationSettings,
    *,
    checkpoint: Path | None = None,
) -> Evaluation:
    """Measure a model under stated protocols.

    Args:
        model: a transformers causal model on its device, or anything with the `LanguageModel` interface.
        tokenizer: its tokenizer; None for a model that brings its own.
        checkpoint: the folder or file the model was loaded from, whose bytes count as its size on disk.

    Returns:
        Metrics under the project's names (sample statistics with `_ci_low` and `_ci_high`), items, notes.

    Raises:
        UserError: NaN logits, a set without items, a window or prompt beyond the model's context, no chat template.

    Example:
        data = EvaluationData(boolq=load_boolq("validation"))
        evaluate_model(model, tokenizer, data, EvaluationSettings(measures=("boolq",), limit=200)).metrics
    """
    was_training = getattr(model, "training", False)
    scorer = language_model(model, tokenizer, settings)
    measuring = _Measuring(scorer, data, settings)
    try:
        with PeakMemory() as peak:
            for measure in settings.measures:
                measuring.run(measure)
    finally:
        if was_training:
            model.train()
    measuring.metrics |= scorer.footprint(checkpoint) | peak.metrics()
    if isinstance(scorer, RememberingModel) and scorer.reused:
        measuring.notes.append(f"{scorer.reused} scores were read from {settings.cache_dir}, computed earlier")
    return Evaluation(measuring.metrics, measuring.items, measuring.notes)


def language_model(model: Any, tokenizer: Any, settings: EvaluationSettings) -> LanguageModel:
    """The model behind the evaluation's interface, with its scores remembered where a cache folder is set."""
    if not isinstance(model, LanguageModel | RememberingModel):
        from edgequant.evaluation.transformers_model import TransformersModel

        model = TransformersModel(model, tokenizer, bos=settings.bos, max_batch_tokens=settings.max_batch_tokens)
    return RememberingModel(model, settings.cache_dir) if settings.cache_dir else model


class _Measuring:
    """The measures by name, each adding its metrics, items and notes."""

    def __init__(self, model: LanguageModel, data: EvaluationData, settings: EvaluationSettings) -> None:
        self.model, self.data, self.settings = model, data, settings
        self.bootstrap = Bootstrap(settings.bootstrap_resamples, settings.confidence, settings.seed)
        self.metrics: dict[str, float] = {}
        self.items: dict[str, list[dict]] = {}
        self.notes: list[str] = [", ".join(f"{key} {value}" for key, value in model.description.items())]

    @cached_property
    def protocol(self) -> LatencyProtocol:
        settings = self.settings
        return latency_protocol(
            self.model, settings.latency_prompt_lengths, settings.latency_batch_sizes, settings.latency_new_tokens,
            settings.latency_repetitions, settings.latency_warmup, settings.seed, settings.latency_methods,
        )  # fmt: skip

    def run(self, measure: str) -> None:
        """Measure one thing, or note that its data are absent."""
        measures: dict[str, tuple[object, Callable[[], None]]] = {
            "perplexity": (self.data.wikitext2, self._perplexity),
            "boolq": (self.data.boolq, self._boolq),
            "squad": (self.data.squad, self._squad),
            "domain_perplexity": (self.data.domain, self._domain_perplexity),
            "domain_qa": (self._domain_questions(), self._domain_qa),
            "latency": ((), self._latency),
            "energy": ((), self._energy),
        }
        source, work = measures[measure]
        if source is None:
            self.notes.append(f"{measure} was left out: no data were given for it")
            return
        work()

    def _perplexity(self) -> None:
        assert self.data.wikitext2 is not None
        settings, windows = self.settings, None
        if settings.limit is not None:
            windows = max(1, settings.limit // 20)
        scored = wikitext_perplexity(
            self.model, self.data.wikitext2, window=settings.window, stride=settings.stride, join=settings.join,
            limit=windows, seed=settings.seed,
        )  # fmt: skip
        self.metrics |= perplexity_metrics("wikitext2", scored, self.bootstrap)
        self.metrics["wikitext2/windows"] = float(len(scored.rows))
        self.items["wikitext2"] = scored.rows
        self.notes.append(f"wikitext2: {len(scored.rows)} windows of {scored.window} tokens, join {settings.join}")

    def _boolq(self) -> None:
        self._yes_or_no("boolq", "boolq/", self._drawn(self.data.boolq, "boolq"))

    def _squad(self) -> None:
        self._spans("squad", "squad/", self._drawn(self.data.squad, "squad"), self.data.squad or [])

    def _domain_perplexity(self) -> None:
        limit = self.settings.limit and max(1, self.settings.limit // 20)
        documents = draw_evenly(self.data.domain or [], limit, self.settings.seed)
        scored = document_perplexity(self.model, documents, window=self.settings.window)
        self.metrics |= domain_metrics(scored, self.bootstrap)
        self.items["domain"] = scored.rows

    def _domain_questions(self) -> list[dict] | None:
        given = [rows for rows in (self.data.domain_boolean, self.data.domain_span) if rows is not None]
        return [row for rows in given for row in rows] if given else None

    def _domain_qa(self) -> None:
        if self.data.domain_boolean is not None:
            rows = self._drawn(self.data.domain_boolean, "domain_qa")
            self._yes_or_no("domain_boolean", "domain_qa/boolean_", rows)
        if self.data.domain_span is not None:
            rows = self._drawn(self.data.domain_span, "domain_qa")
            self._spans("domain_span", "domain_qa/span_", rows, self.data.domain_span)

    def _latency(self) -> None:
        metrics, self.items["latency"] = latency_metrics(self.model, self.protocol)
        self.metrics |= metrics
        self.notes.append(f"latency: {self.protocol}")

    def _energy(self) -> None:
        used = energy_metrics(
            self.model,
            prompt_length=self.protocol.prompt_lengths[0],
            new_tokens=self.protocol.new_tokens,
            repetitions=self.settings.latency_repetitions,
            seed=self.settings.seed,
        )
        self.metrics |= used
        if not used:
            self.notes.append("energy was left out: neither RAPL nor NVML tells, or codecarbon is not installed")

    def _yes_or_no(self, name: str, prefix: str, rows: list[dict]) -> None:
        items = boolq_items(self.model, rows, chat=self.settings.chat_template)
        self.metrics |= boolq_metrics(prefix, items, self.bootstrap)
        self._keep(name, items)

    def _spans(self, name: str, prefix: str, rows: list[dict], pool: list[dict]) -> None:
        examples = one_shot_examples(pool, self.settings.seed) if self.settings.squad_shots else []
        items = squad_items(
            self.model, rows, examples=examples, max_new_tokens=self.settings.max_new_tokens,
            chat=self.settings.chat_template,
        )  # fmt: skip
        self.metrics |= squad_metrics(prefix, items, self.bootstrap)
        self._keep(name, items)

    def _keep(self, name: str, items: list[dict]) -> None:
        self.items[name] = items
        over_long = sum(item["over_long"] for item in items)
        if over_long:
            self.notes.append(
                f"{name}: {over_long} of {len(items)} are longer than the model's context and count as wrong"
            )

    def _drawn(self, rows: list[dict] | None, name: str) -> list[dict]:
        """The questions to ask, each with an id that stays its own whatever the limit."""
        if not rows:
            raise UserError(f"{name}: the data set is empty; give at least one question or leave the measure out")
        chosen = draw(len(rows), self.settings.limit, self.settings.seed)
        return [{"id": f"{name}-{index}", **rows[index]} for index in chosen]
