"""Settings and machines."""

from __future__ import annotations

from situation import Place, Situation


def unknown_model(place: Place) -> str:
    return place.edgequant("ptq", "--model", "nope")


SITUATIONS = [
    Situation(
        "a model's name that nobody knows",
        "ptq --model nope",
        "refused",
        "edgequant ptq: model 'nope' is unknown; give ...",
        unknown_model,
    ),
]
