"""Causal graphs from files."""

from __future__ import annotations

from pathlib import Path

import networkx as nx
import pytest

from causalprune.analysis import read_graph
from causalprune.errors import RecordError

EDGES = {("checkpoint", "accuracy_loss"), ("ratio", "macs"), ("macs", "accuracy_loss")}


@pytest.mark.parametrize(
    "text",
    [
        "checkpoint -> accuracy_loss\nratio -> macs -> accuracy_loss\n",
        "ratio->macs->accuracy_loss;checkpoint->accuracy_loss;",
        "# mine\nratio -> macs // costs\n\nmacs -> accuracy_loss\ncheckpoint -> accuracy_loss",
        'digraph "of mine" {\n "ratio" -> macs -> accuracy_loss [weight=2];\n'
        " checkpoint -> accuracy_loss\n}\n",
    ],
)
def test_arrows(tmp_path: Path, text: str) -> None:
    file = tmp_path / "own.dot"
    file.write_text(text)
    graph = read_graph(file)
    assert set(graph.edges) == EDGES and graph.name == "own"


def test_gml(tmp_path: Path) -> None:
    nx.write_gml(nx.DiGraph(list(EDGES)), tmp_path / "own.gml")
    assert set(read_graph(tmp_path / "own.gml").edges) == EDGES


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.txt", b"ratio => loss", "ratio => loss"),
        ("a.txt", b"ratio -> ", "ratio ->"),
        ("a.txt", b"", "got none"),
        ("a.txt", b"ratio", "got none"),
        ("a.gml", b"graph [", "not a readable graph"),
        ("a.dot", b"\xff\xfe\x00", "not a readable graph"),
    ],
)
def test_what_is_no_graph(tmp_path: Path, name: str, content: bytes, said: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(RecordError, match=said):
        read_graph(tmp_path / name)


def test_no_file(tmp_path: Path) -> None:
    with pytest.raises(RecordError, match=r"none\.txt"):
        read_graph(tmp_path / "none.txt")
