"""One document: text and what is known about it. Markdown with YAML front matter is its form on disk."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import yaml

from edgequant.corpora.text.decoding import read_text
from edgequant.errors import UserError

DOMAINS = (
    "Rescue & Evacuation",
    "Medical & Health Care",
    "Shelter & Housing",
    "Food & Nutrition",
    "Water Sanitation & Hygiene",
    "Waste Management",
)
NO_DOMAIN = "none"
SPLITS = ("train", "validation", "test")

_FRONT_MATTER = re.compile(r"\A\ufeff?---[ \t]*\r?\n(.*?)\r?\n---[ \t]*(?:\r?\n|\Z)", re.DOTALL)
_REQUIRED = ("title", "document_type", "hazard_type", "agency", "language", "domain", "split", "licence")


@dataclass(frozen=True, kw_only=True)
class Document:
    """A whole document with the metadata that every chunk cut from it inherits."""

    text: str
    title: str
    domain: str
    document_type: str
    hazard_type: str
    agency: str
    language: str
    split: str
    source: str
    license: str
    location: str = ""
    standard: str = "none"
    setting: str = "invented"  # of bundled documents; or exercise, composite (many made one), general (of no event)


def split_front_matter(text: str) -> tuple[dict[str, str], str]:
    """Return (front matter as strings, body). Text without valid front matter comes back whole with an empty dict."""
    match = _FRONT_MATTER.match(text)
    if not match:
        return {}, text
    try:
        fields = yaml.safe_load(match.group(1))
    except (yaml.YAMLError, RecursionError, ValueError):  # ValueError: a date such as 2019-99-99
        return {}, text
    if not isinstance(fields, dict):
        return {}, text
    return {str(key): str(value) for key, value in fields.items()}, text[match.end() :]


def read_document(path: Path) -> Document:
    """Read one Markdown document of the bundled form.

    Raises:
        UserError: not UTF-8 text, or front matter is missing, lacks a key, or names an unknown domain or split.
    """
    fields, body = split_front_matter(read_text(path).text)
    missing = [key for key in _REQUIRED if key not in fields]
    if missing:
        raise UserError(
            f"{path}: {', '.join(missing)} not found in the front matter, which must have {', '.join(_REQUIRED)}"
        )
    if fields["domain"] not in DOMAINS:
        raise UserError(f"{path}: domain must be one of {', '.join(DOMAINS)}, got {fields['domain']!r}")
    if fields["split"] not in SPLITS:
        raise UserError(f"{path}: split must be one of {', '.join(SPLITS)}, got {fields['split']!r}")
    known = {key: fields[key] for key in (*_REQUIRED[:-1], "location", "standard", "setting") if key in fields}
    license = fields["licence"]
    return Document(text=body.strip(), source=path.name, license=license, **known)
