"""One-sided tests of paired changes: Student's t and Wilcoxon's signed ranks."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.special import stdtr

from causalprune.scoring.intervals import PairedMean

__all__ = ["Numbers", "signed_rank_tests", "t_tests"]

Numbers = NDArray[np.float64]

LARGEST_EXACT = 50


def t_tests(
    mean: PairedMean, margin: float, smallest_change: float = 0.0
) -> tuple[Numbers, Numbers, Numbers]:
    """Paired t tests of a decrease, of an increase, and of equivalence.

    Without any spread a change is certain (p-value 0), and no change is no evidence (1).

    Parameters
    ----------
    mean : PairedMean
        Changes of U units on at least two images.
    margin : float
        Changes below it in absolute value count as none, in units of the changes.
    smallest_change : float
        A fall or a rise of at most so much is none, in units of the changes, at least 0.

    Returns
    -------
    tuple of ndarray [U], float64
        p-values of "the mean does not fall by more than `smallest_change`", of "it does not rise
        by more" (each one-sided), and of "it changes by `margin` or more" (two one-sided tests).

    Examples
    --------
    >>> import torch
    >>> mean = PairedMean(2)
    >>> mean.update(torch.tensor([[-1.0, 0.0], [-2.0, 0.0], [-3.0, 0.0]]))
    >>> [p.round(3).tolist() for p in t_tests(mean, margin=0.5)]
    [[0.037, 1.0], [0.963, 1.0], [0.939, 0.0]]
    """
    centre, se, degrees = mean.mean.numpy(), mean.standard_error.numpy(), mean.n - 1
    below_margin = _t_probability(centre - margin, se, degrees)
    above_margin = _t_probability(-margin - centre, se, degrees)
    return (
        _t_probability(centre + smallest_change, se, degrees),
        _t_probability(smallest_change - centre, se, degrees),
        np.maximum(below_margin, above_margin),
    )


def signed_rank_tests(
    changes: Numbers, margin: float, smallest_change: float = 0.0
) -> tuple[Numbers, Numbers, Numbers]:
    """Test as :func:`t_tests` does, by Wilcoxon's signed ranks.

    Zeros are left out. Up to 50 other changes the null distribution is the exact one, which is
    conservative where changes are tied; beyond, a normal approximation.

    Parameters
    ----------
    changes : ndarray [n, U], float64
        Of U units on n images.
    margin, smallest_change : float
        See :func:`t_tests`.

    Returns
    -------
    tuple of ndarray [U], float64
        See :func:`t_tests`; of the (pseudo-)median rather than the mean.

    Examples
    --------
    >>> changes = np.array([[-1.0, 0.0], [-2.0, 0.0], [-3.0, 0.0], [-4.0, 0.0]])
    >>> [p.round(4).tolist() for p in signed_rank_tests(changes, margin=0.5)]
    [[0.0625, 1.0], [1.0, 1.0], [1.0, 0.0625]]
    """
    below_margin = _signed_rank(changes - margin, "less")
    above_margin = _signed_rank(changes + margin, "greater")
    return (
        _signed_rank(changes + smallest_change, "less"),
        _signed_rank(changes - smallest_change, "greater"),
        np.maximum(below_margin, above_margin),
    )


def _t_probability(difference: Numbers, se: Numbers, degrees: int) -> Numbers:
    """P(T <= difference / se); without any spread 0 below zero, else 1."""
    spread = se > 0
    ratio = difference / np.where(spread, se, 1.0)
    certain = np.where(difference < 0, 0.0, 1.0)
    return np.where(spread, stdtr(degrees, ratio), certain)


def _signed_rank(changes: Numbers, alternative: str) -> Numbers:
    from scipy.stats import wilcoxon

    p, counts = np.ones(changes.shape[1]), (changes != 0).sum(0)
    # Units with equally many zeros go together: scipy picks one distribution for all it is given.
    for count in np.unique(counts[counts > 0]).tolist():
        columns = changes.T[counts == count]
        left = columns[columns != 0].reshape(-1, count)
        method = "exact" if count <= LARGEST_EXACT else "auto"
        p[counts == count] = wilcoxon(left, alternative=alternative, method=method, axis=1).pvalue
    return p
