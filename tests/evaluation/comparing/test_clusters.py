"""Items that hang together: differences are judged by clusters, and false verdicts are as rare as they claim to be."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from scipy import stats

from edgequant.evaluation.harm import losses
from edgequant.evaluation.ranking import shown_best, with_best
from edgequant.evaluation.statistics.clusters import cluster_of, named_cluster
from edgequant.evaluation.statistics.comparison import compare, compare_rates, mcnemar
from edgequant.evaluation.statistics.effects import Resampled, Student, paired_effect
from edgequant.evaluation.statistics.intervals import Bootstrap

FEW = Bootstrap(resamples=400)


def rows(values, clusters, name="correct"):
    pairs = enumerate(zip(values, clusters, strict=True))
    return [{"id": f"q{at}", name: float(value), "cluster": f"c{cluster}"} for at, (value, cluster) in pairs]


def two_models(random, clusters, size, together):
    """Right-or-wrong answers of two equally good models; which of them is right is drawn for a whole cluster
    `together` of the time, else for each question."""
    owners = np.repeat(np.arange(clusters), size)
    moved = random.random((2, clusters))
    as_one = moved[:, owners] < 0.5
    alone = random.random((2, clusters * size)) < 0.5
    right = np.where(random.random(clusters)[owners] < together, as_one, alone)
    return rows(right[0], owners), rows(right[1], owners)


@pytest.mark.parametrize(("clusters", "size"), [(8, 10), (40, 5)])
def test_false_verdicts_of_clustered_answers_are_as_rare_as_they_are_said_to_be(clusters, size):
    random, wrong, alone, rounds = np.random.default_rng(clusters), 0, 0, 300
    for _ in range(rounds):
        a, b = two_models(random, clusters, size, together=0.7)
        found = compare(a, b, "correct", bootstrap=FEW)
        wrong += found.p_value(0.0) < 0.05
        single = [{**row, "cluster": None} for row in a], [{**row, "cluster": None} for row in b]
        alone += compare(*single, "correct", bootstrap=FEW).p_value(0.0) < 0.05
    assert wrong / rounds <= 0.05 + 2 * math.sqrt(0.05 * 0.95 / rounds)
    assert alone / rounds > 0.15  # as if questions were independent


@pytest.mark.parametrize("clusters", [5, 12, 25, 60])
def test_a_paired_interval_covers_a_clustered_difference_as_often_as_it_says(clusters):
    """Changes of 4 windows of an article share a part; articles have other numbers of tokens."""
    random, hit, rounds = np.random.default_rng(clusters), 0, 400
    for _ in range(rounds):
        owners, tokens = np.repeat(np.arange(clusters), 4), random.integers(40, 160, 4 * clusters).astype(float)
        changes = 0.05 + 0.1 * random.normal(size=clusters)[owners] + 0.05 * random.normal(size=4 * clusters)
        effect = paired_effect(tokens * changes, tokens, list(owners), FEW)
        low, high = effect.interval(0.95)
        hit += low <= 0.05 <= high
        assert (effect.p_value(0.05) < 0.05) is not (low <= 0.05 <= high) or isinstance(effect, Resampled)
    assert 0.92 <= hit / rounds <= 0.99


def test_the_interval_of_few_clusters_is_students_on_their_means_and_of_many_agrees_with_scipys_bootstrap():
    random = np.random.default_rng(0)
    few = random.normal(0.2, 1, (6, 3))  # 6 clusters of 3: the mean of equal clusters is the mean of their means
    effect = paired_effect(few.ravel(), np.ones(18), list(np.repeat(range(6), 3)), FEW)
    means = few.mean(axis=1)
    assert effect.interval(0.95) == pytest.approx(stats.t.interval(0.95, 5, means.mean(), stats.sem(means)))
    assert effect.p_value(0.0) == pytest.approx(stats.ttest_1samp(means, 0.0).pvalue)

    many = random.exponential(1.0, (200, 2))
    effect = paired_effect(many.ravel(), np.ones(400), list(np.repeat(range(200), 2)), Bootstrap(resamples=8000))
    theirs = stats.bootstrap((many.mean(axis=1),), np.mean, n_resamples=8000, method="percentile", rng=0)
    ours, width = effect.interval(0.95), theirs.confidence_interval.high - theirs.confidence_interval.low
    assert ours == pytest.approx(tuple(theirs.confidence_interval), abs=0.06 * width)
    assert effect.p_value(1.0) == pytest.approx(stats.ttest_1samp(many.mean(axis=1), 1.0).pvalue, abs=0.03)


def test_a_p_value_and_its_interval_agree():
    values = np.sort(np.random.default_rng(1).normal(0.3, 0.1, 20_000))
    for effect in (Student(0.3, 0.1, 7), Student(0.3, 0.1, math.inf), Resampled(values, 25)):
        low, high = effect.interval(0.95)
        assert effect.p_value(low) == pytest.approx(0.05, abs=0.003) == effect.p_value(high)
        assert effect.p_value(low - 0.01) < 0.05 < effect.p_value(low + 0.01)


@pytest.mark.parametrize(("lost", "gained"), [(0, 5), (3, 10), (7, 8), (1, 0), (0, 0)])
def test_mcnemars_test_of_independent_answers_is_the_binomial_one(lost, gained):
    a = np.array([1] * lost + [0] * gained + [1] * 9)
    b = np.array([0] * lost + [1] * gained + [1] * 9)
    moved = lost + gained
    theirs = stats.binomtest(gained, moved, 0.5).pvalue if moved else 1.0
    assert mcnemar(a, b) == pytest.approx(theirs) == mcnemar(a, b, list(range(len(a))))


def test_mcnemars_test_over_clusters_tosses_one_coin_for_each():
    """By all 2^5 ways in which five clusters can change sides, of which one moved both ways at once."""
    changes, clusters = [1, 1, 1, -1, 1, 1, 1, 1, -1, 0], [0, 0, 0, 1, 2, 2, 3, 4, 4, 5]
    a, b = np.array([int(change < 0) for change in changes]), np.array([int(change > 0) for change in changes])
    sums = [3, -1, 2, 1, 0]
    ways = [abs(sum(sign * each for sign, each in zip(signs, sums, strict=True)))
            for signs in itertools.product((-1, 1), repeat=5)]  # fmt: skip
    assert mcnemar(a, b, clusters) == pytest.approx(np.mean([way >= abs(sum(changes)) for way in ways]))


def test_answers_about_one_passage_are_one_piece_of_evidence_and_one_document_is_none():
    a, b = rows([1] * 60, [0] * 60), rows([0] * 60, [0] * 60)
    alone = compare(a, b, "correct", margin=2)
    assert alone.ci_low is None and not alone.worse and alone.clusters == 1
    owners = [at // 20 for at in range(60)]
    assert not compare(rows([1] * 60, owners), rows([0] * 60, owners), "correct", margin=2).p_mcnemar < 0.05
    assert compare(rows([1] * 60, range(60)), rows([0] * 60, range(60)), "correct", margin=2).worse


def test_a_perplexity_is_compared_by_articles_wherever_its_windows_name_one():
    nats = np.random.default_rng(3).normal(300, 5, 12)
    items = [{"id": f"w{at}", "nats": n, "tokens": 100, "cluster": f"article-{at // 3}"} for at, n in enumerate(nats)]
    after = [row | {"nats": row["nats"] + at} for at, row in enumerate(items)]
    found = compare_rates(items, after, "nats", "tokens")
    means = np.arange(12).reshape(4, 3).mean(axis=1) / 100
    assert (found.ci_low, found.ci_high) == pytest.approx(stats.t.interval(0.95, 3, means.mean(), stats.sem(means)))
    assert (found.items, found.clusters) == (12, 4)


def test_what_an_item_hangs_together_with():
    assert named_cluster({"passage": "Short."}, "source", "passage") == "Short."
    long = named_cluster({"passage": 40 * "long "}, "source", "passage")
    assert long != named_cluster({"passage": 41 * "long "}, "source", "passage") and len(long) == 12
    assert named_cluster({"source": "a.md", "passage": "x"}, "source", "passage") == "a.md"
    assert named_cluster({"question": "x"}, "source") is None
    assert [cluster_of(row) for row in ({"id": 1}, {"id": 1, "cluster": None}, {"id": 1, "block": 7})] == [1, 1, 7]


def two_tables(random, together):
    """Both models equally good on three tasks, whose items hang together in clusters."""
    tables = ({}, {})
    for name in ("boolq", "domain_boolean"):
        for table, items in zip(tables, two_models(random, 30, 4, together), strict=True):
            table[name] = [row | {"gold": at % 2 == 0, "margin": random.normal()} for at, row in enumerate(items)]
    owners = np.repeat(np.arange(12), 3)
    shared = 300 + 3 * random.normal(size=12)[owners]
    for table in tables:
        nats = shared + 2 * random.normal(size=12)[owners] + random.normal(size=36)
        table["wikitext2"] = [row | {"tokens": 100} for row in rows(nats, owners, "nats")]
    return tables


@pytest.mark.long
def test_over_a_tables_tasks_false_verdicts_are_at_most_5_per_cent_of_tables():
    random, wrong, starred, rounds = np.random.default_rng(11), 0, 0, 100
    for _ in range(rounds):
        a, b = two_tables(random, together=0.5)
        found = losses(a, b, perplexity_margin=0.0, task_margin=0.0, bootstrap=FEW)
        assert len(found) == 5
        wrong += any(loss.outcome in ("better", "worse") for loss in found)
        starred += bool(shown_best([a, b]))
    assert wrong / rounds <= 0.05 + 2 * math.sqrt(0.05 * 0.95 / rounds)
    assert starred / rounds <= 0.05 + 2 * math.sqrt(0.05 * 0.95 / rounds)


def test_the_best_of_several_has_to_beat_each_of_them_item_by_item():
    random = np.random.default_rng(2)
    base = random.normal(300, 40, 24)  # documents differ much more than models do
    models = [
        {
            "domain": [
                {"id": f"d{at}", "nats": n + more + 0.5 * random.normal(), "tokens": 100} for at, n in enumerate(base)
            ]
        }
        for more in (5.0, 0.0, 9.0)
    ]
    assert shown_best(models) == {"domain/perplexity": 1}
    table = with_best([{"variant": name} for name in "abc"], models)
    assert [row["best_in"] for row in table] == ["", "domain/perplexity", ""]
    tied = [{"id": r["id"], "nats": r["nats"] + random.normal(), "tokens": 100} for r in models[1]["domain"]]
    assert shown_best([*models, {"domain": tied}]) == {}
    elsewhere = [{**row, "tokens": 90} for row in models[0]["domain"]]  # of another tokenizer
    assert shown_best([models[1], {"domain": elsewhere}]) == {}
