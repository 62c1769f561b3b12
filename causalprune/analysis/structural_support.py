"""What a table can be asked: known categories, supported ratios, sizes; and what is refused.

dowhy.gcm answers any question, do(machine="unseen") included. Here a question is checked
against the trials before it reaches the model.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from causalprune.analysis.structural_model import CATEGORIES, COMPUTED, NUMBERS, OUTCOMES, SIZES
from causalprune.errors import InvalidArgumentError, UnknownNameError

__all__: list[str] = []

SAME_RATIO = 1e-9
# Scales of what a straight line misses, of its rise, and of rounding; held-out trials set factors.
LINE_SHARE, LEAST_SHARE = 0.1, 1e-4


@dataclass(frozen=True)
class Sizes:
    """Parameters, MACs and achieved ratio of a cell, from trials of its architecture alone.

    Attributes
    ----------
    values : Mapping[str, float]
        By column; NaN where no trial tells.
    source : str
        Which trials, in words.
    exact : bool
        Whether they are recorded sizes of this very cell, or all networks there have the same.
    deviation : Mapping[str, float]
        By column: standard deviation of networks around them; 0 where exact.
    computed : tuple of float
        The memory there, and how far it may be off; NaN where no trial tells.
    """

    values: Mapping[str, float]
    source: str
    exact: bool
    deviation: Mapping[str, float]
    computed: tuple[float, float] = (math.nan, math.nan)

    def columns(self) -> dict[str, float]:
        """Return values and deviations as columns of a cell."""
        around = {deviation_of(name): value for name, value in self.deviation.items()}
        value, deviation = self.computed
        return {**self.values, **around, COMPUTED: value, deviation_of(COMPUTED): deviation}


def deviation_of(size: str) -> str:
    """Return the name of the column that tells how much networks differ in a size."""
    return f"{size} deviation"


@dataclass(frozen=True)
class Question:
    """A question that the table can be asked.

    Attributes
    ----------
    cell : Mapping[str, Any]
        The design of the trial asked for: categories as text, numbers.
    checkpoints : tuple of str
        The network, or those of the architecture if none was named.
    named : bool
        Whether one network was named.
    sizes : Sizes
        What pruning leaves there.
    factual : Mapping[str, Any]
        The nearest trial of the same network: where the question starts from.
    observed : Mapping[str, float]
        Outcomes of the cell where it was run; empty otherwise.
    support : str
        What the method was tried at on this architecture, in words.
    """

    cell: Mapping[str, Any]
    checkpoints: tuple[str, ...]
    named: bool
    sizes: Sizes
    factual: Mapping[str, Any]
    observed: Mapping[str, float]
    support: str


def ask(
    frame: pd.DataFrame,
    *,
    network: str | None,
    ratio: float | None,
    method: str | None,
    machine: str | None,
    dataset: str | None,
    shift: str | None,
    checkpoint: object | None,
) -> Question:
    """Check a question against the trials, fill in what it leaves open, or refuse it.

    Raises
    ------
    UnknownNameError
        A network, data set, method, machine, shift or checkpoint that no trial has; the known
        ones are listed.
    InvalidArgumentError
        Nothing is asked, something must be said, or the ratio is outside the trials' support.
    """
    if ratio is None and method is None and machine is None and shift is None:
        raise InvalidArgumentError(
            "ratio, method, machine, shift: a question changes at least one of them, got none"
        )
    known_machine(frame, machine)
    rows = _narrow(frame, "architecture", "network", network)
    rows = _narrow(rows, "dataset", "dataset", dataset)
    where = _name(rows)
    own, checkpoints, named = _networks(rows, checkpoint, where)
    cell: dict[str, Any] = {
        name: str(rows[name].iloc[0]) for name in ("architecture", "dataset") if name in rows
    }
    cell |= _category(rows, own, "shift", shift, where, usual="none")
    rows, own = _at(rows, cell, "shift"), _at(own, cell, "shift")
    cell |= _category(rows, own, "method", method, where)
    cell |= _machine(frame, own, machine, where)
    by = f" by {cell['method']}" if "method" in cell else ""
    cell["ratio"] = _ratio(_at(rows, cell, "method"), own, ratio, f"{where}{by}")
    factual = _nearest(own, cell)
    cell |= {name: factual[name] for name in NUMBERS if name in factual and name != "ratio"}
    observed = _observed(own, cell) if named else {}
    sizes = sizes_of(frame, cell, checkpoints if named else ())
    return Question(cell, checkpoints, named, sizes, factual, observed, _support(rows, cell, where))


def known_machine(frame: pd.DataFrame, machine: str | None) -> None:
    """Refuse a machine that no trial ran on."""
    if machine is not None:
        _narrow(frame, "machine", "machine", machine)


def sizes_of(frame: pd.DataFrame, cell: Mapping[str, Any], checkpoints: tuple[str, ...]) -> Sizes:
    """Return the sizes of a cell from trials of its architecture, data set and method.

    In this order: the network's own trials at this ratio; those of other networks at this
    ratio (their mean); straight lines between the network's own trials at the ratios around;
    straight lines between the means over its architecture.
    """
    columns = [name for name in SIZES if name in frame and frame[name].notna().all()]
    rows = frame
    for name in ("architecture", "dataset", "method"):
        rows = _at(rows, cell, name)
    own = rows[rows["checkpoint"].astype(str).isin(checkpoints)]
    ratio = float(cell["ratio"])
    for group, whose in ((own, "this network's own trial"), (rows, "")):
        here = group[(group["ratio"] - ratio).abs() < SAME_RATIO]
        if len(here):
            values = {name: float(here[name].mean()) for name in columns}
            spread = max((_relative_spread(here[name]) for name in columns), default=0.0)
            memory = _memory(here, rows, cell)
            count = here["checkpoint"].nunique()
            source = whose or f"{count} networks of this architecture at this method and ratio"
            if spread > 0:
                source += f" (their mean; they differ by up to {100 * spread:.2g} %)"
            around = dict.fromkeys(columns, 0.0) if whose or not spread else _around(rows, cell)
            deviation = {name: around[name] for name in columns}
            return Sizes(values, source, spread == 0, deviation, memory)
    for group, whose in ((own, "this network's own trials"), (rows, "trials of this architecture")):
        levels = np.unique(group["ratio"].to_numpy(dtype=float))
        if len(levels) > 1 and levels[0] < ratio < levels[-1]:
            means = group.groupby("ratio")[columns].mean()
            values = {n: float(np.interp(ratio, levels, means[n].to_numpy())) for n in columns}
            position = int(np.searchsorted(levels, ratio))
            low, high = levels[position - 1], levels[position]
            source = f"a straight line between {whose} at ratios {low:g} and {high:g}"
            around = _around(rows, cell)
            memory = _memory(group[group["ratio"].isin((low, high))], rows, cell)
            deviation = {name: around[name] for name in columns}
            return Sizes(values, source, False, deviation, memory)
    nothing = dict.fromkeys(columns, math.nan)
    return Sizes(nothing, "no trial tells", False, nothing)


def _memory(told: pd.DataFrame, rows: pd.DataFrame, cell: Mapping[str, Any]) -> tuple[float, float]:
    """Return the memory at a cell's ratio from trials at one or two ratios, and its deviation."""
    if COMPUTED not in rows or not rows[COMPUTED].notna().all():
        return math.nan, math.nan
    means = told.groupby("ratio")[COMPUTED].mean()
    value = float(np.interp(cell["ratio"], means.index.to_numpy(dtype=float), means.to_numpy()))
    rise = float(means.max() - means.min())
    around = _around(rows, cell, (COMPUTED,))[COMPUTED]
    return value, math.hypot(around, LINE_SHARE * rise, LEAST_SHARE * value)


