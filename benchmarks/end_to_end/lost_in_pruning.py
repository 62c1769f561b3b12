"""Prune potential on plain and on corrupted test images, from a study's records.

``causalprune study run benchmarks/end_to_end/lost_in_pruning.yaml --out FOLDER`` runs the study
(MNIST's files in CAUSALPRUNE_DATA or ``data_root``); ``python lost_in_pruning.py FOLDER NAME``
then writes benchmarks/results/NAME.md and NAME.csv, the study's table.
"""

from __future__ import annotations

import sys
from pathlib import Path

import pandas as pd
from resnet20_cifar import RESULTS, provenance

import causalprune as cp
from causalprune.measures import excess_error_trend, excess_errors, prune_potentials

NOMINAL = "none"


def errors_of(frame: pd.DataFrame) -> pd.DataFrame:
    """Errors after retraining, by what was reached; whole networks are retrained as long."""
    return pd.DataFrame(
        {
            "checkpoint": frame["checkpoint"],
            "method": frame["method"],
            "distribution": frame["shift"],
            "prune_ratio": frame["achieved_ratio"].where(frame["ratio"] > 0, 0.0).clip(0, 1),
            "error": 1 - frame["accuracy"],
        }
    )


def rows_of(errors: pd.DataFrame) -> list[str]:
    shifts = [name for name in dict.fromkeys(errors["distribution"]) if name != NOMINAL]
    head = ["method", "nominal", *shifts, "least of all", "rise of the excess error (95 % band)"]
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for method, part in errors.groupby("method", sort=False):
        found = prune_potentials(part)
        cells = [
            f"{100 * row['mean']:.0f} ± {100 * row['sd']:.0f}"
            for row in (found.summary.loc[name] for name in (NOMINAL, *shifts, "minimum"))
        ]
        excess = excess_errors(part, NOMINAL)
        trend = excess_error_trend(
            excess["prune_ratio"], excess["difference"], excess["network"].tolist()
        )
        band = f"{100 * trend.slope:+.1f} ({100 * trend.low:+.1f} to {100 * trend.high:+.1f})"
        lines.append(f"| {method} | " + " | ".join(cells) + f" | {band} |")
    return lines


def main() -> None:
    folder, name = Path(sys.argv[1]), sys.argv[2]
    study = cp.Study.open(folder)
    frame = study.by_shift()
    frame = frame[frame["status"] == "ok"]
    plain = frame[frame["shift"] == NOMINAL]
    before = plain.groupby("checkpoint")["accuracy_before"].first()
    lines = [
        f"# {study.spec.name}",
        "",
        "Prune potential: the largest fraction of the parameters that can go while the test error "
        "rises by half a point at the most over that of the whole network retrained as long; "
        "mean ± sd over networks, in per cent. The last column: points of excess error (mean over "
        "corruptions less that on plain images) that pruning everything would add, by regression "
        "through the origin.",
        provenance(),
        "",
        f"{before.size} networks (plain test accuracy {100 * before.mean():.2f} % ± "
        f"{100 * before.std():.2f}), {len(plain)} trials, ratios "
        f"{', '.join(f'{ratio:g}' for ratio in sorted(set(plain['ratio'])))}, "
        f"{plain['retrain_epochs'].iloc[0]} epochs of retraining, one shot; "
        f"{int(plain['n_test'].iloc[0])} test images.",
        "",
        *rows_of(errors_of(frame)),
    ]
    (RESULTS / f"{name}.md").write_text("\n".join(lines) + "\n")
    study.export(RESULTS / f"{name}.csv")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
