"""The report's charts: axes begin where values can be, and no name covers anything, however the points lie."""

from __future__ import annotations

import random
import re
from itertools import combinations

import pytest

from edgequant.reporting.charts.axes import axis, possible
from edgequant.reporting.charts.dots import dots
from edgequant.reporting.charts.gallery import gallery
from edgequant.reporting.charts.labels import Box, Line, place_labels
from edgequant.reporting.charts.marks import listed, marks, pareto_fronts
from edgequant.reporting.charts.points import points
from edgequant.reporting.charts.text_width import shortened, text_width

SIZE, QUALITY = "size/checkpoint_gb", "domain/perplexity"
AREA = Box(0, 0, 400, 300)


def rows(count: int, seed: int = 0) -> list[dict]:
    rng = random.Random(seed)
    return [
        {"model": "m", "variant": "ptq", "scheme": f"w{at}-g32+emb4", SIZE: rng.choice([0.08, 0.1, 0.27]),
         QUALITY: (value := rng.uniform(20, 60)), f"{QUALITY}_ci_low": 0.9 * value, f"{QUALITY}_ci_high": 1.1 * value}
        for at in range(count)
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("key", "values", "ends"),
    [
        ("domain/perplexity", [1.1, 3.0], (1.0, None)),
        ("boolq/accuracy", [2.0, 99.0], (0.0, 100.0)),
        ("squad/f1", [0.0, 8.0], (0.0, None)),
        ("parity/argmax_agreement", [1.0, 100.0], (0.0, 100.0)),
        (SIZE, [0.1, 0.5], (None, None)),
        (SIZE, [0.01, 0.05], (None, None)),
        ("size/reduction_vs_fp16", [-50.0, 99.0], (None, 100.0)),
        ("latency/decode_ms_per_token", [1.0, 9.9], (None, None)),
        ("parity/perplexity_delta", [-0.1, 0.1], (None, None)),
    ],
)
def test_an_axis_ends_where_values_can_be(key, values, ends):
    found, (floor, ceiling) = axis(key, values), possible(key)
    assert floor <= found.low <= min(values) and max(values) <= found.high <= ceiling
    assert all(
        end is None or end == pytest.approx(each) for end, each in zip(ends, (found.low, found.high), strict=True)
    )
    assert len(found.ticks) >= 2 and all(found.low <= tick <= found.high for tick in found.ticks)


@pytest.mark.parametrize("values", [[5.0], [5.0, 5.0], [0.0], [1.0], [100.0, 100.0], [1e-9, 2e-9], [20.0, 9e5], []])
@pytest.mark.parametrize("key", ["domain/perplexity", "boolq/accuracy", SIZE, "a/b"])
def test_an_axis_has_an_extent_whatever_the_values(key, values):
    found = axis(key, [max(value, possible(key)[0]) for value in values])
    assert found.low < found.high and 0 <= found.at(found.low) < found.at(found.high) <= 1


def test_a_difference_may_lie_on_either_side_of_zero():
    assert axis("parity/perplexity_delta", [-0.1, 0.1]).low < -0.1


@pytest.mark.parametrize("seed", range(6))
def test_no_name_covers_another_a_point_or_a_line_or_leaves_the_chart(seed):
    rng = random.Random(seed)
    centres = [(rng.uniform(20, 380), rng.uniform(20, 280)) for _ in range(14)]
    lines = [Line(x, y - 40, x, y + 40) for x, y in centres]
    found = place_labels(centres, [(90.0, 15.0)] * 14, lines, AREA, leaders=True)
    placed = [label for label in found if label]
    assert len(placed) >= 6
    assert not any(one.box.overlaps(other.box) for one, other in combinations(placed, 2))
    for label in placed:
        assert label.box.lies_in(AREA) and not any(line.crosses(label.box) for line in lines)
        assert not any(label.box.holds(centre) for centre in centres)
        assert not any(other.leader and other.leader.crosses(label.box) for other in placed if other is not label)


