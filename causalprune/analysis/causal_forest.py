"""Where the effect is large: a causal forest, judged on networks that it has not seen."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.stats import rankdata

from causalprune.analysis import effects
from causalprune.analysis.clustered import Estimate, fit_clustered
from causalprune.analysis.evidence import Finding
from causalprune.analysis.findings import (
    at_most,
    covariates_of,
    found,
    only,
    refused,
    said,
    step_of,
)
from causalprune.analysis.heterogeneity import (
    MODIFIERS,
    beyond,
    effects_by_level,
    is_modifier,
    with_shifts,
)
from causalprune.analysis.known_design import (
    expected_features,
    import_econml,
    is_known_design,
    last_columns,
)
from causalprune.analysis.tables import Trials
from causalprune.analysis.wording import MINUS, amount, name_of

__all__ = ["causal_forest"]

Array = NDArray[np.float64]

QUESTION = "where the effect is large"
ESTIMATOR = "CausalForestDML, judged on held-out networks"

# Fewer leave honest trees nothing to split, and the held-out networks nothing to judge by.
MIN_TRIALS = 100
MIN_NETWORKS = 8
# More are drawn from at random: trees do not get better by them, only slower.
MAX_TRIALS = 5000

FOLDS = 4
TREES = 100
GROUPS = ("smallest", "middle", "largest")


def causal_forest(
    trials: Trials,
    treatment: str = "ratio",
    outcome: str = "accuracy_loss",
    *,
    modifiers: Sequence[str] = MODIFIERS,
    adjustment: Sequence[str] = (),
    seed: int = 0,
) -> tuple[Finding, ...]:
    """Predict each trial's effect from the declared modifiers, and check the predictions.

    The networks are parted into four; a forest grown on three parts predicts the effect of the
    treatment on the trials of the fourth. The trials are then grouped by what was predicted, and
    the effect realised in each group is estimated without the forest. A regression of the outcome
    on the treatment times its predicted effect says whether the predictions calibrate: its
    coefficient is 1 where predicted differences are real, and 0 where they are noise
    (Chernozhukov, Demirer, Duflo & Fernandez-Val, 2018).

    Parameters
    ----------
    trials : Trials
    treatment, outcome : str
        Numeric columns.
    modifiers : sequence of str
        What the forest may split on.
    adjustment : sequence of str
        Columns that the graph asks for; needed where nothing was assigned.
    seed : int
        Of the folds, the trees, and the 5000 trials that are drawn where there are more.

    Returns
    -------
    tuple of Finding
        The realised effect of each group, per step of the treatment; the verdict of the check in
        each sentence. One with its reason below 100 trials or 8 networks.

    Examples
    --------
    >>> from causalprune.analysis.tables import completed_trials
    >>> table = pd.DataFrame([
    ...     {"checkpoint": c, "ratio": r, "accuracy_loss": 0.1 * r + 0.01 * c}
    ...     for c in range(3) for r in (0.0, 0.3, 0.5, 0.7)
    ... ])
    >>> (finding,) = causal_forest(completed_trials(table, ("ratio", "accuracy_loss")))
    >>> finding.reason
    '12 trials of 3 networks are too few for a causal forest (100 of 8 at least).'
    """
    about: dict[str, Any] = {"outcome": outcome, "n_clusters": trials.n_clusters}
    contrast = f"+{step_of(treatment):g} of {name_of(treatment)}"
    whole = with_shifts(trials, outcome) if "shift" in modifiers else trials
    trials = at_most(whole, MAX_TRIALS, seed)
    names = [name for name in modifiers if is_modifier(trials.frame, name, treatment)]
    reason = _too_small(trials, outcome, names)
    if reason:
        return (refused(QUESTION, contrast, ESTIMATOR, reason, **about),)
    predicted, fold = _predictions(trials, treatment, outcome, names, adjustment, seed)
    if np.ptp(predicted) <= 1e-6 * np.abs(predicted).max():
        reason = "The forest predicts the same effect for every trial."
        return (refused(QUESTION, contrast, ESTIMATOR, reason, **about),)
    verdict = _verdict(_calibration(trials, treatment, outcome, predicted, fold, adjustment))
    group = _groups(predicted, fold)
    grouped = only(trials, trials.frame.assign(predicted_effect=group))
    realised, _ = effects_by_level(
        grouped, treatment, outcome, "predicted_effect", adjustment=adjustment
    )
    listed = []
    for name in (name for name in GROUPS if name in realised):
        said_of = f"{contrast}, {name} predicted effects"
        shown = realised[name]
        if isinstance(shown, str):
            listed.append(refused(QUESTION, said_of, ESTIMATOR, shown, **about))
            continue
        estimate, networks = shown
        mean = float(predicted[group == name].mean()) * step_of(treatment)
        sentence = (
            f"Where the forest predicted the {name} effects ({amount(outcome, mean)} on average), "
            f"{contrast} changed {name_of(outcome)} by {said(outcome, estimate)} in networks that "
            f"it had not seen. {verdict}"
        )
        about = {"outcome": outcome, "n_clusters": networks}
        listed.append(found(QUESTION, said_of, ESTIMATOR, estimate, sentence=sentence, **about))
    return tuple(listed)


def _too_small(trials: Trials, outcome: str, names: list[str]) -> str:
    rows, networks = len(trials.frame), trials.n_clusters
    if rows < MIN_TRIALS or networks < MIN_NETWORKS:
        return (
            f"{rows} trials of {networks} networks are too few for a causal forest "
            f"({MIN_TRIALS} of {MIN_NETWORKS} at least)."
        )
    if not names:
        return "No declared modifier varies in this table: there is nothing to split on."
    if trials.frame[outcome].nunique() < 2:
        return f"{outcome} never varies in this table."
    return ""


def _predictions(
    trials: Trials,
    treatment: str,
    outcome: str,
    names: list[str],
    adjustment: Sequence[str],
    seed: int,
) -> tuple[Array, NDArray[np.int64]]:
    """Predicted effect per unit of treatment [n] by forests of other networks; fold [n]."""
    learn = import_econml("econml.dml")
    from sklearn.linear_model import LinearRegression
    from sklearn.model_selection import GroupKFold

    frame = trials.frame
    known = is_known_design(trials, treatment)
    doses = frame[treatment].to_numpy(dtype=float)[:, None]
    target = frame[outcome].to_numpy(dtype=float)
    features = pd.get_dummies(frame[names].astype(str), dtype=float).to_numpy()
    but = ("checkpoint", *names)
    beside = covariates_of(trials, treatment, adjustment, but=but).to_numpy(dtype=float)
    expected = expected_features(frame, treatment, doses) if known else np.ones_like(doses)
    beside = np.hstack([beside, expected])
    clusters = effects.block_codes(frame, ["checkpoint"])
    predicted, fold = np.empty(len(frame)), np.empty(len(frame), dtype=np.int64)
    # Folds of GroupKFold follow sizes alone; networks of one architecture stand together.
    shuffled = np.random.default_rng(seed).permutation(trials.n_clusters)[clusters]
    for number, (train, test) in enumerate(GroupKFold(FOLDS).split(features, groups=shuffled)):
        forest = learn.CausalForestDML(
            model_y=LinearRegression(),
            model_t=last_columns(1) if known else LinearRegression(),
            cv=GroupKFold(FOLDS),
            n_estimators=TREES,
            min_samples_leaf=5,
            max_samples=0.7,
            inference=False,
            n_jobs=1,
            random_state=seed + number,
        )
        forest.fit(
            target[train],
            doses[train],
            X=features[train],
            W=beside[train],
            groups=clusters[train],
        )
        predicted[test] = np.ravel(forest.const_marginal_effect(features[test]))
        fold[test] = number
    return predicted, fold


def _calibration(
    trials: Trials,
    treatment: str,
    outcome: str,
    predicted: Array,
    fold: NDArray[np.int64],
    adjustment: Sequence[str],
) -> Estimate | str:
    frame = trials.frame
    doses = frame[treatment].to_numpy(dtype=float)
    covariates = covariates_of(trials, treatment, adjustment).to_numpy(dtype=float)
    rest = beyond(np.ones((len(frame), 1)), np.column_stack([predicted, covariates]))
    # What a forest has learnt from all networks but some is low where those are high: only
    # differences between the predictions of one forest count.
    means = np.bincount(fold, predicted) / np.bincount(fold)
    centred = predicted - means[fold]
    matrix = np.column_stack([doses * centred, doses, rest])
    clusters = effects.block_codes(frame, ["checkpoint"])
    fit = fit_clustered(frame[outcome].to_numpy(dtype=float), matrix, clusters)
    return fit if isinstance(fit, str) else fit.contrast(np.eye(matrix.shape[1])[0])


def _verdict(slope: Estimate | str) -> str:
    if isinstance(slope, str):
        return f"Whether the forest calibrates could not be checked: {slope}"
    number = f"calibration {slope.value:.2f}, 95 % interval {slope.low:.2f} to {slope.high:.2f}"
    number = number.replace("-", MINUS)
    if slope.low <= 0:
        return (
            f"The forest does not calibrate: its differences did not hold on other networks "
            f"({number}; 1 is right, 0 is noise), so do not choose by them."
        )
    if slope.covers(1.0):
        return f"The forest calibrates on held-out networks ({number}; 1 is right)."
    wrong = "smaller" if slope.value < 1 else "larger"
    return (
        f"The forest orders trials rightly but does not calibrate: real differences are {wrong} "
        f"than predicted ({number}; 1 is right)."
    )


def _groups(predicted: Array, fold: NDArray[np.int64]) -> NDArray[np.str_]:
    """Thirds by predicted effect within each fold: each forest has its own level."""
    named = np.empty(len(predicted), dtype="<U8")
    for number in np.unique(fold):
        rows = np.flatnonzero(fold == number)
        # Trials of one prediction share their mean rank and stay together.
        place = (rankdata(predicted[rows]) - 0.5) / len(rows)
        named[rows] = np.array(GROUPS)[np.minimum(2, (3 * place).astype(int))]
    return named
