"""The explanatory graph of a class: which units cause its logit, layer by layer."""

from __future__ import annotations

from typing import Any

import pandas as pd

from causalprune.reports import style
from causalprune.reports.numbers import listed
from causalprune.reports.score_tables import ScoreTable
from causalprune.reports.style import Drawing

SHOWN, LAYERS = 8, 5
"""Causes a layer, and layers, that are drawn."""

LONGEST = 10


def classes_of(scores: ScoreTable) -> list[int]:
    """Classes whose explanatory graph the scores hold."""
    if scores.graph_layers.empty:
        return []
    return sorted({int(value) for value in scores.graph_layers["class"]})


def _on_two_lines(name: str) -> str:
    """Break a long layer name at its last dot, and leave of it what fits."""
    if len(name) <= LONGEST:
        return name
    first, dot, last = name.rpartition(".")
    lines = [first + dot, last] if dot else [name]
    return "\n".join(
        line if len(line) <= LONGEST else "\N{HORIZONTAL ELLIPSIS}" + line[1 - LONGEST :]
        for line in lines
    )


def graph_caption(scores: ScoreTable, target: int) -> str:
    """Say what a reader of the graph may stumble over: streams, and layers that are not drawn."""
    nodes = scores.graph_nodes
    own = nodes.loc[(nodes["class"] == target) & nodes["cause"].astype(bool)]
    names = [name for name, _, _ in _columns(own)]
    told = []
    streams = [name for name in dict.fromkeys(names[-LAYERS:]) if names[-LAYERS:].count(name) > 1]
    if streams:
        told.append(
            f"{listed(streams)} {'is' if len(streams) == 1 else 'are'} read more than once: what "
            "several layers add to has the name of the first of them."
        )
    if len(names) > LAYERS:
        told.append(
            f"Drawn are the {LAYERS} steps next to the class; the table has all {len(names)}."
        )
    return " ".join(told)


def _columns(own: pd.DataFrame) -> list[tuple[str, pd.DataFrame, int]]:
    """Layer, its strongest causes, and how many there are, from the input side to the class."""
    found = []
    for (_, parent), rows in own.groupby(["step", "parent"], sort=False):
        strongest = rows.reindex(rows["effect"].abs().sort_values(ascending=False).index)
        found.append((str(parent), strongest.head(SHOWN), len(rows)))
    return found[::-1]


def explanatory_graph(scores: ScoreTable, target: int) -> Drawing | None:
    """Draw the strongest causes of each layer, from the input side to the class's logit."""
    nodes = scores.graph_nodes
    own = nodes.loc[(nodes["class"] == target) & nodes["cause"].astype(bool)]
    if own.empty:
        return None
    columns = _columns(own)
    drawn = columns[-LAYERS:]
    top = float(own["effect"].abs().max()) or 1.0

    def paint(figure: Any) -> None:
        axes = figure.add_axes((0.01, 0.01, 0.98, 0.98))
        axes.axis("off")
        axes.set_xlim(-0.55, len(drawn) + 0.45)
        axes.set_ylim(SHOWN - 0.4, -2.1)
        centre = (SHOWN - 1) / 2
        places = [
            [(x, centre + y - (len(rows) - 1) / 2) for y in range(len(rows))]
            for x, (_, rows, _) in enumerate(drawn)
        ]
        ends = [*places[1:], [(len(drawn), centre)]]
        for x, (_, rows, _) in enumerate(drawn):
            for place, effect in zip(places[x], rows["effect"].abs(), strict=True):
                # One path a cause, not one a line: the page is a third of the size.
                way = [point for end in ends[x] for point in (place, end, (None, None))]
                axes.plot(*zip(*way, strict=True), color=style.ACCENT, linewidth=1,
                          alpha=0.08 + 0.5 * float(effect) / top)  # fmt: skip
        for x, (name, rows, total) in enumerate(drawn):
            axes.text(x, -1.15, _on_two_lines(name), ha="center", va="bottom", fontweight="bold",
                      fontsize=10 if len(name) < 8 else 8.5, linespacing=1)  # fmt: skip
            kept = f"{len(rows)} of {total}" if total > len(rows) else str(total)
            axes.text(x, -0.85, kept, ha="center", va="center", fontsize=9, color=style.MUTED)
            axes.plot(*zip(*places[x], strict=True), "o", markersize=19, color=style.CARD,
                      markeredgecolor=style.ACCENT, markeredgewidth=1.2)  # fmt: skip
            for place, unit in zip(places[x], rows["unit"], strict=True):
                axes.text(*place, str(int(unit)), ha="center", va="center", fontsize=8.5)
        axes.plot(len(drawn), centre, marker="o", markersize=27, color=style.ACCENT)
        axes.text(len(drawn), centre, str(target), ha="center", va="center", color=style.CARD,
                  fontweight="bold", fontsize=11)  # fmt: skip
        axes.text(len(drawn), centre - 1.1, "class", ha="center", va="center", fontsize=10)

    told = listed([f"{total} of {name}" for name, _, total in columns])
    svg = style.draw(
        max(3.2, 0.82 * (len(drawn) + 1)),
        3.4,
        paint,
        title=f"Units that cause the logit of class {target}",
        description=f"Kept as causes: {told}."
        + (f" Only the {LAYERS} layers next to the class are drawn." if columns[:-LAYERS] else ""),
        layout="none",
    )
    told_rows = tuple(
        (str(item["parent"]), str(int(item["unit"])), f"{item['effect']:.4g}", str(item["layer"]))
        for _, group, _ in columns
        for item in group.to_dict("records")
    )
    return Drawing(svg, ("layer", "unit", "change of the logit", "read by"), told_rows)
