"""Prune potential on plain and on shifted test images, from a study's records.

``causalprune study run benchmarks/end_to_end/lost_in_pruning.yaml --out FOLDER`` runs the study
(MNIST's files in CAUSALPRUNE_DATA or ``data_root``); ``python lost_in_pruning.py FOLDER NAME``
then writes benchmarks/results/NAME.md and NAME.csv, the study's table. With NAME.csv in place of
FOLDER the tables are made again from what was committed, under its own provenance.
"""

from __future__ import annotations

import sys
from pathlib import Path

import pandas as pd
from resnet20_cifar import RESULTS, provenance

import causalprune as cp
from causalprune.experiments.study_measures import (
    LEAST,
    MEAN,
    NOMINAL,
    StudyPotentials,
    excess_trends_of_trials,
    potentials_of_trials,
)
from causalprune.experiments.study_tables import rows_by_shift

LEGEND = (
    "Prune potential: the largest fraction of the parameters that can go while the test error "
    "rises by so much at the most over that of the whole network retrained as long; mean ± "
    "sd over networks, in per cent. The last column: points of excess error (mean over shifts "
    "less that on plain images) that pruning everything would add, by regression through the "
    "origin."
)
HALF_A_POINT, TWO_POINTS = 0.005, 0.02
# Half a point is five images of a thousand: there a larger margin is shown, too.
FEW_IMAGES = 5000
COMPARED = (
    "Compared within each network, points of prune potential with 95 % interval (Student's t over "
    "networks, each cell by itself): plain less shifted test images by method, then methods for "
    "single weights less methods for units. Potentials come from the grid of ratios: an interval "
    "of no width says that all networks agree on it. No test by signs of {n} networks has a "
    "p-value below {p:g}."
)


def table(head: list[str], rows: list[list[str]]) -> list[str]:
    lines = [head, ["---"] * len(head), *rows]
    return ["| " + " | ".join(cells) + " |" for cells in lines]


def potential_rows(found: StudyPotentials, trends: pd.DataFrame) -> list[str]:
    shifts = [s for s in found.summary["shift"].unique() if s not in (MEAN, LEAST)]
    rows = []
    for (method,), trend in trends.groupby(["method"], sort=False):
        own = found.summary[found.summary["method"] == method].set_index("shift")
        cells = [
            f"{100 * own.loc[shift, 'mean']:.0f} ± {100 * own.loc[shift, 'sd']:.0f}"
            for shift in (*shifts, LEAST)
        ]
        slope, low, high = (100 * trend[name].item() for name in ("slope", "low", "high"))
        rows.append([method, *cells, f"{slope:+.1f} ({low:+.1f} to {high:+.1f})"])
    head = ["method", "nominal", *shifts[1:], LEAST, "rise of the excess error (95 % band)"]
    return table(head, rows)


def compared_rows(found: StudyPotentials) -> list[str]:
    falls = found.summary.rename(columns={"fall": "d", "fall_low": "l", "fall_high": "h"})
    kinds = found.weights_minus_filters.assign(method="weights less units")
    kinds = kinds.rename(columns={"mean": "d", "low": "l", "high": "h"})
    both = pd.concat([falls, kinds])[["method", "shift", "d", "l", "h"]]
    shifts = [s for s in both["shift"].unique() if s != LEAST]
    rows = []
    for method, own in both.groupby("method", sort=False):
        by_shift = own.set_index("shift")
        cells = []
        for shift in shifts:
            d, low, high = (100 * by_shift.loc[shift, name] for name in ("d", "l", "h"))
            cells.append(f"{d:+.0f} ({low:+.0f} to {high:+.0f})" if d == d else "")
        rows.append([str(method), *cells])
    return table(["", *("nominal" if s == NOMINAL else s for s in shifts)], rows)


def part(place: str, trials: pd.DataFrame) -> list[str]:
    """Write what a network on a data set lost."""
    plain = trials[trials["shift"] == NOMINAL]
    before = plain.groupby("checkpoint")["accuracy_before"].first()
    images = int(plain["n_test"].iloc[0])
    deltas = (HALF_A_POINT, *(() if images >= FEW_IMAGES else (TWO_POINTS,)))
    n = before.size
    lines = [
        f"## {place}",
        "",
        f"{n} networks (plain test accuracy {100 * before.mean():.2f} % ± "
        f"{100 * before.std():.2f}), {len(plain)} trials, ratios "
        f"{', '.join(f'{ratio:g}' for ratio in sorted(set(plain['ratio'])))}, "
        f"{plain['retrain_epochs'].iloc[0]} epochs of retraining, one shot; {images} test images.",
    ]
    trends = excess_trends_of_trials(trials)
    for delta in deltas:
        found = potentials_of_trials(trials, delta=delta)
        lines += [
            "",
            f"A rise of {100 * delta:g} points allowed:",
            "",
            *potential_rows(found, trends),
            "",
            COMPARED.format(n=n, p=2.0 ** (1 - n)),
            "",
            *compared_rows(found),
        ]
    return lines


def report(name: str, trials: pd.DataFrame, made: str) -> list[str]:
    lines = [f"# {name}", "", LEGEND, made]
    done = trials[trials["status"] == "ok"]
    for (network, data), own in done.groupby(["architecture", "dataset"], sort=False):
        lines += ["", *part(f"{network} on {data}", own)]
    return lines


def main() -> None:
    source, name = Path(sys.argv[1]), sys.argv[2]
    target = RESULTS / f"{name}.md"
    if source.is_file():
        written = target.read_text().splitlines()
        trials = rows_by_shift(pd.read_csv(source))
        lines = report(written[0].removeprefix("# "), trials, written[3])
    else:
        study = cp.Study.open(source)
        lines = report(study.spec.name, study.by_shift(), provenance())
        study.export(RESULTS / f"{name}.csv")
    target.write_text("\n".join(lines) + "\n")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
