"""A page looked at in headless Chromium: what overflows, which texts of charts overlap or are struck through."""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

NAMES = ("chromium", "chromium-browser", "google-chrome")
CHROMIUM = next((found for name in NAMES if (found := shutil.which(name))), None)

LOOK = """
const touches = (a, b) => a.left < b.right - 1 && b.left < a.right - 1 && a.top < b.bottom - 1 && b.top < a.bottom - 1;
function crosses(line, box) {  // Liang and Barsky
  let [begin, end] = [0, 1];
  for (const [start, step, low, high] of [[line.x1, line.x2 - line.x1, box.left + 1, box.right - 1],
                                          [line.y1, line.y2 - line.y1, box.top + 3, box.bottom - 3]]) {
    if (step === 0) { if (start <= low || start >= high) return false; continue; }
    const ends = [(low - start) / step, (high - start) / step].sort((a, b) => a - b);
    begin = Math.max(begin, ends[0]); end = Math.min(end, ends[1]);
  }
  return begin < end;
}
function placed(line) {
  const matrix = line.getScreenCTM(), at = name => line[name].baseVal.value;
  const point = (x, y) => new DOMPoint(x, y).matrixTransform(matrix);
  const a = point(at("x1"), at("y1")), b = point(at("x2"), at("y2"));
  return { x1: a.x, y1: a.y, x2: b.x, y2: b.y };
}
function look(frame) {
  const page = frame.contentDocument, found = { overlapping: [], struck: [], outside: [] };
  found.overflow = page.documentElement.scrollWidth - frame.clientWidth;
  const tables = [...page.querySelectorAll(".scroll:has(> .cards)")];
  found.scrolling = tables.map(each => each.scrollWidth - each.clientWidth);
  found.rows = [...page.querySelectorAll(".cards tr")].map(each => getComputedStyle(each).display);
  found.texts = page.querySelectorAll("svg text").length;
  for (const chart of page.querySelectorAll("svg")) {
    const texts = [...chart.querySelectorAll("text")].map(each => [each.textContent, each.getBoundingClientRect()]);
    const lines = [...chart.querySelectorAll("line:not(.grid):not(.axis)")].map(placed);
    const edge = chart.getBoundingClientRect();
    texts.forEach(([text, box], at) => {
      for (const [other, taken] of texts.slice(at + 1)) if (touches(box, taken)) found.overlapping.push([text, other]);
      if (lines.some(line => crosses(line, box))) found.struck.push(text);
      if (box.left < edge.left - 2 || box.right > edge.right + 2) found.outside.push(text);
    });
  }
  return found;
}
addEventListener("load", () => {
  document.body.dataset.found = JSON.stringify([...document.querySelectorAll("iframe")].map(look));
});
"""


def looked_at(page: str, widths: Sequence[int], folder: Path) -> list[dict[str, Any]]:
    """What Chromium makes of a page at some widths in pixels, without a network.

    Args:
        folder: for its files.

    Returns:
        By width: `overflow` and, of each table that can become cards, `scrolling`, in pixels; `rows`, how rows of these
        tables are displayed; `texts`, how many stand in charts; which of them are `overlapping`, `struck` through, or
        `outside` of their chart.
    """
    frames = "".join(f'<iframe style="width: {width}px" srcdoc="{html.escape(page)}"></iframe>' for width in widths)
    style = "<style>body { margin: 0 } iframe { border: 0; display: block; height: 900px }</style>"
    (folder / "frames.html").write_text(f"<!doctype html><meta charset=utf-8>{style}{frames}<script>{LOOK}</script>")
    command = [
        str(CHROMIUM), "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--dump-dom",
        "--host-resolver-rules=MAP * ~NOTFOUND", f"--user-data-dir={folder / 'profile'}", "--window-size=1400,900",
        f"file://{folder / 'frames.html'}",
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    found = re.search(r'data-found="([^"]*)"', done.stdout)
    assert found is not None, done.stderr[-2000:]
    return list(json.loads(html.unescape(found[1])))
