"""The structural model of a trial table: graphs 1 and 2 joined, fitted with dowhy.gcm.

A trial's noise has two parts: what is its network's own, the same in all trials of one
checkpoint and kept in a counterfactual, and what is the trial's own (the seed of its retraining,
the machine's mood), which another trial would draw anew.
"""

from __future__ import annotations

import importlib
import random
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from causalprune.analysis.graphs import accuracy_graph, cost_graph
from causalprune.analysis.identification import import_dowhy, quiet_dowhy
from causalprune.analysis.structural_mechanisms import (
    Array,
    Causes,
    LocationScale,
    SizeTable,
)
from causalprune.analysis.structural_networks import NetworkParts, estimated_parts

if TYPE_CHECKING:
    import networkx as nx

__all__: list[str] = []

# Root causes by name: those of a trial's design that have a level each, and those that are numbers.
CATEGORIES = ("architecture", "dataset", "method", "shift", "machine")
NUMBERS = ("ratio", "retrain_epochs", "latency_batch", "threads")
SIZES = ("achieved_ratio", "parameters", "macs")
# Effects of a network that no trial is of.
NOTHING = np.zeros(2)
OUTCOMES = ("accuracy_loss", "memory_bytes", "latency_ms")
# Which units go fixes it, as it fixes the sizes: told from trials, whatever a model would say.
COMPUTED = "memory_bytes"
LOGARITHMIC = ("parameters", "macs", "memory_bytes", "latency_batch", "threads")
# What a size follows from: which units go is for the method and the ratio to say.
SIZE_CAUSES = ("architecture", "dataset", "method", "ratio")


def structural_graph(columns: Sequence[str], varying: Sequence[str]) -> nx.DiGraph:
    """Join the accuracy graph and the cost graph into one that answers what-if questions.

    Three changes. Checkpoints are no node: what is a network's own is noise, kept by abduction.
    Processor frequency and cache misses are summed out: their causes act on the latency
    directly. The method acts on sizes, memory and latency, too, because some methods leave
    zeros where others remove units. Roots that never vary are left out.

    Parameters
    ----------
    columns : sequence of str
        Columns with a value in every trial.
    varying : sequence of str
        Those of them that vary.
    """
    import networkx as nx

    here = [c for c in columns if c not in ("checkpoint", "cpu_frequency_mhz", "llc_misses")]
    joined = nx.compose(accuracy_graph(here), cost_graph(here))
    graph = nx.DiGraph(name="accuracy and cost")
    roots = [n for n in (*CATEGORIES, *NUMBERS) if n in here and (n in varying or n == "ratio")]
    nodes = {*roots, *(n for n in (*SIZES, *OUTCOMES) if n in here)}
    for size in SIZES:
        if size in nodes:
            graph.add_edges_from((cause, size) for cause in SIZE_CAUSES if cause in nodes)
    kept = [(a, b) for a, b in joined.edges if a in nodes and b in nodes and b not in SIZES]
    graph.add_edges_from(kept)
    for outcome in ("memory_bytes", "latency_ms"):
        if outcome in nodes and set(graph.predecessors(outcome)):
            # The architecture stands for what MACs alone do not say: how many layers, which.
            also = [c for c in ("architecture", "dataset", "method") if c in nodes]
            graph.add_edges_from((cause, outcome) for cause in also)
    return graph.subgraph(_useful(graph)).copy()


def _useful(graph: nx.DiGraph) -> list[str]:
    import networkx as nx

    ends = [name for name in OUTCOMES if name in graph and graph.in_degree(name)]
    return sorted({*ends, *(a for end in ends for a in nx.ancestors(graph, end))})


@dataclass(frozen=True)
class Structure:
    """A fitted structural model with each network's own noise.

    Attributes
    ----------
    scm : object
        `dowhy.gcm.InvertibleStructuralCausalModel` on a graph of its own.
    levels : Mapping[str, tuple of str]
        The categories behind the codes.
    data : DataFrame
        The trials it was fitted to: a column a node, categories as codes; and ``checkpoint``.
    own : Mapping[str, Mapping[str, Array]]
        By outcome, then checkpoint: the network's own level and spread-wise part, shrunk towards 0.
    parts : Mapping[str, NetworkParts]
        By outcome: how much networks differ in them.
    """

    scm: Any
    levels: Mapping[str, tuple[str, ...]]
    data: pd.DataFrame
    own: Mapping[str, Mapping[str, Array]]
    parts: Mapping[str, NetworkParts]

    @property
    def nodes(self) -> tuple[str, ...]:
        """Columns of the model, causes first."""
        import networkx as nx

        return tuple(nx.lexicographical_topological_sort(self.scm.graph))

    @property
    def outcomes(self) -> tuple[str, ...]:
        """Outcomes that the model predicts."""
        return tuple(name for name in OUTCOMES if name in self.scm.graph)

    @property
    def roots(self) -> tuple[str, ...]:
        """What the experiment sets."""
        return tuple(n for n in self.nodes if not self.scm.graph.in_degree(n))

    def mechanism(self, node: str) -> Any:
        """Return the fitted mechanism of a column that has causes."""
        return self.scm.causal_mechanism(node)

    def parents(self, node: str) -> list[str]:
        """Return the causes of a column in the order of its mechanism."""
        return sorted(self.scm.graph.predecessors(node))


