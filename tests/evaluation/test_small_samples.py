"""What few items say: intervals that cover as often as they claim to, and none where nothing tells of a spread."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from edgequant.evaluation.evidence import checked, is_evidence
from edgequant.evaluation.harm import losses
from edgequant.evaluation.statistics.batch_means import block_of, rate
from edgequant.evaluation.statistics.comparison import compare
from edgequant.evaluation.statistics.effects import Student
from edgequant.evaluation.statistics.intervals import Bootstrap
from edgequant.evaluation.statistics.proportions import PairedShares, Share, mean_of_shares, wilson
from edgequant.evaluation.tasks.boolq import BOOLQ, boolq_metrics
from edgequant.evaluation.tasks.perplexity import Scored, perplexity_metrics
from edgequant.evaluation.tasks.squad import SQUAD, squad_metrics
from edgequant.evaluation.tasks.task import Evaluation


@pytest.mark.parametrize(("right", "count"), [(0, 20), (1, 20), (20, 20), (7, 10), (0, 1), (430, 1000)])
@pytest.mark.parametrize("confidence", [0.9, 0.95])
def test_a_rate_has_wilsons_interval_as_scipy_computes_it(right, count, confidence):
    theirs = stats.binomtest(right, count).proportion_ci(confidence, method="wilson")
    assert wilson(Share(right / count, count), confidence) == pytest.approx((theirs.low, theirs.high), abs=1e-12)


@pytest.mark.parametrize(("p", "count"), [(0.02, 20), (0.5, 20), (0.6, 200), (0.98, 50), (0.1, 40)])
def test_a_rates_interval_covers_it_about_as_often_as_it_says(p, count):
    """Exactly, by the binomial distribution; the bootstrap's covers 0.02 on 20 questions in 33 % of all samples."""
    chance = [
        stats.binom.pmf(right, count, p)
        for right in range(count + 1)
        if wilson(Share(right / count, count))[0] <= p <= wilson(Share(right / count, count))[1]
    ]
    assert 0.91 <= sum(chance) <= 1


def test_none_right_of_20_is_at_most_16_per_cent():
    metrics = Bootstrap(100).share("x", [0.0] * 20)
    # Wilson at 0 of n: z^2 / (n + z^2)
    assert metrics["x_ci_low"] == 0 and metrics["x_ci_high"] == pytest.approx(100 * 1.959964**2 / (20 + 1.959964**2))
    assert Bootstrap(100).mean("x", [0.0] * 20) == metrics
    assert Bootstrap(100).share("x", [100.0] * 20)["x_ci_low"] == pytest.approx(100 - metrics["x_ci_high"])


@pytest.mark.parametrize("draw", ["share", "mean"])
def test_one_item_has_no_interval_and_no_items_no_metric(draw):
    assert getattr(Bootstrap(100), draw)("x", [37.0]) == {"x": 37.0}
    assert getattr(Bootstrap(100), draw)("x", [100.0]) == {"x": 100.0}
    assert getattr(Bootstrap(100), draw)("x", []) == {}


def test_equal_values_have_no_interval_where_nothing_bounds_them():
    assert Bootstrap(100).mean("x", [0.1] * 40) == {"x": pytest.approx(0.1)}
    assert Bootstrap(100).mean("x", [3.7] * 5) == {"x": pytest.approx(3.7)}


def test_a_mean_of_few_values_has_students_interval():
    values = np.array([1.0, 4.0, 2.5, 3.0])
    theirs = stats.t.interval(0.95, 3, values.mean(), stats.sem(values))
    ours = Bootstrap(100).mean("x", values)
    assert (ours["x_ci_low"], ours["x_ci_high"]) == pytest.approx(theirs)


