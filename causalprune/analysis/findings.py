"""What the estimators beside the main one share: covariates, steps, sentences."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pandas as pd

from causalprune.analysis import effects
from causalprune.analysis.clustered import Estimate
from causalprune.analysis.evidence import Contrast, Finding
from causalprune.analysis.tables import Trials
from causalprune.analysis.wording import amount, name_of, span

__all__ = [
    "at_most",
    "covariates_of",
    "curve_finding",
    "found",
    "only",
    "refused",
    "said",
    "step_of",
]


def step_of(treatment: str) -> float:
    """Return the step that slopes are told for: 0.1 of a ratio, 1 of anything else.

    Examples
    --------
    >>> step_of("ratio"), step_of("retrain_epochs")
    (0.1, 1.0)
    """
    return 0.1 if "ratio" in treatment else 1.0


def at_most(trials: Trials, count: int, seed: int) -> Trials:
    """Return `count` trials drawn at random where there are more."""
    if len(trials.frame) <= count:
        return trials
    rows = np.sort(np.random.default_rng(seed).permutation(len(trials.frame))[:count])
    return only(trials, trials.frame.iloc[rows])


def only(trials: Trials, frame: pd.DataFrame) -> Trials:
    """Return some of the trials, or the same with other columns."""
    fresh = frame.reset_index(drop=True)
    return Trials(fresh, trials.n_failed, trials.n_incomplete, trials.designed)


def covariates_of(
    trials: Trials, treatment: str, adjustment: Sequence[str] = (), *, but: Sequence[str] = ()
) -> pd.DataFrame:
    """Return the numeric covariates of the main estimate, without those named in `but`.

    Columns of the design where the experiment assigned the treatment, and only what the graph
    asks for (`adjustment`) where it did not.
    """
    frame = trials.frame
    needed = [c for c in adjustment if c not in but and frame[c].nunique(dropna=False) > 1]
    blocks = effects.design_blocks(frame, treatment) if trials.designed else ()
    wanted = [c for c in blocks if c not in but]
    return effects.build_design(frame, treatment, needed, wanted).columns


def said(outcome: str, estimate: Estimate) -> str:
    """Return an estimate with its interval in words.

    Examples
    --------
    >>> said("accuracy_loss", Estimate(0.01, -0.01, 0.03, 0.3))
    '1.00 points (95 % interval −1.00 to 3.00; not to be told from none)'
    """
    doubt = "; not to be told from none" if estimate.covers(0.0) else ""
    interval = span(outcome, estimate.low, estimate.high)
    return f"{amount(outcome, estimate.value)} (95 % interval {interval}{doubt})"


def found(
    question: str,
    contrast: str,
    estimator: str,
    estimate: Estimate,
    *,
    outcome: str,
    n_clusters: int,
    sentence: str,
) -> Finding:
    """Return the finding of an estimate."""
    return Finding(
        question,
        contrast,
        estimator,
        estimate.value,
        estimate.low,
        estimate.high,
        outcome,
        n_clusters,
        sentence,
    )


def curve_finding(contrast: Contrast, treatment: str, outcome: str) -> Finding:
    """Return a contrast of the least-squares curve as a finding."""
    moved = f"{name_of(treatment)} {contrast.start:g} to {contrast.end:g}"
    estimator = "least squares, spline, clustered"
    if contrast.reason:
        return refused(
            "dose-response", moved, estimator, contrast.reason, outcome=outcome, n_clusters=0
        )
    doubt = "; not to be told from none" if contrast.low <= 0 <= contrast.high else ""
    sentence = (
        f"{name_of(outcome)}, {moved}: {amount(outcome, contrast.effect)} (95 % interval "
        f"{span(outcome, contrast.low, contrast.high)}{doubt}), by least squares within the "
        f"design's blocks; {contrast.clusters} networks."
    )
    return Finding(
        "dose-response", moved, estimator, contrast.effect, contrast.low, contrast.high,
        outcome, contrast.clusters, sentence,
    )  # fmt: skip


def refused(
    question: str, contrast: str, estimator: str, reason: str, *, outcome: str, n_clusters: int
) -> Finding:
    """Return the finding that there is no number, and why."""
    return Finding(
        question,
        contrast,
        estimator,
        math.nan,
        math.nan,
        math.nan,
        outcome,
        n_clusters,
        reason=reason,
    )
