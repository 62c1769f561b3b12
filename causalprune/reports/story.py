"""The words and tables of a report: what happened, in the order a reader asks."""

from __future__ import annotations

import json
import math
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from causalprune.analysis.wording import DASH, MINUS
from causalprune.reports.figures import half_width
from causalprune.reports.sources import ScoreTable, Source

# A loss of accuracy that most people would accept for a smaller network.
ACCEPTABLE_LOSS = 0.01

NETWORK_NAMES = {"lenet5": "LeNet-5", "lenet300": "LeNet-300-100", "debbi": "Debbi"}
KIB = 1024.0

# Keys of a run's configuration that the command line takes one value for.
OPTIONS = {
    "network": "--network",
    "data": "--data",
    "data_root": "--data-root",
    "ratio_of": "--of",
    "outcome": "--outcome",
    "checkpoints": "--checkpoints",
    "epochs": "--epochs",
    "retrain_epochs": "--retrain-epochs",
    "train_limit": "--train-limit",
    "test_limit": "--test-limit",
    "threads": "--threads",
    "device": "--device",
    "seed": "--seed",
}


@dataclass(frozen=True)
class Choice:
    """The method and ratio that the headline is about, with means over checkpoints."""

    method: str
    ratio: float
    rows: pd.DataFrame
    loss: float
    margin: float
    removed: float


@dataclass(frozen=True)
class Tile:
    """One big number."""

    value: str
    label: str
    detail: str = ""


def points(value: float, digits: int = 1) -> str:
    """Return a fraction as percentage points."""
    return signed(100 * value, digits)


def signed(value: float, digits: int) -> str:
    """Return a number with a true minus sign and no negative zero."""
    if not math.isfinite(value):
        return DASH
    text = f"{value:,.{digits}f}"
    return text.lstrip("-") if not float(text.replace(",", "")) else text.replace("-", MINUS)


def share(value: float, digits: int = 0) -> str:
    """Return a fraction in percent."""
    return f"{signed(100 * value, digits)} %" if math.isfinite(value) else DASH


def network_name(source: Source) -> str:
    """Return what the network is called in a sentence."""
    names = (
        sorted(set(source.table["architecture"].dropna())) if "architecture" in source.table else []
    )
    if len(names) != 1:
        return "the networks" if names else "the network"
    return NETWORK_NAMES.get(str(names[0]), str(names[0]))


def best_choice(trials: pd.DataFrame) -> Choice | None:
    """Pick the largest removal whose mean loss is at most one point; None where none is."""
    best: Choice | None = None
    for (method, level), rows in trials.groupby(["method", "ratio"]):
        ratio = float(str(level))
        loss, removed = float(rows["accuracy_loss"].mean()), float(rows["achieved_ratio"].mean())
        if ratio <= 0 or loss > ACCEPTABLE_LOSS or not math.isfinite(removed):
            continue
        found = Choice(str(method), ratio, rows, loss, half_width(rows["accuracy_loss"]), removed)
        # Ties in what was asked for go to the smaller loss.
        if best is None or (found.ratio, -found.loss) > (best.ratio, -best.loss):
            best = found
    return best


def headline(source: Source, choice: Choice | None) -> str:
    """Say the main result in one sentence."""
    name = network_name(source)
    if source.trials.empty:
        return f"No trial on {name} completed"
    if choice is None:
        return f"Every prune ratio tried cost {name} more than one point of accuracy"
    if abs(choice.loss) < 0.0005:
        price = "without losing accuracy"
    elif choice.loss < 0:
        price = f"and gained {points(-choice.loss)} points of accuracy"
    else:
        unsure = math.isfinite(choice.margin) and choice.margin > abs(choice.loss) / 2
        price = f"for {'about ' if unsure else ''}{points(choice.loss)} points of accuracy"
    subject = name if name.startswith(("the ", "LeNet")) else f"The network {name}"
    return (
        f"{subject[0].upper()}{subject[1:]} lost {share(choice.removed)} of its parameters {price}"
    )


