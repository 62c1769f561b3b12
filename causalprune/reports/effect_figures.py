"""Figures of effects: forest plots of findings, units of layers, heat maps over layers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from causalprune.analysis import Finding
from causalprune.analysis.wording import is_share, name_of, number, span, unit_of
from causalprune.reports import style
from causalprune.reports.numbers import share, signed
from causalprune.reports.score_tables import ScoreTable
from causalprune.reports.style import Drawing

WIDTH = 4.9
BINS = 20
MAX_ROWS = 40
MAPPED = 60
"""Layers of an effect map."""


def forest(findings: Sequence[Finding]) -> Drawing | None:
    """Draw estimable findings of one question and outcome below each other, with intervals."""
    usable = [item for item in findings if item.estimable and math.isfinite(item.effect)]
    if not usable:
        return None
    outcome = usable[0].outcome
    factor = 100.0 if is_share(outcome) else 1.0
    unit = unit_of(outcome)

    def paint(figure: Any) -> None:
        axes = figure.subplots()
        for place, item in enumerate(usable):
            clear = not item.low <= 0 <= item.high
            colour = style.ACCENT if clear else style.GREY
            if math.isfinite(item.low) and math.isfinite(item.high):
                ends = [factor * item.low, factor * item.high]
                axes.plot(ends, [place, place], color=colour, linewidth=2)
            axes.plot([factor * item.effect], [place], color=colour, marker="o", markersize=6)
        axes.axvline(0, color=style.MUTED, linewidth=1)
        axes.set_yticks(range(len(usable)), [_wrapped(item.contrast) for item in usable])
        axes.set_ylim(len(usable) - 0.4, -0.6)
        axes.grid(visible=False, axis="y")
        axes.spines["left"].set_visible(False)
        axes.tick_params(axis="y", length=0)
        axes.set_xlabel(f"change of {name_of(outcome)}{f' ({unit})' if unit else ''}")

    lines = sum(1 + _wrapped(item.contrast).count("\n") for item in usable)
    svg = style.draw(
        WIDTH,
        0.85 + 0.2 * lines + 0.1 * len(usable),
        paint,
        title=f"Effects on {name_of(outcome)}: {usable[0].question}",
        description="; ".join(
            f"{item.contrast}: {number(outcome, item.effect)} {unit}, 95 % interval "
            f"{span(outcome, item.low, item.high)}"
            for item in usable
        ),
    )
    return Drawing(svg)


def _wrapped(text: str, width: int = 24) -> str:
    import textwrap

    return "\n".join(textwrap.wrap(text, width) or [text])


def unit_effects(scores: ScoreTable, layer: str) -> Drawing:
    """Sorted effects of removing each unit of a layer, with intervals where there are any."""
    rows = scores.frame.loc[scores.frame["layer"] == layer]
    rows = rows.sort_values(scores.column, ascending=False, ignore_index=True)
    values = rows[scores.column].to_numpy(dtype=float)
    measured = f"change of {scores.outcome}" if scores.has_effects else "importance"

    def paint(figure: Any) -> None:
        axes = figure.subplots()
        place = np.arange(1, len(rows) + 1)
        colours = [style.CATEGORY_COLOURS.get(str(c), style.ACCENT) for c in rows["category"]]
        if scores.has_effects:
            low, high = (rows[name].to_numpy(dtype=float) for name in ("low", "high"))
            axes.vlines(place, low, high, color=colours, linewidth=1.1, alpha=0.75)
            axes.axhline(0, color=style.MUTED, linewidth=0.9)
        size = 18 if len(rows) <= 40 else 8
        axes.scatter(place, values, c=colours, s=size, zorder=3)
        axes.set_xlabel(f"{len(rows)} units, largest first")
        axes.set_ylabel(measured)
        axes.set_title(layer)
        axes.set_xlim(0.2, len(rows) + 0.8)
        axes.xaxis.get_major_locator().set_params(integer=True)

    told = tuple(
        (str(item["unit"]), f"{item[scores.column]:.4g}",
         f"{item['low']:.4g} to {item['high']:.4g}" if math.isfinite(item["low"]) else "",
         str(item["category"]))
        for item in rows.head(MAX_ROWS).to_dict("records")
    )  # fmt: skip
    svg = style.draw(
        4.4,
        2.8,
        paint,
        title=f"{layer}: {measured} when each of its {len(rows)} units is cut off, sorted",
        description=f"From {values.max():.3g} to {values.min():.3g}.",
    )
    more = f" (the first {MAX_ROWS} of {len(rows)})" if len(rows) > MAX_ROWS else ""
    return Drawing(svg, (f"unit{more}", measured, "interval", "category"), told)


def check_scatter(cheap: ScoreTable, exact: ScoreTable) -> tuple[Drawing | None, int]:
    """Draw importances against those of exact ablation; and count the units left out as zero."""
    both = cheap.frame.merge(exact.frame, on=["layer", "unit"], suffixes=("", "_exact"))
    positive = both.loc[(both["importance"] > 0) & (both["importance_exact"] > 0)]
    hidden = len(both) - len(positive)
    if len(positive) < 3:
        return None, hidden
    layers = list(dict.fromkeys(both["layer"]))

    def paint(figure: Any) -> None:
        axes = figure.subplots()
        values = positive[["importance", "importance_exact"]].to_numpy(dtype=float)
        ends = [values.min() / 1.5, values.max() * 1.5]
        axes.plot(ends, ends, color=style.MUTED, linewidth=1, linestyle=(0, (4, 3)))
        for place, layer in enumerate(layers):
            rows = positive.loc[positive["layer"] == layer]
            label = layer if len(layers) <= 9 else None
            axes.scatter(rows["importance_exact"], rows["importance"], s=16, alpha=0.75,
                         linewidths=0, label=label, **style.layer_style(place))  # fmt: skip
        axes.set_xscale("log")
        axes.set_yscale("log")
        axes.set_xlim(*ends)
        axes.set_ylim(*ends)
        axes.set_xlabel(f"exact ablation: mean |change of {exact.outcome}|")
        axes.set_ylabel(f"{cheap.method}: mean |change|")
        if len(layers) <= 9:
            figure.legend(loc="outside upper left", ncols=3, handletextpad=0.2, columnspacing=1.0)

    svg = style.draw(
        WIDTH,
        4.0,
        paint,
        title=f"Importance by {cheap.method} against exact ablation, one marker a unit",
        description=f"{len(positive)} units of {len(layers)} layers; the dashed line is equality.",
    )
    return Drawing(svg), hidden


def effect_map(scores: ScoreTable) -> Drawing | None:
    """Layer by layer, units from the strongest to the weakest, squeezed to one width."""
    groups = list(scores.frame.groupby("layer", sort=False))[:MAPPED]
    if len(groups) < 2:
        return None
    cells = np.full((len(groups), BINS), np.nan)
    told = []
    for row, (layer, units) in enumerate(groups):
        values = np.sort(units[scores.column].abs().to_numpy(dtype=float))[::-1]
        place = np.minimum((np.arange(BINS) + 0.5) / BINS * len(values), len(values) - 1)
        cells[row] = values[place.astype(int)]
        told.append(
            (str(layer), str(len(values)), *(f"{v:.3g}" for v in (
                values[0], float(np.median(values)), values[-1])))
        )  # fmt: skip
    top = float(np.nanmax(cells)) or 1.0
    names = [str(layer) for layer, _ in groups]
    # The square root: effects of one network differ by orders of magnitude.
    shades = np.sqrt(cells / top)
    svg = heat_map(
        names,
        [],
        shades,
        [],
        title=f"Size of the effect of every unit, layer by layer, by {scores.method}",
        xlabel="units of the layer, strongest to weakest",
        description=f"The darkest cell is {top:.3g}.",
    )
    return Drawing(svg, ("layer", "units", "strongest", "median", "weakest"), tuple(told))


def heat_map(
    rows: Sequence[str],
    columns: Sequence[str],
    shades: Any,
    texts: Sequence[Sequence[str]],
    *,
    title: str,
    description: str = "",
    xlabel: str = "",
    colour: str = style.ACCENT,
) -> str:
    """Draw cells of one colour, from transparent (0) to full (1), with their texts.

    Transparent cells let the page shine through, so that the map reads on light and dark.
    """
    from matplotlib.patches import Rectangle

    n_rows, n_columns = np.shape(shades)

    def paint(figure: Any) -> None:
        axes = figure.subplots()
        for row in range(n_rows):
            for column in range(n_columns):
                shade = float(shades[row][column])
                if not math.isfinite(shade):
                    continue
                alpha = 0.04 + 0.62 * min(1.0, max(0.0, shade))
                axes.add_patch(
                    Rectangle((column, row), 1, 1, facecolor=colour, alpha=alpha, linewidth=0)
                )
                if len(texts):
                    axes.text(column + 0.5, row + 0.5, texts[row][column], ha="center",
                              va="center", fontsize=9.5)  # fmt: skip
        axes.set_xlim(0, n_columns)
        axes.set_ylim(n_rows, 0)
        axes.set_yticks([row + 0.5 for row in range(n_rows)], list(rows))
        places = [column + 0.5 for column in range(n_columns)] if len(columns) else []
        slanted = any(len(name) > 8 for name in columns)
        turned = {"rotation": 35, "ha": "right", "rotation_mode": "anchor"} if slanted else {}
        axes.set_xticks(places, list(columns), **turned)
        axes.tick_params(length=0)
        axes.grid(visible=False)
        for spine in axes.spines.values():
            spine.set_visible(False)
        axes.set_xlabel(xlabel)

    height = 0.8 + 0.27 * n_rows + (0.55 if any(len(name) > 8 for name in columns) else 0)
    return style.draw(WIDTH, height, paint, title=title, description=description)


def layer_map(trials: pd.DataFrame, shares: dict[int, dict[str, float]]) -> Drawing | None:
    """Part of its weights that each layer lost, at each ratio: means over the trials given.

    `shares` holds the parts by layer, by row of `trials`.
    """
    frame = pd.DataFrame.from_dict(shares, orient="index")
    if frame.empty or frame.shape[1] < 2:
        return None
    layers = [str(name) for name in frame.columns][:MAX_ROWS]
    means = frame.groupby(trials.loc[frame.index, "ratio"]).mean()
    means = means.loc[means.index > 0, layers]
    if means.empty:
        return None
    values = means.to_numpy(dtype=float).T
    ratios = [f"{100 * float(ratio):g}" for ratio in means.index]
    texts = [[signed(100 * v, 0) for v in row] for row in values]
    svg = heat_map(
        layers,
        ratios,
        values,
        texts,
        title="Share of its weights that each layer lost, by prune ratio, in percent",
        xlabel="target prune ratio (%)",
        description="; ".join(
            f"{layer} {texts[k][-1]} %" for k, layer in enumerate(layers)
        )
        + f" at ratio {ratios[-1]} %.",
    )  # fmt: skip
    columns = ("layer", *(f"at {ratio} %" for ratio in ratios))
    rows = tuple((layer, *(f"{v} %" for v in texts[k])) for k, layer in enumerate(layers))
    return Drawing(svg, columns, rows)


def shares_by_group(groups: Sequence[tuple[str, int, int]]) -> Drawing:
    """Draw what each group of units lost: name, units, units that stay."""
    shown = list(groups)[:MAX_ROWS]
    gone = [1 - kept / units for _, units, kept in shown]

    def paint(figure: Any) -> None:
        axes = figure.subplots()
        axes.barh(range(len(shown)), [100 * v for v in gone], color=style.ACCENT, height=0.62)
        for place, (_, units, kept) in enumerate(shown):
            axes.text(100 * gone[place] + 1.5, place, f"{units - kept} of {units}", va="center",
                      fontsize=10)  # fmt: skip
        axes.set_yticks(range(len(shown)), [name for name, _, _ in shown])
        axes.set_ylim(len(shown) - 0.4, -0.6)
        axes.set_xlim(0, 122)
        axes.set_xticks([0, 25, 50, 75, 100])
        axes.grid(visible=False, axis="y")
        axes.set_xlabel("units removed (%)")

    svg = style.draw(
        WIDTH, 0.8 + 0.26 * len(shown), paint, title="Share of its units that each group lost",
        description="; ".join(f"{n} {units - kept} of {units}" for n, units, kept in shown),
    )  # fmt: skip
    rows = tuple((n, str(units), str(kept), share(1 - kept / units)) for n, units, kept in groups)
    return Drawing(svg, ("group", "units", "kept", "removed"), rows)


def interval_text(outcome: str, low: float, high: float) -> str:
    """Return an interval with its unit; "" where there is none."""
    if not (math.isfinite(low) and math.isfinite(high)):
        return ""
    return f"{span(outcome, low, high)} {unit_of(outcome)}".strip()
