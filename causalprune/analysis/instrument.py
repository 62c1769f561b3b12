"""The achieved ratio by its target: two-stage least squares with a check of the instrument."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from causalprune.analysis import effects
from causalprune.analysis.clustered import fit_clustered
from causalprune.analysis.evidence import Finding
from causalprune.analysis.findings import covariates_of, found, only, refused, said, step_of
from causalprune.analysis.tables import Trials
from causalprune.analysis.wording import name_of

__all__ = ["instrument"]

QUESTION = "target to achieved"
FIRST_STAGE = "least squares, clustered (first stage)"
SECOND_STAGE = "two-stage least squares, clustered"

# Below this an instrument is weak (Staiger & Stock, 1997) and 2SLS leans towards least squares.
MIN_F = 10.0


def instrument(
    trials: Trials,
    outcome: str = "accuracy_loss",
    *,
    target: str = "ratio",
    achieved: str = "achieved_ratio",
    adjustment: Sequence[str] = (),
) -> tuple[Finding, ...]:
    """Effect of the achieved ratio on the outcome, with the target ratio as its instrument.

    Whole units are removed, and what a target comes to depends on the network; a network's own
    properties may move both what is achieved and what is lost. The target was set beforehand: its
    effect on the outcome over its effect on the achieved ratio is the effect of the latter, as
    long as the target acts through it alone. Covariates are those of the main estimate, errors
    are clustered by network.

    Parameters
    ----------
    trials : Trials
    outcome : str
        Numeric column.
    target, achieved : str
        Instrument and treatment.
    adjustment : sequence of str
        Columns that the graph asks for; needed where nothing was assigned.

    Returns
    -------
    tuple of Finding
        How the achieved ratio follows its target (in units of the achieved ratio, per step of the
        target), and the effect of a step of the achieved ratio on the outcome; the latter without
        a number where the first-stage F is below 10.

    Examples
    --------
    >>> import pandas as pd
    >>> from causalprune.analysis.tables import completed_trials
    >>> rng = np.random.default_rng(0)
    >>> rows = []
    >>> for c in range(8):
    ...     for r in (0.0, 0.2, 0.4, 0.6, 0.8):
    ...         got = r + 0.05 * rng.standard_normal()
    ...         loss = 0.1 * got + 0.002 * rng.standard_normal()
    ...         rows.append({"checkpoint": c, "assignment": "drawn", "ratio": r,
    ...                      "achieved_ratio": got, "accuracy_loss": loss})
    >>> first, second = instrument(completed_trials(pd.DataFrame(rows), ("accuracy_loss",)))
    >>> second.low < 0.01 < second.high
    True
    """
    about: dict[str, Any] = {"n_clusters": trials.n_clusters}
    contrast = f"+{step_of(achieved):g} of {name_of(achieved)}"
    reason = _unusable(trials, outcome, target, achieved)
    if reason:
        return (refused(QUESTION, contrast, SECOND_STAGE, reason, outcome=outcome, **about),)
    own = only(trials, trials.frame.loc[trials.frame[[target, achieved]].notna().all(axis=1)])
    frame = own.frame
    clusters = effects.block_codes(frame, ["checkpoint"])
    asked, got, result = (frame[name].to_numpy(dtype=float) for name in (target, achieved, outcome))
    covariates = covariates_of(own, target, adjustment).to_numpy(dtype=float)
    rest = np.column_stack([np.ones(len(frame)), covariates])
    instruments, columns = np.column_stack([asked, rest]), np.column_stack([got, rest])
    first = fit_clustered(got, instruments, clusters)
    if isinstance(first, str):
        return (refused(QUESTION, contrast, SECOND_STAGE, first, outcome=outcome, **about),)
    unit = np.eye(columns.shape[1])[0]
    strength = _strength(float(first.params[0]), float(first.covariance[0, 0]))
    strong = f"{strength:.0f}" if strength < 1e6 else "over a million"
    follows = first.contrast(unit).times(step_of(target))
    moved = f"+{step_of(target):g} of {name_of(target)}"
    listed = [
        found(
            QUESTION,
            moved,
            FIRST_STAGE,
            follows,
            outcome=achieved,
            sentence=(
                f"{moved} moves the {name_of(achieved)} by {said(achieved, follows)}; first-stage "
                f"F {strong}, {'far from weak' if strength >= MIN_F else 'weak'} (10 is the rule)."
            ),
            **about,
        )
    ]
    if strength < MIN_F:
        reason = (
            f"refused: {name_of(target)} is a weak instrument (first-stage F {strength:.1f}, below "
            f"{MIN_F:g}): the estimate would lean towards plain least squares and its interval lie"
        )
        return (
            *listed,
            refused(QUESTION, contrast, SECOND_STAGE, reason, outcome=outcome, **about),
        )
    second = fit_clustered(result, columns, clusters, instruments)
    plain = fit_clustered(result, columns, clusters)
    if isinstance(second, str) or isinstance(plain, str):
        reason = str(second if isinstance(second, str) else plain)
        return (
            *listed,
            refused(QUESTION, contrast, SECOND_STAGE, reason, outcome=outcome, **about),
        )
    effect = second.contrast(unit).times(step_of(achieved))
    least = plain.contrast(unit).times(step_of(achieved))
    sentence = (
        f"{name_of(outcome)} for each {contrast}: {said(outcome, effect)}, by the part of it that "
        f"the target moved; plain least squares says {said(outcome, least)}. It assumes that the "
        "target acts through the achieved ratio alone: not if, at one achieved ratio, another "
        "target takes other layers."
    )
    if not trials.designed:
        sentence += " Nobody drew the target here, so that it may share causes with the outcome."
    listed.append(
        found(QUESTION, contrast, SECOND_STAGE, effect, outcome=outcome, sentence=sentence, **about)
    )
    return tuple(listed)


def _unusable(trials: Trials, outcome: str, target: str, achieved: str) -> str:
    frame = trials.frame
    missing = [name for name in (target, achieved) if name not in frame]
    if missing:
        return f"The table has no column {' and '.join(missing)}."
    kept = frame.loc[frame[[target, achieved]].notna().all(axis=1)]
    constant = [name for name in (target, achieved, outcome) if kept[name].nunique() < 2]
    if constant:
        return f"{' and '.join(map(name_of, constant))} never varies in this table."
    return ""


def _strength(slope: float, variance: float) -> float:
    """Return the clustered first-stage F; infinite where the target fixes what is achieved."""
    return slope**2 / variance if variance > 1e-24 * slope**2 else float("inf")
