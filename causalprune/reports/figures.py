"""The figures about trials: accuracy, shifts, costs, dose and response."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from causalprune.analysis import AnalysisResult
from causalprune.analysis.wording import is_share, name_of, span, unit_of
from causalprune.reports import style
from causalprune.reports.numbers import half_width, points, share, signed
from causalprune.reports.style import Drawing

COSTS = (
    ("parameters", "parameters", style.ACCENT, "o"),
    ("macs", "MACs", style.WARM, "s"),
    ("memory_bytes", "memory", style.GOOD, "^"),
    ("latency_ms", "latency", style.PURPLE, "D"),
)
WIDTH, HEIGHT = 4.9, 3.5


def prune_curve(trials: pd.DataFrame, column: str, methods: Sequence[str]) -> Drawing:
    """Accuracy against the share of parameters removed, one line and band a method."""
    styles = style.method_style(methods)
    unpruned = 100 * float(trials.groupby("checkpoint")["accuracy_before"].first().mean())
    curves = {method: _curve(trials.loc[trials["method"] == method], column) for method in methods}

    def paint(figure: Any) -> None:
        axes = figure.subplots()
        line = {"color": style.MUTED, "linestyle": (0, (4, 3)), "linewidth": 1.1}
        axes.axhline(unpruned, label=f"unpruned ({unpruned:.1f} %)", **line)
        for method in methods:
            rows = trials.loc[trials["method"] == method]
            colour = styles[method]["color"]
            _dots(axes, 100 * rows["achieved_ratio"], 100 * rows[column], colour)
            _line(axes, curves[method], method, styles[method])
        axes.set_xlabel("parameters removed (%)")
        axes.set_ylabel("test accuracy (%)")
        axes.set_ylim(*_accuracy_limits(trials, [column, "accuracy_before"]))
        axes.set_xlim(-3, 101)
        figure.legend(loc="outside upper left", ncols=3, handlelength=1.6, columnspacing=1.2)

    when = "before" if column == "accuracy_pruned" else "after"
    title = f"Test accuracy {when} retraining against the share of parameters removed, by method"
    svg = style.draw(WIDTH, HEIGHT, paint, title=title, description=_told(curves))
    return Drawing(svg, ("method", "removed", "accuracy", "networks"), _curve_rows(curves))


def shift_curve(shifts: pd.DataFrame, method: str, names: Sequence[str]) -> Drawing:
    """Accuracy of one method's networks on plain images and under each shift."""
    own = shifts.loc[shifts["method"] == method]
    curves = {
        name: _curve(own.loc[own["shift"] == shift], "accuracy")
        for shift, name in zip(dict.fromkeys(shifts["shift"]), names, strict=True)
    }
    looks = [
        {"color": style.INK, "marker": "o", "linewidth": 2.4},
        *(style.layer_style(place) for place in range(len(names) - 1)),
    ]

    def paint(figure: Any) -> None:
        axes = figure.subplots()
        for (name, curve), look in zip(curves.items(), looks, strict=True):
            _line(axes, curve, name, look)
        axes.set_xlabel("parameters removed (%)")
        axes.set_ylabel("test accuracy (%)")
        axes.set_ylim(*_accuracy_limits(own, ["accuracy"]))
        axes.set_xlim(-3, 101)
        figure.legend(loc="outside upper left", ncols=2, handlelength=1.6, columnspacing=1.2)

    title = f"Test accuracy on plain and shifted images against the share removed by {method}"
    svg = style.draw(WIDTH, 3.9, paint, title=title, description=_told(curves))
    return Drawing(svg, ("images", "removed", "accuracy", "networks"), _curve_rows(curves))


def _curve(rows: pd.DataFrame, column: str) -> pd.DataFrame:
    """Means by ratio: removed and value in percent, half the interval, networks."""
    groups = rows.dropna(subset=[column]).groupby("ratio")
    curve = pd.DataFrame(
        {
            "removed": 100 * groups["achieved_ratio"].mean(),
            "value": 100 * groups[column].mean(),
            # An interval of two networks is too wide to tell anything; their dots are there.
            "half": 100
            * groups[column].apply(lambda own: half_width(own) if len(own) > 2 else math.nan),
            "networks": groups["checkpoint"].nunique(),
        }
    )
    return curve.sort_values("removed")


