"""The domain question sets: put together from parts, checked against the documents, filtered for hardness.

python -m edgequant.corpora.disaster.questions            # check the bundled sets, print their figures
python -m edgequant.corpora.disaster.questions PARTS      # build them from PARTS/*_boolean.jsonl and PARTS/*_span.jsonl

A yes/no question is hard when counting words does not answer it: over the whole set, "yes where the question's words
are in the passage" must answer at chance. A span question is trivial when the candidate with most of the question's
words around it (the sliding window of Richardson et al. 2013, MCTest, over numbers and names) is the answer; one
of its paraphrases does not count.
"""

from __future__ import annotations

import json
import re
import sys
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from edgequant.corpora.contamination import words_of
from edgequant.corpora.disaster.corpus import (
    BOOLEAN_QUESTIONS,
    LANGUAGES,
    SPAN_QUESTIONS,
    boolean_questions,
    bundled_documents,
    span_questions,
)
from edgequant.corpora.disaster.paraphrases import paraphrases
from edgequant.corpora.documents import DOMAINS, Document
from edgequant.errors import UserError
from edgequant.files import write_atomically

Question = dict[str, Any]

MIN_QUESTIONS = {"en": 300, "si": 15, "ta": 15}
YES_SHARE = (0.45, 0.55)
CHANCE_MARGIN = {"en": 0.02, "si": 0.1, "ta": 0.1}  # of accuracy, on either side of one half
_LISTED = (
    "a an and are as at be been by can did do does for from had has have he her his how if in is it its may must of on "
    "or she should so than that the their them there they this to was were what when where which who whose why will "
    "with"
)
_FUNCTION_WORDS = frozenset(_LISTED.split())
_CANDIDATE = re.compile(
    r"\d[\d.,:]*(?:\s(?:per cent|[a-z]+))?|(?:[A-Z][\w'-]+)(?:\s(?:[A-Z][\w'-]+|of|de|the(?=\s[A-Z])))*", re.UNICODE
)
_WINDOW = 6  # words on either side of a candidate


def collapse(text: str) -> str:
    """Single spaces for all white space, as passages are compared."""
    return " ".join(text.split())


def content_words(text: str) -> set[str]:
    """Words without function words."""
    return set(words_of(text)) - _FUNCTION_WORDS


def overlap(question: str, passage: str) -> float:
    """Share of the question's content words that the passage has, 0 to 1."""
    asked = content_words(question)
    return len(asked & content_words(passage)) / max(len(asked), 1)


