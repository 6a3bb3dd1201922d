"""The report: self-contained, escaped, honest about what cannot be compared."""

from __future__ import annotations

import html
import re
from html.parser import HTMLParser

import pytest
from stored_runs import store_qat, with_intervals

from edgequant import tracking
from edgequant.reporting.gathering import compare
from edgequant.reporting.pages.html_report import html_report
from edgequant.reporting.pages.markdown_report import markdown_report
from edgequant.reporting.tables import csv_table, markdown_table

EVIL = "</script><img src=x onerror=alert(1)>\"'&"


@pytest.fixture(autouse=True)
def own_store(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'store.db'}")


class Page(HTMLParser):
    """Elements and the addresses that they would fetch."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.elements: list[str] = []
        self.fetched: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append(tag)
        self.fetched += [
            str(value) for name, value in attrs if name in ("src", "srcset") or (tag == "link" and name == "href")
        ]


def test_the_page_fetches_nothing_and_is_small_enough_to_be_mailed() -> None:
    store_qat()
    page = html_report(compare())
    assert Page(page).fetched == [] and "url(" not in page
    assert page.count("<svg") > 8 and len(page) < 200_000


def test_names_from_users_stay_text_everywhere() -> None:
    store_qat(model=EVIL, warning=EVIL)
    compared = compare()
    page = html_report(compared, title=EVIL)
    parsed = Page(page)
    assert "img" not in parsed.elements and EVIL not in page
    assert (
        parsed.elements.count("script") == 1
        and html.escape(EVIL).replace("&quot;", "&#34;").replace("&#x27;", "&#39;") in page
    )
    markdown = markdown_report(compared, EVIL)
    assert "<img" not in re.sub(r"\\<", "", markdown)


def test_runs_of_different_protocols_and_tokenizers_are_warned_about() -> None:
    first = store_qat(settings={"limit": 200, "window": 2048})
    second = store_qat(model="other", settings={"limit": 100, "window": 2048})
    warnings = " ".join(compare([first, second]).warnings)
    assert "limit (200 or 100)" in warnings and "window" not in warnings
    assert "perplexity is per token" in warnings


def test_a_warning_that_a_run_carries_is_repeated() -> None:
    store_qat(warning="boolq/accuracy fell")
    assert any("boolq/accuracy fell" in text for text in compare().warnings)


def test_unfinished_runs_are_left_out() -> None:
    store_qat()
    with (
        pytest.raises(RuntimeError),
        tracking.workflow_run("qat", {"model": "broken"}),
        tracking.variant_run("qat", model="broken", scheme="w8", phase="p"),
    ):
        tracking.log_metrics(with_intervals({"domain/perplexity": 3.0}))
        raise RuntimeError("stop")
    assert {row["model"] for row in compare().rows} == {"smollm2-135m"}


def test_models_that_a_pipeline_measured_inside_are_found() -> None:
    with tracking.workflow_run("pipeline", {"model": "tiny"}) as parent:
        store_qat(model="inner")
    assert {row["model"] for row in compare([parent.id]).rows} == {"inner"}


def test_the_configuration_and_the_commit_are_in_the_page() -> None:
    store_qat()
    page = html_report(compare())
    assert "evaluation.limit" in page and re.search("commit <code>[0-9a-f]{12}", page)


def test_markdown_marks_the_best_in_bold_and_keeps_pipes_inside_cells() -> None:
    rows = [
        {"model": model, "squad/f1": value, "squad/f1_ci_low": value - 0.1, "squad/f1_ci_high": value + 0.1}
        for model, value in (("a|b", 1.0), ("c", 2.0))
    ]
    table = markdown_table(rows).splitlines()
    assert table[0] == "| model | SQuAD F1 (%) |" and table[2] == r"| a\|b | 1.00 (0.900 to 1.10) |"
    assert table[3] == "| c | **2.00 (1.90 to 2.10)** |"


def test_csv_keeps_full_precision_and_disarms_formulas() -> None:
    table = csv_table([{"model": "=HYPERLINK(1)", "squad/f1": 1 / 3}])
    assert table.splitlines() == ["model,squad/f1", f"'=HYPERLINK(1),{1 / 3}"]
