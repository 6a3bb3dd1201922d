"""`evidence.json`: what a version's figures rest on, in one file of its checkpoint. Light: neither torch nor numpy."""

from __future__ import annotations

import json
import platform
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from edgequant.errors import UserError
from edgequant.evaluation.settings import EvaluationSettings
from edgequant.evaluation.tasks.registry import find_data_set, paired_metrics
from edgequant.evaluation.tasks.task import EvaluationData, Rows
from edgequant.files import sha256_of_bytes

FILE = "evidence.json"
FORMAT = 1
KEPT_ROWS = 4  # of a data set that nobody else could give, such as text that the model wrote
NO_PROTOCOL = ("tasks", "cache_dir", "max_batch_tokens")  # settings on which no figure depends
Items = Mapping[str, Sequence[Mapping[str, Any]]]


@dataclass(frozen=True)
class Scores:
    """What was measured on one model: figures, bounds included, and the rows behind them by table."""

    metrics: Mapping[str, float]
    items: Items = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Conditions:
    """Under which figures were measured, for whoever compares them or measures them again.

    Attributes:
        tasks: that were asked for, whether or not their data were there.
        protocol: the settings of the evaluation.
        data: SHA-256 of the rows by data set.
        kept: first rows of data sets that nobody else could give.
        data_dir: where benchmarks were read from; None: from nowhere.
        device, dtype: as the model was loaded.
        machine: on which times were taken.
    """

    tasks: tuple[str, ...]
    protocol: Mapping[str, Any]
    data: Mapping[str, str]
    kept: Mapping[str, Rows] = field(default_factory=dict)
    data_dir: str | None = None
    device: str = "cpu"
    dtype: str = "float32"
    machine: str = ""

    @classmethod
    def of(
        cls,
        settings: EvaluationSettings,
        data: EvaluationData,
        *,
        data_dir: str | None,
        device: str,
        dtype: str,
        kept: Collection[str] = (),
    ) -> Conditions:
        """Of an evaluation of these data, which is to come or was made; `kept`: sets that are the user's own."""
        rows = {name: rows for name, rows in data.items() if rows is not None}
        protocol = {name: value for name, value in asdict(settings).items() if name not in NO_PROTOCOL}
        return cls(
            tasks=settings.tasks,
            protocol=json.loads(json.dumps(protocol)),
            data={name: rows_digest(each) for name, each in rows.items()},
            kept={
                name: list(each[:KEPT_ROWS])
                for name, each in rows.items()
                if name in kept or not _can_be_read_again(name)
            },
            data_dir=data_dir,
            device=device.partition(":")[0],
            dtype=dtype,
            machine=f"{platform.node()} {platform.machine()}",
        )

    def settings(self, **changes: Any) -> EvaluationSettings:
        """Settings that measure so again."""
        given = {key: tuple(value) if isinstance(value, list) else value for key, value in self.protocol.items()}
        return EvaluationSettings(**{**given, "tasks": self.tasks, **changes})


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """What gates judge a version by.

    Attributes:
        model, scheme, variant: what it is made from, how, and by what.
        run: id of the run that registered it.
        files: SHA-256 of the checkpoint's files that decide what is loaded, and of the exported ones beside them.
        settings: what else a policy or a reader may want to know, such as the format that ships and the device that it
            is to fit.
        asked: settings of the workflow that measured it, by their full names as text: what it was asked for. Empty
            where no workflow did; None of evidence from before that was filed.
        measured, baseline: of the checkpoint, and of the floating-point model that it was made from.
        uncompared: that it was never compared with that model, why, and what to do; empty where it was.
        conditions: under which both were measured; None: nobody said, and the figures cannot be measured again.
    """

    model: str
    scheme: str
    variant: str
    run: str
    files: Mapping[str, str]
    settings: Mapping[str, str]
    measured: Scores
    baseline: Scores
    conditions: Conditions | None
    asked: Mapping[str, str] | None = None
    uncompared: str = ""

    def to_json(self) -> str:
        """What `read` takes: figures first, items last."""
        scores = {"measured": self.measured, "baseline": self.baseline}
        told = {"format": FORMAT, "model": self.model, "scheme": self.scheme, "variant": self.variant, "run": self.run}
        told |= {"metrics": {name: dict(each.metrics) for name, each in scores.items()}}
        told |= {"uncompared": self.uncompared, "settings": dict(self.settings), "files": dict(self.files)}
        told |= {"asked": self.asked and dict(self.asked)}
        told |= {"conditions": None if self.conditions is None else asdict(self.conditions)}
        told |= {"items": {name: _tables(each.items) for name, each in scores.items()}}
        return json.dumps(told, indent=1) + "\n"