def overlap_accuracy(questions: Sequence[Question]) -> float:
    """Accuracy of the overlap baseline: yes for the half of the questions with most overlap, ties counted as halves."""
    shares = [overlap(question["question"], question["passage"]) for question in questions]
    middle = sorted(shares)[len(shares) // 2]
    credit = [
        0.5 if share == middle else float((share > middle) == item["answer"])
        for share, item in zip(shares, questions, strict=True)
    ]
    return sum(credit) / max(len(credit), 1)


def window_answer(question: str, context: str) -> str:
    """The number or name in the context with most of the question's words around it; the first on a tie."""
    asked = content_words(question)
    wants_number = question.lower().startswith(("how many", "how much", "how long", "how far", "how old", "how often"))
    best, most = "", -1
    for match in _CANDIDATE.finditer(context):
        if wants_number and not match.group()[0].isdigit():
            continue
        before = words_of(context[: match.start()])[-_WINDOW:]
        after = words_of(context[match.end() :])[:_WINDOW]
        score = len(asked & {*before, *after})
        if score > most:
            best, most = match.group(), score
    return best


def is_trivial_span(question: Question) -> bool:
    """Whether the window baseline finds an accepted answer, articles, case and punctuation aside."""
    guess = words_of(window_answer(question["question"], question["context"]))
    return guess in [words_of(answer) for answer in question["answers"]]


def check_boolean(questions: Sequence[Question], language: str = "en") -> list[str]:
    """Everything that is wrong with a language's yes/no set; an empty list means that it holds what it promises."""
    faults = _check_places(questions, "passage", language)
    faults += [
        f"{item['id']}: answer {item['answer']!r} is no boolean"
        for item in questions
        if not isinstance(item["answer"], bool)
    ]
    yes = sum(item["answer"] is True for item in questions) / max(len(questions), 1)
    if not YES_SHARE[0] <= yes <= YES_SHARE[1]:
        faults.append(f"{yes:.1%} of the answers are yes; expected 45 to 55 %")
    accuracy, margin = overlap_accuracy(questions), CHANCE_MARGIN[language]
    if abs(accuracy - 0.5) > margin:
        faults.append(
            f"counting words answers {accuracy:.1%} of the yes/no questions; "
            f"expected {0.5 - margin:.0%} to {0.5 + margin:.0%}"
        )
    return faults


def check_spans(questions: Sequence[Question], language: str = "en") -> list[str]:
    """Everything that is wrong with a language's span set, given as flat rows with `answers` a list of strings.

    `answers` are those that stand in the context, without paraphrases.
    """
    faults = _check_places(questions, "context", language)
    for item in questions:
        faults += [
            f"{item['id']}: answer {a!r} is not in its context" for a in item["answers"] if a not in item["context"]
        ]
        if not item["answers"]:
            faults.append(f"{item['id']}: no answer")
        if is_trivial_span(item):
            faults.append(f"{item['id']}: the window baseline finds its answer")
    return faults


def _check_places(questions: Sequence[Question], key: str, language: str) -> list[str]:
    """Enough questions, unique ids, passages verbatim from a test document of the domain that is named."""
    documents = {document.source: document for document in bundled_documents()}
    fewest = MIN_QUESTIONS[language]
    faults = [] if len(questions) >= fewest else [f"{len(questions)} questions; expected at least {fewest}"]
    faults += [
        f"{name}: id used {count} times" for name, count in Counter(q["id"] for q in questions).items() if count > 1
    ]
    for item in questions:
        document = documents.get(item["source"])
        if document is None:
            faults.append(f"{item['id']}: source {item['source']!r} is no bundled document")
        elif document.split != "test":
            faults.append(f"{item['id']}: {item['source']} is in split {document.split}, not held out")
        elif document.language != language:
            faults.append(f"{item['id']}: {item['source']} is in language {document.language}, not {language}")
        elif document.domain != item["domain"]:
            faults.append(f"{item['id']}: domain {item['domain']!r} is not that of {item['source']}")
        elif place_of(item[key], document) is None:
            faults.append(f"{item['id']}: its {key} is not verbatim in {item['source']}")
    return faults


def place_of(passage: str, document: Document) -> str | None:
    """Where a passage stands, as `file:start-end` in characters of the document's text with white space collapsed."""
    start = collapse(document.text).find(collapse(passage))
    return None if start < 0 else f"{document.source}:{start}-{start + len(collapse(passage))}"


def harden_boolean(questions: Sequence[Question]) -> list[Question]:
    """Drop, most telling first, what word overlap gives away, in either direction, until it answers at chance.

    A set in which little overlap means yes is as easy as its opposite. Yes and no are dropped in turn, so that they
    stay balanced; never below MIN_QUESTIONS of English.
    """
    kept = list(questions)
    while abs(overlap_accuracy(kept) - 0.5) > CHANCE_MARGIN["en"] / 2 and len(kept) > MIN_QUESTIONS["en"]:
        high_means_yes = overlap_accuracy(kept) > 0.5
        answer = sum(item["answer"] for item in kept) * 2 >= len(kept)
        sign = 1 if answer == high_means_yes else -1
        side = [item for item in kept if item["answer"] is answer]
        kept.remove(max(side, key=lambda item: (sign * overlap(item["question"], item["passage"]), item["id"])))
    return kept


def build(parts: Path) -> None:
    """Merge the parts, drop trivial questions, check, and write the two bundled files of English questions.

    Raises:
        UserError: the result has faults; all are listed.
    """
    documents = {document.source: document for document in bundled_documents()}
    boolean = harden_boolean([_placed(item, "passage", documents) for item in _read(parts, "*_boolean.jsonl")])
    spans = [_placed(item, "context", documents) for item in _read(parts, "*_span.jsonl")]
    spans = [item for item in spans if not is_trivial_span(item)]
    faults = check_boolean(boolean) + check_spans(spans)
    if faults:
        raise UserError("the question sets have faults:\n" + "\n".join(faults))
    lines = "".join(json.dumps(item, ensure_ascii=False) + "\n" for item in boolean)
    write_atomically(BOOLEAN_QUESTIONS, lines)
    write_atomically(SPAN_QUESTIONS, json.dumps(_nested(spans), ensure_ascii=False, indent=1) + "\n")


def _read(parts: Path, pattern: str) -> list[Question]:
    lines = [line for path in sorted(parts.glob(pattern)) for line in path.read_text(encoding="utf-8").split("\n")]
    return [json.loads(line) for line in lines if line.strip()]


def _placed(item: Question, key: str, documents: dict[str, Document]) -> Question:
    document = documents.get(item["source"])
    return {**item, "chunk": place_of(item[key], document) if document else None}


def _nested(questions: Iterable[Question]) -> dict[str, Any]:
    """SQuAD v1.1's form: articles of paragraphs of questions; `domain`, `source`, `chunk`, `paraphrases` are extra."""
    articles: dict[str, dict[str, Any]] = {}
    for item in questions:
        head = {"title": item["title"], "domain": item["domain"], "source": item["source"], "paragraphs": []}
        paragraphs = articles.setdefault(item["source"], head)["paragraphs"]
        if not paragraphs or paragraphs[-1]["context"] != item["context"]:
            paragraphs.append({"context": item["context"], "chunk": item["chunk"], "qas": []})
        answers = [{"text": text, "answer_start": item["context"].find(text)} for text in item["answers"]]
        question = {"id": item["id"], "question": item["question"], "answers": answers}
        paragraphs[-1]["qas"].append({**question, "paraphrases": _paraphrased(item)})
    return {"version": "1.1", "data": list(articles.values())}


def _paraphrased(item: Question) -> list[str]:
    """By rule, then those that a part gives by hand."""
    found = [*paraphrases(item["answers"], item["question"], item["context"]), *item.get("paraphrases", ())]
    return [text for text in dict.fromkeys(found) if text not in item["answers"]]


def bundled_faults() -> list[str]:
    """Faults of the bundled files as they are on disk, of each language."""
    faults = []
    for language in LANGUAGES:
        faults += check_boolean(boolean_questions(language), language)
        faults += check_spans(_flat(span_questions(language, paraphrased=False)), language)
    return faults


def window_accuracy(questions: Sequence[Question]) -> float:
    """Share of rows of `span_questions` that the window baseline answers."""
    return sum(map(is_trivial_span, _flat(questions))) / max(len(questions), 1)


def _flat(questions: Iterable[Question]) -> list[Question]:
    return [{**item, "answers": item["answers"]["text"]} for item in questions]


def figures() -> str:
    """Sizes and baseline scores of the bundled sets by language, for the documentation."""
    lines = []
    for language in LANGUAGES:
        boolean, spans = boolean_questions(language), span_questions(language)
        yes = sum(item["answer"] for item in boolean) / len(boolean)
        domains = Counter(item["domain"] for item in [*boolean, *spans])
        lines += [
            f"{language}: {len(boolean)} yes/no, {yes:.1%} yes, overlap baseline {overlap_accuracy(boolean):.1%}",
            f"{language}: {len(spans)} spans, window baseline {window_accuracy(spans):.1%}",
            *(f"    {name:27} {domains[name]}" for name in DOMAINS if domains[name]),
        ]
    return "\n".join(lines)


def main(arguments: Sequence[str]) -> int:
    """Build from a folder of parts where one is named; then check and print."""
    if arguments:
        build(Path(arguments[0]))
    faults = bundled_faults()
    print("\n".join(faults) if faults else figures())
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
