"""Dose-response by double machine learning: EconML's LinearDML on a spline of the treatment."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from causalprune.analysis import effects
from causalprune.analysis.clustered import ClusteredFit, Estimate, fit_clustered
from causalprune.analysis.evidence import Finding
from causalprune.analysis.findings import covariates_of, found, refused, said
from causalprune.analysis.known_design import (
    expected_features,
    import_econml,
    is_known_design,
    last_columns,
)
from causalprune.analysis.splines import curve_grid, natural_spline
from causalprune.analysis.tables import Trials
from causalprune.analysis.wording import name_of, span

__all__ = ["double_ml"]

Array = NDArray[np.float64]
Codes = NDArray[np.int64]

QUESTION = "dose-response"
FOLDS = 5
# Forgives 0.1 + 0.2.
ROUNDING = 1e-9


def double_ml(
    trials: Trials,
    treatment: str = "ratio",
    outcome: str = "accuracy_loss",
    *,
    contrasts: Sequence[tuple[float, float]] | None = None,
    adjustment: Sequence[str] = (),
    seed: int = 0,
) -> tuple[Finding, ...]:
    """Effects of moving the treatment between two levels, by LinearDML with a spline.

    Outcome and spline columns are predicted for each fifth of the networks from the others
    (never for a network from itself), and the effect is fitted on what is left of both. Where
    the experiment drew the treatment, its expected spline columns are known from the design and
    not learnt. Intervals cluster the residuals by network; EconML's own, which takes trials for
    independent, is told beside them.

    Parameters
    ----------
    trials : Trials
    treatment, outcome : str
        Numeric columns.
    contrasts : sequence of (start, end), optional
        By default each level (or ten points, beyond eight levels) against the smallest.
    adjustment : sequence of str
        Columns that the graph asks for; needed where nothing was assigned.
    seed : int
        Of EconML; the folds are the same for every seed.

    Returns
    -------
    tuple of Finding
        In units of the outcome; a contrast without support carries its reason.

    Examples
    --------
    >>> from causalprune.analysis.tables import completed_trials
    >>> rng = np.random.default_rng(0)
    >>> table = pd.DataFrame([
    ...     {"checkpoint": c, "ratio": r, "assignment": "randomised",
    ...      "accuracy_loss": 0.1 * r + 0.002 * rng.standard_normal()}
    ...     for c in range(6) for r in (0.0, 0.3, 0.5, 0.7)
    ... ])
    >>> trials = completed_trials(table, ("ratio", "accuracy_loss"))
    >>> (finding,) = double_ml(trials, contrasts=[(0.3, 0.7)])
    >>> finding.low < 0.04 < finding.high
    True
    """
    frame, values = trials.frame, trials.frame[treatment].to_numpy(dtype=float)
    knots, grid, _ = curve_grid(values)
    wanted = list(contrasts or ((float(grid[0]), float(level)) for level in grid[1:]))
    known = is_known_design(trials, treatment)
    estimator = f"LinearDML, spline, {'known design' if known else 'treatment learnt'}"
    fitted = _fit(trials, treatment, outcome, knots, adjustment, known, seed)
    listed = []
    for start, end in wanted:
        reason = fitted if isinstance(fitted, str) else _unsupported(frame, treatment, start, end)
        contrast = f"{name_of(treatment)} {start:g} to {end:g}"
        about: dict[str, Any] = {"outcome": outcome, "n_clusters": trials.n_clusters}
        if reason or isinstance(fitted, str):
            listed.append(refused(QUESTION, contrast, estimator, reason, **about))
            continue
        estimate, own = fitted.contrast(start, end)
        sentence = _sentence(outcome, contrast, estimate, own, known)
        listed.append(found(QUESTION, contrast, estimator, estimate, sentence=sentence, **about))
    return tuple(listed)


@dataclass(frozen=True)
class _Fitted:
    learner: Any
    clustered: ClusteredFit
    spline: Callable[[Array], Array]

    def contrast(self, start: float, end: float) -> tuple[Estimate, tuple[float, float]]:
        """Clustered estimate, and EconML's interval for independent trials."""
        ends = np.array([[start]]), np.array([[end]])
        low, high = (
            float(np.ravel(side)[0])
            for side in self.learner.effect_interval(T0=ends[0], T1=ends[1], alpha=0.05)
        )
        weights = (self.spline(ends[1]) - self.spline(ends[0]))[0]
        return self.clustered.contrast(weights), (low, high)


