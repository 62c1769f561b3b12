"""Graphs against tables: what is contradicted is found, what is not is not."""

from __future__ import annotations

import functools

import networkx as nx
import numpy as np
import pandas as pd
import pytest
from simulated_trials import simulate

from causalprune import analysis
from causalprune.analysis import AnalysisResult, cost_graph
from causalprune.analysis.falsification import falsify
from causalprune.analysis.tables import Trials, completed_trials
from causalprune.errors import InvalidArgumentError

# What is asked beside the main effect has tests of its own.
analyze = functools.partial(analysis.analyze, time_budget_s=0)


CHAIN = nx.DiGraph([("a", "b"), ("b", "c"), ("kind", "c")])


def chain(seed: int, *, networks: int = 8, shortcut: float = 0.0) -> Trials:
    """a -> b -> c <- kind, and a -> c by `shortcut`; every network has a level of its own in b."""
    rng = np.random.default_rng(seed)
    rows = 20 * networks
    network = np.repeat(np.arange(networks), 20)
    kind = rng.choice(["x", "y", "z"], rows)
    a = rng.uniform(size=rows)
    b = a**2 + 0.2 * rng.standard_normal(rows) + 0.5 * rng.standard_normal(networks)[network]
    step = pd.Series({"x": 0.0, "y": 1.0, "z": -1.0})[kind].to_numpy()
    c = np.sin(b) + step + shortcut * a + 0.3 * rng.standard_normal(rows)
    table = pd.DataFrame({"checkpoint": network, "a": a, "b": b, "c": c, "kind": kind})
    return Trials(table, 0, 0, True)


def test_a_graph_that_is_right_is_contradicted_at_the_level_of_the_test() -> None:
    wrong = sum(
        bool(falsify(chain(seed), CHAIN, seed=seed, draws=999).violated) for seed in range(20)
    )
    assert wrong <= 2  # at most one in a hundred is expected


def test_an_edge_that_is_missing_is_named() -> None:
    found = falsify(chain(1, shortcut=1.0), CHAIN)
    (item,) = found.violated
    assert (item.first, item.second, item.given) == ("c", "a", ("b", "kind"))
    assert item.share > 0.02 and item.p_value < 0.01
    assert "c depends on a given b, kind" in found.sentence and "missing" in found.sentence
    with_it = nx.DiGraph([*CHAIN.edges, ("a", "c")])
    assert falsify(chain(1, shortcut=1.0), with_it).violated == ()


def test_what_a_network_has_as_a_whole_is_permuted_with_it() -> None:
    """A level of each network looks like a cause of its rows, unless networks change places."""
    rng = np.random.default_rng(5)
    graph = nx.DiGraph([("a", "c")])
    graph.add_node("width")
    wrong = 0
    for seed in range(30):
        trials = chain(seed, networks=6)
        width = rng.uniform(size=6)[trials.frame["checkpoint"]]
        level = rng.standard_normal(6)[trials.frame["checkpoint"]]
        frame = trials.frame.assign(width=width, c=level + trials.frame["a"])
        shaken = Trials(frame, 0, 0, True)
        wrong += bool(falsify(shaken, graph, seed=seed, draws=399).violated)
    assert wrong <= 3


def test_networks_that_differ_are_named() -> None:
    graph = nx.DiGraph(CHAIN)
    graph.add_node("checkpoint")
    found = {(item.first, item.second) for item in falsify(chain(6), graph).violated}
    assert ("b", "checkpoint") in found and ("a", "checkpoint") not in found


def test_constant_and_computed_nodes_are_left_out_and_passed_through() -> None:
    trials = chain(2)
    frame = trials.frame.assign(d=2 * trials.frame["b"] + 1, e="same")
    frame["f"] = frame["d"] + 0.1 * np.random.default_rng(2).standard_normal(len(frame))
    graph = nx.DiGraph([*CHAIN.edges, ("b", "d"), ("e", "d"), ("d", "f")])
    found = falsify(Trials(frame, 0, 0, True), graph)
    assert set(found.left_out) == {"d", "e"}
    # With d gone, b is what f follows.
    assert {item.given for item in found.tested if item.first == "f"} == {("b",)}
    assert found.violated == () and "does not show that the graph is right" in found.sentence


def test_the_cost_graph_of_a_simulated_experiment() -> None:
    table = simulate(3, checkpoints=5)
    trials = completed_trials(table, ("ratio", "latency_ms"))
    names = [str(name) for name in table if table[name].notna().all()]
    assert falsify(trials, cost_graph(names)).violated == ()
    slow = table.assign(latency_ms=table["latency_ms"] + 0.2 * (table["method"] == "l1"))
    trials = completed_trials(slow, ("ratio", "latency_ms"))
    pairs = {(item.first, item.second) for item in falsify(trials, cost_graph(names)).violated}
    assert ("latency_ms", "method") in pairs


def test_analyses_say_it_and_keep_it() -> None:
    result = analyze(simulate(1, checkpoints=6), n_simulations=10)
    assert result.independencies and result.graph_check in result.summary()
    assert AnalysisResult.from_json(result.to_json()) == result


def test_bad_input() -> None:
    with pytest.raises(InvalidArgumentError, match="graph: weather"):
        falsify(chain(1), nx.DiGraph([("weather", "c")]))
    with pytest.raises(InvalidArgumentError, match="draws"):
        falsify(chain(1), CHAIN, draws=3)
