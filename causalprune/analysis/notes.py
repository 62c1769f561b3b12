"""What a reader has to know before using an effect: the design's limits, in sentences."""

from __future__ import annotations

from typing import Any

import pandas as pd

from causalprune.analysis import effects
from causalprune.analysis.tables import DESIGN_COLUMNS, Trials
from causalprune.analysis.wording import FEW_CLUSTERS, number, unit_of

__all__ = ["curve", "interval_kind", "notes_of"]


def interval_kind(n_clusters: int) -> str:
    """Say what kind an interval is."""
    if n_clusters < 2:
        return "95 %, robust to unequal variances; one network only"
    return f"95 %, clustered by checkpoint ({n_clusters} clusters, t with {n_clusters - 1} df)"


def curve(
    outcome: str, step: float, linear: effects.LinearEffect, contrasts: tuple[Any, ...]
) -> str:
    """Say how the effect bends; empty where it is straight or not to be told from none."""
    usable = [c for c in contrasts if not c.reason]
    # The bends of a curve that may well be flat are noise.
    if len(usable) < 3 or linear.low <= 0 <= linear.high:
        return ""
    middle, last = usable[(len(usable) - 1) // 2], usable[-1]
    first_rate = middle.effect / (middle.end - middle.start) * step
    rest_rate = (last.effect - middle.effect) / (last.end - middle.end) * step
    if abs(rest_rate - first_rate) < 0.5 * abs(linear.effect):
        return ""
    return (
        "The effect is no straight line, so the average slope describes neither end: each "
        f"+{step:g} changes the outcome by {number(outcome, first_rate)} up to {middle.end:g} and "
        f"by {number(outcome, rest_rate)} {unit_of(outcome)} from there to {last.end:g}."
    )


def notes_of(
    trials: Trials, treatment: str, design: effects.Design, extra: tuple[str, ...]
) -> tuple[str, ...]:
    """Say what limits an effect, after the sentences of `extra` that are not empty."""
    notes = [text for text in extra if text]
    count = trials.n_clusters
    if count < 2:
        notes.append(
            "All trials start from one trained network: the interval says nothing about another."
        )
    elif count < FEW_CLUSTERS:
        notes.append(
            f"Only {count} independently trained networks: clustered intervals are unreliable with "
            "so few clusters (they lean on normal, equally behaved networks). The randomisation "
            "test does not depend on their number, but speaks only about these networks."
        )
    if not trials.designed:
        notes.append(
            "Nothing says that the treatment was assigned by the experiment: this is observational "
            "evidence, right only if the graph names every common cause, and no refuter can tell."
        )
    if trials.n_not_drawn:
        notes.append(
            f"{len(trials.frame):,} trials were drawn at random from the "
            f"{len(trials.frame) + trials.n_not_drawn:,} completed ones; the networks are the same."
        )
    lost = trials.n_failed + trials.n_incomplete
    if lost:
        notes.append(
            f"{lost} trials failed or are incomplete and are left out; if heavy pruning is what "
            "makes trials fail, the effect is understated."
        )
    if design.dropped:
        notes.append(
            f"Not adjusted for {', '.join(design.dropped)}: each level there saw (almost) one "
            f"value of {treatment} only."
        )
    notes += _scope(trials.frame)
    return tuple(notes)


def _scope(frame: pd.DataFrame) -> list[str]:
    fixed = [
        f"{name} = {frame[name].iloc[0]}"
        for name in DESIGN_COLUMNS
        if name in frame
        and name != "ratio"
        and frame[name].nunique(dropna=False) == 1
        and pd.notna(frame[name].iloc[0])
        and str(frame[name].iloc[0]) not in ("", "none")
    ]
    if not fixed:
        return []
    return [f"Never varied, so the effect is for these only: {', '.join(fixed)}."]
