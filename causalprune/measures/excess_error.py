"""Excess error: how much more a network loses under shifts than where it was trained."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from causalprune.errors import InvalidArgumentError
from causalprune.measures.error_tables import (
    UNPRUNED,
    error_table,
    fractions,
    of_all_distributions,
)

__all__ = [
    "ExcessErrorTrend",
    "excess_error",
    "excess_error_trend",
    "excess_errors",
]

Numbers = NDArray[np.float64]


def excess_error(shifted_errors: Sequence[float], nominal_error: float) -> float:
    """Mean error over shifts minus the error on the training distribution.

    ``e(theta, D') = mean over D' of error(D') - error(D)``.

    Parameters
    ----------
    shifted_errors : sequence of float [S]
        Errors on S shifted distributions; fractions of the images, in [0, 1].
    nominal_error : float
        On new images of the training distribution, in [0, 1].

    Returns
    -------
    float
        In [-1, 1]; positive where the shifts cost accuracy.

    Raises
    ------
    InvalidArgumentError
        If a number is out of range, or there is no shift.

    References
    ----------
    Liebenwein, Baykal, Carter, Gifford and Rus (2021), "Lost in Pruning".

    Examples
    --------
    >>> round(excess_error([0.2, 0.4], 0.1), 6)
    0.2
    """
    shifted = fractions(shifted_errors, "shifted_errors")
    if not len(shifted):
        raise InvalidArgumentError("shifted_errors: expected at least one, got none")
    return float(shifted.mean() - fractions([nominal_error], "nominal_error")[0])


def excess_errors(
    table: pd.DataFrame, nominal: Hashable = "nominal", *, network: str | None = None
) -> pd.DataFrame:
    """Compute the excess error of every network at every prune ratio, beside the unpruned one's.

    Parameters
    ----------
    table : DataFrame
        As for :func:`causalprune.measures.prune_potentials`: `nominal` is the training
        distribution, all others are shifts.
    nominal : hashable
        Name of the training distribution.
    network : str, optional
        The column that tells trained networks apart. Default: ``"network"`` or ``"checkpoint"``.

    Returns
    -------
    DataFrame
        One row for each network and prune ratio: network, prune_ratio, nominal_error,
        shifted_error (mean over shifts), excess_error, difference (from the same network
        unpruned; 0 at ratio 0).

    Raises
    ------
    InvalidArgumentError
        If the table lacks `nominal` or shifts, or a network was not tried on every distribution
        at each of its ratios.
    DataError
        If the table cannot be compared; see
        :func:`causalprune.measures.error_tables.error_table`.

    Examples
    --------
    >>> table = pd.DataFrame({
    ...     "network": "a", "distribution": ["nominal", "snow"] * 2,
    ...     "prune_ratio": [0, 0, 0.5, 0.5], "error": [0.1, 0.3, 0.1, 0.35],
    ... })
    >>> excess_errors(table)["difference"].round(6).tolist()
    [0.0, 0.05]
    """
    errors = error_table(table, network)
    every = of_all_distributions(errors)
    if nominal not in every or len(every) < 2:
        raise InvalidArgumentError(
            f"nominal: expected {nominal!r} and at least one shift among the distributions, "
            f"got {', '.join(map(str, every))}"
        )
    wide = errors.pivot(
        index=["network", "prune_ratio"], columns="distribution", values="error"
    ).sort_index()
    if wide.isna().to_numpy().any():
        name, ratio = wide.index[wide.isna().any(axis=1)][0]
        raise InvalidArgumentError(
            f"table: expected an error on every distribution of network {name} at prune ratio "
            f"{ratio:g}, got none on "
            f"{', '.join(str(key) for key, gap in wide.loc[(name, ratio)].isna().items() if gap)}"
        )
    shifted = wide.drop(columns=[nominal]).mean(axis=1)
    frame = pd.DataFrame({"nominal_error": wide[nominal], "shifted_error": shifted})
    frame["excess_error"] = frame["shifted_error"] - frame["nominal_error"]
    frame = frame.reset_index()
    unpruned = frame[frame["prune_ratio"] == UNPRUNED].set_index("network")["excess_error"]
    frame["difference"] = frame["excess_error"] - frame["network"].map(unpruned)
    return frame


@dataclass(frozen=True)
class ExcessErrorTrend:
    """Regression through the origin of the difference in excess error on the prune ratio.

    Attributes
    ----------
    slope : float
        Difference in excess error per unit of prune ratio: what pruning everything would add.
    low, high : float
        Bootstrap interval of the slope; NaN where there is but one cluster with pruned rows.
    level : float
        Of the interval.
    n, n_clusters : int
        Pruned rows, and the clusters (or rows) that were drawn from.
    """

    slope: float
    low: float
    high: float
    level: float
    n: int
    n_clusters: int

    def band(self, prune_ratios: Sequence[float]) -> pd.DataFrame:
        """Return the line and its pointwise band: prune_ratio, difference, low, high.

        A line through the origin has one free number, so the band is the interval of the slope
        times the ratio.

        Parameters
        ----------
        prune_ratios : sequence of float [n]
            In [0, 1].
        """
        ratios = fractions(prune_ratios, "prune_ratios")
        return pd.DataFrame(
            {
                "prune_ratio": ratios,
                "difference": self.slope * ratios,
                "low": self.low * ratios,
                "high": self.high * ratios,
            }
        )


def excess_error_trend(
    prune_ratios: Sequence[float],
    differences: Sequence[float],
    clusters: Sequence[Hashable] | None = None,
    *,
    level: float = 0.95,
    n_resamples: int = 10_000,
    seed: int = 0,
) -> ExcessErrorTrend:
    """Regress differences in excess error on prune ratios, through the origin.

    ``e(pruned) - e(unpruned) = slope * ratio``, by least squares; the interval is a percentile
    bootstrap.

    Parameters
    ----------
    prune_ratios : sequence of float [n]
        In [0, 1], at least one above 0; rows at ratio 0 carry nothing.
    differences : sequence of float [n]
        ``excess_errors(table)["difference"]``, in [-2, 2].
    clusters : sequence [n], optional
        The trained network of each row. Whole networks are drawn: rows of one network share its
        luck, and drawn one by one they would pass for independent. Without it rows are drawn.
        With fewer than about ten networks percentile intervals are too narrow.
    level : float
        In (0, 1).
    n_resamples : int
        At least 100.
    seed : int
        The same seed gives the same interval.

    Returns
    -------
    ExcessErrorTrend

    Raises
    ------
    InvalidArgumentError
        If an argument is out of range or lengths differ.

    References
    ----------
    Liebenwein et al. (2021), "Lost in Pruning": regression through the origin with a 95 %
    bootstrap band. Drawing whole networks: Davison and Hinkley (1997), section 3.8.

    Examples
    --------
    >>> trend = excess_error_trend([0.5, 0.8, 0.5, 0.8], [0.05, 0.08, 0.1, 0.16], list("aabb"))
    >>> round(trend.slope, 6), round(trend.low, 6), round(trend.high, 6)
    (0.15, 0.1, 0.2)
    """
    ratios, found = fractions(prune_ratios, "prune_ratios"), _differences(differences)
    labels: Any = range(len(ratios)) if clusters is None else clusters
    if len(found) != len(ratios) or len(labels) != len(ratios):
        raise InvalidArgumentError(
            f"differences, clusters: expected one for each of {len(ratios)} prune ratios, "
            f"got {len(found)} and {len(labels)}"
        )
    if not 0 < level < 1 or n_resamples < 100:
        raise InvalidArgumentError(
            "level, n_resamples: expected 0 < level < 1 and n_resamples >= 100, "
            f"got {level}, {n_resamples}"
        )
    pruned = ratios > UNPRUNED
    if not pruned.any():
        raise InvalidArgumentError("prune_ratios: expected at least one above 0, got none")
    codes, _ = pd.factorize(pd.Series(list(labels))[pruned])
    if (codes < 0).any():
        raise InvalidArgumentError("clusters: expected a network for every row, got a missing one")
    x, y = ratios[pruned], found[pruned]
    products, squares = (np.bincount(codes, weights).astype(float) for weights in (x * y, x * x))
    low, high = _interval(products, squares, level, n_resamples, seed)
    slope = float(products.sum() / squares.sum())
    return ExcessErrorTrend(slope, low, high, level, len(x), len(squares))


def _interval(
    products: Numbers, squares: Numbers, level: float, n_resamples: int, seed: int
) -> tuple[float, float]:
    """Percentiles of the slope over draws of clusters, from the sums of each cluster."""
    n = len(squares)
    if n < 2:
        return float("nan"), float("nan")
    # How often each cluster is drawn, one row a resample.
    counts = np.random.default_rng(seed).multinomial(n, np.full(n, 1 / n), size=n_resamples)
    slopes = (counts @ products) / (counts @ squares)
    tail = (1 - level) / 2
    low, high = np.quantile(slopes, [tail, 1 - tail])
    return float(low), float(high)


def _differences(values: Sequence[float]) -> Numbers:
    found = np.asarray(values, dtype=np.float64)
    wrong = ~(np.abs(found) <= 2)
    if found.ndim != 1 or wrong.any():
        got = found[wrong][0] if wrong.any() else f"shape {list(found.shape)}"
        raise InvalidArgumentError(f"differences: expected numbers [n] in [-2, 2], got {got}")
    return found
