"""HTML, Markdown and DOCX to blocks."""

from __future__ import annotations

import io
import re
import zipfile
from collections.abc import Iterator
from typing import Any

from edgequant.corpora.documents import split_front_matter
from edgequant.corpora.extraction.extracted import Extraction, ExtractionError, Part
from edgequant.corpora.text.boilerplate import Removed
from edgequant.corpora.text.chunking import Block

_HEADING = re.compile(r"^(#{1,6})\s+(.*?)\s*#*$")
_ITEM = re.compile(r"^\s*(?:[-*+]|\d{1,3}[.)])\s+(?:\[[ xX]\]\s+)?(.*)$")
_RULE = re.compile(r"^\s*(?:[-*_=]\s*){3,}$")
_TABLE_RULE = re.compile(r"^\s*\|?(?:\s*:?-+:?\s*\|)+\s*:?-*:?\s*$")
_LINK = re.compile(r"!?\[([^\]]*)\]\(([^)\s]*)[^)]*\)")
_EMPHASIS = re.compile(r"(\*\*|__|\*|`+|~~)(?=\S)(.+?)(?<=\S)\1")
_NAVIGATION = ("nav", "header", "footer", "aside", "form", "button", "select")
_INVISIBLE = ("script", "style", "noscript", "template", "svg", "iframe", "object", "canvas", "audio", "video")
_HIDING = re.compile(
    r"(?:^|;)\s*(?:display\s*:\s*none|visibility\s*:\s*(?:hidden|collapse)|opacity\s*:\s*0*\.?0*\s*(?:!|;|$)"
    r"|font-size\s*:\s*0*\.?0*(?:px|pt|em|rem|%)?\s*(?:!|;|$))",
    re.IGNORECASE,
)
_PROSE = ("main", "article", "section", "p", "ul", "ol", "table", "h1", "h2", "h3")
_HTML_BLOCKS = ("p", "li", "tr", "blockquote", "pre", "dt", "dd", "figcaption", "caption", "div", "section", "article")


def extract_markdown(text: str, warnings: list[str]) -> Extraction:
    """Headings, paragraphs and list items; front matter becomes stated metadata; a heading `# Title` stays text."""
    fields, body = split_front_matter(text)
    return Extraction("markdown", [Part(blocks=list(_markdown_blocks(body)), fields=fields)], 0, warnings)


def _markdown_blocks(body: str) -> Iterator[Block]:
    paragraph: list[str] = []
    kind = "text"
    for line in [*body.replace("\r\n", "\n").replace("\r", "\n").split("\n"), ""]:
        heading, item = _HEADING.match(line), _ITEM.match(line)
        ends = not line.strip() or heading or item or _RULE.match(line) or line.lstrip().startswith("|")
        if ends and paragraph:
            yield Block(kind, _inline(" ".join(paragraph)))
            paragraph, kind = [], "text"
        if heading:
            yield Block("heading", _inline(heading.group(2)))
        elif item and not _RULE.match(line):
            paragraph, kind = [item.group(1)], "item"
        elif line.lstrip().startswith("|"):
            if not _TABLE_RULE.match(line):
                yield Block("item", _inline(_row(line.strip().strip("|").split("|"))))
        elif line.strip() and not _RULE.match(line):
            paragraph.append(line.strip().lstrip(">").strip())


def _row(cells: list[str]) -> str:
    return "; ".join(cell.strip() for cell in cells if cell.strip())


def _inline(text: str) -> str:
    """Marks of emphasis and links go, their words stay."""
    text = _LINK.sub(lambda match: f"{match.group(1)} ({match.group(2)})" if match.group(2) else match.group(1), text)
    return _EMPHASIS.sub(r"\2", text)


def extract_html(text: str, warnings: list[str]) -> Extraction:
    """The visible text by its block elements; hidden text, navigation, forms and page furniture are listed as removed.

    Raises:
        ExtractionError: no visible text.
    """
    from bs4 import BeautifulSoup

    soup = BeautifulSoup(text, "lxml")
    for tag in soup(_INVISIBLE):
        tag.decompose()
    part = Part(fields=_html_fields(soup))
    part.removed += _hidden_text(soup)
    for tag in soup(_NAVIGATION):
        if tag.find_parent(_NAVIGATION) or (tag.name == "header" and tag.find_parent("article")):
            continue
        words = " ".join(tag.get_text(" ").split())
        if words:
            part.removed.append(Removed(words, f"page furniture <{tag.name}>", 0))
        tag.clear()
    part.blocks = [Block(kind, words) for kind, words in _html_blocks(soup.body or soup)]
    if not part.blocks:
        raise ExtractionError("HTML without visible text (built by scripts?)")
    return Extraction("html", [part], 0, warnings)


def _hidden_text(soup: Any) -> Iterator[Removed]:
    """Take out what a browser does not show: `hidden`, closed dialogs, inline styles, ornaments under aria-hidden.

    Scripts unhide a whole body or page, and find-in-page opens what is hidden until found: these stay.
    """
    for tag in soup(_is_hidden):
        if tag.find_parent(_is_hidden):  # goes with it
            continue
        words = " ".join(tag.get_text(" ").split())
        tag.extract()
        if words:
            yield Removed(words, "hidden on the page", 0)


