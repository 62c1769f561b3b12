"""Causal graphs over the columns of a trial table.

Each graph is a tuple of edges between column names, turned into a
`networkx.DiGraph` on demand, so that no graph object is ever shared.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

from causalprune.errors import InvalidArgumentError, RecordError

if TYPE_CHECKING:
    import networkx as nx

__all__ = ["accuracy_graph", "check_graph", "cost_graph", "iisc_graph", "read_graph"]

Edge = tuple[str, str]

SOURCES = ("architecture", "dataset", "checkpoint", "method", "ratio", "retrain_epochs", "shift")

# What a trial costs, as opposed to what it predicts: outcomes of the cost graph.
COST_OUTCOMES = (
    "parameters",
    "macs",
    "parameter_bytes",
    "peak_activation_bytes",
    "memory_bytes",
    "latency_ms",
)

IISC_EDGES: tuple[Edge, ...] = (
    ("High_Memory_Consumption", "High_Pruning"),
    ("High_Memory_Consumption", "High_Accuracy_Loss"),
    ("macs", "High_Pruning"),
    ("macs", "High_Accuracy_Loss"),
    ("High_Pruning", "High_Accuracy_Loss"),
)

NODE_LABELS = {
    "architecture": "architecture",
    "dataset": "data set",
    "checkpoint": "checkpoint",
    "method": "method",
    "ratio": "target ratio",
    "retrain_epochs": "retrain epochs",
    "shift": "data shift",
    "achieved_ratio": "achieved ratio\n(per layer)",
    "accuracy_loss": "accuracy loss",
    "accuracy_before": "accuracy before",
    "accuracy": "accuracy",
    "parameters": "parameters",
    "macs": "MACs",
    "memory_bytes": "memory",
    "latency_ms": "latency",
    "latency_batch": "batch",
    "threads": "threads",
    "machine": "machine",
    "cpu_frequency_mhz": "CPU frequency",
    "llc_misses": "cache misses",
    "High_Pruning": "high pruning",
    "High_Accuracy_Loss": "high accuracy loss",
    "High_Memory_Consumption": "high memory",
}


def accuracy_graph(
    columns: Iterable[str], outcome: str = "accuracy_loss", *, designed: bool = True
) -> nx.DiGraph:
    """Graph 1: what determines the accuracy of a pruned network.

    The design of a trial acts on the outcome through the ratios achieved in each
    layer; method, checkpoint, architecture, data set, retraining and data shift
    also act directly (which filters go, and how well the rest recovers). MACs and
    memory are left out: they follow from the pruning and cause no accuracy.

    Parameters
    ----------
    columns : iterable of str
        Columns of the table; nodes without a column are left out.
    outcome : str
        The column that takes the place of the accuracy loss.
    designed : bool
        True: ratio and method were assigned by the experiment and have no parents.
        False (an imported table): architecture, data set, method and the accuracy
        before pruning may have driven the choice of the ratio.

    Returns
    -------
    networkx.DiGraph
        Over column names.

    Examples
    --------
    >>> from causalprune.analysis import accuracy_graph
    >>> graph = accuracy_graph(["method", "ratio", "achieved_ratio", "accuracy_loss"])
    >>> sorted(graph.predecessors("achieved_ratio"))
    ['method', 'ratio']
    """
    present = set(columns) | {outcome}
    middle = "achieved_ratio"
    edges: list[Edge] = [(source, middle) for source in SOURCES]
    edges.append((middle, outcome))
    edges += [(source, outcome) for source in SOURCES if source != "ratio"]
    if middle not in present:
        edges.append(("ratio", outcome))
    if not designed:
        edges += [("checkpoint", "accuracy_before"), ("architecture", "accuracy_before")]
        edges += [("dataset", "accuracy_before"), ("accuracy_before", outcome)]
        parents = ("architecture", "dataset", "method", "accuracy_before")
        edges += [(parent, "ratio") for parent in parents]
    return _graph("accuracy", edges, present)


def cost_graph(columns: Iterable[str], outcome: str = "latency_ms") -> nx.DiGraph:
    """Graph 2: what determines the cost of a pruned network.

    Parameters and MACs are computed from the shapes, never learnt from the table.

    Parameters
    ----------
    columns : iterable of str
        Columns of the table; nodes without a column are left out.
    outcome : str
        One of the cost columns.

    Examples
    --------
    >>> from causalprune.analysis import cost_graph
    >>> graph = cost_graph(["ratio", "achieved_ratio", "macs", "latency_ms"])
    >>> list(graph.predecessors("latency_ms"))
    ['macs']
    """
    design = ("architecture", "dataset", "checkpoint", "method", "ratio")
    present = set(columns) | {outcome}
    edges: list[Edge] = [(source, "achieved_ratio") for source in design]
    for source in ("achieved_ratio", "architecture"):
        edges += [(source, "parameters"), (source, "macs")]
    edges += [("parameters", "memory_bytes"), ("latency_batch", "memory_bytes")]
    edges += [("achieved_ratio", "memory_bytes"), ("memory_bytes", "llc_misses")]
    edges += [("machine", "cpu_frequency_mhz"), ("threads", "cpu_frequency_mhz")]
    causes = ("macs", "memory_bytes", "llc_misses", "cpu_frequency_mhz")
    edges += [(cause, "latency_ms") for cause in (*causes, "latency_batch", "threads", "machine")]
    edges += [("parameters", "parameter_bytes"), ("achieved_ratio", "peak_activation_bytes")]
    graph = _graph("cost", edges, present)
    keep = graph.subgraph([*_ancestors(graph, outcome), outcome])
    return _graph("cost", keep.edges, present)


def read_graph(path: str | Path) -> nx.DiGraph:
    """Read a causal graph over column names from a file.

    Parameters
    ----------
    path : str or Path
        ``.gml`` as networkx writes it, or ``.txt`` or ``.dot`` with arrows: ``a -> b -> c`` is two
        edges, several stand on lines of their own or behind ``;``; ``digraph name { }`` around
        them is allowed, attributes in brackets and comments (``#``, ``//``) are passed over.

    Raises
    ------
    RecordError
        There is no such file, or it holds something else.

    Examples
    --------
    >>> import tempfile
    >>> file = Path(tempfile.mkdtemp()) / "mine.txt"
    >>> _ = file.write_text("ratio -> macs -> latency_ms; ratio -> latency_ms")
    >>> sorted(read_graph(file).edges)
    [('macs', 'latency_ms'), ('ratio', 'latency_ms'), ('ratio', 'macs')]
    """
    import networkx as nx

    file = Path(path)
    try:
        if file.suffix.lower() == ".gml":
            graph = nx.DiGraph(nx.read_gml(file), name=file.stem)
        else:
            graph = _graph(file.stem, _arrows(file.read_text(encoding="utf-8"), file), None)
    except (OSError, UnicodeDecodeError, nx.NetworkXError) as error:
        problem = " ".join(str(error).split())
        raise RecordError(f"{file}: not a readable graph ({problem})") from error
    if not graph.edges:
        raise RecordError(f"{file}: expected edges such as 'ratio -> accuracy_loss', got none")
    return graph


def _arrows(text: str, file: Path) -> Iterator[Edge]:
    plain = re.sub(r"(#|//).*", "", text)
    plain = re.sub(r"\[[^\]]*\]", "", plain)
    plain = re.sub(r"^\s*(strict\s+)?digraph\b[^{]*\{|\}\s*$", "", plain)
    for statement in re.split(r"[;\n]", plain):
        names = [part.strip().strip('"') for part in statement.split("->")]
        if names == [""]:
            continue
        odd = [name for name in names if not re.fullmatch(r"[\w.:+-]+", name)]
        if odd:
            raise RecordError(
                f"{file}: expected column names with arrows between them, got {statement.strip()!r}"
            )
        yield from pairwise(names)


def check_graph(graph: nx.DiGraph, columns: Iterable[str], treatment: str, outcome: str) -> None:
    """Refuse a graph that an effect cannot be read off.

    Raises
    ------
    InvalidArgumentError
        It is no directed graph over columns of the table, has a cycle, or lacks the treatment or
        the outcome.

    Examples
    --------
    >>> import networkx as nx
    >>> check_graph(nx.DiGraph([("ratio", "loss")]), ["ratio", "loss"], "ratio", "loss")
    """
    import networkx as nx

    if not isinstance(graph, nx.DiGraph):
        raise InvalidArgumentError(
            f"graph: expected a networkx.DiGraph over column names, got {type(graph).__name__}"
        )
    unknown = [str(node) for node in graph if node not in set(columns)]
    if unknown:
        raise InvalidArgumentError(
            f"graph: expected columns of the table as nodes, got {', '.join(unknown)}, which it "
            "does not have"
        )
    if not nx.is_directed_acyclic_graph(graph):
        cycle = [edge[0] for edge in nx.find_cycle(graph)]
        raise InvalidArgumentError(
            f"graph: expected no cycle, got {' -> '.join(map(str, [*cycle, cycle[0]]))}"
        )
    missing = [name for name in (treatment, outcome) if name not in graph]
    if missing:
        raise InvalidArgumentError(f"graph: expected {' and '.join(missing)} among its nodes")


def iisc_graph() -> nx.DiGraph:
    """Return the four-node graph of the IISc paper's Algorithm 2, reconstructed.

    The paper's figure could not be had; its text treats memory and FLOPs (here the
    column ``macs``; one MAC is two FLOPs) as common causes of pruning and of the
    accuracy loss, and that is what this graph does. It is kept for the replication
    only: memory and MACs are *descendants* of pruning, and adjusting for a
    descendant of the treatment removes part of the effect and biases the rest.

    Examples
    --------
    >>> from causalprune.analysis import iisc_graph
    >>> len(iisc_graph().nodes), len(iisc_graph().edges)
    (4, 5)
    """
    return _graph("iisc (reconstructed)", IISC_EDGES, None)


def _graph(name: str, edges: Iterable[Edge], present: set[str] | None) -> nx.DiGraph:
    import networkx as nx

    graph = nx.DiGraph(name=name)
    graph.add_edges_from(
        (start, end)
        for start, end in edges
        if present is None or (start in present and end in present)
    )
    return graph


def _ancestors(graph: nx.DiGraph, node: str) -> Sequence[str]:
    import networkx as nx

    return sorted(nx.ancestors(graph, node)) if node in graph else ()
