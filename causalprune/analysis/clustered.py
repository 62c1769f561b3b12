"""Least squares and instruments with errors clustered by checkpoint, in numpy."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import stats

__all__ = ["ClusteredFit", "Estimate", "fit_clustered", "holm", "mean_over_networks", "t_estimate"]

Array = NDArray[np.float64]

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Estimate:
    """A number with its 95 % interval and the two-sided p-value of zero.

    Examples
    --------
    >>> Estimate(0.02, 0.01, 0.03, 0.004).covers(0.0)
    False
    """

    value: float
    low: float
    high: float
    p_value: float

    def covers(self, truth: float) -> bool:
        """Whether the interval holds `truth`."""
        return self.low <= truth <= self.high

    def times(self, factor: float) -> Estimate:
        """Return the estimate in another unit."""
        ends = sorted((self.low * factor, self.high * factor))
        return Estimate(self.value * factor, ends[0], ends[1], self.p_value)


@dataclass(frozen=True)
class ClusteredFit:
    """Coefficients [k] with their clustered covariance [k, k]; `clusters` counts the networks."""

    params: Array
    covariance: Array
    clusters: int

    def contrast(self, weights: Array, *, clusters: int | None = None) -> Estimate:
        """Return ``weights @ params`` with a t interval over the clusters.

        `clusters` is the number of networks behind this contrast where not all are.
        """
        variance = float(weights @ self.covariance @ weights)
        counted = self.clusters if clusters is None else clusters
        return t_estimate(float(weights @ self.params), max(0.0, variance) ** 0.5, counted)

    def test_of(self, restrictions: Array) -> float:
        """Return the p-value of ``restrictions @ params == 0``; NaN with too few clusters.

        Hotelling's T squared with clusters - 1 degrees of freedom: exact for normal responses
        that every network shows to every level, close otherwise.
        """
        count = len(restrictions)
        if self.clusters <= count:
            return float("nan")
        middle = restrictions @ self.covariance @ restrictions.T
        if np.linalg.matrix_rank(middle, hermitian=True) < count:
            return float("nan")
        shown = restrictions @ self.params
        squared = float(shown @ np.linalg.solve(middle, shown))
        scale = (self.clusters - count) / (count * (self.clusters - 1))
        return float(stats.f.sf(squared * scale, count, self.clusters - count))


def fit_clustered(
    target: Array, columns: Array, clusters: NDArray[np.int64], instruments: Array | None = None
) -> ClusteredFit | str:
    """Fit by least squares, or by as many instruments as columns, with clustered errors.

    Parameters
    ----------
    target : array [n] of float64
    columns : array [n, k] of float64
        The constant included where one is wanted.
    clusters : array [n] of int64
        Which network each row comes from.
    instruments : array [n, k] of float64, optional
        In place of `columns` in the normal equations (two-stage least squares, just identified).

    Returns
    -------
    ClusteredFit or str
        CR1 covariance (Cameron & Miller, A Practitioner's Guide to Cluster-Robust Inference,
        2015); a sentence where the columns cannot be told apart or no row is left over.

    Examples
    --------
    >>> x = np.array([0.0, 1.0, 0.0, 1.0, 0.0, 1.0])
    >>> y = np.array([0.0, 2.0, 1.0, 3.0, 0.0, 2.5])
    >>> fit = fit_clustered(y, np.column_stack([np.ones(6), x]), np.array([0, 0, 1, 1, 2, 2]))
    >>> round(fit.contrast(np.array([0.0, 1.0])).value, 4)
    2.1667
    """
    _, codes = np.unique(clusters, return_inverse=True)
    count, (rows, width) = int(codes.max()) + 1, columns.shape
    if count < 2:
        return "All trials come from one trained network: nothing says how others differ."
    if rows <= width:
        return f"{rows} completed trials are too few for {width} coefficients."
    basis = columns if instruments is None else instruments
    if min(np.linalg.matrix_rank(columns), np.linalg.matrix_rank(basis)) < width:
        return "Some columns of this table move in step, so their effects cannot be told apart."
    inverse = np.linalg.inv(basis.T @ columns)
    params = inverse @ (basis.T @ target)
    scores = np.zeros((count, width))
    np.add.at(scores, codes, basis * (target - columns @ params)[:, None])
    correction = count / (count - 1) * (rows - 1) / (rows - width)
    covariance = correction * inverse @ (scores.T @ scores) @ inverse.T
    return ClusteredFit(params, covariance, count)


def mean_over_networks(values: Array) -> Estimate:
    """Mean of one number [n] a network, with Student's t interval over the networks.

    Examples
    --------
    >>> round(mean_over_networks(np.array([0.1, 0.2, 0.3])).value, 6)
    0.2
    """
    error = float(np.std(values, ddof=1)) / len(values) ** 0.5
    return t_estimate(float(np.mean(values)), error, len(values))


def holm(p_values: list[float]) -> list[float]:
    """Adjust p-values for their number (Holm, 1979): the chance of any false alarm is kept.

    Examples
    --------
    >>> holm([0.01, 0.04, 0.03])
    [0.03, 0.06, 0.06]
    """
    order = np.argsort(p_values)
    adjusted = [0.0] * len(p_values)
    largest = 0.0
    for position, index in enumerate(order):
        largest = max(largest, min(1.0, (len(p_values) - position) * p_values[index]))
        adjusted[index] = largest
    return adjusted


def t_estimate(value: float, error: float, clusters: int) -> Estimate:
    """Return a t interval with clusters - 1 degrees of freedom from a standard error."""
    margin = float(stats.t.ppf(0.5 + CONFIDENCE / 2, clusters - 1)) * error
    # Equal differences everywhere leave no error to divide by.
    p = float(2 * stats.t.sf(abs(value) / error, clusters - 1)) if error > 0 else float(value == 0)
    return Estimate(value, value - margin, value + margin, p)
