"""What was scored, and what of it hangs together, is kept with the items and counted beside the figures."""

from __future__ import annotations

import pytest

from edgequant.evaluation.evidence_file import kept_items
from edgequant.evaluation.settings import EvaluationSettings
from edgequant.evaluation.suite import evaluate_model
from edgequant.evaluation.tasks.registry import paired_metrics
from edgequant.evaluation.tasks.task import counted
from edgequant.reporting.columns import columns

PASSAGE = "The river rose two metres in the night and the lower town was asked to leave. "
BOOLQ = [{"question": f"did it rise {at}", "passage": PASSAGE + str(at // 2), "answer": at % 3 > 0} for at in range(6)]
SQUAD = [
    {"id": f"s{at}", "title": ("Flood", "Storm")[at % 2], "context": PASSAGE, "question": "What rose?",
     "answers": {"text": ["The river"]}}
    for at in range(4)
]  # fmt: skip
WIKITEXT = [
    " = Flood = \n",
    20 * PASSAGE + "\n",
    " = = Causes = = \n",
    4 * PASSAGE + "\n",
    " = Storm = \n",
    9 * PASSAGE,
]
SETTINGS = EvaluationSettings(
    tasks=("domain_perplexity", "perplexity", "boolq", "squad", "domain_qa"), window=128, max_new_tokens=2,
    bootstrap_resamples=50,
)  # fmt: skip


@pytest.fixture(scope="module")
def measured(_tiny):
    boolean = [row | {"id": f"b{at}", "source": f"{at // 3}.md"} for at, row in enumerate(BOOLQ)]
    data = {"boolq": BOOLQ, "squad": SQUAD, "wikitext2": WIKITEXT, "domain_boolean": boolean,
            "domain": [("water", PASSAGE), ("food", 2 * PASSAGE), ("food", PASSAGE)]}  # fmt: skip
    return evaluate_model(_tiny.model, _tiny.tokenizer, data, SETTINGS)


def test_items_name_their_passage_article_or_document(measured):
    clusters = {table: [row.get("cluster") for row in rows] for table, rows in measured.items.items()}
    assert [clusters["boolq"].index(one) for one in clusters["boolq"]] == [0, 0, 2, 2, 4, 4]
    assert clusters["squad"] == ["Flood", "Storm"] * 2
    assert clusters["domain_boolean"] == ["0.md"] * 3 + ["1.md"] * 3
    articles = clusters["wikitext2"]
    assert articles == sorted(articles) and set(articles) == {"article-0", "article-1"}
    # 24 of 33 passages are the first article's
    assert articles.count("article-0") / len(articles) == pytest.approx(24 / 33, abs=0.1)


def test_a_text_without_articles_has_blocks_of_windows(_tiny):
    data = {"wikitext2": [30 * PASSAGE]}
    settings = EvaluationSettings(tasks=("perplexity",), window=64)
    found = evaluate_model(_tiny.model, _tiny.tokenizer, data, settings)
    clusters = [row["cluster"] for row in found.items["wikitext2"]]
    assert clusters[0] == "block-0" and len(set(clusters)) == max(4, len(clusters) // 3)
    assert "wikitext2/clusters" not in found.metrics


def test_numbers_stand_beside_the_figures(measured):
    heads = {column.key: column.heading for column in columns([measured.metrics])}
    assert heads["domain/perplexity"] == "perplexity (domain), 3 documents"
    assert heads["boolq/accuracy"] == "BoolQ accuracy (%), 6 questions of 3 passages"
    assert heads["boolq/balanced_log_odds_margin"] == "BoolQ log-odds margin (nats), 6 questions of 3 passages"
    assert heads["squad/f1"] == "SQuAD F1 (%), 4 questions of 2 articles"
    assert heads["domain_qa/boolean_accuracy"] == "domain QA boolean accuracy (%), 6 questions of 2 documents"
    windows = int(measured.metrics["wikitext2/windows"])
    assert heads["wikitext2/perplexity"] == f"perplexity (WikiText-2), {windows} windows of 2 articles"
    assert [counted(number, "documents") for number in (1, 1200)] == ["1 document", "1,200 documents"]


def test_the_balanced_margin_is_the_mean_of_both_answers_means(measured):
    rows = measured.items["boolq"]
    margins = [[row["margin"] for row in rows if row["gold"] is answer] for answer in (True, False)]
    assert measured.metrics["boolq/balanced_log_odds_margin"] == pytest.approx(
        sum(sum(each) / len(each) for each in margins) / 2
    )
    assert measured.metrics["boolq/log_odds_margin"] == pytest.approx(sum(row["margin"] for row in rows) / 6)


def test_evidence_keeps_all_that_comparisons_look_at(measured):
    kept = kept_items(measured.items)
    for paired in paired_metrics():
        if paired.table in kept:
            assert paired.is_in(kept[paired.table]), paired
    assert {"id", "correct", "margin", "gold", "cluster"} == set(kept["boolq"][0])
