"""Analyses of simulated tables whose truth is known: coverage, level, and what the gate catches.

``python benchmarks/end_to_end/planted_truth.py [--repetitions N]`` writes
benchmarks/results/planted_truth.md. The tables are those of tests/simulated_trials.py.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import networkx as nx
import numpy as np
import pandas as pd
from resnet20_cifar import RESULTS, provenance
from simulated_trials import (
    CURVE,
    METHODS,
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
NETWORKS = (6, 24)


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


def coverage_rows(repetitions: int) -> Iterator[str]:
    yield (
        "| interval (95 %) | "
        + " | ".join(
            f"{'effect' if size else 'no effect'}, {networks} networks"
            for size in (CURVE, 0.0)
            for networks in NETWORKS
        )
        + " |"
    )
    yield "|---|" + "---|" * 2 * len(NETWORKS)
    shares: dict[str, list[str]] = {name: [] for name in truths(CURVE)}
    for size in (CURVE, 0.0):
        for networks in NETWORKS:
            found = [
                intervals_of(simulate(1000 * networks + k, checkpoints=networks, size=size), size)
                for k in range(repetitions)
            ]
            for name, cells in shares.items():
                hits = sum(entry[name].covers for entry in found)
                cells.append(f"{100 * hits / repetitions:.0f} % ({hits} of {repetitions})")
            print(networks, size, {name: cells[-1] for name, cells in shares.items()}, flush=True)
    for name, cells in shares.items():
        yield f"| {name} | " + " | ".join(cells) + " |"


def level_row(repetitions: int) -> str:
    small = 0
    for k in range(repetitions):
        table = simulate(7000 + k, checkpoints=6, size=0.0)
        result = analyze(table, n_simulations=0, time_budget_s=0)
        small += result.p_value is not None and result.p_value < LEVEL
    return (
        f"The randomisation test rejects at {LEVEL:g} in {100 * small / repetitions:.0f} % of "
        f"{repetitions} tables without an effect (6 networks)."
    )


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
SCENARIOS: tuple[tuple[str, Maker, Callable[[], nx.DiGraph] | None, float], ...] = (
    ("sound", lambda k: simulate(k, checkpoints=12), None, SLOPE),
    ("pure noise", lambda k: simulate(k, checkpoints=12, size=0.0), None, 0.0),
    ("confounded, no trace", lambda k: confounded(k), None, 0.0),
    ("confounded, quality omitted", lambda k: confounded_by_quality(k), omitted, 0.0),
    ("over-controlled", lambda k: simulate(k, checkpoints=12), over_controlled, SLOPE),
)


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


def gate_rows(repetitions: int) -> Iterator[str]:
    yield (
        "| table | estimate (truth), points per +0.1 | interval covers the truth | the paper's "
        "three refuters pass | the gate has a doubt | doubts |"
    )
    yield "|---|---|---|---|---|---|"
    for name, make, graph, truth in SCENARIOS:
        estimates, covers, passed, doubts = [], 0, 0, []
        for k in range(repetitions):
            table = make(k)
            result = analyze(
                table,
                graph=None if graph is None else graph(),
                n_simulations=SIMULATIONS,
                time_budget_s=0,
                seed=k,
            )
            estimates.append(result.estimate)
            covers += result.interval[0] <= truth <= result.interval[1]
            passed += paper_refuters_pass(table, result)
            doubts.append(result.doubts)
        counts = pd.Series([doubt for entry in doubts for doubt in entry]).value_counts()
        listed = ", ".join(f"{doubt} {count}" for doubt, count in counts.items()) or "none"
        caught = sum(bool(entry) for entry in doubts)
        yield (
            f"| {name} | {100 * np.mean(estimates):.2f} ({100 * truth:.2f}) "
            f"| {covers} of {repetitions} | {passed} of {repetitions} | {caught} of {repetitions} "
            f"| {listed} |"
        )
        print(name, covers, passed, caught, listed, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--repetitions", type=int, default=100)
    repetitions = parser.parse_args().repetitions
    lines = [
        "# Analyses of tables with a known truth",
        "",
        f"{repetitions} tables each: {len(METHODS)} methods, {len(RATIOS)} ratios, every network "
        "with a level and a response (5 % sd) of its own (tests/simulated_trials.py).",
        provenance(),
        "",
        "## How often intervals hold the truth",
        "",
        *coverage_rows(repetitions),
        "",
        level_row(repetitions),
        "",
        "## What the gate catches",
        "",
        *gate_rows(repetitions),
    ]
    (RESULTS / "planted_truth.md").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
