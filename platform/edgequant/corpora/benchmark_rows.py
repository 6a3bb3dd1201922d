"""What the columns of BoolQ's and SQuAD's rows must hold: the unambiguous is converted and said, the rest refused."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any

from edgequant.corpora.text.decoding import unified
from edgequant.errors import UserError

_YES = ("true", "yes", "1")
_NO = ("false", "no", "0")
_SQUAD_V2 = "; SQuAD v2 has questions without an answer, v1.1 (dev-v1.1.json) has none"


class Conversions:
    """What was converted on the way, counted by kind, with the first place of each."""

    def __init__(self) -> None:
        self._counts: Counter[str] = Counter()
        self._first: dict[str, str] = {}

    def count(self, kind: str, where: str) -> None:
        self._counts[kind] += 1
        self._first.setdefault(kind, where)

    def lines(self) -> tuple[str, ...]:
        """`answer given as text is read as true or false: 3,270 times, first in ...`, one line per kind."""
        return tuple(
            f"{kind}: {count:,} time{'s' if count > 1 else ''}, first in {self._first[kind]}"
            for kind, count in self._counts.items()
        )


def parse_json(text: str, where: str) -> Any:
    """One JSON value.

    Raises:
        UserError: not JSON, or an object that has a key twice, of which JSON readers silently take the last.
    """
    try:
        return json.loads(text, object_pairs_hook=_without_twice)
    except json.JSONDecodeError as error:
        raise UserError(f"{where} is not valid JSON ({error}); fetch the official file again") from None
    except RecursionError:
        raise UserError(f"{where} is not valid JSON (nested too deep); fetch the official file again") from None
    except _TwiceError as error:
        raise UserError(f"{where}: key {str(error)!r} stands twice in one object; keep one of them") from None


class _TwiceError(ValueError):
    """A key that an object has twice."""


def _without_twice(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise _TwiceError(next(key for key, count in Counter(key for key, _ in pairs).items() if count > 1))
    return found


def boolq_rows(values: Iterable[tuple[str, Any]], told: Conversions) -> Iterator[dict]:
    """BoolQ rows with `question`, `title`, `passage` (text) and `answer` (bool).

    Args:
        values: place, such as "dev.jsonl, line 3", and what stands there.
        told: takes what was converted.

    Raises:
        UserError: names the place, the column and its value.
    """
    for where, value in values:
        row = _object(value, where, ("question", "passage", "answer"))
        yield {
            "question": _text(row, "question", where, told),
            "title": "" if row.get("title") is None else _text(row, "title", where, told, may_be_empty=True),
            "passage": _text(row, "passage", where, told),
            "answer": _boolean(row["answer"], where, told),
        }


def squad_rows(values: Iterable[tuple[str, Any]], told: Conversions) -> Iterator[dict]:
    """SQuAD v1.1 rows: `id`, `title`, `context`, `question`, `answers` {"text": [...], "answer_start": [...]}.

    Arguments and errors as `boolq_rows`; ids must differ, every answer must stand in its context.
    """
    seen: dict[str, str] = {}
    for where, value in values:
        row = _object(value, where, ("id", "title", "context", "question", "answers"))
        name = _text(row, "id", where, told)
        if name in seen:
            raise UserError(f"{where}, column id: must be a question's own, got {name!r}, which is {seen[name]}'s too")
        seen[name] = where
        where = f"{where} (id {name})"
        context = _text(row, "context", where, told)
        yield {
            "id": name,
            "title": _text(row, "title", where, told, may_be_empty=True),
            "context": context,
            "question": _text(row, "question", where, told),
            "answers": _answers(row, str(row["context"]), context, where, told),
        }


def questions_of(data: Any, path: str) -> Iterator[tuple[str, dict]]:
    """The official nested form, articles of paragraphs of questions, as places and flat rows.

    Raises:
        UserError: another form; names the place and the key.
    """
    for article, of_article in _listed(data, "data", path):
        for paragraph, of_paragraph in _listed(article, "paragraphs", of_article):
            for question, where in _listed(paragraph, "qas", of_paragraph):
                shared = {"title": article.get("title"), "context": paragraph.get("context")}
                yield where, {**question, **shared, "answers": _columns(question, where)}


def _listed(holder: dict, key: str, where: str) -> Iterator[tuple[dict, str]]:
    if not isinstance(holder, dict) or not isinstance(holder.get(key), list):
        raise UserError(f"{where} is not SQuAD v1.1: must have a list {key!r}, got {_shown(holder)}")
    for at, item in enumerate(holder[key]):
        place = f"{where}: {key}[{at}]" if key == "data" else f"{where}.{key}[{at}]"
        if not isinstance(item, dict):
            raise UserError(f"{place} must be an object, got {_shown(item)}")
        yield item, place


def _columns(question: dict, where: str) -> dict[str, list]:
    """The answers of a question in the nested form, as two columns."""
    answers = question.get("answers")
    if not isinstance(answers, list) or not all(isinstance(answer, dict) for answer in answers):
        hint = _SQUAD_V2 if question.get("is_impossible") else ""
        raise UserError(
            f"{where}, column answers: must be a list of {{text, answer_start}}, got {_shown(answers)}{hint}"
        )
    if question.get("is_impossible") is True:
        raise UserError(f"{where}, column is_impossible: must be false, got true{_SQUAD_V2}")
    return {name: [answer.get(name) for answer in answers] for name in ("text", "answer_start")}


def _answers(row: dict, given: str, context: str, where: str, told: Conversions) -> dict[str, list]:
    """Texts and offsets; an offset that points elsewhere is set right, which exact match and F1 do not look at.

    Args:
        given: the context as the offsets count it; `context` has its line ends unified.
    """
    answers = row["answers"]
    texts = answers.get("text") if isinstance(answers, dict) else None
    starts = answers.get("answer_start") if isinstance(answers, dict) else None
    if not isinstance(texts, list) or not isinstance(starts, list) or len(texts) != len(starts):
        raise UserError(f"{where}, column answers: must be equally many texts and offsets, got {_shown(answers)}")
    if not texts:
        raise UserError(f"{where}, column answers: must be one or more, got none{_SQUAD_V2}")
    texts = [_text({"answers": text}, "answers", where, told) for text in texts]
    pairs = zip(texts, starts, strict=True)
    return {"text": texts, "answer_start": [_start(text, start, given, context, where, told) for text, start in pairs]}


def _start(text: str, start: Any, given: str, context: str, where: str, told: Conversions) -> int:
    at = start if isinstance(start, int) and not isinstance(start, bool) and 0 <= start < len(given) else None
    shifted = None if at is None else len(unified(given[:at]))
    if shifted is not None and context.startswith(text, shifted):
        return shifted
    found = _nearest(text, context, shifted or 0)
    if found is None:
        raise UserError(f"{where}, column answers: must stand in the context, got {_shown(text)}, which does not")
    told.count("answer_start set to where the answer stands (scores do not look at it)", where)
    return found


def _nearest(text: str, context: str, start: int) -> int | None:
    places = [at for at in (context.rfind(text, 0, start + len(text)), context.find(text, start)) if at >= 0]
    return min(places, key=lambda at: abs(at - start), default=None)


def _object(value: Any, where: str, columns: tuple[str, ...]) -> dict:
    if not isinstance(value, dict):
        raise UserError(f"{where} must be an object with {', '.join(columns)}, got {_shown(value)}")
    missing = [column for column in columns if column not in value]
    if missing:
        there = ", ".join(map(str, value)) or "nothing"
        raise UserError(f"{where}: column {missing[0]} not found, there are: {there}; use the official file")
    return value


def _text(row: dict, column: str, where: str, told: Conversions, *, may_be_empty: bool = False) -> str:
    value = row[column]
    if not isinstance(value, str) or not (may_be_empty or value.strip()) or not _is_encodable(value):
        raise UserError(f"{where}, column {column}: must be text, got {_shown(value)}; correct the row")
    clean = unified(value)
    if clean != value:
        told.count(f"{column} with CRLF or CR line ends or a byte order mark, read with LF and without", where)
    return clean


def _is_encodable(text: str) -> bool:
    """JSON may hold half of a surrogate pair, `\\ud83d`, which is no character; a tokenizer refuses it."""
    try:
        return bool(text.encode()) or not text
    except UnicodeEncodeError:
        return False


def _boolean(value: Any, where: str, told: Conversions) -> bool:
    if isinstance(value, bool):
        return value
    written = value.strip().lower() if isinstance(value, str) else str(int(value)) if value in (0, 1) else ""
    if written not in (*_YES, *_NO):
        raise UserError(f"{where}, column answer: must be true or false, got {_shown(value)}; correct the row")
    told.count(f"answer {_shown(value)} read as {str(written in _YES).lower()}", where)
    return written in _YES


def _shown(value: Any) -> str:
    """A value as JSON writes it, in a few words."""
    try:
        text = json.dumps(value, ensure_ascii=isinstance(value, str) and not _is_encodable(value))
    except (TypeError, ValueError):
        text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
