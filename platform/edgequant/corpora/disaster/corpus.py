"""The bundled disaster-management corpus and its question sets.

Written for this project: original prose that leans on public standards, not official guidance.
"""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path

from edgequant.corpora.documents import SPLITS, Document, read_document
from edgequant.errors import UserError

FOLDER = Path(__file__).parent
DOCUMENTS = FOLDER / "documents"
BACKGROUND = FOLDER / "background.txt"  # text of no domain, for the classifier
DOMAIN_TERMS = FOLDER / "domain_terms.yaml"
BOOLEAN_QUESTIONS = FOLDER / "boolean_questions.jsonl"
SPAN_QUESTIONS = FOLDER / "span_questions.json"


@cache
def _all_documents() -> tuple[Document, ...]:
    return tuple(read_document(path) for path in sorted(DOCUMENTS.glob("*.md")))


def bundled_documents(split: str | None = None) -> list[Document]:
    """The bundled documents in file-name order, all of them or one split (train, validation, test).

    Raises:
        UserError: `split` is not one of the three.
    """
    if split is not None and split not in SPLITS:
        raise UserError(f"split must be one of {', '.join(SPLITS)}, got {split!r}")
    return [document for document in _all_documents() if split in (None, document.split)]


def boolean_questions() -> list[dict]:
    """Yes/no questions over the test documents: BoolQ's columns plus id, domain, source and chunk."""
    with BOOLEAN_QUESTIONS.open(encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


def span_questions() -> list[dict]:
    """Extractive questions over the test documents as flat rows: SQuAD's columns plus domain, source and chunk.

    The file itself is SQuAD v1.1's nested form, so the official scorer reads it too.
    """
    articles = json.loads(SPAN_QUESTIONS.read_text(encoding="utf-8"))["data"]
    return [
        {
            "id": question["id"],
            "title": article["title"],
            "context": paragraph["context"],
            "question": question["question"],
            "answers": {
                "text": [answer["text"] for answer in question["answers"]],
                "answer_start": [answer["answer_start"] for answer in question["answers"]],
            },
            "domain": article["domain"],
            "source": article["source"],
            "chunk": paragraph["chunk"],
        }
        for article in articles
        for paragraph in article["paragraphs"]
        for question in paragraph["qas"]
    ]
