"""How strong a cause that nobody recorded would have to be (tables without assignment)."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from causalprune.analysis.effects import Design
from causalprune.analysis.evidence import VERDICTS, Refutation
from causalprune.analysis.refutations import Target
from causalprune.analysis.wording import amount, percent

__all__ = ["e_value", "robustness", "robustness_value"]

Array = NDArray[np.float64]


def robustness_value(t: float, degrees: int) -> float:
    """Share of the leftover variance of treatment and outcome that a hidden cause must explain.

    A cause that explains this share of both brings a least-squares estimate to zero.

    Parameters
    ----------
    t : float
        The estimate over its standard error.
    degrees : int
        Residual degrees of freedom.

    Notes
    -----
    Source: Cinelli and Hazlett (2020), Making sense of sensitivity, eq. for q = 1.

    Examples
    --------
    >>> round(robustness_value(4.18, 783), 3)
    0.139
    """
    f2 = t * t / degrees
    return 0.5 * (math.sqrt(f2 * f2 + 4 * f2) - f2)


def e_value(effect: float, spread: float) -> float:
    """Least risk ratio by which a hidden cause must go with treatment and outcome.

    Parameters
    ----------
    effect : float
        Difference of the outcome.
    spread : float
        Standard deviation of the outcome.

    Notes
    -----
    Source: VanderWeele and Ding (2017); a difference of means is turned into a risk ratio by
    exp(0.91 d), d the difference in standard deviations.

    Examples
    --------
    >>> round(e_value(0.5, 1.0), 2)
    2.53
    """
    ratio = math.exp(0.91 * abs(effect) / spread)
    return ratio + math.sqrt(ratio * (ratio - 1))


def robustness(target: Target, design: Design, frame: pd.DataFrame) -> Refutation:
    """Compare the hidden cause that it would take with the strongest cause that was recorded."""
    rule = "a hidden cause as strong as the strongest recorded one would not explain the estimate"
    name = "hidden cause"
    treatment = frame[target.treatment].to_numpy(dtype=float)
    outcome = frame[target.outcome].to_numpy(dtype=float)
    covariates = design.columns.to_numpy(dtype=float)
    base = np.column_stack([np.ones(len(frame)), covariates])
    degrees = len(frame) - base.shape[1] - 1
    left_treatment, left_outcome = _left(treatment, base), _left(outcome, base)
    if degrees < 1 or not left_treatment @ left_treatment or not left_outcome @ left_outcome:
        sentence = "There are too few trials to say how strong a hidden cause would have to be."
        return _refutation(target, name, rule, None, sentence)
    share = _r2(left_outcome, left_treatment)
    t = math.sqrt(degrees * share / (1 - share)) if share < 1 else math.inf
    value = robustness_value(t, degrees) if math.isfinite(t) else 1.0
    needed = e_value(target.estimate, float(outcome.std()) or 1.0)
    told = (
        f"A cause that is not in the table would have to explain {percent(value)} of what is left "
        f"of both {target.treatment} and {target.outcome} to bring the estimate to zero (E-value "
        f"of the estimate: {needed:.2f})."
    )
    strongest = _strongest(target, design, treatment, outcome)
    if strongest is None:
        sentence = f"{told} No recorded cause is there to compare it with."
        return _refutation(target, name, rule, None, sentence)
    column, with_treatment, with_outcome = strongest
    bound = math.sqrt(with_outcome * with_treatment / max(1 - with_treatment, 1e-12))
    spread = math.sqrt(float(left_outcome @ left_outcome) / float(left_treatment @ left_treatment))
    slope = float(left_outcome @ left_treatment) / float(left_treatment @ left_treatment)
    bias = bound * spread * math.sqrt(max(1 - share, 0.0))
    passed = bias < abs(slope)
    what = amount(target.outcome, target.estimate * bias / abs(slope)) if slope else "anything"
    meaning = "less than the estimate" if passed else "as much as the estimate or more"
    sentence = (
        f"{told} The strongest recorded cause, {column}, explains {percent(with_treatment)} and "
        f"{percent(with_outcome)}; another like it would account for {what}, {meaning}."
    )
    return _refutation(target, name, rule, passed, sentence)


def _strongest(
    target: Target, design: Design, treatment: Array, outcome: Array
) -> tuple[str, float, float] | None:
    """Find the recorded column that goes most with treatment and outcome, with both shares."""
    found: list[tuple[str, float, float]] = []
    for name in (*design.adjustment, *design.covariates):
        own = [c for c in design.columns if c == name or str(c).startswith(f"{name}=")]
        others = design.columns.drop(columns=own).to_numpy(dtype=float)
        base = np.column_stack([np.ones(len(treatment)), others])
        wide = np.column_stack([base, design.columns[own].to_numpy(dtype=float)])
        with_treatment = _gain(treatment, base, wide)
        both = np.column_stack([base, treatment])
        with_outcome = _gain(outcome, both, np.column_stack([wide, treatment]))
        if own:
            found.append((name, with_treatment, with_outcome))
    return max(found, key=lambda entry: entry[1] * entry[2], default=None)


def _gain(values: Array, base: Array, wide: Array) -> float:
    before, after = _left(values, base), _left(values, wide)
    total = float(before @ before)
    return 1 - float(after @ after) / total if total > 0 else 0.0


def _left(values: Array, base: Array) -> Array:
    return np.asarray(values - base @ np.linalg.lstsq(base, values, rcond=None)[0])


def _r2(first: Array, second: Array) -> float:
    return float(first @ second) ** 2 / (float(first @ first) * float(second @ second))


def _refutation(
    target: Target, name: str, rule: str, passed: bool | None, sentence: str
) -> Refutation:
    return Refutation(
        name, target.estimate, math.nan, None, rule, passed, sentence, verdict=VERDICTS[passed]
    )