def test_mostly_equal_scores_between_0_and_100_do_not_pass_for_certain():
    """Of 200 answers with an F1 of 0 but for one, resampling misses what one in a hundred more would say."""
    few = Bootstrap(500).share("x", [0.0] * 199 + [40.0])
    assert few["x"] == pytest.approx(0.2)
    expected = wilson(Share(0.002, 200))
    assert (few["x_ci_low"], few["x_ci_high"]) == pytest.approx((100 * expected[0], 100 * expected[1]))
    half = Bootstrap(500).share("x", [50.0] * 30)
    assert half["x_ci_low"] < 40 and half["x_ci_high"] > 60


@pytest.mark.parametrize(("share_of_zero", "count"), [(0.95, 40), (0.7, 60), (0.0, 30)])
def test_an_f1s_interval_covers_its_mean_about_as_often_as_it_says(share_of_zero, count):
    random, hit, rounds = np.random.default_rng(2), 0, 400
    mean = 100 * (1 - share_of_zero) * 0.5
    for _ in range(rounds):
        values = 100 * random.random(count) * (random.random(count) >= share_of_zero)
        found = Bootstrap(300).share("x", values)
        hit += found["x_ci_low"] <= mean <= found["x_ci_high"]
    assert hit / rounds > 0.90


def test_balanced_accuracys_interval_covers_it_about_as_often_as_it_says():
    random, hit, rounds = np.random.default_rng(3), 0, 2000
    for _ in range(rounds):
        yes, no = random.binomial(14, 0.9) / 14, random.binomial(8, 0.3) / 8
        low, high = mean_of_shares([Share(yes, 14), Share(no, 8)])
        hit += low <= 0.6 <= high
    assert 0.92 < hit / rounds < 0.99


def _correlated(random, count, correlation):
    """Losses of windows, each like the one before (an autoregressive process), 3 nats a token in the mean."""
    noise = random.normal(size=count + 50)
    values = np.zeros(count + 50)
    for at in range(1, count + 50):
        values[at] = correlation * values[at - 1] + math.sqrt(1 - correlation**2) * noise[at]
    return 3 + 0.2 * values[50:]


@pytest.mark.parametrize(
    ("windows", "correlation", "least"),
    [(2, 0.0, 0.93), (10, 0.0, 0.93), (140, 0.0, 0.93), (12, 0.4, 0.88), (40, 0.4, 0.88), (140, 0.4, 0.9)],
)
def test_a_perplexitys_interval_covers_it_though_neighbouring_windows_are_alike(windows, correlation, least):
    random, hit, alone, rounds = np.random.default_rng(windows), 0, 0, 800
    blocks = [block_of(index, windows) for index in range(windows)]
    for _ in range(rounds):
        nats = 100 * _correlated(random, windows, correlation)
        found = rate(nats, np.full(windows, 100.0), blocks)
        hit += found.low <= 3 <= found.high
        by_window = rate(nats, np.full(windows, 100.0), range(windows))
        alone += by_window.low <= 3 <= by_window.high
    assert hit / rounds > least
    assert not correlation or alone / rounds < 0.85  # as if windows were independent: too narrow


def test_a_perplexitys_interval_is_students_on_its_logarithm():
    """Equal windows of 50 tokens, each a block: the rate is a mean, whose interval scipy computes."""
    nats = np.array([150.0, 160.0, 155.0])
    rows = [{"nats": n, "tokens": 50, "bytes": 200, "block": at} for at, n in enumerate(nats)]
    metrics = perplexity_metrics("w", Scored(rows, 50), Bootstrap(100))
    theirs = np.exp(stats.t.interval(0.95, 2, (nats / 50).mean(), stats.sem(nats / 50)))
    assert metrics["w/perplexity"] == pytest.approx(math.exp(nats.sum() / 150))
    assert (metrics["w/perplexity_ci_low"], metrics["w/perplexity_ci_high"]) == pytest.approx(tuple(theirs))
    assert 0 <= metrics["w/bits_per_byte_ci_low"] < metrics["w/bits_per_byte"]


