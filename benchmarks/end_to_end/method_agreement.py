"""How every scoring method ranks the inner channels of ResNet-20, beside exact ablation.

``CAUSALPRUNE_DATA=... python benchmarks/end_to_end/method_agreement.py`` scores the network once
by every registered method with its default options, on the same images, and writes
benchmarks/results/methods_resnet20.md: Spearman's rank correlation of each method's importance
with that of exact ablation, over the first convolutions of all blocks together and as a mean over
them one by one.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd
from resnet20_cifar import RESULTS, images, provenance, resnet20
from scipy.stats import ConstantInputWarning, spearmanr

import causalprune as cp
from causalprune.scoring import METHODS

IMAGES = 64
SEEDS = 5
REFERENCE = "ablation"
OPTIONS = {"blame": {"max_images": 2}}
"""A search for contingency sets on every image: two of them, so that it ends in minutes."""


@dataclass(frozen=True)
class Agreement:
    """One row of the table; correlations are NaN where a ranking is constant."""

    method: str
    together: float
    by_layer: float
    seconds: float
    distinct: int
    n_images: int


def inner(frame: pd.DataFrame) -> pd.DataFrame:
    """Rows of the channels inside blocks, which no shortcut carries."""
    return frame[frame["group"].str.match(r"layer\d\.\d\.conv1$")].reset_index(drop=True)


def correlation(a: pd.Series, b: pd.Series) -> float:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConstantInputWarning)
        return float(spearmanr(a, b).statistic)


def compare(method: str, own: pd.DataFrame, exact: pd.DataFrame, seconds: float) -> Agreement:
    by_layer = [
        correlation(own["importance"][rows.index], rows["importance"])
        for _, rows in exact.groupby("group", sort=False)
    ]
    return Agreement(
        method,
        correlation(own["importance"], exact["importance"]),
        float(pd.Series(by_layer).mean(skipna=False)),
        seconds,
        own["importance"].nunique(),
        int(own["n"].max()),
    )


def measure() -> list[Agreement]:
    model, data = resnet20(), images(IMAGES)
    found: list[Agreement] = []
    exact = pd.DataFrame()
    for method in sorted(METHODS, key=lambda name: (name != REFERENCE, name)):
        for seed in range(SEEDS if method == "random" else 1):
            begin = time.process_time()
            scores = cp.score(model, data, method, seed=seed, **OPTIONS.get(method, {}))
            seconds = time.process_time() - begin
            own = inner(scores.frame)
            exact = own if method == REFERENCE else exact
            found.append(compare(method, own, exact, seconds))
            print(found[-1], flush=True)
    return sorted(found, key=lambda row: -row.together if row.together == row.together else 2.0)


def cell(value: float) -> str:
    return "constant" if value != value else f"{value:.2f}"


def report(rows: Sequence[Agreement], n_units: int) -> str:
    lines = [
        "# How the methods rank the inner channels of ResNet-20",
        "",
        f"Spearman's rank correlation of each method's importance with exact ablation's (mean of "
        f"abs(Y_do - Y), Y the cross-entropy) over the {n_units} inner channels of the nine blocks "
        f"of the trained CIFAR ResNet-20, {IMAGES} training images, default options, and as a mean "
        "over the nine layers. It is agreement with one definition of importance, not a quality: "
        "methods that measure something else (correctness, weights, information) may differ from "
        "it with good reason. `random` has one row a seed. Seconds are for the whole network.",
        "",
        "| method | all layers together | mean within a layer | distinct values | images | CPU s |",
        "|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {row.method} | {cell(row.together)} | {cell(row.by_layer)} | {row.distinct} | "
        f"{row.n_images} | {row.seconds:.1f} |"
        for row in rows
    ]
    return "\n".join([*lines, "", provenance(), ""])


def main() -> None:
    rows = measure()
    n_units = len(inner(cp.score(resnet20(), images(1), "l1").frame))
    (RESULTS / "methods_resnet20.md").write_text(report(rows, n_units))


if __name__ == "__main__":
    main()
