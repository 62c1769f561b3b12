"""The picture of a trace: what every step cost, and which layers paid."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from causalprune.errors import MissingDependencyError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from causalprune.pruning.trace import Step, Trace

__all__ = ["kept_fractions", "trace_figure"]

INK, MUTED, GRID = "#1d2733", "#6b7683", "#e4e8ec"
COLOURS = {"detrimental": "#0b5cad", "neutral": "#9aa3ad", "critical": "#c2571a"}
UNKNOWN = "#2a7f4f"
"""Of units of methods that have no categories."""
LONGEST_NAME = 28
LEGEND: dict[str, Any] = {
    "frameon": False,
    "fontsize": 8.5,
    "loc": "lower left",
    "bbox_to_anchor": (-0.01, 1.0),
    "ncols": 7,
    "handletextpad": 0.4,
    "columnspacing": 1.4,
    "borderaxespad": 0.2,
}


def trace_figure(trace: Trace) -> Figure:
    """Draw a trace; see :meth:`causalprune.pruning.Trace.plot`.

    Raises
    ------
    MissingDependencyError
        If matplotlib is not installed.
    """
    try:
        from matplotlib import rc_context
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingDependencyError(
            "Trace.plot needs matplotlib: pip install 'causalprune[analysis]'"
        ) from error
    n_groups = max(1, len(trace.plan.table))
    below = min(9.0, 0.9 + 0.2 * n_groups)
    settings: Any = {
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.edgecolor": "#aab2bb",
        "xtick.color": MUTED,
        "ytick.color": MUTED,
        "text.color": INK,
        "axes.labelcolor": INK,
    }
    with rc_context(settings):
        figure = Figure(figsize=(8, 3.6 + below), layout="constrained")
        above, layers = figure.subplots(2, 1, height_ratios=(3.2, below))
        if trace.accuracy is None and all(step.accuracy is None for step in trace.steps):
            _draw_sizes(above, trace)
        else:
            _draw_accuracy(above, trace)
        _draw_layers(figure, layers, trace)
        figure.suptitle(_title(trace), x=0.01, ha="left", fontsize=10.5)
    return figure


def _title(trace: Trace) -> str:
    plan = trace.plan
    end = trace.stopped or "still going on"
    asked = "" if plan.ratio is None else f", {plan.ratio:.1%} asked for"
    return (
        f"{trace.method}, {trace.schedule.replace('_', ' ')}: {plan.achieved_ratio:.1%} of "
        f"{'MACs' if plan.of == 'macs' else plan.of} removed{asked}\n{end}"
    )


def _gone(trace: Trace, step: Step) -> float:
    """MACs that are gone, in percent."""
    return 100 * (1 - step.footprint.macs / max(1, trace.plan.before.macs))


def _colour(step: Step) -> str:
    counts = Counter(unit.category for unit in step.removed)
    most = max(counts, key=lambda category: counts[category], default="")
    return COLOURS.get(most, UNKNOWN)


def _draw_accuracy(axes: Axes, trace: Trace) -> None:
    measured = [step for step in trace.steps if step.accuracy is not None]
    _draw_guard(axes, trace)
    stays = [step for step in measured if step.verdict != "reverted"]
    xs = [0.0] * (trace.accuracy is not None) + [_gone(trace, step) for step in stays]
    ys = [100 * (trace.accuracy or 0.0)] * (trace.accuracy is not None)
    ys += [100 * (step.accuracy or 0.0) for step in stays]
    axes.plot(xs, ys, color=MUTED, linewidth=1, zorder=1)
    looks: dict[str, Any] = {
        "kept": {"marker": "o", "s": 30},
        "reverted": {"marker": "x", "s": 34, "linewidths": 1.6},
        "retrained": {"marker": "D", "s": 34, "edgecolors": INK, "linewidths": 0.8},
    }
    for step in measured:
        x, y = _gone(trace, step), 100 * (step.accuracy or 0.0)
        colour = "white" if step.verdict == "retrained" else _colour(step)
        axes.scatter([x], [y], color=colour, zorder=2, **looks[step.verdict])
    axes.set_xlabel("MACs removed (%)")
    axes.set_ylabel("held-out accuracy (%)")
    axes.grid(color=GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    _legend(axes, measured)


def _draw_guard(axes: Axes, trace: Trace) -> None:
    if trace.accuracy is None:
        return
    axes.axhline(100 * trace.accuracy, color=MUTED, linestyle=":", linewidth=1, label="unpruned")
    if trace.tolerance is not None:
        limit = 100 * (trace.accuracy - trace.tolerance)
        axes.axhline(limit, color=COLOURS["critical"], linestyle="--", linewidth=1, label="guard")


def _legend(axes: Axes, steps: list[Step]) -> None:
    from matplotlib.lines import Line2D

    handles, labels = axes.get_legend_handles_labels()
    colours = dict.fromkeys(_colour(step) for step in steps if step.verdict != "retrained")
    names = {colour: f"removed, mostly {name}" for name, colour in COLOURS.items()} | {
        UNKNOWN: "removed"
    }
    for colour in colours:
        handles.append(Line2D([], [], color=colour, marker="o", linestyle="none"))
        labels.append(names[colour])
    marks = {"reverted": ("x", "reverted"), "retrained": ("D", "retrained")}
    for verdict, (marker, name) in marks.items():
        if any(step.verdict == verdict for step in steps):
            line = Line2D(
                [], [], color=INK, marker=marker, linestyle="none", markerfacecolor="none"
            )
            handles.append(line)
            labels.append(name)
    axes.legend(handles, labels, **LEGEND)


def _draw_sizes(axes: Axes, trace: Trace) -> None:
    """Without accuracies: what is left of the network after every step."""
    from matplotlib.ticker import MaxNLocator

    steps = [step for step in trace.steps if step.verdict != "reverted"]
    places = range(len(steps) + 1)
    for name, colour in (("macs", COLOURS["critical"]), ("parameters", COLOURS["detrimental"])):
        whole = max(1, getattr(trace.plan.before, name))
        left = [100.0, *(100 * getattr(step.footprint, name) / whole for step in steps)]
        label = "MACs" if name == "macs" else name
        axes.plot(places, left, color=colour, marker="o", markersize=4, label=label)
    axes.set_xlabel("steps kept")
    axes.set_ylabel("left (%)")
    axes.set_ylim(0, 104)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(color=GRID, linewidth=0.8)
    axes.legend(**LEGEND)


def kept_fractions(trace: Trace) -> NDArray[np.float64]:
    """Fraction of its units that every group keeps [groups, steps + 1], from before the first."""
    sizes = {row.group: row.units for row in trace.plan.table}
    left = dict(sizes)
    columns = [dict(left)]
    for step in trace.steps:
        if step.verdict == "kept":
            for unit in step.removed:
                left[unit.group] -= 1
        columns.append(dict(left))
    return np.array([[column[name] / n for column in columns] for name, n in sizes.items()])


def _draw_layers(figure: Figure, axes: Axes, trace: Trace) -> None:
    from matplotlib.ticker import MaxNLocator

    fractions = kept_fractions(trace)
    image = axes.imshow(
        100 * fractions, aspect="auto", cmap="Blues", vmin=0, vmax=100, interpolation="nearest"
    )
    groups = [row.group for row in trace.plan.table]
    for number, step in enumerate(trace.steps):
        for name in step.frozen:
            axes.scatter(
                [number + 1], [groups.index(name)], marker="x", s=22, color=COLOURS["critical"]
            )
    shown = range(0, len(groups), -(-len(groups) // 45))
    axes.set_yticks(list(shown), [_shortened(groups[k]) for k in shown], fontsize=7.5)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    frozen = " (x: frozen)" if trace.frozen else ""
    axes.set_xlabel(f"step{frozen}")
    axes.tick_params(length=0)
    bar = figure.colorbar(image, ax=axes, pad=0.01, aspect=15)
    bar.set_label("units kept (%)")
    bar.outline.set_visible(False)


def _shortened(name: str) -> str:
    return name if len(name) <= LONGEST_NAME else "..." + name[3 - LONGEST_NAME :]
