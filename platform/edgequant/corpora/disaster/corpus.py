"""The bundled disaster-management corpus, its question sets and its instructions.

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
BOOLEAN_QUESTIONS_SI_TA = FOLDER / "boolean_questions_si_ta.jsonl"
SPAN_QUESTIONS_SI_TA = FOLDER / "span_questions_si_ta.json"
CLOSED_BOOK_QUESTIONS = FOLDER / "closed_book_questions.jsonl"
INSTRUCTIONS = FOLDER / "instructions.jsonl"
LANGUAGES = ("en", "si", "ta")


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


def boolean_questions(language: str = "en") -> list[dict]:
    """Yes/no questions over the test documents: BoolQ's columns plus id, domain, source and chunk.

    Raises:
        UserError: `language` is not en, si or ta.
    """
    if _checked(language) == "en":
        return _lines(BOOLEAN_QUESTIONS)
    return [row for row in _lines(BOOLEAN_QUESTIONS_SI_TA) if row["language"] == language]


def span_questions(language: str = "en", *, paraphrased: bool = True) -> list[dict]:
    """Extractive questions over the test documents as flat rows: SQuAD's columns plus domain, source and chunk.

    The files themselves are SQuAD v1.1's nested form, so the official scorer reads them too; the answers in them stand
    in their context. What means the same is their extra key `paraphrases`; in these rows it follows the answers, with
    -1 as its `answer_start` where it does not stand in the context.

    Args:
        paraphrased: accept the paraphrases.

    Raises:
        UserError: `language` is not en, si or ta.
    """
    path = SPAN_QUESTIONS if _checked(language) == "en" else SPAN_QUESTIONS_SI_TA
    articles = json.loads(path.read_text(encoding="utf-8"))["data"]
    return [
        {
            "id": question["id"],
            "title": article["title"],
            "context": paragraph["context"],
            "question": question["question"],
            "answers": _accepted(question, paragraph["context"], paraphrased),
            "domain": article["domain"],
            "source": article["source"],
            "chunk": paragraph["chunk"],
        }
        for article in articles
        if article.get("language", "en") == language
        for paragraph in article["paragraphs"]
        for question in paragraph["qas"]
    ]


def _accepted(question: dict, context: str, paraphrased: bool) -> dict[str, list]:
    spans, paraphrases = question["answers"], question.get("paraphrases", []) if paraphrased else []
    return {
        "text": [answer["text"] for answer in spans] + paraphrases,
        "answer_start": [answer["answer_start"] for answer in spans] + [context.find(text) for text in paraphrases],
    }


def closed_book_questions(language: str = "en") -> list[dict]:
    """Questions on what the training documents teach, to be answered without a passage; no training text asks them.

    Returns:
        Rows of `id`, `document` (file name of a training document), `language`, `question`, `answers` (all accepted).

    Raises:
        UserError: `language` is not en, si or ta.
    """
    return [row for row in _lines(CLOSED_BOOK_QUESTIONS) if row["language"] == _checked(language)]


def instructions(language: str = "en") -> list[dict]:
    """Instructions with answers, made from the training documents, for fine-tuning.

    Returns:
        Rows of `id`, `document` (file name of a training document), `language`, `instruction`, `answer`.

    Raises:
        UserError: `language` is not en, si or ta.
    """
    return [row for row in _lines(INSTRUCTIONS) if row["language"] == _checked(language)]


def _lines(path: Path) -> list[dict]:
    with path.open(encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


def _checked(language: str) -> str:
    if language not in LANGUAGES:
        raise UserError(f"language must be one of {', '.join(LANGUAGES)}, got {language!r}")
    return language
