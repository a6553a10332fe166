"""What shows a picture: markup that embeds one, links to one or draws it cell by cell, and notebooks that hold such markup."""

from __future__ import annotations

import html
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping
from html.parser import HTMLParser

import nbformat

# elements that put on a page what is not drawn by their own lines
FRAMES = {"image", "feimage", "foreignobject", "img", "canvas", "object", "embed", "iframe", "video"}
# data as an address, in CSS too; XML entities, which may stand for any markup
HIDDEN = re.compile(r"data:\s*image/[\w.+-]+\s*[;,]|url\(\s*[\"']?\s*data:|<!entity\b", re.IGNORECASE)
PAINT = {"style", "class", "fill", "fill-opacity", "opacity", "stroke", "stop-color"}
# more elements of one kind in more paints than any plot, or so many rectangles at all: a picture, drawn cell by cell
CELLS, PAINTS = 1000, 24


def has_pictures(markup: str) -> bool:
    """Whether SVG, HTML or Markdown shows a picture; plots in the house style show none."""
    if HIDDEN.search(html.unescape(markup)):
        return True
    elements = _Elements()
    try:
        elements.feed(markup)
    except AssertionError:
        # a declaration that the parser does not know; nobody can say what it shows
        return True
    many = {name: len(set(paints)) for name, paints in elements.paints.items() if len(paints) > CELLS}
    return elements.framed or "rect" in many or max(many.values(), default=0) > PAINTS


class _Elements(HTMLParser):
    """Whether there is a frame, and the paints of each kind of element, whatever its namespace is called."""

    def __init__(self) -> None:
        super().__init__()
        self.framed = False
        self.paints: defaultdict[str, list[tuple[tuple[str, str | None], ...]]] = defaultdict(list)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        name = tag.rpartition(":")[2]
        # an SVG file that is linked to is looked at by itself
        self.framed |= name in FRAMES and not (name == "img" and (dict(attrs).get("src") or "").endswith(".svg"))
        paint = tuple(pair for pair in attrs if pair[0] in PAINT)
        if paint or name == "rect":
            self.paints[name].append(paint)


def pictures_in(notebook: nbformat.NotebookNode) -> Iterator[str]:
    """The cells of a notebook that show a picture, in outputs, attachments or text: "code cell 2"."""
    for kind, word in (("code", "code"), ("markdown", "Markdown"), ("raw", "raw")):
        for number, cell in enumerate((c for c in notebook.cells if c.cell_type == kind), 1):
            text = kind != "code" and has_pictures(cell.source)
            if text or cell.get("attachments") or any(_shows(output.get("data", {})) for output in cell.get("outputs", [])):
                yield f"{word} cell {number}"


def _shows(output: Mapping[str, object]) -> bool:
    for kind, content in output.items():
        text = "".join(content) if isinstance(content, list) else str(content)
        raster = kind == "application/pdf" or (kind.startswith("image/") and kind != "image/svg+xml")
        if raster or has_pictures(text):
            return True
    return False
