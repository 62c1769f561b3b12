"""Causal graphs by Graphviz where pygraphviz is installed, by own rules elsewhere."""

from __future__ import annotations

import sys
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from causalprune.analysis import AnalysisResult
from causalprune.reports.dot_layout import dot_layout
from causalprune.reports.graph_figure import causal_graph

EDGES = (("ratio", "macs"), ("macs", "latency_ms"), ("ratio", "latency_ms"))
RESULT = AnalysisResult(
    "default", "ratio", "latency_ms", 1.0, (0.5, 1.5),
    nodes=("ratio", "macs", "latency_ms"), edges=EDGES,
)  # fmt: skip


class Graph:
    """Stands in for pygraphviz.AGraph: takes what it takes, and has one layout."""

    made: list[Graph] = []  # noqa: RUF012

    def __init__(self, directed: bool) -> None:
        self.directed, self.program = directed, ""
        self.graph_attr: dict[str, str] = {}
        self.node_attr: dict[str, str] = {}
        self.nodes: dict[str, dict[str, str]] = {}
        self.edges: dict[tuple[str, str], dict[str, str]] = {}
        self.made.append(self)

    def add_node(self, name: str, **attributes: str) -> None:
        self.nodes[name] = attributes

    def add_edge(self, a: str, b: str, **attributes: str) -> None:
        self.edges[a, b] = attributes

    def layout(self, prog: str) -> None:
        self.program = prog

    def get_node(self, name: str) -> Any:
        return SimpleNamespace(attr={"pos": f"{144 * list(self.nodes).index(name)},72"})

    def get_edge(self, a: str, b: str) -> Any:
        far = "e,288,90 36,72 100,720 200,720 270,99" if (a, b) == EDGES[2] else ""
        return SimpleNamespace(attr={"pos": far or "e,108,72 36,72 60,72 80,72 98,72"})


@pytest.fixture
def graphviz(monkeypatch: pytest.MonkeyPatch) -> type[Graph]:
    module = ModuleType("pygraphviz")
    module.AGraph = Graph  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "pygraphviz", module)
    monkeypatch.setattr(Graph, "made", [])
    return Graph


def test_places_and_curves_are_read_in_inches(graphviz: type[Graph]) -> None:
    sizes = {"ratio": (0.5, 0.2), "macs": (0.4, 0.2), "latency_ms": (0.6, 0.3)}
    found = dot_layout(sizes, EDGES, {EDGES[0]})
    assert found is not None
    assert found.places == {"ratio": (0, 1), "macs": (2, 1), "latency_ms": (4, 1)}
    # The tip, which dot names first, is where the curve ends.
    assert found.curves[EDGES[2]][0] == (0.5, 1) and found.curves[EDGES[2]][-1] == (4, 1.25)
    graph = graphviz.made[0]
    assert graph.directed and graph.program == "dot" and graph.graph_attr["rankdir"] == "LR"
    assert graph.nodes["latency_ms"] == {"width": "1.200", "height": "0.600"}
    assert [edge["weight"] for edge in graph.edges.values()] == ["8", "1", "1"]


def test_a_graph_is_drawn_around_its_boxes_with_room_for_the_curves(
    graphviz: type[Graph],
) -> None:
    drawing = causal_graph(RESULT)
    assert drawing is not None and graphviz.made
    left, top, width, height = map(
        float, drawing.svg.partition('viewBox="')[2].split('"')[0].split()
    )
    # The long arrow goes ten inches up, the boxes need half an inch below.
    assert height / width == pytest.approx((10.1 - 0.5) / (5.0 + 1.0), rel=0.03)
    assert drawing.rows[0][0] == "target ratio" and left == top == 0


def test_without_pygraphviz_the_own_layout_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pygraphviz", None)
    assert dot_layout({"a": (1, 1)}, (), set()) is None
    drawing = causal_graph(RESULT)
    assert drawing is not None and len(drawing.rows) == 3


def test_dot_itself_puts_causes_left_of_effects() -> None:
    pytest.importorskip("pygraphviz")
    sizes = {node: (0.5, 0.2) for node in RESULT.nodes}
    found = dot_layout(sizes, EDGES, {EDGES[0], EDGES[1]})
    assert found is not None
    assert all(found.places[a][0] < found.places[b][0] for a, b in EDGES)
    x, y = found.curves[EDGES[0]][-1]
    centre = found.places["macs"]
    # The arrow ends at the border of its box.
    assert abs(x - centre[0]) <= 0.52 and abs(y - centre[1]) <= 0.22
