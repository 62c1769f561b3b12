"""Analyses of simulated tables whose truth is known: what intervals are to hold, what to doubt."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import networkx as nx
import numpy as np
import pandas as pd
from simulated_trials import (
    CURVE,
    RATIOS,
    confounded,
    confounded_by_quality,
    simulate,
    true_loss,
)

from causalprune.analysis import AnalysisResult, analyze, effects, identification
from causalprune.analysis.double_ml import double_ml
from causalprune.analysis.few_networks import few_networks
from causalprune.analysis.method_effects import method_effects
from causalprune.analysis.tables import completed_trials

LEVEL = 0.05
SIMULATIONS = 30


@dataclass(frozen=True)
class Interval:
    """An interval, and the truth that it is about."""

    low: float
    high: float
    truth: float

    @property
    def covers(self) -> bool:
        return self.low <= self.truth <= self.high


def truths(size: float) -> dict[str, float]:
    slope = float(np.polyfit(RATIOS, [true_loss(ratio, size) for ratio in RATIOS], 1)[0]) * 0.1
    positive = [true_loss(ratio, size) for ratio in RATIOS if ratio > 0]
    return {
        "average slope, clustered t": slope,
        "average slope, wild bootstrap": slope,
        "ratio 0 to 0.9, spline, clustered t": true_loss(RATIOS[-1], size),
        "ratio 0 to 0.9, LinearDML, known design": true_loss(RATIOS[-1], size),
        # Qualities of the three simulated methods: 0.7, 1.0, 1.3.
        "path instead of random, paired": -0.6 * float(np.mean(positive)),
    }


def intervals_of(table: pd.DataFrame, size: float) -> dict[str, Interval]:
    trials = completed_trials(table, ("ratio", "accuracy_loss"))
    main = analyze(table, n_simulations=0, time_budget_s=0)
    last = main.contrasts[-1]
    (wild,) = few_networks(trials)
    double = next(f for f in double_ml(trials) if f.contrast.endswith("to 0.9"))
    method = next(f for f in method_effects(trials) if f.contrast == "path instead of random")
    found = {
        "average slope, clustered t": main.interval,
        "average slope, wild bootstrap": (wild.low, wild.high),
        "ratio 0 to 0.9, spline, clustered t": (last.low, last.high),
        "ratio 0 to 0.9, LinearDML, known design": (double.low, double.high),
        "path instead of random, paired": (method.low, method.high),
    }
    truth = truths(size)
    return {name: Interval(*pair, truth[name]) for name, pair in found.items()}


def null_is_rejected(seed: int) -> bool:
    """Whether the randomisation test rejects a table without an effect, 6 networks."""
    table = simulate(seed, checkpoints=6, size=0.0)
    result = analyze(table, n_simulations=0, time_budget_s=0)
    return result.p_value is not None and result.p_value < LEVEL


def over_controlled() -> nx.DiGraph:
    return nx.DiGraph(
        [
            ("memory_bytes", "ratio"),
            ("memory_bytes", "accuracy_loss"),
            ("ratio", "accuracy_loss"),
        ]
    )


def omitted() -> nx.DiGraph:
    return nx.DiGraph([("ratio", "accuracy_loss")])


Maker = Callable[[int], pd.DataFrame]
SLOPE = truths(CURVE)["average slope, clustered t"]
SCENARIOS: dict[str, tuple[Maker, Callable[[], nx.DiGraph] | None, float]] = {
    "sound": (lambda k: simulate(k, checkpoints=12), None, SLOPE),
    "pure noise": (lambda k: simulate(k, checkpoints=12, size=0.0), None, 0.0),
    "confounded, no trace": (lambda k: confounded(k), None, 0.0),
    "confounded, quality omitted": (lambda k: confounded_by_quality(k), omitted, 0.0),
    "over-controlled": (lambda k: simulate(k, checkpoints=12), over_controlled, SLOPE),
}
"""How tables are made, the graph they are analysed by (None: the default), the true slope."""


def paper_refuters_pass(table: pd.DataFrame, result: AnalysisResult) -> bool:
    """DoWhy's three refuters, each with a p-value above 0.05, on the same estimate."""
    trials = completed_trials(table, (result.treatment, result.outcome))
    frame = trials.frame
    found = identification.identify(frame, result.graph, result.treatment, result.outcome)
    design = effects.build_design(
        frame, result.treatment, result.adjustment, result.design_covariates
    )
    data = pd.concat([frame[[result.treatment, result.outcome]], design.columns], axis=1)
    estimand = identification.with_columns(found, [str(name) for name in design.columns])
    fitted = identification.estimate(data, found, estimand, step=result.step)
    p_values = []
    for offset, refuter in enumerate(
        (
            identification.random_common_cause,
            identification.data_subset,
            identification.placebo_treatment,
        )
    ):
        said = refuter(data, estimand, fitted, result.seed + offset, SIMULATIONS)
        p_values.append(float(np.asarray(said.refutation_result["p_value"]).reshape(-1)[0]))
    return min(p_values) > LEVEL


@dataclass(frozen=True)
class Judged:
    """What was said of one table of a scenario."""

    estimate: float
    covers: bool
    refuters_pass: bool
    doubts: tuple[str, ...]


def judge(name: str, seed: int) -> Judged:
    """Analyse one table of a scenario, with the gate and with the paper's refuters."""
    make, graph, truth = SCENARIOS[name]
    table = make(seed)
    result = analyze(
        table,
        graph=None if graph is None else graph(),
        n_simulations=SIMULATIONS,
        time_budget_s=0,
        seed=seed,
    )
    covers = result.interval[0] <= truth <= result.interval[1]
    return Judged(result.estimate, covers, paper_refuters_pass(table, result), result.doubts)