@contextmanager
def quiet_gcm(seed: int = 0) -> Iterator[Any]:
    """Yield `dowhy.gcm` without progress bars, with the global generators seeded and put back."""
    import_dowhy()
    with quiet_dowhy():
        gcm = importlib.import_module("dowhy.gcm")
        config: Any = importlib.import_module("dowhy.gcm.config")
        protocol = importlib.import_module("dowhy.gcm.causal_mechanisms")
    bars, numpy_state, python_state = (
        config.show_progress_bars,
        np.random.get_state(),
        random.getstate(),
    )
    try:
        config.show_progress_bars = False
        np.random.seed(seed)
        random.seed(seed)
        for mechanism in (LocationScale, SizeTable):
            protocol.InvertibleFunctionalCausalModel.register(mechanism)
        with quiet_dowhy():
            yield gcm
    finally:
        config.show_progress_bars = bars
        np.random.set_state(numpy_state)
        random.setstate(python_state)


def fit_structure(frame: pd.DataFrame, levels: Mapping[str, tuple[str, ...]]) -> Structure:
    """Fit the joined graph to completed trials and abduct each network's own noise.

    Parameters
    ----------
    frame : DataFrame
        Completed trials; `ratio`, `accuracy_loss` and `checkpoint` without a gap.
    levels : Mapping[str, tuple of str]
        Categories that may appear, by column.
    """
    columns = [str(c) for c in frame if frame[c].notna().all()]
    varying = [c for c in columns if frame[c].nunique() > 1]
    graph = structural_graph(columns, varying)
    nodes = [str(node) for node in graph]
    data = coded(frame, nodes, levels)
    networks = pd.factorize(frame["checkpoint"].astype(str))[0]
    with quiet_gcm() as gcm:
        scm = gcm.InvertibleStructuralCausalModel(graph.copy())
        for node in nodes:
            parents = sorted(graph.predecessors(node))
            if not parents:
                scm.set_causal_mechanism(node, gcm.EmpiricalDistribution())
            elif node in SIZES:
                scm.set_causal_mechanism(node, SizeTable(tuple(parents)))
            else:
                scm.set_causal_mechanism(
                    node, LocationScale(_causes(parents), _is_log(node, data), networks)
                )
        gcm.fit(scm, data[nodes])
    data["checkpoint"] = frame["checkpoint"].astype(str).to_numpy()
    bare = Structure(scm, levels, data, {}, {})
    parts = {node: estimated_parts(*_told(bare, node), networks) for node in bare.outcomes}
    own = {node: _own_effects(bare, node, parts[node]) for node in bare.outcomes}
    return replace(bare, own=own, parts=parts)


def coded(
    frame: pd.DataFrame, nodes: Sequence[str], levels: Mapping[str, tuple[str, ...]]
) -> pd.DataFrame:
    """Return the nodes' columns as float64, categories as codes."""
    columns = {}
    for node in nodes:
        if node in levels:
            codes = {level: float(k) for k, level in enumerate(levels[node])}
            columns[node] = frame[node].astype(str).map(codes).astype(float).to_numpy()
        else:
            columns[node] = frame[node].to_numpy(dtype=float)
    return pd.DataFrame(columns)


def reweighted(structure: Structure, rng: np.random.Generator) -> Structure:
    """Return one draw of the Bayesian cluster bootstrap: checkpoints weigh Exp(1) each.

    Rubin, The Bayesian Bootstrap, Annals of Statistics 9 (1981), with networks as the units;
    a draw never loses a network altogether, which drawing three with replacement often does.
    With one network trials weigh instead.
    """
    data = structure.data
    codes, names = pd.factorize(data["checkpoint"])
    count = len(names) if len(names) > 1 else len(data)
    drawn = rng.exponential(size=count)
    weights = drawn[codes] if len(names) > 1 else drawn
    with quiet_gcm() as gcm:
        scm = gcm.InvertibleStructuralCausalModel(structure.scm.graph.copy())
        for node in structure.outcomes:
            refitted = structure.mechanism(node).refitted(
                data[structure.parents(node)].to_numpy(), data[node].to_numpy(), weights
            )
            scm.set_causal_mechanism(node, refitted)
    changed = replace(structure, scm=scm)
    own = {n: _own_effects(changed, n, structure.parts[n]) for n in structure.outcomes}
    return replace(changed, own=own)


