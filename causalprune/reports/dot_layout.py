"""Places and curves of a directed graph by Graphviz's ``dot``, where pygraphviz is installed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

__all__ = ["DotLayout", "dot_layout"]

Point = tuple[float, float]
Edge = tuple[str, str]

# Graphviz counts in points.
POINTS = 72.0


@dataclass(frozen=True)
class DotLayout:
    """Where `dot` puts things, in inches.

    Attributes
    ----------
    places : Mapping of str to (x, y)
        Centres of the nodes.
    curves : Mapping of edge to tuple of (x, y)
        Control points of a cubic Bezier spline, 3 n + 1 of them, around all other nodes; the last
        one is where the arrow ends, at the border of its node.
    """

    places: Mapping[str, Point]
    curves: Mapping[Edge, tuple[Point, ...]]


def dot_layout(
    half_sizes: Mapping[str, Point], edges: Sequence[Edge], straight: frozenset[Edge] | set[Edge]
) -> DotLayout | None:
    """Lay out a graph from left to right; None where pygraphviz is not installed.

    (``pip install 'causalprune[graphs]'``; the wheel brings Graphviz along.)

    Parameters
    ----------
    half_sizes : mapping of node to (half width, half height)
        In inches.
    edges : sequence of (cause, effect)
    straight : set of edges
        Those that shall be short and straight before the others.

    References
    ----------
    Gansner, Koutsofios, North and Vo (1993), "A technique for drawing directed graphs".
    """
    try:
        import pygraphviz
    except ImportError:
        return None
    graph = pygraphviz.AGraph(directed=True)
    graph.graph_attr.update(rankdir="LR", nodesep="0.22", ranksep="0.55", splines="true")
    # Without labels no font is looked up, so that the same graph has the same places everywhere.
    graph.node_attr.update(shape="box", fixedsize="true", label="")
    for node, (width, height) in half_sizes.items():
        graph.add_node(node, width=f"{2 * width:.3f}", height=f"{2 * height:.3f}")
    for a, b in edges:
        graph.add_edge(a, b, weight="8" if (a, b) in straight else "1")
    graph.layout(prog="dot")
    places = {node: _point(graph.get_node(node).attr["pos"]) for node in half_sizes}
    return DotLayout(places, {(a, b): _curve(graph.get_edge(a, b).attr["pos"]) for a, b in edges})


def _point(text: str) -> Point:
    x, y = text.split(",")
    return float(x) / POINTS, float(y) / POINTS


def _curve(text: str) -> tuple[Point, ...]:
    """Control points of ``"e,x,y x,y x,y ..."``, ended at the arrow's tip, which comes first."""
    parts = text.split()
    tips = [part[2:] for part in parts if part.startswith("e,")]
    points = [_point(part) for part in parts if part[:2] not in ("e,", "s,")]
    if tips:
        points[-1] = _point(tips[0])
    return tuple(points)
