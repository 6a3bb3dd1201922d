"""The terms of models' licences: where they stand, and what they ask of whoever passes a model on."""

from __future__ import annotations

import re
from dataclasses import dataclass

from edgequant.models.origin import NOT_STATED, Origin

HUB = "https://huggingface.co"
# Of the ids that model hubs know, those that need no name and link beside them.
PLAIN = {
    "apache-2.0",
    "mit",
    "bsd-3-clause",
    "cc-by-4.0",
    "cc-by-sa-4.0",
    "cc-by-nc-4.0",
    "cc0-1.0",
    "gpl-3.0",
    "unknown",
}
# Models whose repositories are gated, so that no card of theirs is at hand to read the licence from.
OF_FAMILIES = (
    (r"meta-llama/(?:Meta-)?Llama-3\.(\d)", r"llama3.\1"),
    (r"meta-llama/(?:Meta-)?Llama-3-", "llama3"),
    (r"meta-llama/Llama-2-", "llama2"),
    (r"google/gemma-(?:2-|3-|\d+b)", "gemma"),
)
_GEMMA = "Gemma is provided under and subject to the Gemma Terms of Use found at ai.google.dev/gemma/terms"
_LLAMA = (
    "Llama {0} is licensed under the Llama {0} Community License, Copyright © Meta Platforms, Inc. All Rights Reserved."
)


@dataclass(frozen=True)
class Terms:
    """What a licence asks for.

    Attributes:
        license: the id that hubs know; `other` where they know none, `unknown` where none is stated.
        name: of one that hubs do not know.
        link: where its text stands; empty where everybody knows it.
        notice: the file NOTICE that has to go along; empty where none has to.
        duties: sentences for the card.
    """

    license: str
    name: str = ""
    link: str = ""
    notice: str = ""
    duties: tuple[str, ...] = ()


def terms_of(origin: Origin) -> Terms:
    """Terms under which what was made from a model may be passed on, as far as its licence is known."""
    license = _of_family(origin.base_model) if origin.license == NOT_STATED else origin.license
    if license == "gemma":
        return Terms(license, link="https://ai.google.dev/gemma/terms", notice=_GEMMA, duties=_gemma_duties())
    if (llama := re.fullmatch(r"llama(\d(?:\.\d)?)", license)) is not None:
        return _llama(license, llama[1])
    if license in PLAIN:
        return Terms(license)
    if license == NOT_STATED:
        return Terms("unknown", duties=("The base model states no licence: ask its makers before you pass this on.",))
    link = f"{HUB}/{origin.base_model}" if "/" in origin.base_model and " " not in origin.base_model else ""
    return Terms("other", name=license, link=link, duties=("Read the base model's licence before you pass this on.",))


def _of_family(base_model: str) -> str:
    for pattern, license in OF_FAMILIES:
        if (found := re.match(pattern, base_model)) is not None:
            return found.expand(license)
    return NOT_STATED


def _gemma_duties() -> tuple[str, ...]:
    policy = "https://ai.google.dev/gemma/prohibited_use_policy"
    return (
        f"{_GEMMA}.",
        "This is a modified version. Whoever passes it on gives these terms along, with their use restrictions "
        f"({policy}), and says that its files were changed.",
    )


def _llama(license: str, version: str) -> Terms:
    own_name = "" if version == "2" else " Names of models that are made with it begin with Llama."
    built = "Built with Llama." if version != "2" else ""
    duties = (
        f"{built} {_LLAMA.format(version)}".strip(),
        f"Its Acceptable Use Policy holds for this model as well.{own_name}",
    )
    path = "llama3" if version == "3" else f"llama{version.replace('.', '_')}"
    link = "https://ai.meta.com/llama/license/" if version == "2" else f"https://www.llama.com/{path}/license/"
    return Terms(license, link=link, notice=_LLAMA.format(version), duties=duties)
