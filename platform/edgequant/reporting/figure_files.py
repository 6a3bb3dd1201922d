"""A figure as two artifacts of the run: a page that needs no network, and the picture of it beside."""

from __future__ import annotations

from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from edgequant import tracking
from edgequant.disk.leftovers import Scratch

if TYPE_CHECKING:
    from plotly.graph_objects import Figure


def log_figure(figure: Figure, artifact: str) -> None:
    """File a figure with the active run.

    Args:
        figure: a plotly figure.
        artifact: path of the page, ending in .html: plotly.js is inside (5 MB), since MLflow shows it wherever its
            server runs; the picture gets the same name with .png.
    """
    from edgequant.reporting.pictures import png

    place = PurePosixPath(artifact)
    parent = None if place.parent == PurePosixPath(".") else str(place.parent)
    with Scratch() as folder:
        page, picture = Path(folder, place.name), Path(folder, place.with_suffix(".png").name)
        page.write_text(figure.to_html(include_plotlyjs=True, full_html=True), encoding="utf-8")
        picture.write_bytes(png(figure))
        for file in (page, picture):
            tracking.log_artifact(file, parent)
