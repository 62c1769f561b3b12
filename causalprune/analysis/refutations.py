"""The three refuters, judged by effect sizes.

A refuter's p-value above 0.05 only says that it did not reject. On tables with a
known truth all three pass a confounded estimate, an over-controlled one and pure
noise; so the rules here ask how large a change is, and the placebo also has to
show that the estimate is more than a shuffled treatment gives.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from causalprune.analysis import identification
from causalprune.analysis.evidence import Refutation
from causalprune.analysis.randomisation import Assignment, shuffled_slopes, two_sided
from causalprune.analysis.wording import amount, percent, span, unit_of

PLACEBO_SHARE = 0.10
PLACEBO_BAND = 0.99
COMMON_CAUSE_SHARE = 0.02
SUBSET_SHARE = 0.30
SUBSET_FRACTION = 0.8

# Placebos cost next to nothing, and a 99 % band needs many.
PLACEBO_DRAWS = 10

Step = Callable[[], None]


@dataclass(frozen=True)
class Target:
    """The estimate under attack and what it takes to compute it again."""

    frame: pd.DataFrame
    treatment: str
    outcome: str
    estimand: Any
    fitted: Any
    assignment: Assignment
    clusters: NDArray[np.int64]
    interval: tuple[float, float]

    @property
    def estimate(self) -> float:
        """The number that DoWhy estimated."""
        return float(self.fitted.value)

    @property
    def shown(self) -> bool:
        """Whether the interval excludes no effect."""
        return not self.interval[0] <= 0 <= self.interval[1]


def refute_all(
    target: Target, seed: int, simulations: int, advance: Step = lambda: None
) -> tuple[Refutation, ...]:
    """Run placebo, random common cause and cluster subset, in this order."""
    if simulations < 1:
        return ()
    placebo = placebo_within_blocks(target, seed, PLACEBO_DRAWS * simulations)
    advance()
    common = random_common_cause(target, seed + 1, simulations)
    advance()
    subset = cluster_subset(target, seed + 2, simulations, advance)
    return placebo, common, subset


def placebo_within_blocks(target: Target, seed: int, simulations: int) -> Refutation:
    """Shuffle the treatment within blocks and estimate again: nothing should be left.

    Passes when the mean placebo effect is below 10 % of the estimate and the
    estimate lies outside the band that holds 99 % of the placebos. The placebo
    estimates are those of DoWhy's linear regression, computed at once.
    """
    columns = target.frame.drop(columns=[target.treatment, target.outcome])
    slopes = shuffled_slopes(
        target.frame,
        target.treatment,
        target.outcome,
        columns,
        target.assignment,
        seed=seed,
        draws=simulations,
    )
    effects = slopes[1:] * (target.fitted.treatment_value - target.fitted.control_value)
    mean = float(effects.mean())
    low, high = (float(q) for q in np.quantile(effects, _tails(PLACEBO_BAND)))
    small = abs(mean) < PLACEBO_SHARE * abs(target.estimate)
    outside = not low <= target.estimate <= high
    p_value = two_sided(slopes)
    unit = unit_of(target.outcome)
    text = (
        f"With the {target.treatment} shuffled {target.assignment.where} the effect should vanish. "
        f"{simulations} shuffles gave {amount(target.outcome, mean)} on average "
        f"({_share(mean, target.estimate)} of the estimate), 99 % of them within "
        f"{span(target.outcome, low, high)} {unit}".rstrip()
    )
    where = "lies outside" if outside else "lies inside"
    meaning = (
        "so it is more than chance assignment produces"
        if small and outside
        else "so it cannot be told from a shuffled treatment"
        if not outside
        else "but the placebo mean is not small: the estimator itself is off centre"
    )
    return Refutation(
        "placebo treatment",
        target.estimate,
        mean,
        p_value,
        "mean below 10 % of the estimate, and estimate outside the 99 % placebo band",
        small and outside,
        f"{text}. The estimate, {amount(target.outcome, target.estimate)}, {where}, {meaning}.",
        low,
        high,
        simulations,
        "held" if small and outside else "did not hold",
    )


def random_common_cause(target: Target, seed: int, simulations: int) -> Refutation:
    """Add an unrelated random covariate: the estimate should not move by 2 %."""
    result = identification.random_common_cause(
        target.frame, target.estimand, target.fitted, seed, simulations
    )
    effect = float(result.new_effect)
    shift = relative(effect, target.estimate)
    passed = shift < COMMON_CAUSE_SHARE
    tail = (
        " This shows that the arithmetic is stable. It says nothing about a real cause that "
        "was left out."
    )
    if not target.shown:
        tail += " The estimate is not distinguishable from zero, so a relative shift means little."
    return Refutation(
        "random common cause",
        target.estimate,
        effect,
        None,
        "shift below 2 % of the estimate",
        passed,
        f"Adding an unrelated random covariate moved the estimate by {percent(shift)} on average "
        f"over {simulations} draws, to {amount(target.outcome, effect)}.{tail}",
        simulations=simulations,
        verdict="held" if passed else "did not hold",
    )


def cluster_subset(
    target: Target, seed: int, simulations: int, advance: Step = lambda: None
) -> Refutation:
    """Estimate again on 80 % of the checkpoints: same sign, no shift of 30 %.

    Whole checkpoints are left out, not rows: rows of one network are no independent
    evidence. Where there are fewer subsets than simulations, all are taken.
    """
    rule = "same sign and shift below 30 % in every subset of checkpoints"
    codes = np.unique(target.clusters)
    subsets = _subsets(codes, simulations, np.random.default_rng(seed))
    if not subsets:
        return Refutation(
            "data subset",
            target.estimate,
            math.nan,
            None,
            rule,
            None,
            "All trials come from one trained network, so there is nothing to leave out: whether "
            "the effect holds for another network is unknown.",
            verdict="not applicable",
        )
    effects = []
    for subset in subsets:
        frame = target.frame.loc[np.isin(target.clusters, subset)].reset_index(drop=True)
        # A subset may lose every trial of some treatment level.
        if frame[target.treatment].nunique() > 1:
            effects.append(identification.refit(frame, target.estimand, target.fitted))
        advance()
    return _judge_subsets(target, np.array(effects), len(codes), rule)


def _judge_subsets(
    target: Target, effects: NDArray[np.float64], n_clusters: int, rule: str
) -> Refutation:
    mean, low, high = (float(f(effects)) for f in (np.mean, np.min, np.max))
    same_sign = bool(np.all(np.sign(effects) == np.sign(target.estimate)))
    worst = max(relative(low, target.estimate), relative(high, target.estimate))
    passed = same_sign and worst < SUBSET_SHARE
    size = _subset_size(n_clusters)
    meaning = (
        "no single network carries the result"
        if passed
        else "the sign is stable but the size depends on which networks are in"
        if same_sign
        else "even the sign depends on which networks are in"
    )
    return Refutation(
        "data subset",
        target.estimate,
        mean,
        None,
        rule,
        passed,
        f"Estimated again with {size} of {n_clusters} checkpoints ({len(effects)} "
        f"subset{'s' if len(effects) != 1 else ''}), the effect ran from "
        f"{span(target.outcome, low, high)} {unit_of(target.outcome)}".rstrip()
        + f"; the largest shift was {percent(worst)}: {meaning}.",
        low,
        high,
        len(effects),
        "held" if passed else "did not hold",
    )


def _subset_size(n_clusters: int) -> int:
    return min(n_clusters - 1, max(1, round(SUBSET_FRACTION * n_clusters)))


def _subsets(
    codes: NDArray[np.int64], simulations: int, rng: np.random.Generator
) -> Sequence[NDArray[np.int64]]:
    if len(codes) < 2:
        return ()
    size = _subset_size(len(codes))
    if math.comb(len(codes), size) <= simulations:
        return [np.array(subset) for subset in itertools.combinations(codes, size)]
    return [rng.choice(codes, size=size, replace=False) for _ in range(simulations)]


def relative(value: float, reference: float) -> float:
    """Return how far a value is from a reference, as a share of that."""
    return abs(value - reference) / abs(reference) if reference else math.inf


def _share(value: float, reference: float) -> str:
    return percent(abs(value / reference)) if reference else "-"


def _tails(level: float) -> tuple[float, float]:
    return (1 - level) / 2, (1 + level) / 2
