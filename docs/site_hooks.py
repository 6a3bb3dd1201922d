"""What mkdocs.yml does to pages: README and its neighbours become pages; placeholders of help texts are filled."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

from edgequant.workflows.help_texts import filled

ROOT = Path(__file__).resolve().parent.parent
PAGES = {"README.md": "index.md", "CONTRIBUTING.md": "contributing.md", "CHANGELOG.md": "changelog.md"}


def on_files(files: Files, *, config: Any) -> Files:
    """Add the documents of the repository's root, whose links there lead through docs/."""
    for document, page in PAGES.items():
        text = (ROOT / document).read_text().replace("](docs/", "](")
        for name, target in PAGES.items():
            text = text.replace(f"]({name}", f"]({target}")
        files.append(File.generated(config, page, content=text))
    return files


def on_page_content(html: str, **_: Any) -> str:
    """Say which PTQ methods there are where a docstring leaves that to `--help`."""
    return filled(html)