def _around(
    rows: pd.DataFrame, cell: Mapping[str, Any], names: Sequence[str] = SIZES
) -> dict[str, float]:
    """Return the standard deviation of sizes between networks, pooled over the ratios.

    Pooled, because two or three networks at one ratio may agree by chance; ratios at which all
    have the same size, as where nothing is pruned, are left out unless that is asked for.
    """
    found = {}
    for name in (n for n in names if n in rows):
        groups = rows.groupby("ratio")[name]
        variances, free = groups.var(ddof=1).fillna(0.0), groups.count() - 1
        same = np.abs(variances.index.to_numpy(dtype=float) - cell["ratio"]) < SAME_RATIO
        vary = (variances > 0).to_numpy()
        constant = bool((same & ~vary & (free > 0).to_numpy()).any())
        total = float(free[vary].sum())
        pooled = float((variances * free)[vary].sum()) / total if total else 0.0
        found[name] = 0.0 if constant else math.sqrt(pooled)
    return found


def _relative_spread(values: pd.Series[float]) -> float:
    span = float(values.max() - values.min())
    return span / max(abs(float(values.mean())), 1e-12) if span else 0.0


def _narrow(frame: pd.DataFrame, column: str, argument: str, value: object | None) -> pd.DataFrame:
    if column not in frame:
        if value is None:
            return frame
        raise InvalidArgumentError(
            f"{argument}: expected None, as the table has no column {column!r}, got {value!r}"
        )
    known = sorted(frame[column].astype(str).unique())
    if value is None:
        if len(known) == 1:
            return frame
        raise InvalidArgumentError(
            f"{argument}: the trials have several, say which: {', '.join(known)}"
        )
    if str(value) not in known:
        raise UnknownNameError(argument, str(value), known)
    return frame[frame[column].astype(str) == str(value)]


def _at(frame: pd.DataFrame, cell: Mapping[str, Any], column: str) -> pd.DataFrame:
    if column not in frame or column not in cell:
        return frame
    return frame.loc[frame[column].astype(str) == str(cell[column])]


def _name(rows: pd.DataFrame) -> str:
    named = [str(rows[c].iloc[0]) for c in ("architecture", "dataset") if c in rows]
    return " on ".join(named) or "the network"


