"""The tables of a report: results by method and ratio, agreement, settings, limits."""

from __future__ import annotations

import json
import math
import shlex
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from causalprune.analysis import AnalysisResult
from causalprune.analysis.wording import DASH
from causalprune.experiments.class_rows import class_counts
from causalprune.reports.names import place_name
from causalprune.reports.numbers import KIB, half_width, points, share, signed
from causalprune.reports.score_tables import ScoreTable
from causalprune.reports.sources import Source

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
                # Effects on the loss and on a logit have opposite signs.
                "signed": _correlation(both, "effect", ranks=True)
                if table.outcome == other.outcome
                else DASH,
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
    if config.get("explain") is not None:
        words.append("--explain" if config["explain"] else "--no-explain")
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
    if "n_test" in trials and not trials.empty and trials["n_test"].notna().any():
        images = int(trials["n_test"].min())
        found.append(
            f"{images:,} test images: one image is {100 / images:.2g} points, so smaller "
            "differences cannot be seen in a single trial."
        )
    if "latency_ms" in trials and not trials.empty and trials["latency_ms"].notna().any():
        found.append(
            "Latency is of one machine, batch size and thread count; parameters and MACs are exact."
        )
    if "output_difference" in trials and trials["output_difference"].notna().any():
        found.append(
            "The largest difference between a pruned network's outputs and those of the same "
            f"network with masked units was {trials['output_difference'].max():.1e}."
        )
    if not trials.empty and source.shifts.empty:
        found.append(
            "No shifted images were tried, so what pruning costs under other conditions than those "
            "of the test images is not known."
        )
    told = len(set(class_counts(trials)["row"])) if not trials.empty else 0
    if not trials.empty and not told:
        found.append(
            "Losses are over all test images together: these records were made before the run "
            "table had accuracies by class (its version 3), so they do not say which classes paid."
        )
    elif told < len(trials):
        found.append(
            f"{len(trials) - told} of {len(trials)} trials were recorded without accuracies by "
            "class and are in nothing that is said of classes."
        )
    found.append(
        "A method's result here is for this network, data set and retraining; another may rank "
        "differently."
    )
    return [*found, *source.problems]


def limits_of_scores(scores: Sequence[ScoreTable]) -> list[str]:
    """Say what scores do not show."""
    found = [
        "Units are cut off one at a time: several together may matter more, or less, than their "
        "sum.",
        "Effects are of these images and these weights.",
    ]
    return found + [note for table in scores for note in table.notes]


def study_settings(study: Mapping[str, Any]) -> list[tuple[str, str]]:
    """List a study's design, and each of its blocks on one line."""
    blocks = study.get("blocks", ())
    rows = settings({key: value for key, value in study.items() if key != "blocks"})
    for block in blocks:
        name = place_name(block.get("network"), block.get("data"))
        rest = {k: v for k, v in block.items() if k not in ("network", "data")}
        told = "; ".join(f"{key} {text}" for key, text in settings(rest) if text)
        rows.append((name, told))
    return rows


def versions(results: Sequence[AnalysisResult]) -> list[tuple[str, str]]:
    """List what computed the analyses and this page, and the seeds."""
    from importlib.metadata import version

    rows = [("causalprune", version("causalprune"))]
    for result in results:
        rows += [(str(name), str(number)) for name, number in result.versions.items()]
    seeds = sorted({result.seed for result in results})
    if seeds:
        rows.append(("seed of the analysis", ", ".join(map(str, seeds))))
    return list(dict.fromkeys(rows))


def layer_shares(trials: pd.DataFrame) -> dict[int, dict[str, float]]:
    """Part of its weights that each layer lost, by row of the table that says so."""
    found = {}
    if "achieved_ratio_by_layer" not in trials:
        return {}
    for index, text in trials["achieved_ratio_by_layer"].items():
        if not isinstance(text, str) or not text:
            continue
        try:
            parts = {str(k): float(v) for k, v in json.loads(text).items()}
        except (ValueError, TypeError, AttributeError):
            continue
        found[int(str(index))] = parts
    return found