def _line(axes: Any, curve: pd.DataFrame, name: str, look: dict[str, Any]) -> None:
    x, y, half = (curve[key].to_numpy(dtype=float) for key in ("removed", "value", "half"))
    axes.plot(x, y, label=name, **look)
    if np.isfinite(half).any():
        axes.fill_between(x, y - half, y + half, color=look["color"], alpha=0.13, linewidth=0)


def _dots(axes: Any, x: Any, y: Any, colour: str) -> None:
    axes.plot(x, y, linestyle="none", marker=".", markersize=4, alpha=0.4, color=colour)


def _curve_rows(curves: dict[str, pd.DataFrame]) -> tuple[tuple[str, ...], ...]:
    rows = []
    for name, curve in curves.items():
        for item in curve.to_dict("records"):
            half = f" ± {item['half']:.1f}" if math.isfinite(item["half"]) else ""
            accuracy = f"{item['value']:.1f}{half} %"
            rows.append((name, f"{item['removed']:.1f} %", accuracy, str(int(item["networks"]))))
    return tuple(rows)


def _told(curves: dict[str, pd.DataFrame]) -> str:
    ends = [
        f"{name} {curve['value'].iloc[-1]:.1f} % with {curve['removed'].iloc[-1]:.0f} % removed"
        for name, curve in curves.items()
        if len(curve)
    ]
    return f"At the heaviest pruning: {'; '.join(ends)}."


def _accuracy_limits(trials: pd.DataFrame, columns: Sequence[str]) -> tuple[float, float]:
    values = 100 * trials[list(columns)].to_numpy(dtype=float)
    low, high = float(np.nanmin(values)), float(np.nanmax(values))
    room = max(0.5, 0.1 * (high - low))
    return max(-1.0, low - room), min(101.0, high + room)


def cost_curve(trials: pd.DataFrame, method: str) -> Drawing | None:
    """Parameters, MACs, memory and latency in percent of the least pruned network."""
    rows = trials.loc[trials["method"] == method]
    if not (rows["ratio"] == 0).any():
        # Nothing is removed at ratio 0, so it does not matter by which method.
        rows = pd.concat([trials.loc[trials["ratio"] == 0], rows])
    drawn = [cost for cost in COSTS if cost[0] in rows and rows[cost[0]].notna().all()]
    if rows["ratio"].nunique() < 2 or not drawn:
        return None
    # Medians: a trial whose latency was disturbed says nothing about the others.
    medians = rows.groupby("ratio")[[cost[0] for cost in drawn]].median()
    shares = 100 * medians / medians.iloc[0]
    start = 100 * float(medians.index[0])
    least = "the unpruned network" if start == 0 else f"ratio {start:g} %"

    def paint(figure: Any) -> None:
        axes = figure.subplots()
        for column, label, colour, marker in drawn:
            axes.plot(100 * medians.index, shares[column], color=colour, marker=marker, label=label)
        axes.set_xlabel("target prune ratio (%)")
        axes.set_ylabel(f"% of {least}")
        axes.set_ylim(0, max(105.0, axes.get_ylim()[1]))
        figure.legend(loc="outside upper left", ncols=4, handlelength=1.4, columnspacing=1.0)

    last = ", ".join(f"{label} {shares[column].iloc[-1]:.0f} %" for column, label, *_ in drawn)
    svg = style.draw(
        WIDTH,
        HEIGHT,
        paint,
        title=f"What is left of {', '.join(cost[1] for cost in drawn)}, by prune ratio",
        description=f"At ratio {100 * float(medians.index[-1]):g} % of {least}: {last}.",
    )
    rows_told = tuple(
        (f"{100 * float(str(ratio)):g} %", *(f"{values[cost[0]]:.1f} %" for cost in drawn))
        for ratio, values in shares.to_dict("index").items()
    )
    return Drawing(svg, ("ratio", *(cost[1] for cost in drawn)), rows_told)


