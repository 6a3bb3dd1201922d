"""Names of the held-out texts, and what a variant may lose on them beside PTQ. Light: no torch."""

VALIDATION, GUARD = "validation", "guard"
GUARD_SLACK = 1e-2  # nats, 1 % of perplexity: of the guard alone, where the validation text gains more than that


def allowed(text: str, ptq: float) -> float:
    """The loss on a held-out text up to which a variant is as good as PTQ, whose loss this is."""
    return ptq + (GUARD_SLACK if text == GUARD else 0.0)
