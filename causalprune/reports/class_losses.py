"""Who lost it: accuracy lost class by class, with intervals, and which classes are hurt."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from causalprune.errors import DataError
from causalprune.experiments.class_rows import class_counts
from causalprune.measures import ClassLosses, class_losses_of_counts
from causalprune.reports import style
from causalprune.reports.effect_figures import WIDTH, heat_map
from causalprune.reports.numbers import count, listed, points, share
from causalprune.reports.sections import methods_of
from causalprune.reports.sources import Source
from causalprune.reports.story import Choice
from causalprune.reports.style import Drawing

DRAWN = 20
TABLED = 100
NAMED = 3
LONGEST_NAME = 22

Pair = tuple[str, float]


@dataclass(frozen=True)
class ByClass:
    """What pruning cost the classes of one network and data set.

    Attributes
    ----------
    place, method : str
    ratio : str
        At which the first figure is.
    short : str
        The answer in one sentence.
    sentences : tuple of str
        Of the method and ratio shown, and how sure that is.
    methods : tuple of str
        One sentence a method, at `heaviest`.
    heaviest : str
        The largest ratio that all methods were tried at.
    dots, ratios : Drawing or None
        Loss of each class at `ratio` with intervals, and at every ratio.
    table : Drawing or None
        All that is known of every class, by `method` and `methods`; without a figure.
    problem : str
        Why there is nothing; empty where there is.
    """

    place: str
    method: str = ""
    ratio: str = ""
    short: str = ""
    sentences: tuple[str, ...] = ()
    methods: tuple[str, ...] = ()
    heaviest: str = ""
    dots: Drawing | None = None
    ratios: Drawing | None = None
    table: Drawing | None = None
    problem: str = ""


def by_class(source: Source, place: str, choice: Choice | None) -> ByClass | None:
    """Compute and draw what the classes of a place lost; None where the records do not say."""
    trials = source.trials.loc[source.trials["place"] == place] if len(source.trials) else None
    if trials is None:
        return None
    counts = class_counts(trials)
    trials = trials.loc[trials.index.isin(counts["row"]) & (trials["ratio"] > 0)]
    if trials.empty:
        return None
    told = _pairs(trials, choice)
    shown = next(iter(told))
    try:
        found = {pair: _losses(trials, counts, pair) for pair in told}
        curve = {
            ratio: _losses(trials, counts, (shown[0], ratio))
            for ratio in sorted(set(trials.loc[trials["method"] == shown[0], "ratio"]))
        }
    except DataError as error:
        return ByClass(place, problem=f"Losses of classes cannot be compared: {error}.")
    heaviest = max(ratio for _, ratio in told)
    methods = [(pair, losses) for pair, losses in found.items() if pair[1] == heaviest]
    first = found[shown]
    return ByClass(
        place,
        method=shown[0],
        ratio=f"{shown[1]:g}",
        short=f"With “{shown[0]}” at ratio {shown[1]:g}, {_in_short(first)}",
        sentences=(_answer(first, shown), _certainty(first)),
        methods=tuple(_of_method(losses, pair[0]) for pair, losses in methods if pair != shown),
        heaviest=f"{heaviest:g}",
        dots=_dots(first, shown),
        ratios=_by_ratio(curve, _drawn(first)) if len(curve) > 1 else None,
        table=_table(found),
    )


def _pairs(trials: pd.DataFrame, choice: Choice | None) -> list[Pair]:
    """Return the method and ratio of the page's headline, and all methods at one ratio."""
    methods = methods_of(trials)
    common = set.intersection(*(set(trials.loc[trials["method"] == m, "ratio"]) for m in methods))
    if common:
        compared = [(method, max(common)) for method in methods]
    else:
        first = trials.loc[trials["method"] == methods[0], "ratio"]
        compared = [(methods[0], float(first.max()))]
    chosen = [] if choice is None else [(choice.method, choice.ratio)]
    known = set(zip(trials["method"], trials["ratio"], strict=True))
    return list(dict.fromkeys(pair for pair in (*chosen, *compared) if pair in known))


def _losses(trials: pd.DataFrame, counts: pd.DataFrame, pair: Pair) -> ClassLosses:
    own = trials.loc[(trials["method"] == pair[0]) & (trials["ratio"] == pair[1]), "checkpoint"]
    rows = counts.loc[counts["row"].isin(own.index)]
    return class_losses_of_counts(rows.assign(network=rows["row"].map(own)))


# ---- words ---------------------------------------------------------------------------------------


