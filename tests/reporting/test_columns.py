"""How numbers are shown: units, digits, order, best values."""

from __future__ import annotations

import math

import pytest

from edgequant.reporting.columns import best_rows, columns, metric, significant
from edgequant.workflows.steps.measure import headline


def bounded(name: str, value: float, half: float | None) -> dict[str, float]:
    """A metric with an interval, if it has one."""
    return {name: value} | ({} if half is None else {f"{name}_ci_low": value - half, f"{name}_ci_high": value + half})


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
    rows = [
        bounded("domain/perplexity", 20.0, 0.5) | bounded("boolq/accuracy", 0.7, 0.02),
        bounded("domain/perplexity", 18.0, 0.5) | bounded("boolq/accuracy", 0.6, 0.02),
    ]
    assert best_rows(rows, "domain/perplexity") == {1}
    assert best_rows(rows, "boolq/accuracy") == {0}


@pytest.mark.parametrize("name", ["domain/perplexity", "latency/decode_ms_per_token", "squad/f1", "domain_qa/span_f1"])
@pytest.mark.parametrize("half", [None, 1.5])
def test_no_star_without_intervals_or_where_they_leave_it_open(name: str, half: float | None) -> None:
    """Of intervals 18 +- 1.5 and 20 +- 1.5 the difference, 2, has one of +- 1.5 sqrt(2), which includes 0."""
    rows = [bounded(name, value, half) for value in (20.0, 18.0)]
    assert not best_rows(rows, name) and not any(column.best for column in columns(rows))
    assert best_rows([bounded(name, value, 0.5) for value in (20.0, 18.0)], name)


def test_a_star_needs_to_be_shown_against_every_row_and_sizes_need_no_interval() -> None:
    rows = [bounded("domain/perplexity", value, 0.5) | {"size/checkpoint_gb": value} for value in (18.0, 18.2, 30.0)]
    assert not best_rows(rows, "domain/perplexity") and best_rows(rows, "size/checkpoint_gb") == {0}


def test_items_in_pairs_win_over_intervals_and_their_key_is_no_column() -> None:
    rows = [bounded("domain/perplexity", value, 5.0) | {"best_in": best} for value, best in ((20.0, ""), (18.0, "x/y"))]
    assert not best_rows(rows, "domain/perplexity")
    rows[1]["best_in"] = "boolq/accuracy, domain/perplexity"
    assert best_rows(rows, "domain/perplexity") == {1}
    assert [column.key for column in columns(rows)] == ["domain/perplexity"]


def test_what_a_figure_stands_on_is_beside_it() -> None:
    rows = [bounded("boolq/accuracy", 70.0, 3.0) | {"boolq/items": 200.0, "boolq/clusters": 187.0} for _ in range(2)]
    (column,) = columns(rows)
    assert column.heading == "BoolQ accuracy (%), 200 questions of 187 passages"
    rows[1]["boolq/items"] = 1.0
    (column,) = columns(rows)
    assert column.heading == "BoolQ accuracy (%)"
    assert [cell.partition(", ")[2] for cell in column.cells] == [
        "200 questions of 187 passages", "1 question of 187 passages"
    ]  # fmt: skip


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
        ("boolq/accuracy", "50.0 (no interval), at chance"),
    ]
    assert headline(rows[0]) == {"boolq/accuracy": 50.0, "boolq/majority": 60.0}


@pytest.mark.parametrize(("values", "marked"), [([263.41, 263.42], set()), ([263.41, 263.42, 270.0], {0, 1})])
def test_no_row_is_marked_best_by_digits_that_are_not_shown(values: list[float], marked: set[int]) -> None:
    rows = [{"size/resident_gb": value, "variant": str(at)} for at, value in enumerate(values)]
    assert columns(rows)[1].best == marked
