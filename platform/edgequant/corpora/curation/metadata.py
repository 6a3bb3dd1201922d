"""What a document says about itself: type, hazard, agency, language. Rules over its name, title and text.

Stated metadata (front matter, record fields) goes before rules; what no rule finds is `unknown`, not guessed.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping

UNKNOWN = "unknown"

# Terms per document type; a hit in the name or title counts as much as ten in the text.
_DOCUMENT_TYPES = {
    "sop": r"standard operating procedures?|\bsops?\b",
    "situation_report": r"situation report|\bsitrep\b|flash update|situation update",
    "field_report": r"field report|after[- ]action|lessons learne[dt]|mission report|assessment report",
    "checklist": r"check-?list",
    "directive": r"\bdirectives?\b|\bcirculars?\b|\bexecutive order\b|\bhereby\b",
    "form": r"\bforms?\b(?= (?:booklet|\d)|$)|\bics \d{3}\b|to be filled",
    "training_manual": r"student manual|instructor guide|training manual|course (?:goal|objectives|overview)|lesson \d",
    "framework": r"\bframework\b|\bdoctrine\b|national incident management system",
    "guideline": r"\bguidelines?\b|\bguidance\b|\bguide\b|\bhandbook\b",
}
_HAZARDS = {
    "flood": r"\bfloods?\b|\bflood(?:ing|ed|waters?)\b|\binundat\w+|ගංවතුර|வெள்ள\w*",
    "cyclone": r"\bcyclon\w+|\bhurricanes?\b|\btyphoons?\b|\bstorm surges?\b|සුළි ?සුළං\w*|சூறாவளி\w*|புயல்\w*",
    "landslide": r"\blandslides?\b|\bmudslides?\b|\bdebris flows?\b|\bslope failures?\b"
    r"|නාය ?යා\w*|மண்சரிவு\w*|நிலச்சரிவு\w*",
    "tsunami": r"\btsunamis?\b|සුනාමි\w*|சுனாமி\w*|ஆழிப்பேரலை\w*",
    "drought": r"\bdroughts?\b|\bdry spells?\b|නියඟ\w*|නියං\w*|வறட்சி\w*",
    "epidemic": r"\bepidemics?\b|\boutbreaks?\b|\bpandemics?\b|\bcholera\b|\bdengue\b|\bmeasles\b"
    r"|වසංගත\w*|ඩෙංගු\w*|தொற்றுநோய்\w*|டெங்கு\w*",
    "earthquake": r"\bearthquakes?\b|\baftershocks?\b|\bseismic\b",
    "wildfire": r"\bwild ?fires?\b|\bforest fires?\b",
    "tornado": r"\btornado(?:es)?\b",
}
_AGENCIES = {
    "FEMA": r"(?i:\bFEMA\b)|Federal Emergency Management Agency",
    "UN OCHA": r"(?i:\bOCHA\b)|Coordination of Humanitarian Affairs",
    "IFRC": r"(?i:\bIFRC\b)|Federation of Red Cross",
    "Red Cross": r"Red Cross|Red Crescent",
    "WHO": r"\bWHO\b(?! )|World Health Organi[sz]ation",
    "UNICEF": r"(?i:\bUNICEF\b)",
    "UNHCR": r"(?i:\bUNHCR\b)",
    "WFP": r"\bWFP\b|World Food Programme",
    "Sphere": r"Sphere (?:Handbook|Association|Standards?)",
    "DMC Sri Lanka": r"Disaster Management Cent(?:re|er)|\bDMC\b",
    "NDMC": r"(?i:\bNDMC\b)",
    "DHS": r"Department of Homeland Security|\bDHS\b",
    "CDC": r"Centers for Disease Control",
    "Ready.gov": r"\bReady\.gov\b",
}
_MANY_HAZARDS = 4  # a text about so many hazards with none of them in front is about all of them
_WORDS_PER_MENTION = 1_500  # a hazard named more rarely is an example, not the subject
_TITLE_WEIGHT = 10
_OPENING = 3_000  # characters that a document's type shows itself in
_EVERY_LANGUAGE_SCRIPT = {"si": re.compile("[\u0d80-\u0dff]"), "ta": re.compile("[\u0b80-\u0bff]")}


def describe(name: str, fields: Mapping[str, str], text: str) -> dict[str, str]:
    """document_type, hazard_type and agency of a document.

    Args:
        name: File name, with `-` and `_` read as spaces.
        fields: Stated metadata; `title` and `author` join the evidence, the three keys themselves are taken as given.
        text: The document's text.
    """
    title = re.sub(r"[-_/.]+", " ", name) + " \n " + fields.get("title", "")
    agency_title = f"{title} \n {fields.get('author', '')}"
    found = {
        "document_type": _strongest(_DOCUMENT_TYPES, title, text[:_OPENING], least=1) or UNKNOWN,
        "hazard_type": _hazard(title, text),
        "agency": _strongest(_AGENCIES, agency_title, text, least=2, ignore_case=False) or UNKNOWN,
    }
    return {key: fields.get(key) or value for key, value in found.items()}


def _hazard(title: str, text: str) -> str:
    counts = _counts(_HAZARDS, title, text)
    least = max(1, len(text.split()) // _WORDS_PER_MENTION)
    present = {hazard: count for hazard, count in counts.items() if count >= least}
    if not present:
        return UNKNOWN
    leading = max(present, key=lambda hazard: present[hazard])
    if len(present) >= _MANY_HAZARDS and present[leading] < 0.6 * sum(present.values()):
        return "multiple"
    return leading


def _strongest(rules: Mapping[str, str], title: str, text: str, *, least: int, ignore_case: bool = True) -> str | None:
    counts = _counts(rules, title, text, ignore_case=ignore_case)
    best = max(counts, key=lambda key: counts[key])
    return best if counts[best] >= least else None


def _counts(rules: Mapping[str, str], title: str, text: str, *, ignore_case: bool = True) -> dict[str, int]:
    flags = re.IGNORECASE if ignore_case else 0
    return {
        key: _TITLE_WEIGHT * len(re.findall(rule, title, flags)) + len(re.findall(rule, text, flags))
        for key, rule in rules.items()
    }


def language_of(text: str, fallback: str = UNKNOWN) -> str:
    """ISO 639-1 code: Sinhala and Tamil by their script, the rest by py3langid, very short text by `fallback`."""
    letters = sum(map(str.isalpha, text))
    for language, script in _EVERY_LANGUAGE_SCRIPT.items():
        if len(script.findall(text)) > 0.5 * max(letters, 1):
            return language
    if letters < 60 and fallback != UNKNOWN:
        return fallback
    code, confidence = _ranked_first(text)
    return code if confidence > 0.8 else fallback


def _ranked_first(text: str) -> tuple[str, float]:
    import py3langid

    ranked = py3langid.rank(text)  # log-probabilities up to a constant, best first
    return str(ranked[0][0]), 1 / sum(math.exp(float(score) - float(ranked[0][1])) for _, score in ranked)