def lead(source: Source, choice: Choice | None) -> list[str]:
    """Say how the headline was arrived at and how the methods compare."""
    trials = source.trials
    if trials.empty:
        return [f"All {len(source.table)} trials failed; their errors are listed below."]
    sentences = []
    networks = trials["checkpoint"].nunique()
    plural = "networks trained from different seeds" if networks > 1 else "trained network"
    tested = f" on {int(trials['n_test'].iloc[0])} test images" if "n_test" in trials else ""
    if choice:
        interval = (
            f" (95 % interval {points(choice.loss - choice.margin, 2)} to "
            f"{points(choice.loss + choice.margin, 2)})"
            if math.isfinite(choice.margin)
            else ""
        )
        sentences.append(
            f"With the scoring method “{choice.method}” at a prune ratio of {choice.ratio:g}, the "
            f"mean accuracy loss after retraining was {points(choice.loss, 2)} points{interval}, "
            f"over {networks} {plural}{tested}. It is the largest ratio of any method whose mean "
            "loss stayed within one point, so it is a selected result; the tables below have all."
        )
    compared = _compare_methods(trials)
    if compared:
        sentences.append(compared)
    return sentences


def _compare_methods(trials: pd.DataFrame) -> str:
    methods = list(dict.fromkeys(trials["method"]))
    if len(methods) < 2:
        return ""
    common = set.intersection(*(set(trials.loc[trials["method"] == m, "ratio"]) for m in methods))
    common -= {0.0}
    if not common:
        return ""
    top = max(common)
    losses = trials.loc[trials["ratio"] == top].groupby("method")["accuracy_loss"].mean()
    listed = ", ".join(f"{method} {points(loss)}" for method, loss in losses.sort_values().items())
    return f"At the heaviest common ratio, {top:g}, the mean loss in points was: {listed}."


def tiles(source: Source, choice: Choice | None) -> list[Tile]:
    """Give the big numbers under the headline."""
    trials = source.trials
    if trials.empty:
        return []
    base = trials.loc[trials["ratio"] == trials["ratio"].min()]
    before = float(trials.groupby("checkpoint")["accuracy_before"].first().mean())
    found = [Tile(share(before, 1), "accuracy unpruned", "mean of the networks")]
    if choice is None:
        return found
    after = float(choice.rows["accuracy"].mean())
    detail = f"{choice.method}, ratio {choice.ratio:g}"
    found.append(Tile(share(after, 1), "accuracy pruned and retrained", detail))
    for column, label, unit in (
        ("parameters", "parameters", ""),
        ("macs", "MACs per image", ""),
        ("memory_bytes", "memory", "KiB"),
        ("latency_ms", "latency", "ms"),
    ):
        if column not in trials or choice.rows[column].isna().any() or base[column].isna().any():
            continue
        old, new = float(base[column].mean()), float(choice.rows[column].mean())
        if old <= 0:
            continue
        change = new / old - 1
        value = f"{MINUS if change < 0 else '+'}{abs(100 * change):.0f} %"
        found.append(Tile(value, label, f"{_size(old, unit)} → {_size(new, unit)}"))
    return found


def _size(value: float, unit: str) -> str:
    if unit == "KiB":
        return f"{value / KIB:,.0f} KiB"
    if unit == "ms":
        return f"{value:.3g} ms"
    return f"{value:,.0f}"


def results_table(trials: pd.DataFrame) -> list[dict[str, str]]:
    """One row a method and ratio: means over checkpoints."""
    rows = []
    for (method, ratio), group in trials.groupby(["method", "ratio"]):
        margin = half_width(group["accuracy_loss"])
        loss = points(group["accuracy_loss"].mean(), 2)
        rows.append(
            {
                "method": str(method),
                "ratio": f"{ratio:g}",
                "removed": share(group["achieved_ratio"].mean(), 1),
                "pruned": share(_mean(group, "accuracy_pruned"), 1),
                "accuracy": share(group["accuracy"].mean(), 1),
                "loss": f"{loss} ± {100 * margin:.2f}" if math.isfinite(margin) else loss,
                "parameters": signed(_mean(group, "parameters"), 0),
                "macs": signed(_mean(group, "macs"), 0),
                "memory": signed(_mean(group, "memory_bytes") / KIB, 1),
                "latency": signed(_mean(group, "latency_ms"), 3),
                "n": str(len(group)),
            }
        )
    return rows


def _mean(group: pd.DataFrame, column: str) -> float:
    return float(group[column].mean()) if column in group else math.nan


