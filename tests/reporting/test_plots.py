"""Plots: what is drawn is what the rows say, with intervals, names and the Pareto front."""

from __future__ import annotations

import pytest

from edgequant.reporting.charts.marks import pareto_front, row_labels
from edgequant.reporting.plots import bars, scatter

ROWS = [
    {"variant": "baseline", "scheme": "fp16", "size/checkpoint_gb": 0.27, "domain/perplexity": 17.9, "squad/f1": 42.0},
    {"variant": "ptq", "scheme": "w4-g32", "size/checkpoint_gb": 0.09, "domain/perplexity": 25.6, "squad/f1": 30.0},
    {"variant": "qat", "scheme": "w4-g32", "size/checkpoint_gb": 0.09, "domain/perplexity": 18.9, "squad/f1": 38.0},
    {"variant": "ptq", "scheme": "w3-g64", "size/checkpoint_gb": 0.07, "domain/perplexity": 73.8, "squad/f1": None},
]


def test_the_pareto_front_holds_what_nothing_else_beats() -> None:
    assert pareto_front(ROWS, "size/checkpoint_gb", "domain/perplexity") == [3, 2, 0]


def test_the_pareto_front_knows_that_f1_is_better_when_higher() -> None:
    assert pareto_front(ROWS[:3], "size/checkpoint_gb", "squad/f1") == [2, 0]


def test_equal_rows_are_both_on_the_front() -> None:
    assert pareto_front([ROWS[0], dict(ROWS[0])], "size/checkpoint_gb", "domain/perplexity") == [0, 1]


def test_there_is_no_front_where_neither_end_is_better() -> None:
    assert pareto_front([{"a/b": 1.0, "domain/perplexity": 2.0}], "a/b", "domain/perplexity") == []


def test_a_scatter_names_every_point_and_leaves_out_rows_without_both_metrics() -> None:
    points = scatter(ROWS, "size/checkpoint_gb", "squad/f1").data[1]
    assert list(points.text) == ["baseline fp16", "ptq w4-g32", "qat w4-g32"]
    assert list(points.x) == pytest.approx([270.0, 90.0, 90.0])  # megabytes, as the axis says


def test_error_bars_reach_the_ends_of_the_confidence_interval() -> None:
    row = {"variant": "qat", "boolq/accuracy": 62.0, "boolq/accuracy_ci_low": 59.0, "boolq/accuracy_ci_high": 66.0}
    error = bars([row, {**row, "variant": "ptq"}], "boolq/accuracy").data[0].error_x
    assert list(error.array) == pytest.approx([4.0, 4.0]) and list(error.arrayminus) == pytest.approx([3.0, 3.0])


def test_bars_show_only_rows_that_have_the_metric_in_the_order_of_the_rows() -> None:
    figure = bars(ROWS, "squad/f1")
    assert list(figure.data[0].x) == [42.0, 30.0, 38.0]
    assert list(figure.layout.yaxis.ticktext) == ["baseline fp16", "ptq w4-g32", "qat w4-g32"]


def test_a_variant_keeps_its_color_in_every_figure() -> None:
    in_bars = bars(ROWS, "squad/f1").data[0].marker.color[2]
    in_scatter = scatter(ROWS, "size/checkpoint_gb", "domain/perplexity").data[1].marker.color[2]
    assert in_bars == in_scatter


def test_widely_spread_values_are_drawn_on_a_logarithmic_axis() -> None:
    rows = [*ROWS, {"variant": "ptq", "scheme": "w2", "size/checkpoint_gb": 0.06, "domain/perplexity": 90_000.0}]
    assert scatter(rows, "size/checkpoint_gb", "domain/perplexity").layout.yaxis.type == "log"
    assert scatter(ROWS, "size/checkpoint_gb", "squad/f1").layout.yaxis.type == "linear"


def test_nothing_to_draw_is_said_in_the_figure() -> None:
    assert "no run has" in scatter(ROWS, "nope/x", "squad/f1").layout.annotations[0].text
    assert "no run has" in bars([], "squad/f1").layout.annotations[0].text


def test_names_of_runs_do_not_become_html() -> None:
    rows = [{"model": "<b>x</b>", "squad/f1": 1.0}, {"model": "y", "squad/f1": 2.0}]
    assert "&lt;b&gt;x" in bars(rows, "squad/f1").to_json().replace("\\u003c", "<")


def test_rows_that_no_name_tells_apart_are_labeled_by_their_run() -> None:
    same = {"model": "m", "variant": "qat", "scheme": "w8"}
    assert row_labels([{**same, "run": "a1"}, {**same, "run": "b2"}]) == ["qat a1", "qat b2"]


def test_points_that_crowd_are_called_by_numbers_with_a_key_of_their_names() -> None:
    rows = [{**ROWS[1], "scheme": f"scheme-number-{at}", "domain/perplexity": 25.0} for at in range(20)]
    figure = scatter(rows, "size/checkpoint_gb", "domain/perplexity")
    assert {*figure.data[-1].text} <= {"", *map(str, range(1, 21))}
    assert "20 scheme-number-19" in figure.layout.annotations[0].text.replace("<br>", " · ")
    assert figure.data[-1].customdata[0] == "scheme-number-0"  # under the pointer


def test_an_axis_of_a_plot_ends_where_values_can_be() -> None:
    figure = scatter([{**ROWS[0], "squad/f1": 0.0}, {**ROWS[1], "squad/f1": 1.0}], "size/checkpoint_gb", "squad/f1")
    assert figure.layout.yaxis.range[0] == 0