def class_name(label: str) -> str:
    """Name a class in a sentence.

    Examples
    --------
    >>> class_name("3"), class_name("cat")
    ('class 3', 'class “cat”')
    """
    return f"class {label}" if label.isdecimal() else f"class “{label}”"


def _answer(losses: ClassLosses, pair: Pair) -> str:
    return (
        f"With “{pair[0]}” at ratio {pair[1]:g}, all test images together lose "
        f"{points(losses.loss)} points of accuracy. {_begun(_who(losses))}"
    )


def _of_method(losses: ClassLosses, method: str) -> str:
    return f"“{method}”: {points(losses.loss)} points on average. {_begun(_who(losses))}"


def _who(losses: ClassLosses) -> str:
    rows = losses.frame.sort_values("loss", ascending=False, kind="stable").to_dict("records")
    hurt = [row for row in rows if row["hurt"]]
    if not hurt:
        most = rows[0]
        if most["excess"] <= 0:
            return "no class loses more than that."
        unknown = most["excess_low"] <= -1 and most["excess_high"] >= 1
        why = (
            "the networks differ too much to tell"
            if unknown
            else f"interval {_span(most, 'excess_low', 'excess_high')}, corrected for {len(rows)} "
            "classes"
        )
        return (
            f"no class can be shown to lose more: {class_name(most['class'])} loses most, "
            f"{points(most['loss'])} points, but that it is {points(most['excess'])} more than the "
            f"average may be chance ({why})."
        )
    told = [
        f"{class_name(row['class'])} loses {points(row['loss'])} points "
        f"({'95 % interval ' if place == 0 else ''}{_span(row)})"
        for place, row in enumerate(hurt[:NAMED])
    ]
    more = f"; so are {_listed_names(hurt[NAMED:])}" if len(hurt) > NAMED else ""
    they = "they are hurt" if len(hurt) > 1 else "it is hurt"
    return (
        f"{listed(told)} where the average is {points(losses.loss)}: {they} more than others{more}."
    )


def _in_short(losses: ClassLosses) -> str:
    if losses.hurt:
        return _who(losses)
    return f"no class can be shown to lose more than the average of {points(losses.loss)} points."


def _begun(sentence: str) -> str:
    return sentence[0].upper() + sentence[1:]


def _listed_names(rows: Sequence[Mapping[Any, Any]]) -> str:
    names = [class_name(row["class"]) for row in rows[:DRAWN]]
    more = [f"{len(rows) - DRAWN} more"] if len(rows) > DRAWN else []
    return listed([*names, *more])


def _span(row: Mapping[Any, Any], low: str = "low", high: str = "high") -> str:
    return f"{points(row[low])} to {points(row[high])}" if math.isfinite(row[low]) else ""


def _certainty(losses: ClassLosses) -> str:
    frame, k = losses.frame, losses.n_networks
    least, most = int(frame["n"].min()), int(frame["n"].max())
    images = f"{least:,}" if least == most else f"{least:,} to {most:,}"
    half = float(((frame["excess_high"] - frame["excess_low"]) / 2).median())
    needed = (
        f": most classes would have to lose about {points(half, 0)} points more than the average "
        "to be named"
        if math.isfinite(half)
        else ""
    )
    alone = " Another network may hurt other classes; one alone cannot tell." if k == 1 else ""
    return f"A class has {images} test images, seen by {count(k, 'network')}{needed}.{alone}"


# ---- figures and tables --------------------------------------------------------------------------


def _drawn(losses: ClassLosses) -> list[str]:
    """Return the classes that a figure has room for: all, or those that lose most."""
    frame = losses.frame
    if len(frame) > DRAWN:
        frame = frame.sort_values("loss", ascending=False, kind="stable").head(DRAWN)
    return [str(name) for name in frame["class"]]


def _short(name: str) -> str:
    """Shorten a name to a figure's margin, and keep its dollars from being read as formulas."""
    cut = name if len(name) <= LONGEST_NAME else f"{name[: LONGEST_NAME - 1]}…"
    return cut.replace("$", r"\$")


def _some(losses: ClassLosses) -> str:
    n = len(losses.frame)
    return f" (the {DRAWN} of {n} classes that lose most)" if n > DRAWN else ""


