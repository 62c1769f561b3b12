"""Colours and type of the figures, and the way from a figure to the page."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Sequence
from typing import Any

from causalprune.errors import MissingDependencyError

INK = "#1d2733"
MUTED = "#6b7683"
GRID = "#e4e8ec"
ACCENT = "#0b5cad"
WARM = "#c2571a"
GOOD = "#2a7f4f"

# Fixed colours for the common methods, so that two reports can be laid side by side.
METHOD_COLOURS = {
    "path": ACCENT,
    "l1": WARM,
    "random": "#7d8794",
    "ablation": GOOD,
    "taylor": "#7b4fa3",
    "l2": "#a88400",
}
OTHER_COLOURS = ("#00838f", "#ad1457", "#5d4037", "#455a64", "#827717")
CATEGORY_COLOURS = {"critical": WARM, "detrimental": ACCENT, "neutral": "#9aa3ad"}
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")

SETTINGS: Any = {
    "font.size": 10,
    "font.family": "DejaVu Sans",
    "axes.edgecolor": "#aab2bb",
    "axes.labelcolor": INK,
    "axes.titlesize": 10.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": GRID,
    "grid.linewidth": 0.8,
    "text.color": INK,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "legend.frameon": False,
    "legend.fontsize": 9.5,
    "lines.linewidth": 1.8,
    "lines.markersize": 5.5,
    "svg.fonttype": "path",
    # Names inside the drawing would otherwise differ from run to run.
    "svg.hashsalt": "causalprune",
}


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
    colours = (ACCENT, WARM, GOOD, "#7b4fa3", "#a88400", *OTHER_COLOURS)
    return {"color": colours[place % len(colours)], "marker": MARKERS[place % len(MARKERS)]}


def draw(
    width: float, height: float, paint: Callable[[Any], None], *, layout: Any = "constrained"
) -> str:
    """Paint on a fresh figure and return it as a ``data:`` URI.

    An SVG inside an ``img`` keeps its internal names to itself, so that figures on
    one page cannot clash. `width` and `height` are inches.
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
    return "data:image/svg+xml;base64," + base64.b64encode(stream.getvalue()).decode("ascii")