def test_a_line_strikes_through_a_box_that_it_enters_and_no_other():
    box = Box(10, 10, 20, 20)
    assert Line(0, 15, 30, 15).crosses(box) and Line(0, 0, 30, 30).crosses(box) and Line(12, 12, 18, 18).crosses(box)
    assert (
        not Line(0, 5, 30, 5).crosses(box)
        and not Line(0, 0, 9, 9).crosses(box)
        and not Line(10, 0, 10, 30).crosses(box)
    )


def test_few_points_carry_their_names_and_many_their_numbers_in_the_table():
    few, many = rows(4), rows(40)
    named = points(few, SIZE, QUALITY, marks(few)).svg
    assert all(f">ptq w{at}-g32+emb4</text>" in named or f">w{at}-g32+emb4</text>" in named for at in range(4))
    chart = points(many, SIZE, QUALITY, marks(many))
    assert "numbers as in the table" in chart.caption and "emb4</text>" not in chart.svg


def test_rows_in_one_place_share_a_label():
    same = [{**rows(1)[0], "scheme": f"s{at}"} for at in range(14)]
    assert ">1–14</text>" in points(same, SIZE, QUALITY, marks(same)).svg
    assert listed([3, 1, 2, 7, 9, 8]) == "1–3, 7–9" and listed([1, 2]) == "1, 2"


def test_every_row_has_a_line_of_its_own_with_its_interval_and_number():
    some = rows(13)
    drawn = dots(some, QUALITY, marks(some)).svg
    assert drawn.count('class="interval-line"') == 13 and f">13 {some[12]['scheme']}" in drawn
    assert len(re.findall("<title>", drawn)) == 13


def test_the_score_of_a_model_that_knows_nothing_is_drawn_where_it_is_near():
    near = [
        {"variant": name, "boolq/accuracy": value, "boolq/majority": 61.0} for name, value in (("a", 62.0), ("b", 65.0))
    ]
    assert "a model that knows nothing (61)" in dots(near, "boolq/accuracy", marks(near)).caption
    far = [{**row, "boolq/accuracy": 90 + row["boolq/accuracy"] / 10} for row in near]
    assert "knows nothing" not in dots(far, "boolq/accuracy", marks(far)).caption


def test_perplexities_of_several_models_have_a_front_each():
    two = [
        {"model": name, QUALITY: value, SIZE: size}
        for name, value, size in (("a", 9, 2), ("a", 8, 3), ("b", 5, 2), ("b", 7, 1))
    ]
    assert pareto_fronts(two, SIZE, QUALITY) == [[0, 1], [3, 2]]


def test_charts_need_two_rows_that_have_the_metric():
    assert gallery(rows(1), marks(rows(1))) == []
    (group, costs) = gallery(rows(2), marks(rows(2)))
    assert [chart.title for chart in group.charts][1:] == ["perplexity (domain) against size (MB)"]
    assert costs.title == "Size and speed"


def test_variants_differ_in_shape_and_not_in_colour_alone():
    variants = ("baseline", "ptq", "control", "control-ptq", "qat", "finetuned")
    found = marks([{"variant": name} for name in variants])
    assert len({mark.shape for mark in found}) == len({mark.color for mark in found}) == len(variants)


def test_wide_characters_count_as_wide_and_marks_that_take_no_room_as_none():
    assert text_width("模型", 10) > text_width("ab", 10) and text_width("é", 10) == text_width("e", 10)
    assert text_width(shortened("a-very-long-name" * 9, 13, 200), 13) <= 200
    assert shortened("short", 13, 200) == "short"
    assert shortened("begins-alike-and-ends-unlike-A" * 3, 13, 150).endswith("unlike-A")


def test_names_from_users_stay_text_in_a_chart():
    evil = [{**row, "variant": "</svg><script>x</script>"} for row in rows(3)]
    assert "<script" not in points(evil, SIZE, QUALITY, marks(evil)).svg + dots(evil, QUALITY, marks(evil)).svg