def propagate(
    structures: Sequence[Structure], cells: pd.DataFrame, checkpoints: Sequence[Sequence[str]]
) -> list[pd.DataFrame]:
    """Send design cells with their exact sizes through models, with the networks' own noise.

    Parameters
    ----------
    structures : sequence of Structure
        A fitted model, or bootstrap draws of one; roots and sizes are the same in all.
    cells : DataFrame
        Roots (categories as text) and sizes, one row a question.
    checkpoints : sequence of sequence of str
        For each row the networks whose own noise, averaged, is kept.

    Returns
    -------
    list of DataFrame
        One a structure, a column a node.
    """
    first = structures[0]
    given = [node for node in first.nodes if node not in first.outcomes]
    values = coded(cells, given, first.levels)
    design: dict[str, Array] = {}
    for node in given:
        design[node] = values[node].to_numpy()
        if node in SIZES:
            parents = values[first.parents(node)].to_numpy()
            design[node] = first.mechanism(node).estimate_noise(design[node], parents)[:, 0]
    # Averaging matrix: cells by networks.
    names = {name: k for k, name in enumerate(dict.fromkeys(n for c in checkpoints for n in c))}
    share = np.zeros((len(cells), len(names)))
    for position, each in enumerate(checkpoints):
        share[position, [names[name] for name in each]] = 1 / len(each)
    found = []
    for structure in structures:
        effects = {}
        for node in structure.outcomes:
            own = [structure.own[node].get(name, NOTHING) for name in names]
            effects[node] = share @ np.array(own)
        noise = pd.DataFrame({**design, **dict.fromkeys(structure.outcomes, 0.0)})
        found.append(from_noise(structure, noise, effects))
    return found


def from_noise(
    structure: Structure, noise: pd.DataFrame, effects: Mapping[str, Array]
) -> pd.DataFrame:
    """Return what each node is for these noises, roots being their own noise.

    Parameters
    ----------
    structure : Structure
    noise : DataFrame
        A column a node; of outcomes without what is the network's own.
    effects : Mapping[str, Array]
        By outcome the effects of the network of each row.
    """
    noise, values = noise.copy(), {}
    for node in structure.nodes:
        parents = structure.parents(node)
        if not parents:
            values[node] = noise[node].to_numpy(dtype=float)
            continue
        mechanism = structure.mechanism(node)
        causes = np.column_stack([values[parent] for parent in parents])
        if node in effects:
            noise[node] = noise[node] + mechanism.own_noise(causes, effects[node])
        values[node] = mechanism.evaluate(causes, noise[node].to_numpy())[:, 0]
    with quiet_gcm() as gcm:
        samples: pd.DataFrame = gcm.counterfactual_samples(structure.scm, {}, noise_data=noise)
    return samples


def _causes(parents: Sequence[str]) -> Causes:
    # The cost follows MACs, the memory follows parameters; either is where a curve bends.
    curve = next(n for n in ("macs", "parameters", "achieved_ratio", "ratio") if n in parents)
    categories = tuple(n for n in parents if n in CATEGORIES)
    pair = ("architecture", "method") if {"architecture", "method"} <= set(categories) else ()
    return Causes(
        names=tuple(parents),
        curve=curve,
        categories=categories,
        pair=pair,
        linear=tuple(n for n in parents if n not in categories and n != curve),
        logarithmic=tuple(n for n in parents if n in LOGARITHMIC),
    )


def _is_log(node: str, data: pd.DataFrame) -> bool:
    return node != "accuracy_loss" and bool((data[node] > 0).all())


def _told(structure: Structure, node: str) -> tuple[Array, Array, Array]:
    """Return what trials tell of their networks: residual, spread, columns of the effects."""
    data, mechanism = structure.data, structure.mechanism(node)
    parents = data[structure.parents(node)].to_numpy()
    residual = mechanism.transformed(data[node].to_numpy()) - mechanism.location(parents)
    return residual, mechanism.scale(parents), mechanism.own_columns(parents)


def _own_effects(structure: Structure, node: str, parts: NetworkParts) -> dict[str, Array]:
    codes, names = pd.factorize(structure.data["checkpoint"])
    effects = parts.effects(*_told(structure, node), codes)
    return {str(name): own for name, own in zip(names, effects, strict=True)}
