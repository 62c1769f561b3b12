"""What was lost under shifts: curves, prune potentials, excess errors, the guideline."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import pandas as pd

from causalprune.errors import DataError, InvalidArgumentError
from causalprune.experiments.study_measures import (
    ALL_METHODS,
    LEAST,
    MEAN,
    NOMINAL,
    StudyPotentials,
    errors_of_trials,
    excess_trends_of_trials,
    potentials_of_trials,
)
from causalprune.measures import prune_potentials, recommend
from causalprune.reports import figures
from causalprune.reports.effect_figures import heat_map
from causalprune.reports.numbers import count, points, share
from causalprune.reports.sources import Source
from causalprune.reports.style import Drawing

PLAIN = "plain images"
_KEYS = ["architecture", "dataset", "method", "checkpoint"]


@dataclass(frozen=True)
class Losses:
    """What pruning cost one network and data set under shifts.

    Attributes
    ----------
    place : str
    method : str
        Whose curves are drawn.
    curves : Drawing
    potentials : Drawing or None
    sentences : tuple of str
        What potentials and excess errors say.
    guideline : tuple of str
        The recommendation and its reasons; empty where it could not be made.
    problem : str
        Why there are no potentials; empty where there are.
    """

    place: str
    method: str
    curves: Drawing
    potentials: Drawing | None
    sentences: tuple[str, ...]
    guideline: tuple[str, ...]
    problem: str = ""


def shift_name(shift: str) -> str:
    """Name a shift as a reader would.

    Examples
    --------
    >>> shift_name("none"), shift_name("gaussian_noise:3"), shift_name("noise:0.2")
    ('plain images', 'gaussian noise 3', 'uniform noise 0.2')
    """
    if shift == NOMINAL:
        return PLAIN
    name, _, severity = shift.partition(":")
    name = "uniform noise" if name == "noise" else name.replace("_", " ")
    return f"{name} {severity}".strip()


def losses(source: Source, place: str, method: str) -> Losses | None:
    """Compute and draw what shifts cost the networks of a place; None without shifts."""
    if source.shifts.empty:
        return None
    own = source.shifts.loc[source.shifts["place"] == place]
    shifts = [NOMINAL, *(s for s in dict.fromkeys(own["shift"]) if s != NOMINAL)]
    if len(shifts) < 2 or NOMINAL not in set(own["shift"]):
        return None
    order = own["shift"].map({shift: k for k, shift in enumerate(shifts)})
    own = own.iloc[order.argsort(kind="stable")].reset_index(drop=True)
    curves = figures.shift_curve(own, method, [shift_name(shift) for shift in shifts])
    trials, left_out = _comparable(own)
    drawn: Drawing | None = None
    sentences: list[str] = []
    guideline: tuple[str, ...] = ()
    problem = ""
    try:
        if trials.empty:
            raise DataError("no network of this table has both")
        judged = method if method in set(trials["method"]) else str(trials["method"].iloc[0])
        found = potentials_of_trials(trials)
        drawn = _potential_map(found)
        sentences += _of_potentials(found, judged)
        trend = excess_trends_of_trials(trials).set_index("method")
        sentences.append(_of_excess(trend.loc[judged].to_dict(), judged))
        guideline = _guideline(trials, judged)
    except (DataError, InvalidArgumentError) as error:
        problem = f"Prune potentials need networks at ratio 0 and above, by one method: {error}."
    if left_out and not problem:
        sentences.append(
            f"{count(left_out, 'network')} (one a method) without a trial at ratio 0, or with no "
            "other, stand in the curves but not in the potentials."
        )
    return Losses(place, method, curves, drawn, tuple(sentences), guideline, problem)


def _comparable(own: pd.DataFrame) -> tuple[pd.DataFrame, int]:
    """Keep networks with a trial at ratio 0 and one above, and count the others."""
    trials = own.copy()
    for name in ("architecture", "dataset"):
        if name not in trials:
            trials[name] = "network"
    trials["status"] = "ok"
    groups = trials.groupby(_KEYS, sort=False)["ratio"]
    whole = (groups.transform("min") == 0) & (groups.transform("max") > 0)
    return trials.loc[whole], int(trials.loc[~whole].groupby(_KEYS).ngroups)


def _potential_map(found: StudyPotentials) -> Drawing:
    summary = found.summary.loc[found.summary["shift"] != LEAST]
    wide = summary.pivot(index="method", columns="shift", values="mean")
    methods = list(dict.fromkeys(summary["method"]))
    shifts = list(dict.fromkeys(summary["shift"]))
    wide = wide.reindex(index=methods, columns=shifts)
    texts = [
        ["" if math.isnan(v) else f"{100 * v:.0f}" for v in row] for row in wide.to_numpy(float)
    ]
    names = [MEAN if shift == MEAN else shift_name(shift) for shift in shifts]
    points_allowed = f"{100 * found.delta:g} points"
    svg = heat_map(
        methods,
        names,
        wide.to_numpy(float),
        texts,
        title=f"Prune potential in percent: removable for at most {points_allowed} of accuracy",
        description="; ".join(
            f"{method}: {', '.join(f'{n} {t}' for n, t in zip(names, texts[k], strict=True) if t)}"
            for k, method in enumerate(methods)
        ),
    )
    rows = tuple(
        (
            str(item["method"]),
            MEAN if item["shift"] == MEAN else shift_name(str(item["shift"])),
            share(item["mean"]),
            _between(item["low"], item["high"]),
            _between(item["fall_low"], item["fall_high"], item["fall"]),
            str(int(item["n"])),
        )
        for item in summary.to_dict("records")
    )
    columns = ("method", "images", "potential", "95 % interval", "fall from plain images (points)",
               "networks")  # fmt: skip
    return Drawing(svg, columns, rows)


def _between(low: float, high: float, value: float | None = None) -> str:
    if value is None:
        return f"{share(low)} to {share(high)}" if math.isfinite(low) else ""
    if not math.isfinite(value):
        return ""
    inside = f" ({points(low, 0)} to {points(high, 0)})" if math.isfinite(low) else ""
    return f"{points(value, 0)}{inside}"


def _less(fall: float) -> str:
    return f"{points(abs(fall))} points {'less' if fall >= 0 else 'more'}"


def _of_potentials(found: StudyPotentials, method: str) -> list[str]:
    summary = found.summary
    name = ALL_METHODS if ALL_METHODS in set(summary["method"]) else method
    own = {
        str(row["shift"]): row for row in summary.loc[summary["method"] == name].to_dict("records")
    }
    who = "Averaged over the methods" if name == ALL_METHODS else f"By “{name}”"
    told = []
    if NOMINAL in own and MEAN in own:
        plain, mean = own[NOMINAL]["mean"], own[MEAN]
        fall, low, high = (float(mean[key]) for key in ("fall", "fall_low", "fall_high"))
        sure = ""
        if math.isfinite(low):
            told_from_none = "" if low > 0 or high < 0 else ", not to be told from none"
            ends = (low, high) if fall >= 0 else (-high, -low)
            sure = f" (95 % interval {points(ends[0])} to {points(ends[1])}{told_from_none})"
        told.append(
            f"{who}, {share(float(plain))} of the parameters could go for at most "
            f"{100 * found.delta:g} points of accuracy on plain images, and "
            f"{share(float(mean['mean']))} on average under the shifts: "
            f"{_less(fall)}{sure}."
        )
    for row in found.weights_minus_filters.to_dict("records"):
        if row["shift"] == NOMINAL and math.isfinite(row["mean"]):
            more = "further" if row["mean"] > 0 else "less far"
            interval = (
                f" (95 % interval {points(row['low'])} to {points(row['high'])})"
                if math.isfinite(row["low"])
                else ""
            )
            told.append(
                f"Methods that remove single weights go {more} than those that remove whole units: "
                f"by {points(abs(row['mean']))} points of the parameters{interval}."
            )
    return told


def _of_excess(trend: dict[Any, Any], method: str) -> str:
    value, low, high = (float(trend[key]) for key in ("slope", "low", "high"))
    if not math.isfinite(low):
        verdict = "from one network, so without an interval"
    elif low > 0:
        verdict = "pruning costs more under the shifts than on plain images"
    elif high < 0:
        verdict = "pruning costs less under the shifts than on plain images"
    else:
        verdict = "this may be chance"
    between = f", {points(low)} to {points(high)}" if math.isfinite(low) else ""
    return (
        f"Excess error: with every 10 % of the parameters that “{method}” removes, the shifts add "
        f"{points(value / 10, 2)} points of error to what they cost the whole network (slope "
        f"{points(value)}{between} for everything): {verdict}."
    )


def _guideline(trials: pd.DataFrame, method: str) -> tuple[str, ...]:
    errors = errors_of_trials(trials.loc[trials["method"] == method])
    errors["distribution"] = errors["distribution"].map(shift_name)
    known = recommend(prune_potentials(errors), [], unexpected_shifts=False, nominal=PLAIN)
    first, *reasons = known.reasons
    safe = (
        f"For “{method}” that is up to {share(known.ratio)}, the smallest prune potential found."
        if known.ratio > 0
        else f"But with “{method}” some network lost too much at every ratio tried, plain or under "
        "a shift: by these figures it should not be pruned this way."
    )
    return (
        f"If the shifts tried here are all that can occur: {_lower(first)} {safe}",
        "If other shifts may occur, as they may in most uses: do not prune on the strength of this "
        "table. What pruning costs there cannot be told beforehand.",
        *reasons,
    )


def _lower(sentence: str) -> str:
    return sentence[0].lower() + sentence[1:]