def test_one_window_and_copies_of_one_window_have_no_interval():
    row = {"nats": 150.0, "tokens": 50, "bytes": 200}
    for rows in ([row], [row | {"block": at} for at in range(10)], [row | {"block": 0} for _ in range(4)]):
        metrics = perplexity_metrics("w", Scored(rows, 50), Bootstrap(100))
        assert metrics["w/perplexity"] == pytest.approx(math.exp(3)) and not [n for n in metrics if "_ci_" in n]


@pytest.mark.parametrize("windows", [1, 2, 3, 4, 7, 12, 30, 89, 140, 5000])
def test_blocks_are_neighbours_of_about_equal_number(windows):
    blocks = [block_of(index, windows) for index in range(windows)]
    sizes = np.bincount(blocks)
    assert blocks == sorted(blocks) and sizes.min() >= 1 and sizes.max() - sizes.min() <= 1
    assert len(sizes) == min(windows, 30, max(4, windows // 3))


def test_equal_answers_to_20_questions_are_not_a_difference_of_exactly_zero():
    same = [{"id": str(at), "correct": float(at < 12)} for at in range(20)]
    found = compare(same, same, "correct", margin=2)
    # one item more in either cell: 1.96 sqrt((2/22) / 22)
    assert (found.ci_low, found.ci_high) == pytest.approx((-12.6, 12.6), abs=0.01)
    assert found.verdict.startswith("undecided") and not found.worse and not found.not_worse
    long = [{"id": str(at), "correct": 1.0} for at in range(2000)]
    assert compare(long, long, "correct", margin=2).not_worse


def test_two_lost_questions_of_two_show_no_harm_and_all_of_20_do():
    for count, worse in ((2, False), (20, True)):
        a, b = ([{"id": str(at), "correct": value} for at in range(count)] for value in (1.0, 0.0))
        assert compare(a, b, "correct", margin=2).worse is worse
        a, b = ([{"id": str(at), "f1": value} for at in range(count)] for value in (0.9, 0.1))
        assert compare(a, b, "f1", margin=2).worse is worse


def test_one_item_decides_no_comparison():
    a, b = [{"id": "1", "correct": 1.0}], [{"id": "1", "correct": 0.0}]
    found = compare(a, b, "correct", margin=2)
    assert not found.worse and not found.not_worse and found.ci_low is None and found.p_worse == 1
    assert found.verdict.endswith("(no interval) on 1 item")


@pytest.mark.parametrize(
    ("lost", "gained", "count"), [(0.02, 0.02, 20), (0.1, 0.02, 30), (0.3, 0.1, 50), (0.05, 0, 200)]
)
def test_a_paired_differences_interval_covers_it_about_as_often_as_it_says(lost, gained, count):
    random, hit, rounds = np.random.default_rng(5), 0, 3000
    for worse, better, _ in random.multinomial(count, [lost, gained, 1 - lost - gained], rounds):
        pairs = PairedShares(float(worse), float(better), count)
        low, high = Student(pairs.center, pairs.spread, math.inf).interval(0.95)
        hit += low <= gained - lost <= high
    assert 0.93 < hit / rounds <= 1


def _items(nats, blocks=None):
    rows = [{"id": f"w{at}", "nats": value, "tokens": 100} for at, value in enumerate(nats)]
    return {"wikitext2": [row | ({"block": blocks[at]} if blocks else {}) for at, row in enumerate(rows)]}


def test_harm_of_one_window_is_told_without_an_interval_and_the_value_decides():
    for more, harmed in ((5.0, False), (20.0, True)):  # 5.1 % and 22.1 % of perplexity
        (loss,) = losses(_items([300.0]), _items([300.0 + more]), perplexity_margin=10, task_margin=2)
        assert (loss.low, loss.high) == (None, None) and loss.harmed is harmed and not loss.shown
        assert loss.loss == pytest.approx(100 * math.expm1(more / 100)) and "1 item: no interval" in loss.reason


def test_harm_of_equal_models_is_none_and_has_no_interval():
    (loss,) = losses(_items([300.0, 310.0]), _items([300.0, 310.0]), perplexity_margin=0, task_margin=0)
    assert loss.loss == 0 and loss.low is None and not loss.harmed and not loss.shown


def test_harm_goes_by_blocks_of_neighbours():
    """Two windows that both rose much and two that did not are two blocks, and two blocks show little."""
    before, after = [300.0] * 4, [335.0, 334.0, 312.0, 313.0]
    blocks = [0, 0, 1, 1]
    (loss,) = losses(_items(before, blocks), _items(after, blocks), perplexity_margin=10, task_margin=2)
    rises = np.array([69.0, 25.0]) / 200
    low, _ = stats.t.interval(0.95, 1, rises.mean(), stats.sem(rises))
    assert loss.low == pytest.approx(100 * math.expm1(low)) and not loss.harmed


def test_harm_that_overflows_is_harm():
    for nats in (1e6, math.inf, math.nan):
        (loss,) = losses(_items([300.0, 310.0]), _items([nats, nats]), perplexity_margin=10, task_margin=2)
        assert loss.harmed


def test_scores_at_their_floor_are_told():
    items = [{"id": str(at), "exact_match": 0.0, "f1": 0.0, "answered": True} for at in range(20)]
    metrics = squad_metrics("squad/", items, Bootstrap(50))
    assert SQUAD.display["squad/f1"].floor_of("squad/f1", metrics) == "at the floor"
    notes = checked(SQUAD, Evaluation(metrics)).notes
    assert any(note.startswith("squad/exact_match 0: at the floor") for note in notes)


@pytest.mark.parametrize(
    ("right", "of", "said"),
    [(62, 100, "at chance"), (65, 100, "at chance"), (90, 100, ""), (9, 10, "at chance")],
)
def test_always_giving_the_commoner_answer_is_boolqs_floor(right, of, said):
    yes = round(0.62 * of)
    items = [
        {"gold": at < yes, "correct": float(at < right), "margin": 1.0 + at, "over_long": False} for at in range(of)
    ]
    metrics = boolq_metrics("boolq/", items, Bootstrap(50))
    assert metrics["boolq/majority"] == 100 * yes / of
    assert BOOLQ.display["boolq/accuracy"].floor_of("boolq/accuracy", metrics) == said


def test_balanced_accuracy_of_one_answer_is_left_out_and_not_nan():
    items = [{"gold": True, "correct": 1.0, "margin": float(at), "over_long": False} for at in range(5)]
    metrics = boolq_metrics("boolq/", items, Bootstrap(50))
    assert "boolq/balanced_accuracy" not in metrics and all(map(math.isfinite, metrics.values()))


@pytest.mark.parametrize(
    ("name", "value", "evidence"),
    [
        ("wikitext2/perplexity", math.nan, False),
        ("wikitext2/perplexity", math.inf, False),
        ("wikitext2/perplexity", 1.7976931348623157e308, False),  # infinity, as MLflow's database keeps it
        ("wikitext2/perplexity", 0.0, False),
        ("latency/decode_ms_per_token", 0.0, False),
        ("squad/f1", 0.0, True),
        ("size/reduction_vs_fp16", -3.0, True),
    ],
)
def test_what_no_measurement_can_be_is_none(name, value, evidence):
    assert is_evidence(name, value) is evidence


def test_a_value_that_is_no_number_among_many_is_no_evidence_of_not_being_worse():
    a, b = ([{"id": str(at), "f1": 0.01 * at} for at in range(60)] for _ in range(2))
    b[7]["f1"] = math.nan
    found = compare(a, b, "f1", margin=1.0)
    assert found.ci_low is None and not found.not_worse
    squad = losses({"squad": a}, {"squad": b}, perplexity_margin=1.0, task_margin=1.0)
    assert [loss.harmed for loss in squad if loss.metric == "squad/f1"] == [True]
