"""Analyses of simulated tables whose truth is known: coverage, level, and what the gate catches.

``python benchmarks/end_to_end/planted_truth.py [--repetitions N]`` writes
benchmarks/results/planted_truth.md. The tables are those of tests/simulated_trials.py, the
analyses those of tests/simulated_truth.py.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator

import numpy as np
import pandas as pd
from resnet20_cifar import RESULTS, provenance
from simulated_trials import CURVE, METHODS, RATIOS, simulate
from simulated_truth import LEVEL, SCENARIOS, intervals_of, judge, null_is_rejected, truths

NETWORKS = (6, 24)


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
    small = sum(null_is_rejected(7000 + k) for k in range(repetitions))
    return (
        f"The randomisation test rejects at {LEVEL:g} in {100 * small / repetitions:.0f} % of "
        f"{repetitions} tables without an effect (6 networks)."
    )


def gate_rows(repetitions: int) -> Iterator[str]:
    yield (
        "| table | estimate (truth), points per +0.1 | interval covers the truth | the paper's "
        "three refuters pass | the gate has a doubt | doubts |"
    )
    yield "|---|---|---|---|---|---|"
    for name, (_, _, truth) in SCENARIOS.items():
        found = [judge(name, k) for k in range(repetitions)]
        counts = pd.Series([doubt for each in found for doubt in each.doubts]).value_counts()
        listed = ", ".join(f"{doubt} {count}" for doubt, count in counts.items()) or "none"
        covers = sum(each.covers for each in found)
        passed = sum(each.refuters_pass for each in found)
        caught = sum(bool(each.doubts) for each in found)
        estimate = np.mean([each.estimate for each in found])
        yield (
            f"| {name} | {100 * estimate:.2f} ({100 * truth:.2f}) "
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
