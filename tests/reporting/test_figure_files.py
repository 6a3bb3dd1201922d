"""Figures as MLflow keeps them: a page that needs no network and a picture; and the text on top of a run's page."""

from __future__ import annotations

import io
from html.parser import HTMLParser

import numpy as np
import pytest
from matplotlib.figure import Figure as Canvas
from matplotlib.mathtext import MathTextParser
from PIL import Image

from edgequant import tracking
from edgequant.reporting import plots
from edgequant.reporting.charts.marks import VARIANT_COLORS
from edgequant.reporting.description import description, description_table
from edgequant.reporting.figure_files import log_figure
from edgequant.reporting.layer_bits import layer_bits_figure
from edgequant.reporting.layer_errors import layer_error_figure
from edgequant.reporting.pictures import PowersAsText, plain, png

ROWS = [
    {"model": "m", "variant": "baseline", "scheme": "none", "domain/perplexity": 10.0, "size/checkpoint_gb": 0.2},
    {"model": "m", "variant": "qat", "scheme": "w4", "domain/perplexity": 20.0, "size/checkpoint_gb": 0.1},
]
LAYERS = [
    {"layer": f"model.layers.{at}.mlp.up_proj", "kind": "linear", "weight_error": 10.0**-at, "bits": 2 + at,
     "parameters": 100, "sensitivity": 0.1}
    for at in range(4)
]  # fmt: skip


class Fetched(HTMLParser):
    """Addresses that a page would fetch."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.addresses: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.addresses += [str(value) for name, value in attrs if name in ("src", "href", "srcset")]


def pixels(picture: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(picture)).convert("RGB")).astype(int)


def counted(image: np.ndarray, color: str) -> int:
    wanted = [int(color[at : at + 2], 16) for at in (1, 3, 5)]
    return int((np.abs(image - wanted).max(-1) < 4).sum())


def test_a_figure_becomes_a_page_that_needs_no_network_and_a_picture(store):
    with tracking.workflow_run("report", {}) as run:
        log_figure(plots.bars(ROWS, "domain/perplexity"), "plots/perplexity.html")
        log_figure(layer_error_figure(LAYERS), "layer_errors.html")
    page = tracking.download(f"runs:/{run.id}/plots/perplexity.html").read_text()
    assert Fetched(page).addresses == [] and "Plotly.newPlot" in page and len(page) > 1_000_000
    picture = tracking.download(f"runs:/{run.id}/plots/perplexity.png").read_bytes()
    assert picture.startswith(b"\x89PNG") and len(picture) < 100_000
    assert {file.path for file in store.list_artifacts(run.id)} >= {"layer_errors.html", "layer_errors.png"}


def test_bars_are_as_long_as_their_values():
    bare = [row | {"domain/perplexity": value} for row, value in zip(ROWS, (10.0, 20.0), strict=True)]
    image = pixels(png(plots.bars(bare, "domain/perplexity")))
    short, long = (counted(image, VARIANT_COLORS[name]) for name in ("baseline", "qat"))
    assert long / short == pytest.approx(2.0, rel=0.05)  # its number stands beside a bar


@pytest.mark.parametrize(
    "figure",
    [
        plots.scatter(ROWS, "size/checkpoint_gb", "domain/perplexity"),
        plots.bars([], "domain/perplexity"),
        layer_error_figure(LAYERS),
        layer_bits_figure(LAYERS),
        plots.bars([ROWS[0] | {"model": "$x^2$ <b>&amp;"}, ROWS[1] | {"model": "\\frac{"}], "domain/perplexity"),
    ],
    ids=["scatter", "nothing", "lines", "heat map", "names like mathematics"],
)
def test_each_of_our_figures_is_drawn(figure):
    image = pixels(png(figure))
    assert image.shape[1] == 1000 and image.shape[0] == (figure.layout.height or 460)
    assert (image.min(-1) < 160).sum() > 100  # ink


def test_the_figures_of_a_search_are_drawn():
    optuna = pytest.importorskip("optuna")
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    study.optimize(lambda trial: trial.suggest_float("rate", 0, 1) + len(trial.suggest_categorical("s", "ab")), 4)
    drawn = optuna.visualization
    for figure in (drawn.plot_parallel_coordinate(study), drawn.plot_optimization_history(study)):
        assert (pixels(png(figure)).min(-1) < 160).sum() > 100


def test_a_picture_is_drawn_once_and_typesets_nothing(monkeypatch):
    """Each of both had taken as long as the drawing itself."""
    drawn = []
    original = Canvas.draw
    monkeypatch.setattr(Canvas, "draw", lambda self, renderer: drawn.append(self) or original(self, renderer))
    monkeypatch.setattr(MathTextParser, "parse", None)
    png(layer_error_figure(LAYERS))
    assert len(drawn) == 1


@pytest.mark.parametrize(
    ("value", "told"), [(1e-3, "10⁻³"), (2e-5, "2×10⁻⁵"), (6.35e-3, "6.35×10⁻³"), (1e6, "10⁶"), (1.0, "10⁰"), (0, "0")]
)
def test_powers_are_told_in_characters(value, told):
    formatter = PowersAsText()
    formatter.create_dummy_axis()
    assert formatter(value) == told


def test_text_for_plotly_is_told_as_text():
    assert plain("a<br>b <i>c</i> &lt;d&gt; $5") == r"a" + "\n" + r"b c <d> \$5"


def test_a_description_tells_what_was_asked_the_verdict_the_table_and_what_is_next():
    text = description(
        "Asked: **qat**", ROWS, verdict=["delivered: qat"], notes=["not measured: boolq"],
        following="edgequant promote", compare="http://host:1/#/compare-runs?runs=x",
    )  # fmt: skip
    places = [
        text.index(part) for part in ("Asked", "delivered: qat", "| size", "not measured", "(#/compare", "Next: ")
    ]
    assert places == sorted(places) and "http://host" not in text


def test_the_table_of_a_description_has_a_line_for_each_metric_and_a_column_for_each_model():
    lines = description_table(ROWS).splitlines()
    assert lines[0] == "|  | baseline | qat w4 |"
    assert any(line.startswith("| perplexity (domain) | 10.00") for line in lines)
    many = [row | {"variant": f"v{at}"} for at in range(5) for row in ROWS]
    assert len(description_table(many).splitlines()) == len(many) + 2


def test_a_description_fits_into_a_tag_of_mlflows_whatever_is_told(store):
    text = description("Asked: **x**", ROWS, notes=[f"note {at} ü" * 9 for at in range(500)], following="edgequant x")
    assert len(text.encode()) < 5100 and text.endswith("…")
    with tracking.workflow_run("evaluate", {}) as run:
        tracking.describe_run(text)
    assert store.get_run(run.id).data.tags["mlflow.note.content"] == text


def test_names_that_look_like_markup_stay_text_in_a_description():
    table = description_table([ROWS[0] | {"variant": "a|b<img>"}, ROWS[1]])
    assert r"a\|b\<img\>" in table
