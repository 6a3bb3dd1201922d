"""How numbers are shown: units, digits, order, best values."""

from __future__ import annotations

import math

import pytest

from edgequant.reporting.columns import best_rows, columns, metric, significant
from edgequant.workflows.steps.measure import headline


@pytest.mark.parametrize(
    ("value", "digits", "expected"),
    [(21.784, 4, "21.78"), (4096.4, 4, "4,096"), (0.01234, 3, "0.0123"), (0.0, 3, "0"), (1.234e-5, 3, "1.23e-05")],
)
def test_numbers_keep_their_significant_digits_without_exponents(value: float, digits: int, expected: str) -> None:
    assert significant(value, digits) == expected


def test_numbers_that_are_none_say_so() -> None:
    assert [significant(value, 3) for value in (math.nan, math.inf, -math.inf)] == ["NaN", "∞", "-∞"]


def test_fractions_become_percent_and_percentages_stay_as_they_are() -> None:
    row = {"boolq/accuracy": 62.17, "qat/recovered_fraction": 0.85, "size/reduction_vs_fp16": 70.0}
    assert {column.key: column.cells[0] for column in columns([row])} == {
        "boolq/accuracy": "62.2 (no interval)",
        "qat/recovered_fraction": "85.0",
        "size/reduction_vs_fp16": "70.0",
    }


def test_names_come_first_then_quality_size_and_speed() -> None:
    row = {
        "latency/decode_ms_per_token": 1.0,
        "size/checkpoint_gb": 1.0,
        "domain/perplexity": 2.0,
        "scheme": "w8",
        "model": "m",
    }
    assert [column.key for column in columns([row])] == [
        "model",
        "scheme",
        "domain/perplexity",
        "size/checkpoint_gb",
        "latency/decode_ms_per_token",
    ]


def test_the_best_perplexity_is_the_lowest_and_the_best_accuracy_the_highest() -> None:
    rows = [{"domain/perplexity": 20.0, "boolq/accuracy": 0.7}, {"domain/perplexity": 18.0, "boolq/accuracy": 0.6}]
    assert best_rows(rows, "domain/perplexity") == {1}
    assert best_rows(rows, "boolq/accuracy") == {0}


def test_nothing_is_best_without_a_difference_a_direction_or_a_number() -> None:
    assert not best_rows([{"domain/perplexity": 20.0}, {"domain/perplexity": 20.0}], "domain/perplexity")
    assert not best_rows([{"a/b": 1.0}, {"a/b": 2.0}], "a/b")
    assert not best_rows([{"domain/perplexity": math.nan}, {"domain/perplexity": 20.0}], "domain/perplexity")


def test_perplexity_of_any_text_is_known_as_perplexity() -> None:
    assert metric("domain/wash/perplexity").heading == "perplexity (domain wash)"
    assert metric("domain/wash/perplexity").better == "lower"


def test_a_column_that_no_row_fills_is_left_out() -> None:
    assert [column.key for column in columns([{"variant": "a", "squad/f1": None}])] == ["variant"]


def test_the_floor_of_a_metric_is_said_in_its_cell_and_is_no_column() -> None:
    rows = [{"variant": name, "boolq/accuracy": 50.0, "boolq/majority": 60.0} for name in ("a", "b")]
    assert [(column.key, column.cells[1]) for column in columns(rows)] == [
        ("variant", "b"),
        ("boolq/accuracy", "50.0 (no interval), at the floor"),
    ]
    assert headline(rows[0]) == {"boolq/accuracy": 50.0, "boolq/majority": 60.0}


@pytest.mark.parametrize(("values", "marked"), [([263.41, 263.42], set()), ([263.41, 263.42, 270.0], {0, 1})])
def test_no_row_is_marked_best_by_digits_that_are_not_shown(values: list[float], marked: set[int]) -> None:
    rows = [{"domain/perplexity": value, "variant": str(at)} for at, value in enumerate(values)]
    assert columns(rows)[1].best == marked
