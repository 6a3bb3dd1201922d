"""JSON and JSONL of ready-made chunks: each record is a document of its own, with the metadata that it states."""

from __future__ import annotations

import json
from typing import Any

from edgequant.corpora.extraction.extracted import Extraction, ExtractionError, Part
from edgequant.corpora.text.chunking import Block

TEXT_KEYS = ("chunk", "text", "content", "passage", "body")
# What other projects call our columns.
_SYNONYMS = {"doc_type": "document_type", "disaster_type": "hazard_type", "lang": "language", "license": "licence"}
_STATED = ("title", "document_type", "hazard_type", "agency", "language", "domain", "licence", "location", "split")


def extract_records(text: str, warnings: list[str], kind: str) -> Extraction:
    """A JSON list (also under a key such as "data"), or one JSON value per line.

    Raises:
        ExtractionError: not JSON, or no record with text under one of TEXT_KEYS.
    """
    items = _lines(text, warnings) if kind == "jsonl" else _whole(text, warnings)
    parts, skipped = [], 0
    for item in items:
        part = _part_of(item)
        if part is None:
            skipped += 1
        else:
            parts.append(part)
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
    if isinstance(value, dict):
        lists = [item for item in value.values() if isinstance(item, list)]
        return lists[0] if lists and _part_of(value) is None else [value]
    return value if isinstance(value, list) else [value]


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
        warnings.append(f"{bad} lines are not JSON")
    return items


def _part_of(item: Any) -> Part | None:
    if isinstance(item, str):
        return Part(blocks=[Block("text", item)]) if item.strip() else None
    if not isinstance(item, dict):
        return None
    text = next((item[key] for key in TEXT_KEYS if isinstance(item.get(key), str) and item[key].strip()), None)
    if text is None:
        return None
    stated = {**item, **item["metadata"]} if isinstance(item.get("metadata"), dict) else item
    paragraphs = [Block("text", " ".join(part.split())) for part in text.split("\n\n") if part.strip()]
    return Part(blocks=paragraphs, fields=_stated_fields(stated))


def _stated_fields(stated: dict[str, Any]) -> dict[str, str]:
    fields = {_SYNONYMS.get(key, key): value for key, value in stated.items() if isinstance(value, str) and value}
    # `hazard_type: natural` says less than `disaster_type: flood`: where both are there, the latter is the hazard.
    if isinstance(stated.get("disaster_type"), str) and stated["disaster_type"]:
        fields["hazard_type"] = stated["disaster_type"]
    return {key: fields[key] for key in _STATED if key in fields}
