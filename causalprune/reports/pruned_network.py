"""The folder that ``causalprune prune`` writes, as a report reads and tells it; without torch."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from causalprune.errors import RecordError
from causalprune.experiments.records import read_json
from causalprune.reports import figures
from causalprune.reports.effect_figures import shares_by_group
from causalprune.reports.names import COUNTED, network_name
from causalprune.reports.numbers import KIB, count, points, share, signed
from causalprune.reports.style import Drawing

SUMMARY, PLAN, TRACE = "summary.json", "plan.json", "trace.json"
SIZES = (
    ("parameters", "parameters", 1.0, 0),
    ("macs", "MACs of one image", 1.0, 0),
    ("bytes", "weights (KiB)", KIB, 1),
    ("activation_bytes", "activations (KiB)", KIB, 1),
)


@dataclass(frozen=True)
class PrunedNetwork:
    """A pruned network beside the one it came from.

    `summary`, `plan` and `trace` are the JSON objects of the folder; `trace` is empty where a
    finished plan was applied.
    """

    summary: Mapping[str, Any]
    plan: Mapping[str, Any]
    trace: Mapping[str, Any]

    @property
    def name(self) -> str:
        """What the network is called."""
        return network_name(self.summary.get("network") or "The network")


def is_pruned_folder(path: Path) -> bool:
    """Whether a path is the folder of a pruned network."""
    return (path / SUMMARY).is_file() and (path / PLAN).is_file()


def read_pruned(folder: Path) -> PrunedNetwork:
    """Read summary, plan and trace.

    Raises
    ------
    RecordError
        One of them is broken.
    """
    trace = read_json(folder / TRACE) if (folder / TRACE).is_file() else {}
    found = PrunedNetwork(read_json(folder / SUMMARY), read_json(folder / PLAN), trace)
    try:
        _sizes(found), group_rows(found), _steps(found)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise RecordError(f"{folder}: not the folder of a pruned network ({error!r})") from error
    return found


def headline(pruned: PrunedNetwork) -> str:
    """Say the main result in one sentence."""
    before, after = _sizes(pruned)
    gone = share(1 - after["parameters"] / before["parameters"])
    change = pruned.summary.get("change")
    if not change:
        return f"{pruned.name} lost {gone} of its parameters"
    value, low, high = (float(change[key]) for key in ("value", "low", "high"))
    if low <= 0 <= high:
        price = "without a loss of accuracy that could be told from none"
    else:
        word = "for" if value < 0 else "and gained"
        price = f"{word} {points(abs(value))} points of accuracy"
    return f"{pruned.name} lost {gone} of its parameters {price}"


def lead(pruned: PrunedNetwork) -> list[str]:
    """Say what was done and what it did."""
    summary, (before, after) = pruned.summary, _sizes(pruned)
    units = sum(row["units"] - row["kept"] for row in pruned.plan["table"])
    method = summary.get("method") or "a plan"
    of = str(summary.get("of", "parameters"))
    told = [
        f"{count(units, 'unit')} were taken out, ranked by “{method}”: "
        f"{share(float(summary['achieved_ratio']), 1)} of {COUNTED.get(of, of)}"
        + (f" of the {share(float(summary['ratio']), 1)} asked for" if summary.get("ratio") else "")
        + f". Multiply-accumulates fell by {share(1 - after['macs'] / before['macs'])}."
    ]
    change, accuracy = summary.get("change"), before.get("accuracy")
    if change and accuracy:
        told.append(
            f"On {int(change['n']):,} test images the accuracy went from "
            f"{share(float(accuracy['value']), 1)} to "
            f"{share(float(after['accuracy']['value']), 1)}: a change of "
            f"{points(float(change['value']), 2)} points (95 % interval "
            f"{points(float(change['low']), 2)} to {points(float(change['high']), 2)}, of the "
            "differences image by image)."
        )
    else:
        told.append("No test images were given, so what this cost in accuracy is not known.")
    return told


def doubts(pruned: PrunedNetwork) -> list[str]:
    """Say what the numbers do not show."""
    found = []
    if not pruned.summary.get("reached", True):
        stopped = pruned.summary.get("stopped") or "no more units could go"
        found.append(f"The target was not reached: {stopped}.")
    found.append("This is one network: another, trained from another seed, may lose more or less.")
    if pruned.summary.get("change"):
        found.append("Accuracy is of plain test images; shifted images were not tried.")
    found.append("Latency is of one machine and one image at a time.")
    return found


def comparison(pruned: PrunedNetwork) -> list[tuple[str, str, str, str]]:
    """Before, after and change of size, time and accuracy."""
    before, after = _sizes(pruned)
    rows = []
    for key, label, unit, digits in SIZES:
        old, new = float(before[key]) / unit, float(after[key]) / unit
        rows.append((label, signed(old, digits), signed(new, digits), _change(old, new)))
    old, new = (float(side["latency"]["median_ms"]) for side in (before, after))
    rows.append(("latency of one image (ms)", f"{old:.3g}", f"{new:.3g}", _change(old, new)))
    change = pruned.summary.get("change")
    if change and before.get("accuracy"):
        was, now = (_accuracy(side["accuracy"]) for side in (before, after))
        rows.append(("accuracy", was, now, f"{points(float(change['value']), 2)} points"))
    return rows


def _accuracy(found: Mapping[str, Any]) -> str:
    value, low, high = (float(found[key]) for key in ("value", "low", "high"))
    return f"{share(value, 1)} ({points(low)} to {points(high)})"


def step_figure(pruned: PrunedNetwork) -> Drawing | None:
    """Draw the run step by step; None without held-out accuracies."""
    steps = _steps(pruned)
    if steps.empty or steps["accuracy"].isna().all():
        return None
    before = pruned.trace.get("accuracy")
    return figures.step_curve(steps.dropna(subset=["accuracy"]), before, "MACs")


def group_figure(pruned: PrunedNetwork) -> Drawing | None:
    """Draw what each group lost; None where nothing went."""
    rows = group_rows(pruned)
    return shares_by_group(rows) if any(kept < units for _, units, kept in rows) else None


def group_rows(pruned: PrunedNetwork) -> list[tuple[str, int, int]]:
    """Group, its units, and how many stay."""
    return [
        (str(row["group"]), int(row["units"]), int(row["kept"])) for row in pruned.plan["table"]
    ]


def _sizes(pruned: PrunedNetwork) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
    before, after = pruned.summary["before"], pruned.summary["after"]
    for side in (before, after):
        float(side["parameters"]), float(side["macs"]), float(side["latency"]["median_ms"])
    return before, after


def _steps(pruned: PrunedNetwork) -> pd.DataFrame:
    macs = float(pruned.summary["before"]["macs"])
    rows = [
        {
            "step": number,
            "verdict": step["verdict"],
            "units": len(step["removed"]),
            "gone": 100 * (1 - float(step["footprint"]["macs"]) / macs),
            "accuracy": math.nan if step["accuracy"] is None else 100 * float(step["accuracy"]),
        }
        for number, step in enumerate(pruned.trace.get("steps", ()))
    ]
    return pd.DataFrame(rows, columns=["step", "verdict", "units", "gone", "accuracy"])


def _change(old: float, new: float) -> str:
    return f"{signed(100 * (new / old - 1), 1)} %" if old else signed(new - old, 1)
