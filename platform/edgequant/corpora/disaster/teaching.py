"""What the training documents teach: closed-book questions to test it, instructions to train on, and their checks.

python -m edgequant.corpora.disaster.teaching             # check both bundled sets, print their sizes

A closed-book question may be learnt from its document, never from its own wording: neither a training document nor an
instruction may ask it. Instructions may say nothing that held-out documents or their questions say.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import chain

from edgequant.corpora.contamination import refuse_overlap
from edgequant.corpora.disaster.corpus import (
    LANGUAGES,
    boolean_questions,
    bundled_documents,
    closed_book_questions,
    instructions,
    span_questions,
)
from edgequant.corpora.disaster.questions import content_words
from edgequant.corpora.documents import Document
from edgequant.errors import UserError

FEWEST_QUESTIONS = {"en": 150, "si": 30, "ta": 30}
FEWEST_INSTRUCTIONS = {"en": 200}
MOST_ALIKE = 0.5  # Jaccard similarity of the content words of a question and an instruction


def check_closed_book(questions: Sequence[dict], trained: Sequence[dict]) -> list[str]:
    """Everything that is wrong with closed-book questions; an empty list means that they hold what they promise.

    Args:
        questions: rows as `closed_book_questions` gives them, of any languages.
        trained: rows as `instructions` gives them, which may be trained on.
    """
    documents = _training_documents()
    faults = _check_rows(questions, ("question",), documents)
    for row in questions:
        if not row["answers"] or not all(answer.strip() for answer in row["answers"]):
            faults.append(f"{row['id']}: no answer, or an empty one")
        elif row["document"] in documents and not _is_taught(row["answers"], documents[row["document"]].text):
            faults.append(f"{row['id']}: none of its answers is in {row['document']}")
        faults += [
            f"{row['id']}: instruction {other['id']} asks the same"
            for other in trained
            if _alike(row["question"], other["instruction"]) >= MOST_ALIKE
        ]
    texts = [document.text for document in documents.values()] + [_told(row) for row in trained]
    return faults + _overlaps(texts, [row["question"] for row in questions], "closed-book questions")


def check_instructions(rows: Sequence[dict]) -> list[str]:
    """Everything that is wrong with instructions, given as `instructions` gives them."""
    held_out = [document.text for document in bundled_documents() if document.split != "train"]
    asked = [
        row[column]
        for language in LANGUAGES
        for row, column in (
            *((row, "question") for row in boolean_questions(language)),
            *((row, "question") for row in span_questions(language)),
        )
    ]
    faults = _check_rows(rows, ("instruction", "answer"), _training_documents())
    return faults + _overlaps([_told(row) for row in rows], [*held_out, *asked], "held-out documents and questions")


def _training_documents() -> dict[str, Document]:
    return {document.source: document for document in bundled_documents("train")}


def _check_rows(rows: Sequence[dict], columns: Sequence[str], documents: dict[str, Document]) -> list[str]:
    """Unique ids and texts, each with a training document of its language."""
    faults = []
    for column in ("id", columns[0]):
        counts = Counter(row[column].casefold() for row in rows)
        faults += [f"{column} {value!r} stands {count} times" for value, count in counts.items() if count > 1]
    for row in rows:
        document = documents.get(row["document"])
        if document is None:
            faults.append(f"{row['id']}: document {row['document']!r} is no training document")
        elif document.language != row["language"]:
            faults.append(f"{row['id']}: language {row['language']!r} is not that of {row['document']}")
        faults += [f"{row['id']}: {column} is empty" for column in columns if not row[column].strip()]
    return faults


def _is_taught(answers: Iterable[str], text: str) -> bool:
    known = _plain(text)
    return any(_plain(answer).strip() in known for answer in answers)


def _plain(text: str) -> str:
    """Lower case, hyphens as spaces, without punctuation at the end of words; single spaces."""
    words = (word.strip(".,:;!?()*\"'") for word in text.lower().replace("-", " ").split())
    return " " + " ".join(word for word in words if word) + " "


def _alike(first: str, second: str) -> float:
    one, other = content_words(first), content_words(second)
    return len(one & other) / max(len(one | other), 1)


def _told(row: dict) -> str:
    return f"{row['instruction']}\n{row['answer']}"


def _overlaps(training: Sequence[str], evaluation: Sequence[str], name: str) -> list[str]:
    try:
        refuse_overlap(training, {name: evaluation}, max_share=0.0)
    except UserError as error:
        return [str(error)]
    return []


def bundled_faults() -> list[str]:
    """Faults of the bundled files as they are on disk, too few rows among them."""
    questions = {language: closed_book_questions(language) for language in LANGUAGES}
    trained = {language: instructions(language) for language in LANGUAGES}
    too_few = [
        f"{len(found[language])} {what} in {language}; expected at least {fewest}"
        for what, found, wanted in (
            ("closed-book questions", questions, FEWEST_QUESTIONS),
            ("instructions", trained, FEWEST_INSTRUCTIONS),
        )
        for language, fewest in wanted.items()
        if len(found[language]) < fewest
    ]
    asked, told = [*chain.from_iterable(questions.values())], [*chain.from_iterable(trained.values())]
    return too_few + check_closed_book(asked, told) + check_instructions(told)


def main() -> int:
    """Check, then print how many there are."""
    faults = bundled_faults()
    for language in LANGUAGES:
        asked, told = closed_book_questions(language), instructions(language)
        print(f"{language}: {len(asked)} closed-book questions, {len(told)} instructions")
    print("\n".join(faults))
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
