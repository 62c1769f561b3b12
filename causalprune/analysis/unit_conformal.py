"""Conformal intervals for single units, by size, when large units were likelier to be ablated."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from causalprune.analysis.unit_samples import Array

# Strata beyond this many make intervals ragged without making them more honest.
MOST_STRATA = 4


def size_strata(scale: Array, drawn: NDArray[np.bool_], confidence: float) -> NDArray[np.int64]:
    """Stratum [U] of each unit by its size, each with three times the calibrators that it needs.

    A quantile at level c takes at least ``1 / (1 - c) - 1`` of them; fewer give no finite one.
    """
    needed = 3 * math.ceil(1 / (1 - confidence) - 1e-9)
    n_strata = int(np.clip(drawn.sum() // needed, 1, MOST_STRATA))
    if n_strata == 1:
        return np.zeros(len(scale), dtype=np.int64)
    edges = np.quantile(scale[drawn], np.arange(1, n_strata) / n_strata)
    return np.asarray(np.searchsorted(edges, scale, side="right"), dtype=np.int64)


def conformal_half_widths(
    residual: Array,
    scale: Array,
    probability: Array,
    drawn: NDArray[np.bool_],
    strata: NDArray[np.int64],
    confidence: float,
) -> Array:
    """Half width [U] of the intervals of units that were not ablated.

    The nonconformity of a calibrator is its absolute residual over its scale. Within a stratum
    (Mondrian) calibrators count by ``(1 - p) / p``, the odds of *not* being ablated, which makes
    them stand for the units that were not, and the unit itself counts, too (weighted conformal).
    Infinite where a stratum has too few of them.

    Parameters
    ----------
    residual : array [U]
        Effect minus cross-fitted prediction; read where `drawn`.
    scale, probability : array [U]
    drawn : array [U] of bool
        The calibrators.
    strata : array [U] of int64
    confidence : float

    References
    ----------
    Vovk (2013) for Mondrian categories; Tibshirani, Barber, Candes and Ramdas (2019) for the
    weights; Vovk (2015) for cross-conformal prediction, whose coverage is approximate.

    Examples
    --------
    >>> drawn = np.arange(10) < 9
    >>> ones, strata = np.ones(10), np.zeros(10, dtype=np.int64)
    >>> conformal_half_widths(np.arange(10.0), ones, 0.5 * ones, drawn, strata, 0.9)[9]
    np.float64(8.0)
    """
    odds = (1 - probability) / probability
    half = np.full(len(scale), np.inf)
    for stratum in np.unique(strata):
        inside = strata == stratum
        known = np.flatnonzero(inside & drawn)
        if not len(known):
            continue
        score = np.abs(residual[known]) / scale[known]
        order = np.argsort(score, kind="stable")
        reached = np.cumsum(odds[known][order])
        for unit in np.flatnonzero(inside):
            # A share of the whole weight, the unit's own included, whose score is unknown.
            wanted = confidence * (reached[-1] + odds[unit])
            place = int(np.searchsorted(reached, wanted * (1 - 1e-12)))
            if place < len(order):
                half[unit] = score[order[place]] * scale[unit]
    return half
