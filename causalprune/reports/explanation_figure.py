"""The explanatory graph of a class: which units cause its logit, layer by layer."""

from __future__ import annotations

from typing import Any

import pandas as pd

from causalprune.reports import style
from causalprune.reports.numbers import listed
from causalprune.reports.score_tables import ScoreTable
from causalprune.reports.style import Drawing

SHOWN = 8


def classes_of(scores: ScoreTable) -> list[int]:
    """Classes whose explanatory graph the scores hold."""
    if scores.graph_layers.empty:
        return []
    return sorted({int(value) for value in scores.graph_layers["class"]})


def explanatory_graph(scores: ScoreTable, target: int) -> Drawing | None:
    """Draw the strongest causes of each layer, from the input side to the class's logit."""
    nodes = scores.graph_nodes
    own = nodes.loc[(nodes["class"] == target) & nodes["cause"].astype(bool)]
    if own.empty:
        return None
    columns: list[tuple[str, pd.DataFrame, int]] = []
    for (_, parent), rows in own.groupby(["step", "parent"], sort=False):
        strongest = rows.reindex(rows["effect"].abs().sort_values(ascending=False).index)
        columns.append((str(parent), strongest.head(SHOWN), len(rows)))
    columns.reverse()
    top = float(own["effect"].abs().max()) or 1.0

    def paint(figure: Any) -> None:
        axes = figure.add_axes((0.01, 0.01, 0.98, 0.98))
        axes.axis("off")
        axes.set_xlim(-0.6, len(columns) + 0.6)
        axes.set_ylim(SHOWN + 0.4, -1.7)
        centre = (SHOWN - 1) / 2
        places = [
            [(x, centre + y - (len(rows) - 1) / 2) for y in range(len(rows))]
            for x, (_, rows, _) in enumerate(columns)
        ]
        ends = [*places[1:], [(len(columns), centre)]]
        for x, (_, rows, _) in enumerate(columns):
            for place, effect in zip(places[x], rows["effect"].abs(), strict=True):
                for end in ends[x]:
                    axes.plot(*zip(place, end, strict=True), color=style.ACCENT, linewidth=1,
                              alpha=0.08 + 0.5 * float(effect) / top)  # fmt: skip
        for x, (name, rows, total) in enumerate(columns):
            axes.text(x, -1.35, name, ha="center", va="center", fontweight="bold", fontsize=10)
            kept = f"{len(rows)} of {total}" if total > len(rows) else str(total)
            axes.text(x, -0.85, kept, ha="center", va="center", fontsize=9, color=style.MUTED)
            for place, unit in zip(places[x], rows["unit"], strict=True):
                axes.plot(*place, marker="o", markersize=19, color=style.CARD,
                          markeredgecolor=style.ACCENT, markeredgewidth=1.2)  # fmt: skip
                axes.text(*place, str(int(unit)), ha="center", va="center", fontsize=8.5)
        axes.plot(len(columns), centre, marker="o", markersize=27, color=style.ACCENT)
        axes.text(len(columns), centre, str(target), ha="center", va="center", color=style.CARD,
                  fontweight="bold", fontsize=11)  # fmt: skip
        axes.text(len(columns), centre - 1.1, "class", ha="center", va="center", fontsize=10)

    told = listed([f"{total} of {name}" for name, _, total in columns])
    svg = style.draw(
        4.9,
        3.4,
        paint,
        title=f"Units that cause the logit of class {target}",
        description=f"Kept as causes: {told}.",
        layout="none",
    )
    told_rows = tuple(
        (str(item["parent"]), str(int(item["unit"])), f"{item['effect']:.4g}")
        for _, group, _ in columns
        for item in group.to_dict("records")
    )
    return Drawing(svg, ("layer", "unit", "change of the logit"), told_rows)