def _networks(
    rows: pd.DataFrame, checkpoint: object | None, where: str
) -> tuple[pd.DataFrame, tuple[str, ...], bool]:
    # A table of several architectures names a checkpoint by all of them: "lenet5/digits/0".
    full = rows["checkpoint"].astype(str)
    short = full.str.rpartition("/")[2]
    if checkpoint is None:
        known = tuple(sorted(full.unique()))
        return rows, known, len(known) == 1
    own = rows[(short == str(checkpoint)) | (full == str(checkpoint))]
    if own.empty:
        raise UnknownNameError(f"checkpoint of {where}", str(checkpoint), short.unique())
    return own, (str(own["checkpoint"].iloc[0]),), True


def _category(
    rows: pd.DataFrame,
    own: pd.DataFrame,
    column: str,
    value: str | None,
    where: str,
    usual: str | None = None,
) -> dict[str, str]:
    if column not in rows:
        if value is None:
            return {}
        raise InvalidArgumentError(
            f"{column}: expected None, as the table has no column {column!r}, got {value!r}"
        )
    known = sorted(rows[column].astype(str).unique())
    if value is None:
        mine = sorted(own[column].astype(str).unique())
        value = usual if usual in mine else mine[0] if len(mine) == 1 else None
        if value is None:
            raise InvalidArgumentError(
                f"{column}: {where} has trials with several, say which: {', '.join(mine)}"
            )
    if str(value) not in known:
        raise UnknownNameError(f"{column} of {where}", str(value), known)
    return {column: str(value)}


def _machine(
    frame: pd.DataFrame, own: pd.DataFrame, machine: str | None, where: str
) -> dict[str, str]:
    if "machine" not in frame:
        return {}
    seen = own["machine"].astype(str)
    if machine is None:
        return {"machine": str(seen.mode().iloc[0])}
    if str(machine) not in set(seen):
        on_it = frame[frame["machine"].astype(str) == str(machine)]
        if "architecture" in frame:
            others = frame[frame["machine"].astype(str).isin(seen)]
            shared = set(on_it["architecture"].astype(str)) & set(
                others["architecture"].astype(str)
            )
        else:
            shared = {where}
        if not shared:
            raise InvalidArgumentError(
                f"machine: no network ran both on {machine!r} and on {', '.join(sorted(set(seen)))}"
                f", where {where} ran, so nothing tells how the two compare"
            )
    return {"machine": str(machine)}


def _ratio(rows: pd.DataFrame, own: pd.DataFrame, ratio: float | None, where: str) -> float:
    if ratio is None:
        levels = np.unique(own["ratio"].to_numpy(dtype=float))
        if len(levels) > 1:
            raise InvalidArgumentError(
                "ratio: the network has trials at several, say which: "
                f"{', '.join(f'{level:g}' for level in levels)}"
            )
        ratio = float(levels[0])
    if isinstance(ratio, bool) or not isinstance(ratio, (int, float, np.number)):
        raise InvalidArgumentError(f"ratio: expected a number, got {ratio!r}")
    low, high = float(rows["ratio"].min()), float(rows["ratio"].max())
    if not low - SAME_RATIO <= ratio <= high + SAME_RATIO:
        raise InvalidArgumentError(
            f"ratio: expected {low:g} to {high:g}, the support of {where} in this table, "
            f"got {ratio:g}"
        )
    return float(ratio)


def _nearest(own: pd.DataFrame, cell: Mapping[str, Any]) -> dict[str, Any]:
    keys = pd.DataFrame({"distance": (own["ratio"] - cell["ratio"]).abs()}, index=own.index)
    for name in ("method", "machine"):
        keys[name] = own[name].astype(str) != cell[name] if name in own else False
    keys["trial"] = own["trial"] if "trial" in own else range(len(own))
    first = keys.sort_values(["method", "distance", "machine", "trial"]).index[0]
    shown = ("trial", "checkpoint", *CATEGORIES, *NUMBERS, *SIZES, *OUTCOMES, "accuracy_before")
    return {name: _plain(own.loc[first, name]) for name in shown if name in own}


def _plain(value: Any) -> Any:
    if isinstance(value, np.generic):
        value = value.item()
    return None if isinstance(value, float) and math.isnan(value) else value


def _observed(own: pd.DataFrame, cell: Mapping[str, Any]) -> dict[str, float]:
    rows = _at(_at(own, cell, "method"), cell, "machine")
    rows = rows[(rows["ratio"] - cell["ratio"]).abs() < SAME_RATIO]
    if rows.empty:
        return {}
    found = {name: float(rows[name].mean()) for name in OUTCOMES if name in rows}
    return {name: value for name, value in found.items() if math.isfinite(value)}


def _support(rows: pd.DataFrame, cell: Mapping[str, Any], where: str) -> str:
    own = _at(rows, cell, "method")
    levels = np.unique(own["ratio"].to_numpy(dtype=float))
    count = own["checkpoint"].nunique()
    return (
        f"{cell.get('method', 'pruning')} was tried on {where} at {len(levels)} ratios from "
        f"{levels[0]:g} to {levels[-1]:g} ({len(own)} trials of {count} "
        f"network{'s' if count != 1 else ''})"
    )