def _dots(losses: ClassLosses, pair: Pair) -> Drawing:
    names = _drawn(losses)
    rows = losses.frame.set_index("class").loc[names].to_dict("index")

    def paint(figure: Any) -> None:
        axes = figure.subplots()
        axes.axvspan(100 * losses.low, 100 * losses.high, color=style.GREY, alpha=0.16, linewidth=0)
        axes.axvline(0, color=style.MUTED, linewidth=1)
        dashed = {"color": style.GREY, "linestyle": (0, (4, 3)), "linewidth": 1.4}
        axes.axvline(100 * losses.loss, label="all images", **dashed)
        for label, hurt in (("one class", False), ("hurt more than others", True)):
            own = [(k, row) for k, row in enumerate(rows.values()) if bool(row["hurt"]) == hurt]
            colour, marker = (style.WARM, "D") if hurt else (style.ACCENT, "o")
            low, high, loss = (
                [100 * row[key] for _, row in own] for key in ("low", "high", "loss")
            )
            places = [place for place, _ in own]
            axes.hlines(places, low, high, color=colour, linewidth=2)
            if own:
                axes.plot(loss, places, color=colour, marker=marker, markersize=6,
                          linestyle="none", label=label)  # fmt: skip
        axes.set_yticks(range(len(names)), [_short(name) for name in names])
        axes.set_ylim(len(names) - 0.4, -0.6)
        axes.grid(visible=False, axis="y")
        axes.spines["left"].set_visible(False)
        axes.tick_params(axis="y", length=0)
        axes.set_xlabel("accuracy lost (points)")
        figure.legend(loc="outside upper left", ncols=3, handlelength=1.8, columnspacing=1.2)

    svg = style.draw(
        WIDTH,
        1.1 + 0.25 * len(names),
        paint,
        title=f"Accuracy lost by each class at ratio {pair[1]:g} by {pair[0]}, with 95 % intervals"
        f"{_some(losses)}",
        description=f"All images {points(losses.loss)} points; "
        + "; ".join(
            f"{name} {points(row['loss'])} ({_span(row)}{', hurt more' if row['hurt'] else ''})"
            for name, row in rows.items()
        ),
    )
    columns, told = _told(losses)
    kept = [columns.index(name) for name in (columns[0], *_DRAWN_COLUMNS)]
    return Drawing(
        svg, tuple(columns[k] for k in kept), tuple(tuple(row[k] for k in kept) for row in told)
    )


_COLUMNS = ("class", "images", "before", "after", "loss (points)", "95 % interval",
            "beyond the average", "interval, corrected", "hurt more")  # fmt: skip
_DRAWN_COLUMNS = ("loss (points)", "95 % interval", "hurt more")


def _told(losses: ClassLosses) -> tuple[tuple[str, ...], tuple[tuple[str, ...], ...]]:
    frame = losses.frame
    if len(frame) > TABLED:
        frame = frame.sort_values("loss", ascending=False, kind="stable").head(TABLED)
    rows = tuple(
        (
            str(row["class"]),
            f"{int(row['n']):,}",
            share(row["accuracy_before"], 1),
            share(row["accuracy_after"], 1),
            points(row["loss"]),
            _span(row),
            points(row["excess"]),
            _span(row, "excess_low", "excess_high"),
            "yes" if row["hurt"] else "",
        )
        for row in frame.to_dict("records")
    )
    first = "class" if len(frame) == len(losses.frame) else f"class (the {TABLED} that lose most)"
    return (first, *_COLUMNS[1:]), rows


def _by_ratio(curve: Mapping[float, ClassLosses], names: Sequence[str]) -> Drawing:
    wide = pd.DataFrame(
        {ratio: losses.frame.set_index("class")["loss"] for ratio, losses in curve.items()}
    ).loc[list(names)]
    values = wide.to_numpy(dtype=np.float64)
    texts = [[points(value, 0) for value in row] for row in values]
    ratios = [f"{100 * ratio:g}" for ratio in wide.columns]
    # Losses of a point or two are not to look like catastrophes.
    shades = values / max(0.1, float(np.nanmax(values)))
    svg = heat_map(
        [_short(name) for name in names],
        ratios,
        shades,
        texts,
        title="Accuracy lost by each class, by prune ratio, in points",
        xlabel="target prune ratio (%)",
        description="; ".join(f"{name} {texts[k][-1]}" for k, name in enumerate(names))
        + f" at ratio {ratios[-1]} %.",
        colour=style.WARM,
    )
    rows = tuple((name, *texts[k]) for k, name in enumerate(names))
    return Drawing(svg, ("class", *(f"at {ratio} %" for ratio in ratios)), rows)


def _table(found: Mapping[Pair, ClassLosses]) -> Drawing:
    rows: list[tuple[str, ...]] = []
    columns: tuple[str, ...] = ()
    for (method, ratio), losses in found.items():
        columns, own = _told(losses)
        rows += [(method, f"{ratio:g}", *row) for row in own]
    return Drawing("", ("method", "ratio", *columns), tuple(rows))
