"""Whether the treatment does the same everywhere: its effect by architecture, method, shift."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from causalprune.analysis import effects
from causalprune.analysis.clustered import Estimate, fit_clustered, holm
from causalprune.analysis.evidence import Finding
from causalprune.analysis.findings import covariates_of, found, only, refused, said, step_of
from causalprune.analysis.tables import Trials
from causalprune.analysis.wording import name_of, p_text
from causalprune.experiments.shift_rows import has_shift_rows, rows_by_shift

__all__ = ["MODIFIERS", "beyond", "effects_by_level", "heterogeneity", "is_modifier", "with_shifts"]

Array = NDArray[np.float64]

MODIFIERS = ("architecture", "dataset", "method", "shift", "layer")
"""Columns by which effects are told: declared before any table is seen."""

ESTIMATOR = "least squares with declared interactions, clustered"

# More levels than this are no groups that anybody declared.
MAX_LEVELS = 20


def heterogeneity(
    trials: Trials,
    treatment: str = "ratio",
    outcome: str = "accuracy_loss",
    *,
    modifiers: Sequence[str] = MODIFIERS,
    adjustment: Sequence[str] = (),
) -> tuple[Finding, ...]:
    """Effect of the treatment for each level of each modifier, and a test that levels differ.

    Parameters
    ----------
    trials : Trials
        A study's accuracies under shifts (``accuracy_by_shift``) become levels of ``shift`` where
        the outcome is an accuracy or its loss.
    treatment, outcome : str
        Numeric columns.
    modifiers : sequence of str
        Those with one level in the table, or none, are passed over.
    adjustment : sequence of str
        Columns that the graph asks for; needed where nothing was assigned.

    Returns
    -------
    tuple of Finding
        The slope for each level, per step of the treatment (0.1 of a ratio). The p-value of the
        test is in the sentences, adjusted for the number of modifiers by Holm's rule.

    Examples
    --------
    >>> from causalprune.analysis.tables import completed_trials
    >>> rng = np.random.default_rng(1)
    >>> table = pd.DataFrame([
    ...     {"checkpoint": c, "method": m, "ratio": r, "assignment": "randomised",
    ...      "accuracy_loss": (0.1 + 0.1 * (m == "l1")) * r + 0.002 * rng.standard_normal()}
    ...     for c in range(6) for m in ("l1", "wt") for r in (0.0, 0.3, 0.5, 0.7)
    ... ])
    >>> l1, wt = heterogeneity(completed_trials(table, ("ratio", "accuracy_loss")))
    >>> l1.question, l1.low < 0.02 < l1.high, wt.low < 0.01 < wt.high
    ('by method', True, True)
    """
    looked_at = {}
    tables: dict[str, Trials] = {}
    for name in modifiers:
        # Only here: elsewhere the plain test images are what the outcome speaks of.
        tables[name] = with_shifts(trials, outcome) if name == "shift" else trials
        if is_modifier(tables[name].frame, name, treatment):
            looked_at[name] = effects_by_level(
                tables[name], treatment, outcome, name, adjustment=adjustment
            )
    tests = {name: p for name, (_, p) in looked_at.items() if np.isfinite(p)}
    adjusted = dict(zip(tests, holm(list(tests.values())), strict=True))
    listed: list[Finding] = []
    for name, (slopes, _) in looked_at.items():
        listed += _told(tables[name], treatment, outcome, name, slopes, adjusted)
    return tuple(listed)


def is_modifier(frame: pd.DataFrame, name: str, treatment: str) -> bool:
    """Whether a column holds at least two levels, and few enough to be groups."""
    if name not in frame or name == treatment:
        return False
    return 2 <= frame[name].dropna().astype(str).nunique() <= MAX_LEVELS


def with_shifts(trials: Trials, outcome: str) -> Trials:
    """Return one row for each trial and shift where a study's table holds them, else `trials`."""
    if outcome not in ("accuracy", "accuracy_loss") or not has_shift_rows(trials.frame):
        return trials
    frame = rows_by_shift(trials.frame)
    frame[outcome] = frame[outcome].astype(float)
    return only(trials, frame)


