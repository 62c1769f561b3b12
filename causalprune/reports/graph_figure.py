"""Drawing a causal graph: layers from causes to outcome, the treatment's own way in colour."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from causalprune.analysis import AnalysisResult
from causalprune.analysis.graphs import NODE_LABELS
from causalprune.analysis.wording import name_of
from causalprune.reports import style
from causalprune.reports.dot_layout import DotLayout, dot_layout
from causalprune.reports.style import Drawing

BOX_HEIGHT = 0.36
COLUMN = 1.9
ROW = 0.54

Point = tuple[float, float]


def causal_graph(result: AnalysisResult) -> Drawing | None:
    """Draw the graph of a result; None where it has none.

    The causal way from treatment to outcome is blue; columns that never varied in
    this table are dashed. Laid out by Graphviz where pygraphviz is installed: its arrows
    go around boxes.
    """
    if not result.edges:
        return None
    way = _way(result)
    sizes = {str(node): _half_sizes(str(node)) for node in result.graph}
    dotted = dot_layout(sizes, result.edges, way)
    places = dotted.places if dotted else _layout(result)
    left, right, bottom, top = _bounds(places, dotted)
    width, height = right - left, top - bottom

    def paint(figure: Any) -> None:
        axes = figure.add_axes((0, 0, 1, 1))
        axes.set_xlim(left, right)
        axes.set_ylim(bottom, top)
        axes.set_aspect("equal")
        axes.axis("off")
        for edge in result.edges:
            if dotted:
                _curve(axes, dotted.curves[edge], highlighted=edge in way)
            else:
                _arrow(axes, places, edge, highlighted=edge in way)
        for node, place in places.items():
            _box(axes, node, place, result)

    svg = style.draw(
        width,
        height,
        paint,
        layout="none",
        title=f"Causal graph from {name_of(result.treatment)} to {name_of(result.outcome)}",
        description="; ".join(f"{_said(a)} causes {_said(b)}" for a, b in result.edges),
    )
    return Drawing(svg, ("cause", "effect"), tuple((_said(a), _said(b)) for a, b in result.edges))


def columns_of(result: AnalysisResult) -> int:
    """Count the columns of the graph: how far it can shrink before its labels are lost."""
    import networkx as nx

    return sum(1 for _ in nx.topological_generations(result.graph)) if result.edges else 0


def _bounds(
    places: Mapping[str, Point], dotted: DotLayout | None
) -> tuple[float, float, float, float]:
    """Left, right, bottom and top of all that is drawn."""
    across = [x for x, _ in places.values()]
    up = [y for _, y in places.values()]
    found = [min(across) - 1.0, max(across) + 1.0, min(up) - 0.5, max(up) + 0.5]
    # A spline stays within its control points.
    points = [point for curve in dotted.curves.values() for point in curve] if dotted else []
    for x, y in points:
        found = [
            min(found[0], x - 0.1),
            max(found[1], x + 0.1),
            min(found[2], y - 0.1),
            max(found[3], y + 0.1),
        ]
    return found[0], found[1], found[2], found[3]


def _said(node: str) -> str:
    return _label(node).replace("\n", " ")


def _label(node: str) -> str:
    return NODE_LABELS.get(node, node.replace("_", " "))


def _half_sizes(node: str) -> Point:
    lines = _label(node).split("\n")
    return 0.085 * max(4, *(len(line) for line in lines)) / 2 + 0.12, (
        BOX_HEIGHT / 2 + 0.09 * (len(lines) - 1)
    )


def _way(result: AnalysisResult) -> set[tuple[str, str]]:
    """Edges on directed paths from treatment to outcome."""
    import networkx as nx

    graph = result.graph
    if result.treatment not in graph or result.outcome not in graph:
        return set()
    down = nx.descendants(graph, result.treatment) | {result.treatment}
    up = nx.ancestors(graph, result.outcome) | {result.outcome}
    return {(a, b) for a, b in result.edges if {a, b} <= (down & up)}


def _layout(result: AnalysisResult) -> dict[str, Point]:
    """Columns by the longest way from a root; the treatment's way runs along y = 0."""
    import networkx as nx

    graph = result.graph
    way = {node for edge in _way(result) for node in edge}
    layers = [sorted(layer) for layer in nx.topological_generations(graph)]
    places: dict[str, Point] = {}
    for column, layer in enumerate(layers):
        centre = [node for node in layer if node in way][:1]
        others = [node for node in layer if node not in centre]
        # Above and below in turn, so that the middle stays free for the treatment's way.
        offsets = [(1 + k // 2) * (1 if k % 2 == 0 else -1) for k in range(len(others))]
        if len(others) == 1 and centre:
            offsets = [1]
        places |= {node: (column * COLUMN, 0.0) for node in centre}
        spread = 1.0 if len(layers) > 3 or len(others) > 2 else 1.5
        for node, offset in zip(others, offsets, strict=True):
            places[node] = (column * COLUMN, ROW * spread * offset)
    return places


def _curve(axes: Any, points: Sequence[Point], *, highlighted: bool) -> None:
    from matplotlib.patches import FancyArrowPatch
    from matplotlib.path import Path

    codes = [Path.MOVETO, *[Path.CURVE4] * (len(points) - 1)]
    axes.add_patch(
        FancyArrowPatch(path=Path(list(points), codes), **_stroke(highlighted=highlighted))
    )


def _stroke(*, highlighted: bool) -> dict[str, Any]:
    return {
        "arrowstyle": "-|>,head_length=5,head_width=2.6",
        "linewidth": 2.4 if highlighted else 1.0,
        "color": style.ACCENT if highlighted else style.GREY,
        "shrinkA": 0,
        "shrinkB": 1.5,
        "zorder": 2 if highlighted else 1,
    }


def _arrow(
    axes: Any, places: Mapping[str, Point], edge: tuple[str, str], *, highlighted: bool
) -> None:
    from matplotlib.patches import FancyArrowPatch

    (x0, y0), (x1, y1) = places[edge[0]], places[edge[1]]
    long = x1 - x0 > 1.5 * COLUMN
    # Long arrows bend away from the middle row, where the boxes between them are.
    bend = 0.0 if not long else (-0.16 if y0 + y1 >= 0 else 0.16)
    start = (x0 + _half_sizes(edge[0])[0], y0)
    end = _entry(edge[1], places, (x0, y0), from_far=long)
    axes.add_patch(
        FancyArrowPatch(
            start,
            end,
            connectionstyle=f"arc3,rad={bend}",
            **_stroke(highlighted=highlighted),
        )
    )


def _entry(node: str, places: Mapping[str, Point], origin: Point, *, from_far: bool) -> Point:
    """Where an arrow meets a box: far ones from above or below, near ones at the side."""
    x, y = places[node]
    half_width, half_height = _half_sizes(node)
    if origin[0] == x:
        return x, y + (half_height if origin[1] > y else -half_height)
    if from_far and abs(origin[1] - y) > 0.1:
        shift = -0.25 * half_width
        return x + shift, y + (half_height if origin[1] > y else -half_height)
    return x - half_width, y


def _box(axes: Any, node: str, place: Point, result: AnalysisResult) -> None:
    from matplotlib.patches import FancyBboxPatch

    half_width, half_height = _half_sizes(node)
    role = node in (result.treatment, result.outcome)
    constant = node in result.constant_nodes
    axes.add_patch(
        FancyBboxPatch(
            (place[0] - half_width, place[1] - half_height),
            2 * half_width,
            2 * half_height,
            boxstyle="round,pad=0,rounding_size=0.08",
            facecolor=style.ACCENT if role else style.CARD,
            edgecolor=style.ACCENT if role else style.GREY,
            linestyle=(0, (3, 2)) if constant else "solid",
            linewidth=1.2,
            zorder=3,
        )
    )
    axes.text(
        *place,
        _label(node),
        ha="center",
        va="center",
        fontsize=9.5,
        fontweight="bold" if role else "normal",
        color=style.CARD if role else (style.MUTED if constant else style.INK),
        zorder=4,
    )
