"""How many of the ranked units go, so that the target is met."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from causalprune.pruning.ranking import Course

__all__ = ["TOLERANCE", "Choice", "Measure", "choose", "meets"]

TOLERANCE = 0.01
"""How far from the target, relative to it, counts as reaching it."""

Counts = NDArray[np.int64]
Measure = Callable[[Counts], NDArray[np.float64]]
"""Choices [n, L] (see :class:`Course`) to the fractions [n] that they remove of the target."""

FAR = 0.1
"""How far from the target, relative to it, the order may lead before it is given up for it."""
_ROUNDING = 1e-12
_EXCHANGES = 3
_NEIGHBOURS = 20_000


@dataclass(frozen=True)
class Choice:
    """Blocks to take of every lane, and what that comes to.

    Attributes
    ----------
    taken : ndarray [L], int64
    achieved : float
        Fraction of the target quantity that goes.
    reached : bool
        Whether taking all there is would suffice.
    """

    taken: Counts
    achieved: float
    reached: bool


def meets(achieved: float, ratio: float) -> bool:
    """Whether `achieved` is the target `ratio` within the tolerance."""
    return abs(achieved - ratio) <= TOLERANCE * ratio + _ROUNDING


def choose(
    course: Course,
    measure: Measure,
    ratio: float,
    *,
    slack: float = 0.0,
    patience: int = 100_000,
) -> Choice:
    """Take blocks in their order until `ratio` is met; go out of order only where that misses it.

    First the longest run of the order within the target, with or without the next block. Where
    neither meets the target within 1 %, blocks that are too large are passed over for later ones
    that fit; where that does not help (coarse steps), blocks of one lane are exchanged for some
    of another. Of what was tried, the first that meets the target is chosen, or else the nearest.

    What is out of order must be no dearer than the next block in order, in summed importance:
    meeting the target to the last percent is not worth a layer of small units that matter. Only
    where the order misses the target by more than a tenth of it is that given up.

    Parameters
    ----------
    course : Course
    measure : Measure
        Grows with every block.
    ratio : float
        In [0, 1).
    slack : float
        Distance from the target, relative to it, at which a run is near enough to stop.
    patience : int
        How many choices to measure at most when going out of order.

    Returns
    -------
    Choice
    """
    everything = float(measure(course.limits[None])[0])
    if everything <= ratio + _ROUNDING:
        reached = everything >= ratio * (1 - TOLERANCE) - _ROUNDING
        return Choice(course.limits.copy(), everything, reached)
    n, tried = _longest(course, measure, ratio, everything, slack)
    far = abs(tried[0][1] - ratio) > FAR * ratio
    dearest = math.inf if far else _worth(course, n)
    for others in (_filled, _exchanged):
        if meets(tried[0][1], ratio):
            break
        found = others(course, measure, ratio, n, tried[0], patience)
        tried = _preferred(tried + _affordable(course, found, dearest), ratio)
    return Choice(*tried[0], True)


Tried = list[tuple[Counts, float]]


def _worth(course: Course, n: int) -> float:
    """Return the importance of the first `n` blocks, with the next where that is more."""
    runs = np.stack([course.first(n), course.first(n + 1)])
    dearest = float(course.importance(runs).max())
    return dearest + 1e-9 * abs(dearest)


def _affordable(course: Course, tried: Tried, dearest: float) -> Tried:
    if not tried or dearest == math.inf:
        return tried
    worth = course.importance(np.stack([taken for taken, _ in tried]))
    return [each for each, value in zip(tried, worth.tolist(), strict=True) if value <= dearest]


def _preferred(tried: Tried, ratio: float) -> Tried:
    """Those that meet the target first, as they were tried; then the others by their distance."""
    return sorted(tried, key=lambda each: 0.0 if meets(each[1], ratio) else abs(each[1] - ratio))


def _longest(
    course: Course, measure: Measure, ratio: float, everything: float, slack: float
) -> tuple[int, Tried]:
    """Longest run of the order within the target; that and the run one longer, nearest first.

    The value is close to linear in the number of blocks, so interpolation needs few measurements;
    every other step halves the interval all the same.
    """
    low, high, below, above = 0, len(course.order), 0.0, everything
    halve = False
    while high - low > 1:
        guess = (low + high) // 2
        if not halve:
            guess = low + round((high - low) * (ratio - below) / (above - below))
        halve = not halve
        guess = min(max(guess, low + 1), high - 1)
        value = float(measure(course.first(guess)[None])[0])
        if abs(value - ratio) <= slack * ratio:
            return guess, [(course.first(guess), value)]
        if value <= ratio + _ROUNDING:
            low, below = guess, value
        else:
            high, above = guess, value
    tried = [(course.first(low), below), (course.first(high), above)]
    return low, sorted(tried, key=lambda each: abs(each[1] - ratio))


def _filled(
    course: Course,
    measure: Measure,
    ratio: float,
    n: int,
    nearest: tuple[Counts, float],
    patience: int,
) -> Tried:
    """Go on after the first `n` blocks, down the order, with those that still fit.

    Where one block of a lane does not fit, no later one of it does.
    """
    taken, closed = course.first(n), set[int]()
    tried: Tried = []
    for block in course.order[n:]:
        if len(tried) >= patience:
            break
        if block.lane in closed:
            continue
        more = taken.copy()
        more[block.lane] += 1
        tried.append((more, float(measure(more[None])[0])))
        if meets(tried[-1][1], ratio):
            break
        if tried[-1][1] <= ratio:
            taken = more
        else:
            closed.add(block.lane)
    return tried


def _exchanged(
    course: Course,
    measure: Measure,
    ratio: float,
    n: int,
    nearest: tuple[Counts, float],
    patience: int,
) -> Tried:
    """Take some blocks more or less of one lane or two, and go on from the best of it."""
    tried: Tried = []
    taken, value = nearest
    for _ in range(_EXCHANGES):
        choices = _neighbours(course, taken, min(patience - len(tried), _NEIGHBOURS))
        if not len(choices):
            break
        found = list(zip(choices, measure(choices).tolist(), strict=True))
        tried += found
        best, reached = min(found, key=lambda each: abs(each[1] - ratio))
        if meets(reached, ratio) or abs(reached - ratio) >= abs(value - ratio):
            break
        taken, value = best, reached
    return tried


def _neighbours(course: Course, taken: Counts, limit: int) -> Counts:
    """Choices [n, L] that differ from `taken` in one lane or two, n <= `limit`, nearest first.

    All choices, where there are no more than that.
    """
    lanes = np.flatnonzero(course.limits)
    if math.prod((course.limits + 1).tolist()) <= limit:
        steps = _grid([np.arange(count + 1) for count in course.limits]) - taken
    else:
        pairs = list(itertools.combinations(lanes.tolist(), 2))
        radius = (math.isqrt(limit // len(pairs)) - 1) // 2 if pairs else 0
        if radius < 1:
            return np.zeros((0, len(taken)), np.int64)
        shifts = np.arange(-radius, radius + 1)
        moves, blank = _grid([shifts, shifts]), np.zeros((len(shifts) ** 2, len(taken)), np.int64)
        steps = np.concatenate([blank] * len(pairs))
        for pair, rows in zip(pairs, np.split(steps, len(pairs)), strict=True):
            rows[:, pair] = moves
        steps = np.unique(steps, axis=0)
    steps = steps[np.argsort(np.abs(steps).sum(1), kind="stable")]
    wanted = taken + steps
    possible = ((wanted >= 0) & (wanted <= course.limits)).all(1) & steps.any(1)
    return np.asarray(wanted[possible], np.int64)


def _grid(axes: list[Counts]) -> Counts:
    """Return all combinations [n, k] of the values of k axes."""
    return np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1).reshape(-1, len(axes))
