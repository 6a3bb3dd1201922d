"""Other ways to say a short answer that mean the same: numbers in words, units spelt or left out, dates, prepositions.

SQuAD's scoring takes the best of the accepted answers and already leaves out case, punctuation and articles.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

_ONES = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen "
    "eighteen nineteen"
)
_TENS = "twenty thirty forty fifty sixty seventy eighty ninety"
_IN_WORDS = {str(number): words for number, words in enumerate(_ONES.split())} | {
    f"{tens}{ones}": _TENS.split()[tens - 2] + (f"-{_ONES.split()[ones]}" if ones else "")
    for tens in range(2, 10)
    for ones in range(10)
}
_IN_DIGITS = {words: number for number, words in _IN_WORDS.items()}
_UNITS = (  # each in all its spellings, of one and of several; those of one letter or two may touch the number
    ("kilograms", "kilos", "kg"),
    ("grams", "g"),
    ("milligrams", "mg"),
    ("tonnes", "tons", "t"),
    ("litres", "liters", "l"),
    ("millilitres", "milliliters", "ml"),
    ("kilometres", "kilometers", "km"),
    ("metres", "meters", "m"),
    ("centimetres", "centimeters", "cm"),
    ("millimetres", "millimeters", "mm"),
    ("square metres", "square meters", "m2", "m²"),
    ("cubic metres", "cubic meters", "m3", "m³"),
    ("hectares", "ha"),
    ("per cent", "percent", "%"),
    ("degrees", "degrees Celsius", "°C"),
    ("decibels", "dB"),
    ("kilocalories", "kcal"),
    ("rupees", "Rs"),
    ("dollars",),
    ("pesos",),
)
_TIMES = (("seconds",), ("minutes", "min"), ("hours",), ("days",), ("weeks",), ("months",), ("years",))


def _of_one(spelling: str) -> str:
    return spelling[:-1] if spelling.endswith("s") and len(spelling) > 2 else spelling


_SPELLINGS = {
    each.lower(): unit for unit in (*_UNITS, *_TIMES) for spelling in unit for each in (spelling, _of_one(spelling))
}
_FRACTIONS = {
    "half": ("one half", "50 per cent", "50%"),
    "a third": ("one third", "one-third"),
    "two thirds": ("two-thirds", "2/3"),
    "a quarter": ("one quarter", "25 per cent", "25%"),
    "three quarters": ("three-quarters", "75 per cent", "75%"),
    "a fifth": ("one fifth", "one-fifth", "20 per cent", "20%"),
}
_NUMBER = r"(?:\d[\d.,]*|" + "|".join(sorted(_IN_DIGITS, key=len, reverse=True)) + ")"
_UNIT = "|".join(sorted(map(re.escape, _SPELLINGS), key=len, reverse=True))
_QUANTITY = re.compile(rf"({_NUMBER})(?:\s?({_UNIT})(?:\s(?:an?|per)\s([a-z]+))?)?", re.IGNORECASE)
_QUALIFIER = re.compile(
    r"(?:about|around|roughly|nearly|up to|at least|at most|a maximum of|no more than|more than|every"
    r"|within|in|on|at|by|for|from|to|near|inside)\s+",
    re.IGNORECASE,
)
_PREPOSITION = re.compile(r"\b(up to|in|on|at|by|for|from|to|near|within)\s$", re.IGNORECASE)
_ASKED = re.compile(r"\bhow many (?:extra |more |further |additional )?([a-z]+s|people|children|women|men)\b", re.I)
_CLOCK = re.compile(r"([01]?\d|2[0-3])[:.]([0-5]\d)")
_DATE = re.compile(r"(\d{1,2}) (January|February|March|April|May|June|July|August|September|October|November|December)")


def paraphrases(answers: Sequence[str], question: str = "", context: str = "") -> list[str]:
    """What else is accepted where these answers are, in a fixed order, none of them twice.

    Args:
        answers: accepted already; what stands in `context` may be joined with the unit or preposition beside it there.
        question: its unit may be left out of an answer, or joined to a bare number.
        context: the passage that is asked about.
    """
    beside = [each for answer in answers for each in _beside(answer, question, context)]
    otherwise = [each for answer in (*answers, *beside) for each in _said_otherwise(answer, question)]
    return [each for each in dict.fromkeys((*beside, *otherwise)) if each not in answers]


def _beside(answer: str, question: str, context: str) -> Iterator[str]:
    """The answer with what is before or behind it in the context; without the qualifier that it begins with."""
    start = context.find(answer)
    before, behind = (context[:start], context[start + len(answer) :]) if start >= 0 else ("", "")
    if preposition := _PREPOSITION.search(before):
        yield f"{preposition[1].lower()} {answer}"
    if re.fullmatch(_NUMBER, answer, re.IGNORECASE):
        unit = re.match(rf"\s({_UNIT})\b", behind, re.IGNORECASE) or _ASKED.search(question)
        if unit:
            yield from (f"{number} {unit[1].lower()}" for number in (answer, *_other_numbers(answer)))
    if _QUALIFIER.match(answer):
        yield _QUALIFIER.sub("", answer, count=1)


def _said_otherwise(answer: str, question: str) -> Iterator[str]:
    """The same quantity, fraction, date or time of day."""
    yield from _FRACTIONS.get(answer.lower(), ())
    if "-" in answer:
        yield answer.replace("-", " ")
    if date := _DATE.fullmatch(answer):
        yield f"{date[2]} {date[1]}"
    if clock := _CLOCK.fullmatch(answer):
        yield from _by_the_clock(int(clock[1]), clock[2])
    if quantity := _QUANTITY.fullmatch(answer):
        number, unit, rate = quantity.groups()
        for each in (number, *_other_numbers(number)):
            yield from _quantities(each, _SPELLINGS.get((unit or "").lower(), ()), rate, question)


def _other_numbers(number: str) -> list[str]:
    words = _IN_WORDS.get(number, "")
    return [each for each in (_IN_DIGITS.get(number.lower()), words, words.replace("-", " ")) if each]


def _quantities(number: str, unit: Sequence[str], rate: str | None, question: str) -> Iterator[str]:
    """A number with its unit in every spelling; without it, unless it is of time and the question does not name it."""
    tails = [f" a {rate}", f" per {rate}", f"/{rate}"] if rate else [""]
    for spelling in unit:
        spelling = _of_one(spelling) if number in ("1", "one") else spelling
        joined = [f"{number} {spelling}"] + (
            [f"{number}{spelling}"] if number[0].isdigit() and len(spelling) <= 2 else []
        )
        joined = [f"Rs {number}"] if spelling == "Rs" else joined
        yield from (each + tail for each in joined for tail in tails)
    if not rate and (unit not in _TIMES or any(spelling in question.lower() for spelling in unit)):
        yield number


def _by_the_clock(hour: int, minute: str) -> list[str]:
    half, twelfth = ("am" if hour < 12 else "pm"), hour % 12 or 12
    times = [f"{twelfth}:{minute}"] + ([str(twelfth)] if minute == "00" else [])
    return [f"{time}{space}{half}" for time in times for space in (" ", "")]
