"""Which units to ablate: the likely large ones for certain, the others at random."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from causalprune.errors import InvalidArgumentError

__all__ = ["draw_units", "inclusion_probabilities"]

Array = NDArray[np.float64]


def inclusion_probabilities(size: Any, *, tail: float, sample: float, floor: float) -> Array:
    """Probability [U] that a unit is ablated: 1 in the top tail, else in proportion to its size.

    Parameters
    ----------
    size : array [U]
        Cheap scores, finite and not negative.
    tail : float
        Fraction of the units that is certain: those of largest size. In [0, 1].
    sample : float
        Fraction of the units that is drawn from the others. In [0, 1]; together at most 1.
    floor : float
        Share of a uniform size that is mixed in, in (0, 1], so that no unit is out of reach; 1
        draws uniformly.

    Returns
    -------
    ndarray [U], float64
        In (0, 1]; their sum is the expected (up to rounding the actual) number of units.

    Raises
    ------
    InvalidArgumentError
        If an argument is out of range.

    Examples
    --------
    >>> inclusion_probabilities([8, 1, 1, 2], tail=0.25, sample=0.25, floor=0.5).round(3).tolist()
    [1.0, 0.292, 0.292, 0.417]
    """
    sizes = np.asarray(size, dtype=np.float64)
    if sizes.ndim != 1 or not len(sizes) or not (np.isfinite(sizes) & (sizes >= 0)).all():
        raise InvalidArgumentError("size: expected finite numbers [U] of at least 0")
    if not (0 <= tail <= 1 and 0 <= sample <= 1 and 0 < tail + sample <= 1):
        raise InvalidArgumentError(
            "tail, sample: expected fractions of the units whose sum is in (0, 1], got "
            f"{tail!r} and {sample!r}"
        )
    if not 0 < floor <= 1:
        raise InvalidArgumentError(f"floor: expected a number in (0, 1], got {floor!r}")
    n_units = len(sizes)
    certain = np.zeros(n_units, dtype=bool)
    certain[np.argsort(-sizes, kind="stable")[: round(tail * n_units)]] = True
    left = float(min(max(1, round((tail + sample) * n_units)), n_units) - certain.sum())
    if left <= 0 and not certain.all():
        raise InvalidArgumentError(
            f"sample: expected a fraction that draws at least one of {n_units - certain.sum()} "
            f"units, got {sample!r}; a unit with no chance of being ablated cannot be spoken for"
        )
    mean = sizes[~certain].mean() if not certain.all() else 1.0
    mixed = floor * mean + (1 - floor) * sizes if mean > 0 else np.ones(n_units)
    # Sizes so large that they would have more than every chance become certain, too.
    while True:
        others = ~certain
        chance = np.where(certain, 1.0, 0.0)
        if others.any():
            chance[others] = mixed[others] * left / mixed[others].sum()
        over = others & (chance >= 1 - 1e-12)
        if not over.any():
            return chance
        certain |= over
        left -= float(over.sum())


def draw_units(probability: Any, layers: Sequence[str], seed: int) -> NDArray[np.bool_]:
    """Draw units [U] with those inclusion probabilities, spread evenly over the layers.

    Systematic sampling from a random start, the units of a layer in random order: the inclusion
    probabilities hold exactly, and every layer, like the whole, gets within one of its expected
    number. (Madow 1949; Hartley and Rao 1962 for the random order.)

    Examples
    --------
    >>> draw_units([0.5, 0.5, 1.0, 0.5, 0.5], list("aabbb"), seed=0).sum()
    np.int64(3)
    """
    chances = np.asarray(probability, dtype=np.float64)
    rng = np.random.default_rng(seed)
    places = {layer: place for place, layer in enumerate(dict.fromkeys(layers))}
    codes = np.array([places[layer] for layer in layers])
    order = np.lexsort((rng.random(len(chances)), codes))
    drawn = chances >= 1
    order = order[~drawn[order]]
    # The last sum is a whole number but for rounding, which must not lose or add a unit.
    reached = np.cumsum(chances[order])
    if len(reached) and abs(reached[-1] - round(reached[-1])) < 1e-9:
        reached[-1] = round(reached[-1])
    steps = np.floor(reached + rng.random())
    drawn[order] = np.diff(steps, prepend=0.0) > 0
    return drawn
