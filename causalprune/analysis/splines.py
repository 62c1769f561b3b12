"""Curves of a treatment: natural cubic splines and the grid that they are told on."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

__all__ = ["curve_grid", "natural_spline"]

Array = NDArray[np.float64]

# Up to this many treatment levels get a spline knot each: no smoothness is assumed.
MAX_KNOTS = 8


def curve_grid(values: Array) -> tuple[Array, Array, bool]:
    """Return a curve's knots, the grid that it is told on, and whether that is every level."""
    levels = np.unique(values)
    if len(levels) <= MAX_KNOTS:
        return levels, levels, True
    knots = np.unique(np.quantile(levels, np.linspace(0, 1, 6)))
    return knots, np.linspace(levels[0], levels[-1], 10), False


def natural_spline(values: Array, knots: Array) -> Array:
    """Natural cubic spline basis without the constant.

    Parameters
    ----------
    values : array [n]
    knots : array [k], increasing, k >= 2

    Returns
    -------
    array [n, k - 1]
        The value itself and k - 2 curved columns, linear beyond the outer knots
        (Hastie, Tibshirani & Friedman, The Elements of Statistical Learning, eq. 5.4).
    """
    # One scale for all knots keeps the cubes well conditioned.
    span = knots[-1] - knots[0]
    x, t = (values - knots[0]) / span, (knots - knots[0]) / span

    def tail(k: int) -> Array:
        cubes = np.maximum(x - t[k], 0) ** 3 - np.maximum(x - t[-1], 0) ** 3
        return np.asarray(cubes / (t[-1] - t[k]))

    curved = [tail(k) - tail(len(t) - 2) for k in range(len(t) - 2)]
    return np.column_stack([x, *curved])
