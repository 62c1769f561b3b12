"""The figures of a report, each as a ``data:`` URI; None where there is nothing to draw."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from causalprune.analysis import AnalysisResult
from causalprune.analysis.wording import is_share, name_of, unit_of
from causalprune.reports import style
from causalprune.reports.sources import ScoreTable

COSTS = (
    ("parameters", "parameters", style.ACCENT, "o"),
    ("macs", "MACs", style.WARM, "s"),
    ("memory_bytes", "memory", style.GOOD, "^"),
    ("latency_ms", "latency", "#7b4fa3", "D"),
)


def half_width(values: pd.Series[float]) -> float:
    """Half of the 95 % t-interval of a mean; NaN for fewer than two values."""
    from scipy.stats import t

    count = int(values.notna().sum())
    if count < 2:
        return float("nan")
    return float(t.ppf(0.975, count - 1) * values.std(ddof=1) / np.sqrt(count))


def prune_curve(trials: pd.DataFrame, column: str, methods: Sequence[str]) -> str:
    """Accuracy against the share of parameters removed, one line a method."""
    styles = style.method_style(methods)

    def paint(figure: Any) -> None:
        axes = figure.subplots()
        unpruned = 100 * trials.groupby("checkpoint")["accuracy_before"].first().mean()
        line = {"color": style.MUTED, "linestyle": (0, (4, 3)), "linewidth": 1.1}
        axes.axhline(unpruned, label=f"unpruned ({unpruned:.1f} %)", **line)
        for place, method in enumerate(methods):
            # Side by side: intervals of one ratio would hide each other.
            aside = 1.1 * (place - (len(methods) - 1) / 2)
            rows = trials.loc[trials["method"] == method]
            axes.plot(
                100 * rows["achieved_ratio"] + aside,
                100 * rows[column],
                linestyle="none",
                marker=".",
                markersize=5,
                alpha=0.35,
                color=styles[method]["color"],
            )
            groups = rows.groupby("ratio")
            bars = 100 * groups[column].apply(half_width)
            axes.errorbar(
                100 * groups["achieved_ratio"].mean() + aside,
                100 * groups[column].mean(),
                yerr=bars if bars.notna().any() else None,
                label=method,
                capsize=2.5,
                elinewidth=1.0,
                **styles[method],
            )
        axes.set_xlabel("parameters removed (%)")
        axes.set_ylabel("test accuracy (%)")
        axes.set_ylim(*_accuracy_limits(trials, column))
        axes.set_xlim(-3, 100)
        figure.legend(loc="outside upper left", ncols=4, handlelength=1.6, columnspacing=1.4)

    return style.draw(4.9, 3.3, paint)


def _accuracy_limits(trials: pd.DataFrame, column: str) -> tuple[float, float]:
    values = 100 * trials[[column, "accuracy_before"]].to_numpy(dtype=float)
    low, high = float(np.nanmin(values)), float(np.nanmax(values))
    room = max(0.5, 0.1 * (high - low))
    return max(-1.0, low - room), min(101.0, high + room)


def cost_curve(trials: pd.DataFrame, method: str) -> str | None:
    """Parameters, MACs, memory and latency in percent of the least pruned network."""
    rows = trials.loc[trials["method"] == method]
    drawn = [cost for cost in COSTS if cost[0] in rows and rows[cost[0]].notna().all()]
    if rows["ratio"].nunique() < 2 or not drawn:
        return None

    def paint(figure: Any) -> None:
        axes = figure.subplots()
        means = rows.groupby("ratio")[[cost[0] for cost in drawn]].mean()
        for column, label, colour, marker in drawn:
            share = 100 * means[column] / means[column].iloc[0]
            axes.plot(100 * means.index, share, color=colour, marker=marker, label=label)
        axes.set_xlabel("target prune ratio (%)")
        start = 100 * means.index[0]
        axes.set_ylabel("% of the unpruned network" if start == 0 else f"% of ratio {start:g} %")
        axes.set_ylim(0, max(105.0, axes.get_ylim()[1]))
        figure.legend(loc="outside upper left", ncols=4, handlelength=1.6, columnspacing=1.2)

    return style.draw(4.9, 3.3, paint)


def unit_effects(scores: ScoreTable, layer: str) -> str:
    """Sorted effects of removing each unit of a layer, with intervals where there are any."""
    rows = scores.frame.loc[scores.frame["layer"] == layer]
    has_effect = bool(np.isfinite(rows["effect"].to_numpy(dtype=float)).any())
    column = "effect" if has_effect else "importance"
    rows = rows.sort_values(column, ascending=False, ignore_index=True)

    def paint(figure: Any) -> None:
        axes = figure.subplots()
        place = np.arange(1, len(rows) + 1)
        values = rows[column].to_numpy(dtype=float)
        colours = [style.CATEGORY_COLOURS.get(str(c), style.ACCENT) for c in rows["category"]]
        if has_effect:
            low, high = (rows[name].to_numpy(dtype=float) for name in ("low", "high"))
            axes.vlines(place, low, high, color=colours, linewidth=1.1, alpha=0.75)
            axes.axhline(0, color=style.MUTED, linewidth=0.9)
        size = 18 if len(rows) <= 40 else 8
        axes.scatter(place, values, c=colours, s=size, zorder=3)
        axes.set_xlabel(f"{len(rows)} units, largest first")
        axes.set_ylabel(f"change of {scores.outcome}" if has_effect else "importance")
        axes.set_title(layer)
        axes.set_xlim(0.2, len(rows) + 0.8)
        axes.xaxis.get_major_locator().set_params(integer=True)

    return style.draw(4.4, 2.7, paint)


def check_scatter(cheap: ScoreTable, exact: ScoreTable) -> tuple[str | None, int]:
    """Draw importances against those of exact ablation; and count the units left out as zero."""
    both = cheap.frame.merge(exact.frame, on=["layer", "unit"], suffixes=("", "_exact"))
    positive = both.loc[(both["importance"] > 0) & (both["importance_exact"] > 0)]
    hidden = len(both) - len(positive)
    if len(positive) < 3:
        return None, hidden
    layers = list(dict.fromkeys(both["layer"]))
    looks = [style.layer_style(place) for place in range(len(layers))]

    def paint(figure: Any) -> None:
        axes = figure.subplots()
        values = positive[["importance", "importance_exact"]].to_numpy(dtype=float)
        ends = [values.min() / 1.5, values.max() * 1.5]
        axes.plot(ends, ends, color=style.MUTED, linewidth=1, linestyle=(0, (4, 3)))
        for layer, look in zip(layers, looks, strict=True):
            rows = positive.loc[positive["layer"] == layer]
            axes.scatter(
                rows["importance_exact"],
                rows["importance"],
                s=16,
                alpha=0.75,
                linewidths=0,
                label=layer,
                **look,
            )
        axes.set_xscale("log")
        axes.set_yscale("log")
        axes.set_xlim(*ends)
        axes.set_ylim(*ends)
        axes.set_xlabel(f"exact ablation: mean |change of {exact.outcome}|")
        axes.set_ylabel(f"{cheap.method}: mean |change|")
        figure.legend(loc="outside upper left", ncols=4, handletextpad=0.2, columnspacing=1.0)

    return style.draw(4.9, 3.9, paint), hidden


def dose_curve(result: AnalysisResult) -> str | None:
    """Contrasts with the smallest treatment level and the straight line beside them."""
    usable = [item for item in result.contrasts if not item.reason]
    if not usable:
        return None
    factor = 100.0 if is_share(result.outcome) else 1.0
    unit = unit_of(result.outcome)

    def paint(figure: Any) -> None:
        axes = figure.subplots()
        start = usable[0].start
        ends = np.array([start, *(item.end for item in usable)])
        curve = factor * np.array([0.0, *(item.effect for item in usable)])
        bars = factor * np.array([[i.effect - i.low, i.high - i.effect] for i in usable]).T
        straight = factor * result.estimate / result.step * (ends - start)
        axes.axhline(0, color=style.MUTED, linewidth=0.9)
        axes.plot(
            ends,
            straight,
            color=style.WARM,
            linestyle=(0, (4, 3)),
            linewidth=1.4,
            label="straight line (average slope)",
        )
        axes.plot(ends, curve, color=style.ACCENT, marker="o", label="curve, 95 % intervals")
        axes.errorbar(
            ends[1:],
            curve[1:],
            yerr=np.maximum(bars, 0),
            linestyle="none",
            color=style.ACCENT,
            capsize=3,
            elinewidth=1.1,
        )
        axes.set_xlabel(
            f"target {result.treatment}" if result.treatment == "ratio" else result.treatment
        )
        suffix = f" ({unit})" if unit else ""
        axes.set_ylabel(f"{name_of(result.outcome)}, difference\nfrom {start:g}{suffix}")
        figure.legend(loc="outside upper left", ncols=2, handlelength=2.2, columnspacing=1.4)

    return style.draw(4.9, 3.3, paint)