def read(text: str, where: str) -> Evidence:
    """The evidence in a file.

    Args:
        where: it lies, for messages.

    Raises:
        UserError: it is not evidence that this edgequant can read.
    """
    try:
        found = json.loads(text)
        if found["format"] != FORMAT:
            raise UserError(f"{where} must have format {FORMAT}, got {found['format']!r}; install a newer edgequant")
        stated, uncompared = found["conditions"], str(found.get("uncompared", _of_old(found)))
        return Evidence(
            **{key: str(found[key]) for key in ("model", "scheme", "variant", "run")},
            files=_mapping(found, "files"),
            settings=_mapping(found, "settings"),
            asked=None if found.get("asked") is None else _mapping(found, "asked"),
            measured=_scores(found, "measured"),
            baseline=Scores({}) if uncompared else _scores(found, "baseline"),
            uncompared=uncompared,
            conditions=None if stated is None else _conditions(stated),
        )
    except UserError:
        raise
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise UserError(f"{where} is not evidence of edgequant ({error!r}); register the checkpoint again") from None


def _mapping(found: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    if not isinstance(found[name], Mapping):
        raise TypeError(f"{name} is {found[name]!r:.60}")
    return found[name]


def _conditions(found: Mapping[str, Any]) -> Conditions:
    kept = {"kept": _mapping(found, "kept")} if "kept" in found else {}
    if not isinstance(found["tasks"], list):
        raise TypeError(f"tasks is {found['tasks']!r:.60}")
    mappings = {name: _mapping(found, name) for name in ("protocol", "data")}
    return Conditions(**{**found, **mappings, **kept, "tasks": tuple(found["tasks"])})


def _of_old(found: Mapping[str, Any]) -> str:
    """Before, fine-tuning within integers was filed beside the integers that it began with: rounding was not judged."""
    if found["variant"] != "finetuned" or found["scheme"] == "none":
        return ""
    return (
        f"never compared with the floating-point model: an earlier edgequant compared it with the {found['scheme']} "
        "checkpoint that it began with; make it again: `edgequant finetune --model CHECKPOINT --baseline MODEL`"
    )


def rows_digest(rows: Rows) -> str:
    """SHA-256 of a data set's rows."""
    return sha256_of_bytes(json.dumps(rows, sort_keys=True))


def kept_items(items: Items) -> dict[str, list[dict[str, Any]]]:
    """Of item tables what comparisons item by item look at: scores, and how much text they stand for."""
    columns: dict[str, dict[str, None]] = {}
    for paired in paired_metrics():
        columns.setdefault(paired.table, {}).update(dict.fromkeys(paired.columns))
    return {
        table: [{name: row[name] for name in ("id", *columns[table]) if name in row} for row in rows]
        for table, rows in items.items()
        if table in columns
    }


def _can_be_read_again(name: str) -> bool:
    data_set = find_data_set(name)
    return data_set.load is None or data_set.load(data_set.report, None) is not None


def _tables(items: Items) -> dict[str, Any]:
    """By columns, which takes a third of the room; equal digests stand for the same items."""
    told = {}
    for table, rows in kept_items(items).items():
        names = [name for name in (rows[0] if rows else ()) if all(name in row for row in rows)]
        ids = json.dumps([row["id"] for row in rows])
        columns = {name: [row[name] for row in rows] for name in names}
        told[table] = {"items": len(rows), "digest": sha256_of_bytes(ids), "columns": columns}
    return told


def _scores(found: Mapping[str, Any], of: str) -> Scores:
    items = {}
    for table, told in found["items"][of].items():
        columns = told["columns"]
        _check_numbers(table, columns)
        items[table] = [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]
    return Scores({str(name): float(value) for name, value in found["metrics"][of].items()}, items)


def _check_numbers(table: str, columns: Mapping[str, Sequence[Any]]) -> None:
    for paired in paired_metrics():
        numbers = ("nats", "tokens") if paired.value is None else (paired.value,)
        for name in numbers if paired.table == table else ():
            if wrong := [value for value in columns.get(name, ()) if not isinstance(value, int | float)]:
                raise TypeError(f"{name} of an item of {table} is {wrong[0]!r:.60}")
