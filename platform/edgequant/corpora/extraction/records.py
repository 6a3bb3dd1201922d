"""JSON and JSONL of ready-made chunks: each record is a document of its own, with the metadata that it states."""

from __future__ import annotations

import json
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from edgequant.corpora.extraction.extracted import Extraction, ExtractionError, Part
from edgequant.corpora.text.chunking import Block

TEXT_KEYS = ("chunk", "text", "content", "passage", "body")
# What other projects call our columns.
_SYNONYMS = {"doc_type": "document_type", "disaster_type": "hazard_type", "lang": "language", "license": "licence"}
_DEEPEST = 50  # records within records
_STATED = ("title", "document_type", "hazard_type", "agency", "language", "domain", "licence", "location", "split")


def extract_records(text: str, warnings: list[str], kind: str) -> Extraction:
    """A JSON list (also under a key such as "data", or within records), or one JSON value per line.

    Raises:
        ExtractionError: not JSON, or no record with text under one of TEXT_KEYS.
    """
    items = _lines(text, warnings) if kind == "jsonl" else _whole(text, warnings)
    parts, skipped = [], 0
    for item in items:
        found = _parts_of(item)
        parts += found
        skipped += not found
    if not parts:
        raise ExtractionError(
            f"records must be strings, or objects with one of {', '.join(TEXT_KEYS)}, got none with text"
        )
    if skipped:
        warnings.append(f"{skipped} records without text under {', '.join(TEXT_KEYS)}")
    return Extraction(kind, parts, 0, warnings)


def _whole(text: str, warnings: list[str]) -> list[Any]:
    try:
        value = json.loads(text)
    except (json.JSONDecodeError, RecursionError) as error:
        if "\n" in text.strip():  # JSONL under the wrong name
            return _lines(text, warnings)
        raise ExtractionError(f"not JSON: {str(error)[:100]}") from None
    if isinstance(value, dict) and not _parts_of(value):
        return _list_of_strings(value, warnings)
    return value if isinstance(value, list) else [value]


def _list_of_strings(value: dict[str, Any], warnings: list[str]) -> list[Any]:
    """Of an object without records, the list of strings that holds the most text: authors and tags are shorter."""
    lists = {key: item for key, item in value.items() if isinstance(item, list) and _parts_of(item)}
    if not lists:
        return [value]
    chosen = max(lists, key=lambda key: sum(len(block.text) for part in _parts_of(lists[key]) for block in part.blocks))
    if others := [key for key in lists if key != chosen]:
        warnings.append(f"texts taken from {chosen!r}; {', '.join(map(repr, others))} left out")
    return list(lists[chosen])


def _lines(text: str, warnings: list[str]) -> list[Any]:
    items, bad = [], 0
    for line in text.split("\n"):  # not splitlines: JSON strings may hold U+2028
        if line.strip():
            try:
                items.append(json.loads(line))
            except (json.JSONDecodeError, RecursionError):
                bad += 1
    if not items:
        raise ExtractionError("not JSON: no line parses")
    if bad:
        warnings.append(f"{bad} {'line is' if bad == 1 else 'lines are'} not JSON")
    return items


def _parts_of(item: Any, stated: Mapping[str, Any] = MappingProxyType({}), depth: int = 0) -> list[Part]:
    """The documents of a record: its own text, and those of the records that it holds, which inherit what it states."""
    if isinstance(item, str):
        return [Part(blocks=[Block("text", item)])] if item.strip() else []
    if isinstance(item, list):
        return [part for each in item for part in _parts_of(each, stated, depth)]
    if not isinstance(item, dict) or depth > _DEEPEST:
        return []
    metadata = item["metadata"] if isinstance(item.get("metadata"), dict) else {}
    stated = {**stated, **{key: value for key, value in item.items() if isinstance(value, str)}, **metadata}
    parts = []
    text = next((item[key] for key in TEXT_KEYS if isinstance(item.get(key), str) and item[key].strip()), None)
    if text is not None:
        paragraphs = [Block("text", " ".join(part.split())) for part in text.split("\n\n") if part.strip()]
        parts.append(Part(blocks=paragraphs, fields=_stated_fields(stated)))
    for key, value in item.items():
        records = value if isinstance(value, list) else [value] if key != "metadata" else []
        for record in records:
            if isinstance(record, dict):
                parts += _parts_of(record, stated, depth + 1)
    return parts


def _stated_fields(stated: Mapping[str, Any]) -> dict[str, str]:
    fields = {_SYNONYMS.get(key, key): value for key, value in stated.items() if isinstance(value, str) and value}
    # `hazard_type: natural` says less than `disaster_type: flood`: where both are there, the latter is the hazard.
    if isinstance(stated.get("disaster_type"), str) and stated["disaster_type"]:
        fields["hazard_type"] = stated["disaster_type"]
    return {key: fields[key] for key in _STATED if key in fields}
