"""The gate: what it lets through, and the tables that the three classical refuters pass."""

from __future__ import annotations

import math

import networkx as nx
import numpy as np
import pandas as pd
import pytest
from simulated_trials import confounded, confounded_by_quality, simulate
from statsmodels.regression.linear_model import OLS

from causalprune.analysis import AnalysisResult, Refutation, analyze
from causalprune.analysis.sensitivity import e_value, robustness_value
from causalprune.errors import InvalidArgumentError


def named(result: AnalysisResult, name: str) -> Refutation:
    return next(item for item in result.refutations if item.name == name)


def test_a_sound_experiment_goes_through() -> None:
    result = analyze(simulate(1, checkpoints=6), n_simulations=30)
    assert result.doubts == ()
    assert named(result, "negative-control outcome").passed
    assert named(result, "bootstrap of networks").passed
    assert "hidden cause" not in [item.name for item in result.refutations]
    for place in ("architecture", "data set"):
        assert named(result, f"leave one {place} out").passed is None


def test_noise_is_caught_by_the_placebo() -> None:
    result = analyze(simulate(2, checkpoints=6, size=0.0), n_simulations=30)
    assert {"placebo treatment", "bootstrap of networks"} <= set(result.doubts)


def test_confounding_without_a_trace_is_caught_by_what_is_not_said() -> None:
    result = analyze(confounded(0), n_simulations=30)
    assert result.doubts == ("assignment",)
    assert all(item.passed for item in result.refutations[:3])
    assert "E-value" in named(result, "hidden cause").sentence


def test_confounding_by_the_quality_of_networks_is_caught_by_the_negative_control() -> None:
    # Adjusting for the accuracy before pruning would repair it: a graph that does not.
    graph = nx.DiGraph([("ratio", "accuracy_loss")])
    result = analyze(confounded_by_quality(3), graph=graph, n_simulations=30)
    assert result.interval[1] < 0  # the truth is zero
    control = named(result, "negative-control outcome")
    assert control.passed is False and control.low > 0 and "confounded" in control.sentence
    assert all(item.passed for item in result.refutations[:2])


@pytest.mark.parametrize("column", ["memory_bytes", "size_of_it"])
def test_adjusting_for_a_consequence_is_caught(column: str) -> None:
    table = simulate(4, checkpoints=6)
    rng = np.random.default_rng(4)
    table["size_of_it"] = table["memory_bytes"] * rng.uniform(0.9, 1.1, len(table))
    table["memory_bytes"] = table["size_of_it"]
    graph = nx.DiGraph(
        [(column, "ratio"), (column, "accuracy_loss"), ("ratio", "accuracy_loss")], name="mine"
    )
    result = analyze(table, graph=graph, n_simulations=20)
    honest = analyze(table, n_simulations=0)
    assert result.graph_name == "mine" and result.adjustment == (column,)
    assert abs(result.estimate - honest.estimate) > 0.2 * honest.estimate
    item = named(result, "adjustment precedes treatment")
    assert item.passed is False and column in item.sentence
    assert "adjustment precedes treatment" not in honest.doubts


def test_cells_without_trials_are_named() -> None:
    table = simulate(5, checkpoints=4)
    table = table[~((table["method"] == "l1") & (table["ratio"] == 0.9))]
    item = named(analyze(table, n_simulations=5), "overlap")
    assert item.passed is False and "l1 at 0.9" in item.sentence


def test_one_architecture_that_carries_the_result_is_named() -> None:
    steep = simulate(6, checkpoints=3, size=0.3)
    flat = simulate(7, checkpoints=3, size=0.01).assign(architecture="flat")
    table = pd.concat([steep, flat], ignore_index=True)
    item = named(analyze(table, n_simulations=5), "leave one architecture out")
    assert item.passed is False and item.simulations == 2
    assert item.low < 0.2 * item.high
    same = pd.concat([steep, steep.assign(architecture="b")], ignore_index=True)
    assert named(analyze(same, n_simulations=5), "leave one architecture out").passed


def test_a_hidden_cause_of_the_strength_of_a_recorded_one() -> None:
    rng = np.random.default_rng(8)
    table = simulate(8, checkpoints=30, methods=("path",), ratios=(0.2, 0.4, 0.6, 0.8), size=0.0)
    drive = rng.standard_normal(len(table))
    table["dataset_size"] = drive
    table["ratio"] = np.clip(0.5 + 0.15 * drive + 0.1 * rng.standard_normal(len(table)), 0, 0.95)
    table["accuracy_loss"] = (
        0.02 * drive + 0.005 * table["ratio"] + 0.01 * rng.standard_normal(len(table))
    )
    graph = nx.DiGraph(
        [("dataset_size", "ratio"), ("dataset_size", "accuracy_loss"), ("ratio", "accuracy_loss")]
    )
    result = analyze(table.assign(assignment="observed"), graph=graph, n_simulations=5)
    item = named(result, "hidden cause")
    assert item.passed is False and "dataset_size" in item.sentence


def test_robustness_value_brings_the_estimate_to_zero() -> None:
    """A cause made to explain exactly that share of both residuals leaves no estimate."""
    rng = np.random.default_rng(9)
    n = 400
    treatment = rng.standard_normal(n)
    outcome = 0.3 * treatment + rng.standard_normal(n)
    fit = OLS(outcome, np.column_stack([np.ones(n), treatment])).fit()
    value = robustness_value(float(fit.tvalues[1]), int(fit.df_resid))

    def left(of: np.ndarray, *by: np.ndarray) -> np.ndarray:
        return OLS(of, np.column_stack([np.ones(n), *by])).fit().resid

    first = left(treatment)
    second = left(outcome, treatment)
    extra = left(rng.standard_normal(n), treatment, outcome)
    first, second, extra = (part / np.linalg.norm(part) for part in (first, second, extra))
    # The cause: partial R2 with the treatment and, given the treatment, with the outcome = value.
    along = math.sqrt(value)
    across = math.sqrt(value * (1 - value))
    cause = along * first + across * second
    cause += math.sqrt(1 - along**2 - across**2) * extra
    adjusted = OLS(outcome, np.column_stack([np.ones(n), treatment, cause])).fit()
    assert abs(adjusted.params[1]) < 1e-9 < abs(fit.params[1])


def test_e_value_of_no_effect_is_one() -> None:
    assert e_value(0.0, 1.0) == 1.0 and e_value(-0.4, 2.0) == e_value(0.4, 2.0) > 1.0


@pytest.mark.parametrize(
    ("graph", "pattern"),
    [
        (nx.DiGraph([("ratio", "accuracy_loss"), ("weather", "ratio")]), "got weather"),
        (
            nx.DiGraph([("ratio", "macs"), ("macs", "ratio"), ("ratio", "accuracy_loss")]),
            "expected no cycle, got",
        ),
        (nx.DiGraph([("macs", "accuracy_loss")]), "expected ratio among its nodes"),
        (nx.Graph([("ratio", "accuracy_loss")]), "expected a networkx.DiGraph"),
    ],
)
def test_graphs_that_nothing_can_be_read_off(graph: nx.Graph, pattern: str) -> None:
    with pytest.raises(InvalidArgumentError, match=f"graph: .*{pattern}"):
        analyze(simulate(1), graph=graph)


def test_a_graph_beside_the_preset_is_refused() -> None:
    with pytest.raises(InvalidArgumentError, match="graph: preset='iisc'"):
        analyze(simulate(1), preset="iisc", graph=nx.DiGraph([("ratio", "accuracy_loss")]))
