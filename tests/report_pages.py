"""What a report's page consists of, by a parser that loads nothing."""

from __future__ import annotations

import base64
import io
from html.parser import HTMLParser

import matplotlib.image
import numpy as np

PNG = "data:image/png;base64,"
VOID = frozenset({"meta", "img", "br", "link", "hr"})


class Page(HTMLParser):
    """Collects text, tags, figures, names and links, and all that would be loaded.

    `figures` are the titles of the SVGs (None for one without), `boxes` their view boxes,
    `pictures` the pixels [h, w, 4] of images that the page itself holds.
    """

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self.stack: list[str] = []
        self.words: list[str] = []
        self.tags: list[str] = []
        self.headings: list[str] = []
        self.figures: list[str | None] = []
        self.boxes: list[str] = []
        self.ids: list[str] = []
        self.links: list[str] = []
        self.loads: list[str] = []
        self.pictures: list[np.ndarray] = []
        self.feed(html)
        assert self.stack == []

    def handle_starttag(self, tag, attrs):
        values = dict(attrs)
        self.tags.append(tag)
        if tag == "svg":
            self.figures.append(None)
            self.boxes.append(values["viewbox"])
        if tag in {"script", "link", "iframe", "object", "img"}:
            self.loads.append(tag)
        if "id" in values:
            self.ids.append(values["id"])
        for key in ("src", "href", "xlink:href"):
            if key in values and values[key].startswith("#"):
                self.links.append(values[key][1:])
            elif tag == "image" and values.get(key, "").startswith(PNG):
                content = io.BytesIO(base64.b64decode(values[key][len(PNG) :]))
                self.pictures.append(matplotlib.image.imread(content))
            elif key in values:
                self.loads.append(values[key])
        if tag not in VOID:
            self.stack.append(tag)

    def handle_endtag(self, tag):
        assert self.stack.pop() == tag

    def handle_data(self, data):
        if self.stack[-2:] == ["svg", "title"]:
            self.figures[-1] = data
        if self.stack and self.stack[-1] in ("h1", "h2", "h3", "h4"):
            self.headings.append(data)
        if "style" not in self.stack:
            self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).replace("\u00a0", " ").split())