def agreement(scores: Sequence[ScoreTable]) -> list[dict[str, str]]:
    """Rank and linear correlation of each method's importances with exact ablation."""
    exact = {table.checkpoint: table for table in scores if table.method == "ablation"}
    rows = []
    for table in scores:
        other = exact.get(table.checkpoint)
        if other is None or table.method == "ablation":
            continue
        both = table.frame.merge(other.frame, on=["layer", "unit"], suffixes=("", "_exact"))
        rows.append(
            {
                "checkpoint": table.checkpoint,
                "method": table.method,
                "spearman": _correlation(both, "importance", ranks=True),
                "pearson": _correlation(both, "importance", ranks=False),
                "signed": _correlation(both, "effect", ranks=True),
            }
        )
    return sorted(rows, key=lambda row: (row["method"] != "path", row["method"]))


def _correlation(frame: pd.DataFrame, column: str, *, ranks: bool) -> str:
    rows = frame[[column, f"{column}_exact"]].dropna()
    pair = (rows.rank() if ranks else rows).to_numpy(dtype=float)
    if len(pair) < 3 or np.ptp(pair, axis=0).min() == 0:
        return DASH
    return signed(float(np.corrcoef(pair.T)[0, 1]), 3)


def categories(scores: ScoreTable) -> list[dict[str, str]]:
    """Units of each layer by category."""
    rows = []
    for layer, group in scores.frame.groupby("layer", sort=False):
        counts = group["category"].value_counts()
        rows.append(
            {
                "layer": str(layer),
                "units": str(len(group)),
                **{
                    name: str(counts.get(name, 0))
                    for name in ("critical", "neutral", "detrimental")
                },
            }
        )
    return rows


def failures(source: Source) -> list[dict[str, str]]:
    """One row a failed trial."""
    keys = ("checkpoint", "method", "ratio", "error")
    return [
        {key: "" if pd.isna(row.get(key)) else str(row.get(key)) for key in keys}
        for row in source.failed.to_dict("records")
    ]


def settings(values: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Flatten a JSON object to rows of text."""
    rows = []
    for key, value in values.items():
        if key == "schema" or value is None:
            continue
        if isinstance(value, Mapping):
            rows += [(f"{key}: {inner}", text) for inner, text in settings(value)]
        elif isinstance(value, (list, tuple)):
            rows.append((key, ", ".join(_text(item) for item in value)))
        else:
            rows.append((key, _text(value)))
    return [(key.replace("_", " "), text) for key, text in rows]


def _text(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, (Mapping, list, tuple)):
        return json.dumps(value)
    return str(value)


def command(config: Mapping[str, Any]) -> list[str]:
    """Return the quoted words of the command that repeats the run; none without a configuration."""
    if not config:
        return []
    words = ["causalprune", "run"]
    for key, option in OPTIONS.items():
        if config.get(key) is not None:
            words += [option, str(config[key])]
    for method in config.get("methods", ()):
        words += ["--method", str(method)]
    if config.get("ratios"):
        words += ["--ratios", ",".join(f"{ratio:g}" for ratio in config["ratios"])]
    return [shlex.quote(word) for word in (*words, "--out", "another-run")]


def limits(source: Source) -> list[str]:
    """Say what the numbers do not show."""
    trials = source.trials
    found = []
    networks = trials["checkpoint"].nunique() if not trials.empty else 0
    if 0 < networks < 30:
        word = "network" if networks == 1 else "networks"
        found.append(
            f"{networks} trained {word}: intervals over so few checkpoints are wide and rest on "
            "the assumption that networks differ by normal noise."
        )
    if len(source.failed):
        found.append(
            f"{len(source.failed)} of {len(source.table)} trials failed and are in no figure."
        )
    if "n_test" in trials and not trials.empty:
        images = int(trials["n_test"].min())
        found.append(
            f"{images} test images: one image is {100 / images:.2f} points, so smaller differences "
            "cannot be seen in a single trial."
        )
    if "latency_ms" in trials and not trials.empty:
        found.append(
            "Latency is of one machine, batch size and thread count; parameters and MACs are exact."
        )
    if "output_difference" in trials and trials["output_difference"].notna().any():
        found.append(
            "The largest difference between a pruned network's outputs and those of the same "
            f"network with masked units was {trials['output_difference'].max():.1e}."
        )
    found.append(
        "A method's result here is for this network, data set and retraining; another may rank "
        "differently."
    )
    return [*found, *source.problems]
