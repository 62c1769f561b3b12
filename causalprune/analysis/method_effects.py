"""What one method does instead of another: paired within networks, and by a learner beside it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from causalprune.analysis import effects
from causalprune.analysis.clustered import Estimate, holm, mean_over_networks
from causalprune.analysis.evidence import Finding
from causalprune.analysis.findings import at_most, covariates_of, found, only, refused, said
from causalprune.analysis.known_design import import_econml, known_propensity, propensities
from causalprune.analysis.tables import DESIGN_COLUMNS, Trials
from causalprune.analysis.wording import name_of, p_text
from causalprune.errors import UnknownNameError

__all__ = ["method_effects"]

Array = NDArray[np.float64]

QUESTION = "method"
PAIRED = "paired differences within network"
LEARNER = "LinearDRLearner, known propensity"

FOLDS = 5
# More networks than this are left out in groups, not one by one.
JACKKNIFE_GROUPS = 20
# The learner is fitted once for each group that is left out; more trials are drawn from.
MAX_TRIALS = 20_000
# More levels of the ratio than this are a number, not names.
MAX_LEVELS = 12


def method_effects(
    trials: Trials,
    treatment: str = "ratio",
    outcome: str = "accuracy_loss",
    *,
    control: str | None = None,
    seed: int = 0,
) -> tuple[Finding, ...]:
    """Effect of each method instead of the control, averaged over the table's ratios.

    First by paired differences: two trials of one network that differ in the method alone, their
    difference averaged within the network, and a t interval over networks. Then by EconML's
    LinearDRLearner with the propensities of the design, its interval by leaving out networks
    (jackknife). Trials at ratio 0, where no method removes anything, are left out.

    Parameters
    ----------
    trials : Trials
        With the column ``method``.
    treatment : str
        The main treatment: methods are compared at equal values of it.
    outcome : str
        Numeric column.
    control : str, optional
        The method to compare with; by default ``"random"``, and the first by name without it.
    seed : int
        Of EconML.

    Returns
    -------
    tuple of Finding
        Two for each method but the control; one with its reason where nothing can be compared.

    Raises
    ------
    UnknownNameError
        No trial has the method `control`.

    Examples
    --------
    >>> from causalprune.analysis.tables import completed_trials
    >>> rng = np.random.default_rng(0)
    >>> table = pd.DataFrame([
    ...     {"checkpoint": c, "method": m, "ratio": r, "assignment": "randomised",
    ...      "accuracy_loss": 0.1 * r - 0.02 * (m == "wt") + 0.002 * rng.standard_normal()}
    ...     for c in range(6) for m in ("wt", "random") for r in (0.3, 0.5, 0.7)
    ... ])
    >>> paired, learner = method_effects(completed_trials(table, ("ratio", "accuracy_loss")))
    >>> paired.contrast, paired.low < -0.02 < paired.high
    ('wt instead of random', True)
    """
    frame = trials.frame
    about: dict[str, Any] = {"outcome": outcome, "n_clusters": trials.n_clusters}
    methods = sorted(frame["method"].dropna().astype(str).unique()) if "method" in frame else []
    if control is not None and control not in methods:
        raise UnknownNameError("control", control, methods)
    if len(methods) < 2:
        have = f"only {methods[0]}" if methods else "no method"
        reason = f"The table has {have}: there is nothing to compare it with."
        return (refused(QUESTION, "one method instead of another", PAIRED, reason, **about),)
    base = control or ("random" if "random" in methods else methods[0])
    pruned = _pruned(trials)
    others = [name for name in methods if name != base]
    return (
        *_paired(pruned, treatment, outcome, base, others),
        *_learned(pruned, treatment, outcome, base, others, seed),
    )


def _pruned(trials: Trials) -> Trials:
    """Leave out what no method has pruned."""
    frame = trials.frame.loc[trials.frame["method"].notna()]
    pruned = frame["ratio"].gt(0) if "ratio" in frame else pd.Series(True, index=frame.index)
    return only(trials, frame.loc[pruned] if pruned.any() else frame)


def _paired(
    trials: Trials, treatment: str, outcome: str, base: str, others: list[str]
) -> list[Finding]:
    frame = trials.frame
    same = (*DESIGN_COLUMNS, _doses(frame, treatment))
    cells = [c for c in same if c in frame and c not in ("method", "checkpoint")]
    keys = frame.assign(cell=effects.block_codes(frame, cells), method=frame["method"].astype(str))
    wide = keys.pivot_table(
        index=["checkpoint", "cell"], columns="method", values=outcome, aggfunc="mean"
    )
    shown: dict[str, tuple[Estimate, int, int]] = {}
    for other in others:
        # A method whose trials all failed has no column.
        pairs = (
            (wide[other] - wide[base]).dropna() if {other, base} <= set(wide) else wide.iloc[:0, 0]
        )
        own = pairs.groupby(level="checkpoint").mean().to_numpy(dtype=float)
        if len(own) >= 2:
            shown[other] = (mean_over_networks(own), len(own), len(pairs))
    adjusted = dict(zip(shown, holm([each[0].p_value for each in shown.values()]), strict=True))
    listed = []
    for other in others:
        contrast = f"{other} instead of {base}"
        if other not in shown:
            reason = (
                f"refused: fewer than two networks have trials of both {other} and {base} that "
                "agree in everything else"
            )
            listed.append(
                refused(
                    QUESTION,
                    contrast,
                    PAIRED,
                    reason,
                    outcome=outcome,
                    n_clusters=trials.n_clusters,
                )
            )
            continue
        estimate, networks, pairs_count = shown[other]
        sentence = (
            f"{name_of(outcome)} with {other} instead of {base}: {said(outcome, estimate)}, from "
            f"{pairs_count} pairs of trials in {networks} networks, averaged over the table's "
            f"ratios; {_holm_text(adjusted[other], len(shown))}."
        )
        if not trials.designed:
            sentence += " Nobody assigned the methods: what else went with each is in this number."
        listed.append(
            found(
                QUESTION,
                contrast,
                PAIRED,
                estimate,
                outcome=outcome,
                n_clusters=networks,
                sentence=sentence,
            )
        )
    return listed


def _holm_text(p_value: float, comparisons: int) -> str:
    if comparisons == 1:
        return p_text(p_value)
    return f"{p_text(p_value)} after Holm's correction for {comparisons} comparisons"


def _learned(
    trials: Trials, treatment: str, outcome: str, base: str, others: list[str], seed: int
) -> list[Finding]:
    trials = at_most(trials, MAX_TRIALS, seed)
    frame = trials.frame
    about: dict[str, Any] = {"outcome": outcome, "n_clusters": trials.n_clusters}
    estimates = _jackknife(trials, treatment, outcome, [base, *others], seed)
    listed = []
    for position, other in enumerate(others):
        contrast = f"{other} instead of {base}"
        if isinstance(estimates, str):
            listed.append(refused(QUESTION, contrast, LEARNER, estimates, **about))
            continue
        estimate = estimates[position]
        sentence = (
            f"{name_of(outcome)} with {other} instead of {base}: {said(outcome, estimate)}, by a "
            f"doubly robust learner over {len(frame)} trials with the propensities of the design; "
            "the interval leaves out networks."
        )
        listed.append(found(QUESTION, contrast, LEARNER, estimate, sentence=sentence, **about))
    return listed


def _jackknife(
    trials: Trials, treatment: str, outcome: str, levels: list[str], seed: int
) -> list[Estimate] | str:
    """Effects of the levels but the first, intervals by leaving out (groups of) networks."""
    frame = trials.frame
    if not trials.designed:
        return "Nothing says that methods were assigned: their propensities are not known."
    clusters = effects.block_codes(frame, ["checkpoint"])
    if trials.n_clusters < 3:
        return f"{trials.n_clusters} networks are too few to leave some out and learn from others."
    methods = frame["method"].astype(str).to_numpy()
    chances = propensities(frame, levels)
    if not np.all(chances > 0):
        return (
            "The design gave some method no chance in some trials: they cannot be compared there."
        )
    covariates = _covariates(trials, treatment)
    beside = np.column_stack([np.ones(len(frame)), covariates.to_numpy(dtype=float), chances])
    target = frame[outcome].to_numpy(dtype=float)
    groups = clusters % min(JACKKNIFE_GROUPS, trials.n_clusters)
    count = int(groups.max()) + 1
    fits = []
    for left_out in range(-1, count):
        rows = groups != left_out
        fit = _learn(target[rows], methods[rows], beside[rows], clusters[rows], levels, seed)
        if isinstance(fit, str):
            return fit
        fits.append(fit)
    whole, partial = fits[0], np.array(fits[1:])
    # Pseudo-values: their mean has the jackknife's variance, and t over them its interval.
    spread = (count - 1) * (partial.mean(axis=0) - partial)
    return [mean_over_networks(value + spread[:, position]) for position, value in enumerate(whole)]


def _doses(frame: pd.DataFrame, treatment: str) -> str:
    """Return the column that methods are compared at: what was asked for, not what came of it."""
    return "ratio" if "ratio" in frame else treatment


def _covariates(trials: Trials, treatment: str) -> pd.DataFrame:
    """Return columns of the design without the network, and one for each level of the ratio."""
    doses = _doses(trials.frame, treatment)
    rest = covariates_of(trials, doses, but=("checkpoint", "method"))
    values = trials.frame[doses]
    named = values.astype(str) if values.nunique() <= MAX_LEVELS else values.astype(float)
    levels = pd.get_dummies(named.to_frame(), drop_first=True, dtype=float)
    return pd.concat([rest, levels], axis=1)


def _learn(
    target: Array,
    methods: NDArray[Any],
    beside: Array,
    clusters: NDArray[np.int64],
    levels: list[str],
    seed: int,
) -> Array | str:
    learn = import_econml("econml.dr")
    from sklearn.linear_model import LinearRegression
    from sklearn.model_selection import GroupKFold

    folds = GroupKFold(min(FOLDS, len(np.unique(clusters))))
    for train, _ in folds.split(beside, groups=clusters):
        if len(np.unique(methods[train])) < len(levels):
            return "Too few networks have every method: some methods would be learnt from nothing."
    learner = learn.LinearDRLearner(
        model_propensity=known_propensity(len(levels)),
        model_regression=LinearRegression(),
        categories=levels,
        cv=folds,
        random_state=seed,
    )
    learner.fit(target, methods, W=beside, groups=clusters, inference=None)
    return np.array([float(learner.ate(T0=levels[0], T1=level)) for level in levels[1:]])