def dose_curve(result: AnalysisResult) -> Drawing | None:
    """Contrasts with the smallest treatment level and the straight line beside them."""
    usable = [item for item in result.contrasts if not item.reason]
    if not usable:
        return None
    factor = 100.0 if is_share(result.outcome) else 1.0
    unit = unit_of(result.outcome)
    start = usable[0].start

    def paint(figure: Any) -> None:
        axes = figure.subplots()
        ends = np.array([start, *(item.end for item in usable)])
        curve, low, high = (
            factor * np.array([0.0, *(getattr(item, key) for item in usable)])
            for key in ("effect", "low", "high")
        )
        straight = factor * result.estimate / result.step * (ends - start)
        axes.axhline(0, color=style.MUTED, linewidth=0.9)
        line = {"color": style.WARM, "linestyle": (0, (4, 3)), "linewidth": 1.4}
        axes.plot(ends, straight, label="straight line (average)", **line)
        axes.plot(ends, curve, color=style.ACCENT, marker="o", label="by level, 95 % band")
        axes.fill_between(ends, low, high, color=style.ACCENT, alpha=0.13, linewidth=0)
        axes.set_xlabel(
            f"target {result.treatment}" if result.treatment == "ratio" else result.treatment
        )
        suffix = f" ({unit})" if unit else ""
        axes.set_ylabel(f"{name_of(result.outcome)}, difference\nfrom {start:g}{suffix}")
        figure.legend(loc="outside upper left", ncols=2, handlelength=2.2, columnspacing=1.2)

    last = usable[-1]
    interval = span(result.outcome, last.low, last.high)
    svg = style.draw(
        WIDTH,
        HEIGHT,
        paint,
        title=f"Effect of {name_of(result.treatment)} on {name_of(result.outcome)}, level by level",
        description=f"From {start:g} to {last.end:g}: {factor * last.effect:.3g} {unit}, "
        f"95 % interval {interval}.",
    )
    return Drawing(svg)


def step_curve(steps: pd.DataFrame, before: float | None, unit: str) -> Drawing:
    """Held-out accuracy of a pruning run against what is left, kept and reverted steps."""

    def paint(figure: Any) -> None:
        axes = figure.subplots()
        if before is not None:
            line = {"color": style.MUTED, "linestyle": (0, (4, 3)), "linewidth": 1.1}
            axes.axhline(100 * before, label=f"unpruned ({100 * before:.1f} %)", **line)
        looks = (
            ("kept", style.ACCENT, "o", "-"),
            ("retrained", style.GOOD, "^", "none"),
            ("reverted", style.WARM, "X", "none"),
        )
        for verdict, colour, marker, line_style in looks:
            rows = steps.loc[steps["verdict"] == verdict]
            if len(rows):
                axes.plot(rows["gone"], rows["accuracy"], color=colour, marker=marker,
                          linestyle=line_style, label=verdict)  # fmt: skip
        axes.set_xlabel(f"{unit} removed (%)")
        axes.set_ylabel("held-out accuracy (%)")
        figure.legend(loc="outside upper left", ncols=4, handlelength=1.6, columnspacing=1.0)

    rows = tuple(
        (
            str(item["step"]),
            str(item["verdict"]),
            str(item["units"]),
            f"{item['gone']:.1f} %",
            share(item["accuracy"] / 100, 1),
        )
        for item in steps.to_dict("records")
    )
    svg = style.draw(
        WIDTH, HEIGHT, paint, title="Held-out accuracy step by step against what was removed",
        description=f"{len(rows)} steps.",
    )  # fmt: skip
    return Drawing(svg, ("step", "verdict", "units", f"{unit} removed", "accuracy"), rows)


def contrast_text(outcome: str, value: float) -> str:
    """Return a plain number of an outcome's axis."""
    return points(value, 2) if is_share(outcome) else signed(value, 4)
