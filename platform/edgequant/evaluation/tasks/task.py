"""What a benchmark is: a `Task` names its data, how they are scored, what that measures and how the metrics are shown.

Light: imports neither torch nor numpy, and a task's file should not either; its scoring function may. A new task is
one file and one line in `registry.py`, or an entry point `edgequant.tasks` of another package:

    ROWS = [{"sentence": "The river rose because of the", "right": " rain", "wrong": " spoon"}]

    def score(model, data, settings):
        choices = [model.encode_choices([row["sentence"]], (row["right"], row["wrong"]))[0] for row in data["cloze"]]
        right = [100.0 * (first > second) for _, (first, second) in sorted(model.log_likelihoods(choices))]
        return Evaluation({"cloze/accuracy": sum(right) / len(right)})

    CLOZE = Task(
        name="cloze", score=score, data=(DataSet(name="cloze", load=lambda split, data_dir: ROWS),),
        protocol="The likelier of two endings.", display={"cloze/accuracy": Metric("cloze accuracy", "%", "higher")},
    )
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from edgequant.errors import UserError
from edgequant.evaluation.backends.language_model import LanguageModel
from edgequant.evaluation.scoring_settings import ScoringSettings
from edgequant.evaluation.statistics.verdicts import AT_CHANCE, AT_FLOOR

Rows = Sequence[Any]
EvaluationData = Mapping[str, Rows | None]
"""Rows by the name of their data set; one that is None or absent leaves out the tasks that need it."""


@dataclass(frozen=True)
class Metric:
    """How one metric is shown to people.

    `scale` turns the stored number into the shown one (a fraction of 0.72 is 72 %); `digits` are significant digits.
    """

    heading: str
    unit: str = ""
    better: Literal["lower", "higher"] | None = None
    scale: float = 1.0
    digits: int = 3
    prominence: Literal["figure", "summary", "table", "detail"] = "figure"
    """figure: has plots of its own, and stands in every table. summary: in every table. table: in tables with room for
    more than what a decision rests on. detail: only in tables of everything."""
    floor: float | str | None = None
    """What a model scores that knows nothing: a number, or the metric that holds it, such as the share of the commoner
    answer. No loss shows below it."""
    counts: Mapping[str, str] = field(default_factory=dict)
    """What it stands on, by the metric that holds the number: {"boolq/items": "questions", "boolq/clusters":
    "passages"} is shown as `200 questions of 187 passages`."""

    @property
    def label(self) -> str:
        return f"{self.heading} ({self.unit})" if self.unit else self.heading

    def doubt(self, name: str, kind: Literal["min", "max", "max_loss"], bound: float) -> str:
        """Why a bound is surely meant in the other unit, and what to give instead; empty of one that may be meant.

        A least value between 0 and 1 of a metric in per cent is kept by every model. 0 and 1 are no such, which a model
        near the floor may have to keep; neither are small greatest values and losses, which are strict and not lax. Of
        a share of 1, what is stated in per cent refuses everything or, as a loss, nothing.
        """
        if self.unit != "%":
            return ""
        if self.scale == 1 and kind == "min" and 0 < bound < 1:
            return (
                f"{kind} {bound:g} is {bound:g} %, since {name} is in per cent (0 to 100); give {100 * bound:g} for "
                f"{100 * bound:g} %, or 0 or 1 where next to nothing is asked"
            )
        if self.scale == 100 and bound >= (1 if kind == "max_loss" else 2):
            unit = "points" if kind == "max_loss" else "%"
            return (
                f"{kind} {bound:g} is {100 * bound:g} {unit}, since {name} is a share (0 to 1); give {bound / 100:g} "
                f"for {bound:g} {unit}"
            )
        return ""

    def floor_of(self, name: str, measured: Mapping[str, Any]) -> str:
        """`at chance`, or `at the floor` of 0, where what was measured does not tell `name` from the floor; else empty.

        It does not where the value or its interval reaches the floor.
        """
        floor = measured.get(self.floor) if isinstance(self.floor, str) else self.floor
        value = measured.get(name)
        if not isinstance(floor, int | float) or not isinstance(value, int | float):
            return ""
        low = measured.get(f"{name}_ci_low")
        return at_chance(value, low, floor)

    def counted(self, measured: Mapping[str, Any]) -> str:
        """What the figure stands on: `200 questions of 187 passages`; empty where that was not counted."""
        found = [(measured.get(name), noun) for name, noun in self.counts.items()]
        return " of ".join(counted(number, noun) for number, noun in found if isinstance(number, int | float))


def at_chance(value: float, low: float | None, floor: float) -> str:
    """`at chance` of a score that is not told from what a model scores that knows nothing, `at the floor` where that
    is 0; else empty."""
    reached = value <= floor or (low is not None and low <= floor)
    return (AT_CHANCE if floor else AT_FLOOR) if reached else ""


def counted(number: float, noun: str) -> str:
    """`1 document`, `10,570 questions`: a number and what is counted, in the plural."""
    return f"{number:,.0f} {noun.removesuffix('s') if number == 1 else noun}"


@dataclass(frozen=True, kw_only=True)
class Paired:
    """How two models are compared on the items of a task, of which those with one `cluster` depend on each other.

    Attributes:
        metric: that sums the items up.
        table: of `Evaluation.items`.
        value: column of each item, higher is better; None: a perplexity, of the columns `nats` and `tokens`.
        unit: of the metric: `points` of a share from 0 to 1, or `nats`.
        gold: column with the right answers. Of a share: always giving the commoner one is what a model scores that
            knows nothing. In nats: each of them weighs the same, so that a leaning towards one is worth nothing.
        chance: what a model scores that knows nothing, in points; with `gold` it follows from the answers.
        instead_of: the metric of right-or-wrong answers in whose place it decides where that is at chance.
        nouns: what an item and a cluster are.
    """

    metric: str
    table: str
    value: str | None = None
    unit: Literal["points", "nats"] = "points"
    gold: str | None = None
    chance: float | None = None
    instead_of: str | None = None
    nouns: tuple[str, str] = ("items", "clusters")

    @property
    def columns(self) -> tuple[str, ...]:
        """Of its items that a comparison looks at."""
        return (*self.needed, *([self.gold] if self.gold else []), "cluster")

    @property
    def needed(self) -> tuple[str, ...]:
        """Without which there is none; items of earlier versions have less."""
        if self.value is None:
            return ("nats", "tokens")
        return (self.value, self.gold) if self.unit == "nats" and self.gold else (self.value,)

    def is_in(self, rows: Sequence[Mapping[str, Any]] | None) -> bool:
        """Whether there are rows that can be compared by it."""
        return bool(rows) and all(name in row for row in rows or () for name in self.needed)

    def counted(self, items: int, clusters: int) -> str:
        """`200 questions of 187 passages`; `8 documents` where each is a cluster by itself."""
        item, cluster = self.nouns
        told = counted(items, item)
        return told if clusters == items and item == cluster else f"{told} of {counted(clusters, cluster)}"


@dataclass(frozen=True, kw_only=True)
class DataSet:
    """Rows that a task is scored on."""

    name: str
    """Its name as an input of a run and in `EvaluationData`."""

    report: str = "test"
    """The split that results are reported on."""

    select: tuple[str, ...] = ()
    """Splits that a search may score its trials on: the first one that is there and not trained on. Empty: the reported
    split, for want of another."""

    load: Callable[[str, str | None], Rows | None] | None = None
    """(split, data_dir) -> rows, or None where they are not there; it neither waits for a network nor downloads. None:
    a data set that edgequant brings or reads from its official files."""

    units: Callable[[Rows], Sequence[Rows]] | None = None
    """Rows in groups that belong together where a search halves the reported split; None: those that name one passage
    or document, else each row by itself."""

    drawn: bool = True
    """Whether `limit` draws single rows of it, as `sampling.draw_questions` does."""

    texts: Callable[[Rows], list[str]] | None = None
    """The running text in the rows, which text that is trained on must not repeat; None: it holds none."""


@dataclass(frozen=True)
class Evaluation:
    """What was measured: flat metrics, a table per data set with one row per item, remarks for the reader, and texts
    to file with the run by their file names."""

    metrics: dict[str, float] = field(default_factory=dict)
    items: dict[str, list[dict]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    files: dict[str, str] = field(default_factory=dict)

    def __add__(self, other: Evaluation) -> Evaluation:
        return Evaluation(
            self.metrics | other.metrics, self.items | other.items, self.notes + other.notes, self.files | other.files
        )

    @classmethod
    def of_items(cls, name: str, items: list[dict], metrics: dict[str, float]) -> Evaluation:
        """Metrics of one item table, with a note where items have `over_long` set."""
        over_long = sum(bool(item.get("over_long")) for item in items)
        note = f"{name}: {over_long} of {len(items)} are longer than the model's context and count as wrong"
        return cls(metrics, {name: items}, [note] if over_long else [])


@dataclass(frozen=True, kw_only=True)
class Task:
    """One benchmark, everything about it.

    Raises:
        UserError: a name that cannot be one, or a displayed metric outside the task's group.
    """

    name: str
    """What `evaluation.tasks` calls it: lower-case letters, digits and underscores."""

    score: Callable[[LanguageModel, Mapping[str, Rows], ScoringSettings], Evaluation]
    """(model, rows by data set, settings) -> what was measured. Gets those of its data sets that are there."""

    protocol: str
    """How it is measured, in a sentence or two: shown by `--help`, in reports and model cards."""

    display: Mapping[str, Metric]
    """How its metrics are shown, by full name, in reading order; others are shown under their own names."""

    data: tuple[DataSet, ...] = ()
    """What it is scored on; left out where none of them is there. Empty for a task that needs no data."""

    group: str = ""
    """Its metrics' names up to the slash; empty: the task's name."""

    kind: Literal["quality", "efficiency"] = "quality"
    """Whether it asks what a model knows, or what it takes to run."""

    by_default: bool = True
    """Whether `evaluate` measures it unasked, if edgequant brings it; other packages' tasks wait to be asked for."""

    paired: tuple[Paired, ...] = ()
    """Which of its metrics say, item by item, whether one model is worse than another."""

    comparison: bool = True
    """Whether it is short enough for the variants of one model to be compared by it, as ptq, qat and finetune do."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "group", self.group or self.name)
        if not re.fullmatch(r"[a-z][a-z0-9_]*", self.name):
            raise UserError(f"task name {self.name!r} must be lower-case letters, digits and underscores, as in boolq")
        for metric in self.display:
            if not self.owns(metric):
                raise UserError(f"task {self.name}: metric {metric!r} must begin with {self.group + '/'!r}")

    def owns(self, metric: str) -> bool:
        """Whether a metric is of this task, by its name."""
        return metric.startswith(f"{self.group}/")
