"""The report in headless Chromium: nothing overflows at 1280 and 390 pixels, no text of a chart covers another one."""

from __future__ import annotations

import re

import pytest
from browser import CHROMIUM, looked_at
from stored_runs import store_qat

from edgequant.reporting.gathering import compare
from edgequant.reporting.pages.html_report import html_report

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed (Debian: apt-get install chromium)")
WIDTHS = (1280, 390)
LONG = "organisation-with-a-long-name/Some-Extremely-Verbose-Model-Name-1.5B-Instruct-v0.3-preview-GGUF"


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """A page of several models, one of them with a name that is hard to place, at each width."""
    folder = tmp_path_factory.mktemp("store")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{folder / 'store.db'}")
        page = html_report(compare([store_qat(), store_qat(model=LONG), store_qat(model="模型 <b>🚀", better=0.2)]))
    broken = re.sub(r'(class="(?:name|tick|label)" text-anchor="\w+)', r'\1" transform="translate(0 -13)', page)
    broken = broken.replace("</body>", '<div style="width: 1500px">wide</div></body>').replace("overflow-x: auto", "")
    pages = {"page": page, "broken": broken}
    return {
        name: dict(zip(WIDTHS, looked_at(text, WIDTHS, folder), strict=True)) for name, text in pages.items()
    }  # fmt: skip


@pytest.mark.parametrize("width", WIDTHS)
def test_nothing_overflows_and_no_text_of_a_chart_covers_another_or_is_struck_through(found, width):
    seen = found["page"][width]
    assert seen["overflow"] == 0 and seen["texts"] > 100
    assert (seen["overlapping"], seen["struck"], seen["outside"]) == ([], [], [])
    assert max(seen["scrolling"]) <= 0


def test_rows_are_rows_on_a_desk_and_cards_on_a_phone(found):
    assert {*found["page"][1280]["rows"]} == {"table-row"} and {*found["page"][390]["rows"]} == {"block"}


def test_a_page_that_overflows_and_covers_its_texts_is_seen(found):
    seen = found["broken"][390]
    assert seen["overflow"] > 0 and (seen["overlapping"] or seen["struck"])