def _fit(
    trials: Trials,
    treatment: str,
    outcome: str,
    knots: Array,
    adjustment: Sequence[str],
    known: bool,
    seed: int,
) -> _Fitted | str:
    frame = trials.frame
    clusters = effects.block_codes(frame, ["checkpoint"])
    if trials.n_clusters < 2:
        return "One trained network: no other is left to predict it from."
    learn = import_econml("econml.dml")
    from sklearn.linear_model import LinearRegression
    from sklearn.model_selection import GroupKFold
    from sklearn.preprocessing import FunctionTransformer

    def spline(doses: Array) -> Array:
        return natural_spline(np.ravel(doses), knots)

    values = frame[treatment].to_numpy(dtype=float)[:, None]
    # A network that was left out has no column of its own to be predicted by.
    covariates = covariates_of(trials, treatment, adjustment, but=("checkpoint",))
    beside = np.column_stack([np.ones(len(frame)), covariates.to_numpy(dtype=float)])
    expected = expected_features(frame, treatment, spline(values)) if known else None
    if expected is not None:
        beside = np.hstack([beside, expected])
    learner = learn.LinearDML(
        model_y=LinearRegression(),
        model_t=last_columns(expected.shape[1]) if expected is not None else LinearRegression(),
        treatment_featurizer=FunctionTransformer(spline),
        cv=GroupKFold(min(FOLDS, trials.n_clusters)),
        random_state=seed,
    )
    target = frame[outcome].to_numpy(dtype=float)
    learner.fit(
        target, values, W=beside, groups=clusters, inference="statsmodels", cache_values=True
    )
    outcome_left, treatment_left, _, same = learner.residuals_
    # EconML does not promise the order of residuals; errors of the wrong networks would be silent.
    if not np.array_equal(same, beside):
        return "EconML returned its residuals in another order, so networks cannot be told apart."
    clustered = fit_clustered(np.ravel(outcome_left), treatment_left, clusters)
    if isinstance(clustered, str):
        return clustered
    return _Fitted(learner, clustered, spline)


def _unsupported(frame: pd.DataFrame, treatment: str, start: float, end: float) -> str:
    """Say which kind of network never came near a level; empty where all did."""
    kinds = [name for name in ("architecture", "dataset") if name in frame]
    by_level = curve_grid(frame[treatment].to_numpy(dtype=float))[2]
    for _, rows in frame.groupby(effects.block_codes(frame, kinds)):
        levels = rows[treatment]
        named = ", ".join(map(str, rows[kinds].iloc[0]))
        who = f"networks of {named}" if kinds else "networks"
        for level in (start, end):
            if not levels.min() - ROUNDING <= level <= levels.max() + ROUNDING:
                return (
                    f"refused: {who} were tried from {levels.min():g} to {levels.max():g} of "
                    f"{name_of(treatment)}, and {level:g} lies outside"
                )
            seen = rows.loc[np.isclose(levels, level), "checkpoint"].nunique()
            if by_level and frame[treatment].eq(level).any() and seen < 2:
                return (
                    f"refused: of the {who}, {seen} completed a trial at {level:g}; two are needed"
                )
    return ""


def _sentence(
    outcome: str, contrast: str, estimate: Estimate, own: tuple[float, float], known: bool
) -> str:
    source = (
        "The experiment drew the treatment and its distribution is known, so that a poor model of "
        "the outcome costs precision and not truth."
        if known
        else "Nobody drew the treatment: it is predicted from the covariates, and a common cause "
        "that is not among them biases this."
    )
    return (
        f"{name_of(outcome)}, {contrast}: {said(outcome, estimate)}. {source} EconML's interval "
        f"for independent trials would be {span(outcome, *own)}."
    )
