"""Does the table agree with the graph? Independencies that the graph implies, tested one by one."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from causalprune.analysis.evidence import Independence
from causalprune.analysis.tables import Trials
from causalprune.errors import InvalidArgumentError

if TYPE_CHECKING:
    import networkx as nx

__all__ = ["Falsification", "falsify"]

Array = NDArray[np.float64]

LEVEL = 0.01
# Dependence of a smaller share of variance than this is real or not, but of no consequence.
LEAST_SHARE = 0.02
DETERMINED = 1e-9
KNOTS = 3


@dataclass(frozen=True)
class Falsification:
    """All independencies of a graph that the table can test.

    Attributes
    ----------
    tested : tuple of Independence
    left_out : tuple of str
        Nodes that never vary or are computed from others, about which no test can speak.
    sentence : str
        The verdict, and what it is worth.
    """

    tested: tuple[Independence, ...]
    left_out: tuple[str, ...]
    sentence: str

    @property
    def violated(self) -> tuple[Independence, ...]:
        """Those that the table contradicts."""
        return tuple(item for item in self.tested if item.violated)


def falsify(
    trials: Trials,
    graph: nx.DiGraph,
    *,
    seed: int = 0,
    draws: int = 1999,
    advance: Callable[[], None] = lambda: None,
) -> Falsification:
    """Test every independence that a causal graph implies of the table's columns.

    Of each node and each other that it neither causes, directly or not, nor is caused by
    directly: given its causes, it must not depend on that other (local Markov condition). What
    is left of the node after a regression on its causes (numbers by a spline of three knots, text
    by levels, products of two causes as far as there are rows) is regressed on the other; the share
    of variance that this explains is compared with those after rows changed places within networks,
    or whole networks did where one of the two is theirs.

    Parameters
    ----------
    trials : Trials
        See :func:`causalprune.analysis.tables.completed_trials`.
    graph : networkx.DiGraph
        Over columns of the table.
    seed : int
    draws : int
        Permutations of each test.
    advance : callable
        Called after each test.

    Returns
    -------
    Falsification

    Raises
    ------
    InvalidArgumentError
        A node is no column, or `draws` is below 19.

    Examples
    --------
    >>> import networkx as nx
    >>> rng = np.random.default_rng(0)
    >>> ratio = rng.uniform(size=200)
    >>> macs = 1 - ratio + 0.1 * rng.standard_normal(200)
    >>> table = pd.DataFrame({"ratio": ratio, "macs": macs,
    ...                       "latency_ms": macs + 0.1 * rng.standard_normal(200)})
    >>> trials = Trials(table, 0, 0, True)
    >>> chain = nx.DiGraph([("ratio", "macs"), ("macs", "latency_ms")])
    >>> falsify(trials, chain).violated
    ()
    >>> fork = nx.DiGraph([("ratio", "macs"), ("ratio", "latency_ms")])
    >>> falsify(trials, fork).violated[0].sentence.split(" (")[0]
    'latency_ms depends on macs given ratio'
    """
    frame = trials.frame
    unknown = [str(node) for node in graph if node not in frame]
    if unknown:
        raise InvalidArgumentError(f"graph: {', '.join(unknown)}: no columns of the table")
    if draws < 19:
        raise InvalidArgumentError(f"draws: expected at least 19, got {draws}")
    frame = frame.dropna(subset=[str(node) for node in graph]).reset_index(drop=True)
    left_out = _left_out(frame, graph)
    kept = _without(graph, left_out)
    generator = np.random.default_rng(seed)
    networks = _codes(frame["checkpoint"]) if "checkpoint" in frame else np.arange(len(frame))
    found: list[tuple[str, str, tuple[str, ...], float, float]] = []
    for first, second, given in _implied(kept):
        share, p_value = _test(frame, first, second, given, networks, generator, draws)
        found.append((first, second, given, share, p_value))
        advance()
    adjusted = _holm([entry[-1] for entry in found])
    tested = tuple(
        Independence(*entry[:4], p_value, p_value < LEVEL and entry[3] > LEAST_SHARE)
        for entry, p_value in zip(found, adjusted, strict=True)
    )
    return Falsification(tested, left_out, _verdict(tested, left_out))


def _verdict(tested: tuple[Independence, ...], left_out: tuple[str, ...]) -> str:
    aside = f" ({', '.join(left_out)}: constant or computed from others, not tested)"
    tail = aside if left_out else ""
    if not tested:
        return f"The graph implies no independence that this table can test{tail}."
    wrong = [item for item in tested if item.violated]
    if not wrong:
        return (
            f"None of the {len(tested)} independencies that the graph implies is contradicted"
            f"{tail}. That does not show that the graph is right: other graphs imply as little."
        )
    listed = "; ".join(item.sentence for item in wrong[:4])
    more = f"; and {len(wrong) - 4} more" if len(wrong) > 4 else ""
    return (
        f"{len(wrong)} of the {len(tested)} independencies that the graph implies are "
        f"contradicted{tail}: {listed}{more}. An edge or a common cause is missing there."
    )


def _left_out(frame: pd.DataFrame, graph: nx.DiGraph) -> tuple[str, ...]:
    """List nodes that never vary, or that their causes (or the network's name) determine."""
    found: list[str] = []
    for node in graph:
        name = str(node)
        if frame[name].nunique() < 2:
            found.append(name)
            continue
        causes = [str(cause) for cause in graph.predecessors(node)]
        by_network = "checkpoint" in graph and name != "checkpoint"
        fixed_by_network = by_network and frame.groupby("checkpoint")[name].nunique().max() < 2
        if fixed_by_network or (causes and _leftover_share(frame, name, causes) < DETERMINED):
            found.append(name)
    return tuple(found)


def _without(graph: nx.DiGraph, left_out: tuple[str, ...]) -> nx.DiGraph:
    """Take nodes out; what they passed on goes from their causes to their effects."""
    import networkx as nx

    kept = nx.DiGraph(graph)
    for node in left_out:
        kept.add_edges_from(
            (cause, effect) for cause in kept.predecessors(node) for effect in kept.successors(node)
        )
        kept.remove_node(node)
    return kept


def _implied(graph: nx.DiGraph) -> Iterator[tuple[str, str, tuple[str, ...]]]:
    import networkx as nx

    seen: set[frozenset[str]] = set()
    # Effects first: what is said of two of them given all causes says more than of two causes.
    for node in reversed(list(nx.topological_sort(graph))):
        causes = set(graph.predecessors(node))
        later = nx.descendants(graph, node)
        for other in graph:
            pair = frozenset((node, other))
            if other == node or other in causes or other in later or pair in seen:
                continue
            seen.add(pair)
            yield str(node), str(other), tuple(sorted(map(str, causes)))


def _test(
    frame: pd.DataFrame,
    first: str,
    second: str,
    given: tuple[str, ...],
    networks: NDArray[np.int64],
    generator: np.random.Generator,
    draws: int,
) -> tuple[float, float]:
    base = np.column_stack([np.ones(len(frame)), *(_columns(frame, name) for name in given)])
    base = _with_combinations(frame, given, base)
    basis = _basis(base)
    left = _columns(frame, first)
    left = left - basis @ (basis.T @ left)
    other = _columns(frame, second)
    real = _share(left, _besides(other, basis))
    if "checkpoint" in (first, second):  # the networks themselves: their rows mix
        networks = np.zeros_like(networks)
    of_networks = frame[[first, second]].groupby(networks).nunique().max() < 2
    orders = (_reordered(networks, generator, whole=bool(of_networks.any())) for _ in range(draws))
    if of_networks[second]:
        drawn = (_share(left, _besides(other[order], basis)) for order in orders)
    else:  # Freedman and Lane (1983): what is left of the first column changes places
        beside = _besides(other, basis)
        drawn = (_share(left[order] - basis @ (basis.T @ left[order]), beside) for order in orders)
    as_large = sum(value >= real * (1 - 1e-9) for value in drawn)
    return real, (1 + as_large) / (1 + draws)


def _besides(columns: Array, basis: Array) -> Array:
    return _basis(columns - basis @ (basis.T @ columns))


def _share(left: Array, beside: Array) -> float:
    total = float((left * left).sum())
    return float(((beside.T @ left) ** 2).sum()) / total if total > 0 else 0.0


def _reordered(
    networks: NDArray[np.int64], generator: np.random.Generator, *, whole: bool
) -> NDArray[np.int64]:
    """Exchange rows within networks; for what a network has as a whole, networks."""
    if not whole:
        keys = np.lexsort((generator.random(len(networks)), networks))
        order = np.empty_like(keys)
        order[np.argsort(networks, kind="stable")] = keys
        return order
    first = np.unique(networks, return_index=True)[1]
    to = generator.permutation(len(first))
    return np.asarray(first[to][networks])


def _columns(frame: pd.DataFrame, name: str) -> Array:
    """Return a column as numbers: levels of text, a spline of three knots of numbers."""
    values = frame[name]
    if name == "checkpoint" or not pd.api.types.is_numeric_dtype(values):
        return pd.get_dummies(values.astype(str), dtype=float).to_numpy()[:, 1:]
    numbers = values.to_numpy(dtype=float)
    numbers = (numbers - numbers.mean()) / (numbers.std() or 1.0)
    if values.nunique() <= KNOTS:
        return pd.get_dummies(values, dtype=float).to_numpy()[:, 1:]
    knots = np.quantile(numbers, np.linspace(0, 1, KNOTS + 2)[1:-1])
    hinges = [np.maximum(numbers - knot, 0.0) for knot in knots]
    return np.column_stack([numbers, *hinges])


def _with_combinations(frame: pd.DataFrame, given: tuple[str, ...], base: Array) -> Array:
    """Add the products of causes, as far as the table has rows for them."""
    parts = [_columns(frame, name) for name in given]
    for k, one in enumerate(parts):
        for other in parts[:k]:
            product = (one[:, :, None] * other[:, None, :]).reshape(len(frame), -1)
            if base.shape[1] + product.shape[1] < len(frame) / 4:
                base = np.column_stack([base, product])
    return base


def _basis(columns: Array) -> Array:
    left, sizes, _ = np.linalg.svd(columns, full_matrices=False)
    return np.asarray(left[:, sizes > 1e-9 * max(1.0, sizes[0] if len(sizes) else 0.0)])


def _leftover_share(frame: pd.DataFrame, name: str, causes: list[str]) -> float:
    base = np.column_stack([np.ones(len(frame)), *(_columns(frame, cause) for cause in causes)])
    if base.shape[1] >= len(frame):
        return 1.0
    basis = _basis(base)
    values = _columns(frame, name)
    total = float(((values - values.mean(0)) ** 2).sum())
    left = values - basis @ (basis.T @ values)
    return float((left**2).sum()) / total if total else 0.0


def _codes(column: pd.Series[str]) -> NDArray[np.int64]:
    return np.asarray(pd.factorize(column)[0], dtype=np.int64)


def _holm(p_values: list[float]) -> list[float]:
    order = np.argsort(p_values)
    adjusted = np.empty(len(p_values))
    largest = 0.0
    for rank, index in enumerate(order):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = largest
    return [float(value) for value in adjusted]