def _is_hidden(tag: Any) -> bool:
    if tag.name in ("html", "body", "head", "title"):
        return False
    if tag.has_attr("hidden") and str(tag["hidden"]).strip().lower() != "until-found":
        return True
    if tag.name == "dialog" and not tag.has_attr("open"):
        return True
    if _HIDING.search(str(tag.get("style") or "")):
        return True
    # What screen readers skip is on the screen all the same: icons and copies of formulas go, whole paragraphs stay.
    return str(tag.get("aria-hidden")).lower() == "true" and not (tag.name in _PROSE or tag.find(_PROSE))


def _html_fields(soup: Any) -> dict[str, str]:
    fields = {}
    if soup.title and soup.title.string:
        fields["title"] = str(soup.title.string).strip()
        soup.title.decompose()
    root = soup.find("html")
    if root and root.get("lang"):
        fields["language"] = str(root["lang"]).split("-")[0].lower()
    return fields


def _html_blocks(root: Any) -> Iterator[tuple[str, str]]:
    """Walk the tree once: text gathers until a block element begins or ends."""
    kind, words = "text", []
    for event, item in _walk(root):
        if event == "text":
            words.append(item)
            continue
        if text := " ".join(" ".join(words).split()):
            yield kind, text
        words = []
        kind = (
            "text"
            if event == "end"
            else "heading"
            if re.fullmatch(r"h[1-6]", item)
            else "item"
            if item in ("li", "tr")
            else "text"
        )
    if text := " ".join(" ".join(words).split()):
        yield kind, text


def _walk(root: Any) -> Iterator[tuple[str, str]]:
    """Events of a depth-first walk with an explicit stack: pages nest deeper than Python's recursion goes."""
    from bs4 import NavigableString
    from bs4.element import PreformattedString

    stack: list[Any] = [root]
    while stack:
        node = stack.pop()
        if isinstance(node, tuple):
            yield node
        elif isinstance(node, NavigableString):
            if not isinstance(node, PreformattedString):  # comments, doctypes, CDATA
                yield "text", str(node)
        else:
            is_block = node.name in _HTML_BLOCKS or bool(
                re.fullmatch(r"h[1-6]|body|ul|ol|table|br|hr", node.name or "")
            )
            if is_block:
                yield "begin", node.name
                stack.append(("end", node.name))
            if node.name in ("td", "th") and node.find_next_sibling(("td", "th")):
                stack.append(NavigableString("; "))
            stack.extend(reversed(node.contents))


def extract_docx(content: bytes, max_bytes: int) -> Extraction:
    """Paragraphs and table rows in document order; headers, contents and hidden text are listed as removed.

    Raises:
        ExtractionError: damaged, or unpacks to more than max_bytes.
    """
    import docx

    try:
        unpacked = sum(member.file_size for member in zipfile.ZipFile(io.BytesIO(content)).infolist())
        if unpacked > max_bytes:
            raise ExtractionError(
                f"unpacks to {unpacked / 1e6:,.0f} MB, more than file_megabytes {max_bytes / 1e6:,.0f}"
            )
        document = docx.Document(io.BytesIO(content))
        part = Part(fields=_docx_fields(document), removed=list(_hidden_runs(document)))
        for block in _docx_blocks(document, part.removed):
            part.blocks.append(block)
        part.removed.extend(_docx_edges(document))
    except (ExtractionError, MemoryError):
        raise
    except Exception as error:  # zipfile, lxml and python-docx each have their own
        raise ExtractionError(f"damaged DOCX: {type(error).__name__}: {str(error)[:100]}") from None
    if not any(block.text.strip() for block in part.blocks):
        raise ExtractionError("DOCX without text (only images?)")
    return Extraction("docx", [part])


def _hidden_runs(document: Any) -> Iterator[Removed]:
    """Take out runs that Word does not show."""
    for run in document.element.body.xpath(".//w:r[w:rPr/w:vanish[not(@w:val) or @w:val='true' or @w:val='1']]"):
        text = str(run.text).strip()
        run.getparent().remove(run)
        if text:
            yield Removed(text, "hidden in the document", 0)


def _docx_blocks(document: Any, removed: list[Removed]) -> Iterator[Block]:
    for item in document.iter_inner_content():
        if hasattr(item, "rows"):
            for row in item.rows:
                yield Block("item", _row(list(dict.fromkeys(" ".join(cell.text.split()) for cell in row.cells))))
            continue
        style = (item.style.name if item.style is not None else "").lower()
        if style.startswith("toc"):
            removed.append(Removed(item.text, "table of contents", 0))
            continue
        kind = "heading" if style.startswith(("heading", "title")) else "item" if style.startswith("list") else "text"
        yield Block(kind, " ".join(item.text.split()))


def _docx_edges(document: Any) -> Iterator[Removed]:
    seen: set[str] = set()
    for section in document.sections:
        for edge, reason in ((section.header, "running header"), (section.footer, "running footer")):
            text = " ".join(" ".join(paragraph.text for paragraph in edge.paragraphs).split())
            if text and text not in seen:
                seen.add(text)
                yield Removed(text, reason, 0)


def _docx_fields(document: Any) -> dict[str, str]:
    properties = document.core_properties
    fields = {"title": properties.title, "author": properties.author}
    return {key: str(value) for key, value in fields.items() if value}
