"""An interval that does not lean on many networks: the wild cluster bootstrap."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import product
from typing import Any

import numpy as np
from numpy.typing import NDArray

from causalprune.analysis import effects
from causalprune.analysis.clustered import Estimate, fit_clustered
from causalprune.analysis.evidence import Finding
from causalprune.analysis.findings import covariates_of, found, refused, said, step_of
from causalprune.analysis.tables import Trials
from causalprune.analysis.wording import FEW_CLUSTERS, name_of, p_text

__all__ = ["few_networks", "wild_p_value"]

Array = NDArray[np.float64]

QUESTION = "few networks"

# Rademacher weights of fewer networks have too few signs to draw from (Webb, 2023).
WEBB_BELOW = 12
WEBB = tuple(sign * (size / 2) ** 0.5 for size in (1, 2, 3) for sign in (-1.0, 1.0))
RADEMACHER = (-1.0, 1.0)

DRAWS = 1999
LEVEL = 0.05


def few_networks(
    trials: Trials,
    treatment: str = "ratio",
    outcome: str = "accuracy_loss",
    *,
    adjustment: Sequence[str] = (),
    seed: int = 0,
) -> tuple[Finding, ...]:
    """Interval of the main slope by the wild cluster bootstrap, the null imposed.

    The residuals of each network, under a slope that is assumed, are multiplied by one random
    weight for the whole network (Webb's six points below 12 networks, signs from there on); the
    t statistic of the table is held against those of the drawn tables. The interval is the set of
    slopes that are not rejected at 5 % (Cameron, Gelbach & Miller, 2008).

    Parameters
    ----------
    trials : Trials
    treatment, outcome : str
        Numeric columns.
    adjustment : sequence of str
        Columns that the graph asks for; needed where nothing was assigned.
    seed : int

    Returns
    -------
    tuple of Finding
        Empty from 30 networks on, where the clustered interval needs no help; else one, per step
        of the treatment, with its reason where so few networks bound nothing.

    Examples
    --------
    >>> import pandas as pd
    >>> from causalprune.analysis.tables import completed_trials
    >>> rng = np.random.default_rng(1)
    >>> table = pd.DataFrame([
    ...     {"checkpoint": c, "ratio": r, "assignment": "drawn",
    ...      "accuracy_loss": 0.1 * r + 0.002 * rng.standard_normal()}
    ...     for c in range(6) for r in (0.0, 0.3, 0.5, 0.7)
    ... ])
    >>> (finding,) = few_networks(completed_trials(table, ("ratio", "accuracy_loss")))
    >>> finding.low < 0.01 < finding.high
    True
    """
    networks = trials.n_clusters
    if networks >= FEW_CLUSTERS:
        return ()
    weights = "Webb" if networks < WEBB_BELOW else "Rademacher"
    estimator = f"wild cluster bootstrap, {weights} weights"
    contrast = f"+{step_of(treatment):g} of {name_of(treatment)}"
    about: dict[str, Any] = {"outcome": outcome, "n_clusters": networks}
    frame = trials.frame
    values, target = (frame[name].to_numpy(dtype=float) for name in (treatment, outcome))
    if np.ptp(target) == 0:
        reason = f"{outcome} never varies in this table."
        return (refused(QUESTION, contrast, estimator, reason, **about),)
    clusters = effects.block_codes(frame, ["checkpoint"])
    rest = np.column_stack(
        [np.ones(len(frame)), covariates_of(trials, treatment, adjustment).to_numpy(dtype=float)]
    )
    fit = fit_clustered(target, np.column_stack([values, rest]), clusters)
    if isinstance(fit, str):
        return (refused(QUESTION, contrast, estimator, fit, **about),)
    usual = fit.contrast(np.eye(rest.shape[1] + 1)[0])
    p_of = wild_p_value(target, values, rest, clusters, seed=seed)
    p_value = p_of(0.0)
    low, high = (_edge(p_of, usual, side) for side in (-1, 1))
    compared = f"the clustered t interval says {said(outcome, usual.times(step_of(treatment)))}"
    if not np.isfinite([low, high]).all():
        reason = (
            f"refused: {networks} networks bound no slope at 95 % ({p_text(p_value)} for no "
            f"effect); {compared}, and leans on normal, equally behaved networks"
        )
        return (refused(QUESTION, contrast, estimator, reason, **about),)
    estimate = Estimate(usual.value, low, high, p_value).times(step_of(treatment))
    sentence = (
        f"{name_of(outcome)} for each {contrast}: {said(outcome, estimate)}, {p_text(p_value)}, by "
        f"the wild cluster bootstrap over {networks} networks; {compared}. Where the two differ, "
        "trust the wider one."
    )
    return (found(QUESTION, contrast, estimator, estimate, sentence=sentence, **about),)


def wild_p_value(
    target: Array,
    values: Array,
    rest: Array,
    clusters: NDArray[np.int64],
    *,
    seed: int = 0,
    draws: int = DRAWS,
) -> Callable[[float], float]:
    """Return the two-sided bootstrap p-value as a function of the slope that is assumed.

    Parameters
    ----------
    target, values : array [n] of float64
        Outcome and treatment.
    rest : array [n, k] of float64
        The constant and the covariates.
    clusters : array [n] of int64
    seed, draws : int
        Where all weights there are number fewer than `draws`, each is used once.

    Examples
    --------
    >>> rng = np.random.default_rng(1)
    >>> x, network = np.tile([0.0, 1.0, 2.0], 8), np.repeat(np.arange(8), 3)
    >>> y = 2 * x + 0.1 * rng.standard_normal(24)
    >>> p = wild_p_value(y, x, np.ones((24, 1)), network)
    >>> p(2.0) > 0.05, p(0.0) < 0.05
    (True, True)
    """
    _, codes = np.unique(clusters, return_inverse=True)
    count = int(codes.max()) + 1
    weights = _weights(count, seed, draws)
    basis = np.linalg.qr(rest)[0]
    treated = values - basis @ (basis.T @ values)
    outcome = target - basis @ (basis.T @ target)
    # Sums over each network's rows: everything a drawn table's t statistic needs.
    member = np.zeros((count, len(target)))
    member[codes, np.arange(len(target))] = 1.0
    own = member @ treated**2
    spread = float(own.sum())
    crossed = member @ (treated[:, None] * basis)

    # The table itself is what weights of 1 would draw.
    drawn_and_real = np.vstack([np.ones(count), weights])

    def p_value(assumed: float) -> float:
        left = outcome - assumed * treated
        pushed = member @ (treated * left)
        mixed = crossed @ (member @ (left[:, None] * basis)).T
        moved = drawn_and_real @ pushed / spread
        scores = drawn_and_real * pushed - drawn_and_real @ mixed.T - moved[:, None] * own
        error = np.sqrt((scores**2).sum(axis=1))
        statistics = np.abs(np.divide(moved, error, out=np.zeros_like(moved), where=error > 0))
        extreme = statistics >= statistics[0] * (1 - 1e-9)
        # A full list of weights holds the table's own already.
        return float(extreme[1:].mean() if len(weights) < draws else extreme.mean())

    return p_value


def _weights(count: int, seed: int, draws: int) -> Array:
    points = WEBB if count < WEBB_BELOW else RADEMACHER
    if len(points) ** count < draws:
        return np.array(list(product(points, repeat=count)))
    return np.asarray(np.random.default_rng(seed).choice(points, size=(draws, count)))


def _edge(p_of: Callable[[float], float], usual: Estimate, side: int) -> float:
    """Return where slopes begin to be rejected on one side of the estimate; infinite if never."""
    margin = (usual.high - usual.low) / 2
    if margin == 0:
        return usual.value
    inside, outside = usual.value, usual.value + side * margin
    for _ in range(12):
        if p_of(outside) < LEVEL:
            break
        inside, outside = outside, outside + 2 * (outside - usual.value)
    else:
        return side * float("inf")
    for _ in range(25):
        middle = (inside + outside) / 2
        if p_of(middle) < LEVEL:
            outside = middle
        else:
            inside = middle
    return outside
