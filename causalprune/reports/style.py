"""Colours and type of the figures, and the way from a figure to the page."""

from __future__ import annotations

import hashlib
import html
import io
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from causalprune.errors import MissingDependencyError

# What figures are painted with. In the page each is a variable of the style sheet, which has
# another value on dark screens; the colour itself stands behind it for whatever knows no variables.
INK = "#1d2733"
MUTED = "#5d6875"
GRID = "#e1e5ea"
CARD = "#fffffe"
ACCENT = "#0b5cad"
WARM = "#c2571a"
GOOD = "#2a7f4f"
PURPLE = "#7b4fa3"
GOLD = "#8f7100"
GREY = "#7d8794"
TEAL = "#00808c"
PINK = "#ad1457"
BROWN = "#75533f"
SLATE = "#4a5f6b"
OLIVE = "#727217"

NAMES = {
    INK: "ink",
    MUTED: "muted",
    GRID: "line",
    CARD: "card",
    ACCENT: "blue",
    WARM: "orange",
    GOOD: "green",
    PURPLE: "purple",
    GOLD: "gold",
    GREY: "grey",
    TEAL: "teal",
    PINK: "pink",
    BROWN: "brown",
    SLATE: "slate",
    OLIVE: "olive",
}

# Fixed colours for the common methods, so that two reports can be laid side by side.
METHOD_COLOURS = {
    "path": ACCENT,
    "l1": WARM,
    "random": GREY,
    "ablation": GOOD,
    "taylor": PURPLE,
    "l2": GOLD,
}
OTHER_COLOURS = (TEAL, PINK, BROWN, SLATE, OLIVE, PURPLE, GOOD, WARM)
CATEGORY_COLOURS = {"critical": WARM, "detrimental": ACCENT, "neutral": GREY}
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
DASHES: tuple[Any, ...] = ("solid", (0, (5, 2)), (0, (1.5, 1.5)), (0, (5, 2, 1.5, 2)))

SETTINGS: Any = {
    "font.size": 11,
    "font.family": "DejaVu Sans",
    "axes.edgecolor": MUTED,
    "axes.labelcolor": INK,
    "axes.titlesize": 11.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.facecolor": "none",
    "figure.facecolor": "none",
    "grid.color": GRID,
    "grid.linewidth": 0.8,
    "text.color": INK,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "legend.frameon": False,
    "legend.fontsize": 10.5,
    "lines.linewidth": 1.8,
    "lines.markersize": 5.5,
    "axes.formatter.use_mathtext": False,
    # Text stays text: it can be searched, read aloud and takes the page's font.
    "svg.fonttype": "none",
    # Names inside the drawing would otherwise differ from run to run.
    "svg.hashsalt": "causalprune",
}


@dataclass(frozen=True)
class Drawing:
    """A figure for the page, and the same numbers as a table.

    Attributes
    ----------
    svg : str
        An ``<svg>`` element, with a title and a description, without anything from elsewhere.
    columns : tuple of str
    rows : tuple of tuple of str
        What is drawn, for those who cannot see it.
    """

    svg: str
    columns: tuple[str, ...] = ()
    rows: tuple[tuple[str, ...], ...] = ()


def method_style(methods: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Give each method a colour and a marker."""
    others = iter(OTHER_COLOURS * (1 + len(methods) // len(OTHER_COLOURS)))
    return {
        method: {
            "color": METHOD_COLOURS.get(method) or next(others),
            "marker": MARKERS[position % len(MARKERS)],
        }
        for position, method in enumerate(methods)
    }


def layer_style(place: int) -> dict[str, Any]:
    """Give the layer at `place` a colour and a marker."""
    colours = (ACCENT, WARM, GOOD, PURPLE, GOLD, *OTHER_COLOURS)
    return {"color": colours[place % len(colours)], "marker": MARKERS[place % len(MARKERS)]}


def draw(
    width: float,
    height: float,
    paint: Callable[[Any], None],
    *,
    title: str,
    description: str = "",
    layout: Any = "constrained",
) -> str:
    """Paint on a fresh figure and return it as an ``<svg>`` element.

    Parameters
    ----------
    width, height : float
        Inches.
    paint : callable
        Takes the figure.
    title, description : str
        What the figure shows, and what it says: for screen readers.
    layout : str
        matplotlib's layout engine.
    """
    try:
        import matplotlib
        from matplotlib.backends.backend_svg import FigureCanvasSVG
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingDependencyError(
            "reports need matplotlib; install the extra: pip install 'causalprune[analysis]'"
        ) from error
    with matplotlib.rc_context(SETTINGS):
        figure = Figure(figsize=(width, height), layout=layout)
        FigureCanvasSVG(figure)
        paint(figure)
        stream = io.BytesIO()
        figure.savefig(stream, format="svg", metadata={"Date": None, "Creator": None})
    return _for_the_page(stream.getvalue().decode("utf-8"), title, description)


def _for_the_page(svg: str, title: str, description: str) -> str:
    start = svg.index("<svg")
    head_end = svg.index(">", start) + 1
    found = re.search(r'viewBox="([^"]+)"', svg[start:head_end])
    box = found.group(1) if found else "0 0 1 1"
    body = svg[head_end:]
    body = re.sub(r"<metadata>.*?</metadata>", "", body, flags=re.DOTALL)
    body = re.sub(r"<!--.*?-->", "", body, flags=re.DOTALL)
    # Its one rule is in the page's style sheet.
    body = re.sub(r"<defs>\s*<style.*?</style>\s*</defs>", "", body, flags=re.DOTALL)
    for colour, name in NAMES.items():
        body = body.replace(colour, f"var(--{name}, {colour})")
    body = re.sub(r"'DejaVu Sans'(, [^;\"']*)?", "inherit", body)
    body = _own_names(body, hashlib.sha256(body.encode()).hexdigest()[:8])
    body = re.sub(r"\n\s*", "\n", body)
    body = re.sub(r"<[^>]*>", _rounded, body)
    told = f"<desc>{html.escape(description)}</desc>" if description else ""
    width = float(box.split()[2])
    return (
        f'<svg viewBox="{box}" role="img" style="max-width: {1.35 * width:.0f}px">\n'
        f"<title>{html.escape(title)}</title>{told}{body.strip()}"
    )


def _rounded(tag: re.Match[str]) -> str:
    """Round the places in a tag: a hundredth of a point is finer than any screen.

    What stands between tags are numbers that the reader sees, and stay.
    """
    return re.sub(r"\d+\.\d{3,}", lambda found: f"{float(found[0]):.2f}", tag[0])


def _own_names(body: str, prefix: str) -> str:
    """Keep only the names that the drawing refers to, and make them the drawing's own."""
    used = set(re.findall(r'href="#([^"]+)"', body)) | set(re.findall(r"url\(#([^)]+)\)", body))

    def renamed(match: re.Match[str]) -> str:
        return f' id="f{prefix}-{match[1]}"' if match[1] in used else ""

    body = re.sub(r' id="([^"]+)"', renamed, body)
    body = re.sub(r'(?:xlink:)?href="#([^"]+)"', rf'href="#f{prefix}-\1"', body)
    return re.sub(r"url\(#([^)]+)\)", rf"url(#f{prefix}-\1)", body)