def effects_by_level(
    trials: Trials,
    treatment: str,
    outcome: str,
    modifier: str,
    *,
    adjustment: Sequence[str] = (),
) -> tuple[dict[str, tuple[Estimate, int] | str], float]:
    """Slope and number of networks, or why there is none, by level; and the p-value of a test.

    One regression over all levels whose slopes are free: each level keeps its own mean, the
    design's other columns are shared. NaN for the test where fewer than two levels have a slope
    or the networks are too few for it.
    """
    frame = trials.frame.loc[trials.frame[modifier].notna()].reset_index(drop=True)
    levels = sorted(frame[modifier].astype(str).unique())
    refusals = {level: _unsupported(frame, treatment, modifier, level) for level in levels}
    usable = [level for level in levels if not refusals[level]]
    result: dict[str, tuple[Estimate, int] | str] = {k: v for k, v in refusals.items() if v}
    kept = frame.loc[frame[modifier].astype(str).isin(usable)].reset_index(drop=True)
    if not usable:
        return result, float("nan")
    own = only(trials, kept)
    named = kept[modifier].astype(str).to_numpy()
    member = np.column_stack([named == level for level in usable]).astype(float)
    slopes = member * kept[treatment].to_numpy(dtype=float)[:, None]
    rest = covariates_of(own, treatment, adjustment, but=(modifier,)).to_numpy(dtype=float)
    matrix = np.hstack([slopes, beyond(member, rest)])
    target = kept[outcome].to_numpy(dtype=float)
    clusters = effects.block_codes(kept, ["checkpoint"])
    if np.ptp(target) == 0:
        fit: Any = f"{outcome} never varies in this table."
    else:
        fit = fit_clustered(target, matrix, clusters)
    if isinstance(fit, str):
        return result | {level: fit for level in usable}, float("nan")
    width = matrix.shape[1]
    for position, level in enumerate(usable):
        networks = int(kept.loc[named == level, "checkpoint"].nunique())
        estimate = fit.contrast(np.eye(width)[position], clusters=networks)
        result[level] = (estimate.times(step_of(treatment)), networks)
    count = len(usable)
    differences = np.eye(width)[1:count] - np.eye(width)[0]
    return result, fit.test_of(differences) if count > 1 else float("nan")


def beyond(base: Array, columns: Array) -> Array:
    """Return `base` with those columns that it does not already span."""
    for column in columns.T:
        if effects.left_over(column, base) > 1e-9:
            base = np.column_stack([base, column])
    return base


def _unsupported(frame: pd.DataFrame, treatment: str, modifier: str, level: str) -> str:
    rows = frame.loc[frame[modifier].astype(str) == level]
    networks = rows["checkpoint"].nunique()
    if networks < 2:
        return f"refused: only one network with {name_of(modifier)} {level}"
    if rows[treatment].nunique() < 2:
        return f"refused: {name_of(treatment)} never varies where {name_of(modifier)} is {level}"
    return ""


def _told(
    trials: Trials,
    treatment: str,
    outcome: str,
    modifier: str,
    slopes: dict[str, tuple[Estimate, int] | str],
    adjusted: dict[str, float],
) -> list[Finding]:
    question = f"by {name_of(modifier)}"
    if modifier not in adjusted:
        difference = "Too few networks or levels to test whether levels differ."
    else:
        p = adjusted[modifier]
        verdict = "levels differ" if p < 0.05 else "no difference between levels could be shown"
        many = " after Holm's correction" if len(adjusted) > 1 else ""
        difference = f"{verdict[0].upper()}{verdict[1:]} ({p_text(p)}{many})."
    listed = []
    for level, slope in slopes.items():
        contrast = f"+{step_of(treatment):g} of {name_of(treatment)}, {name_of(modifier)} {level}"
        if isinstance(slope, str):
            networks = trials.frame.loc[trials.frame[modifier].astype(str) == level, "checkpoint"]
            about: dict[str, Any] = {"outcome": outcome, "n_clusters": int(networks.nunique())}
            listed.append(refused(question, contrast, ESTIMATOR, slope, **about))
            continue
        estimate, count = slope
        sentence = (
            f"{name_of(outcome)} for each {contrast}: {said(outcome, estimate)}, from {count} "
            f"networks. {difference}"
        )
        about = {"outcome": outcome, "n_clusters": count}
        listed.append(found(question, contrast, ESTIMATOR, estimate, sentence=sentence, **about))
    return listed
