"""Smallest contingency sets: how many other units must go before a unit decides the outcome."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from causalprune.errors import InvalidArgumentError

__all__ = ["Contingencies", "Search", "Slack", "Units", "smallest_contingencies"]

Units = tuple[int, ...]
Slack = Callable[[Sequence[Units]], Tensor]


@dataclass(frozen=True)
class Search:
    """How far contingency sets are searched for.

    Attributes
    ----------
    max_contingency : int
        Every set of up to so many units is tried, as far as `max_sets` allows.
    max_sets : int
        Sizes with more sets than this are not tried one by one, except single units.
    beam_width : int
        Beyond, so many sets of each size, those closest to the flip, are grown by every unit.
    beam_contingency : int
        Largest set that the beam grows.

    Raises
    ------
    InvalidArgumentError
        If a number is out of range.
    """

    max_contingency: int = 2
    max_sets: int = 50_000
    beam_width: int = 8
    beam_contingency: int = 8

    def __post_init__(self) -> None:
        least = {"max_contingency": 0, "max_sets": 1, "beam_width": 0, "beam_contingency": 0}
        for name, bound in least.items():
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < bound:
                raise InvalidArgumentError(f"{name}: expected an integer >= {bound}, got {value!r}")

    def depth(self, n_units: int) -> int:
        """Largest size of a removed set (contingency and unit) up to which all are tried."""
        depth = 1
        while depth < min(self.max_contingency + 1, n_units):
            if math.comb(n_units, depth + 1) > self.max_sets:
                break
            depth += 1
        return depth


@dataclass(frozen=True)
class Contingencies:
    """Smallest contingency set found for every unit of a group, on one image.

    Attributes
    ----------
    witness : tuple of (tuple of int or None) [n_units]
        The set; ``None`` where none was found.
    depth : int
        All removed sets of up to so many units were tried, so every contingency set of fewer.
    n_sets : int
        Removed sets that were run.
    """

    witness: tuple[Units | None, ...]
    depth: int
    n_sets: int

    @property
    def responsibility(self) -> Tensor:
        """``1 / (k + 1)`` with k the size of the set found, 0 without; [n_units], float64."""
        found = [0.0 if w is None else 1 / (len(w) + 1) for w in self.witness]
        return torch.tensor(found, dtype=torch.float64)

    @property
    def exact(self) -> Tensor:
        """Whether there is no smaller set; [n_units], bool. Else a lower bound was found."""
        every = self.depth == len(self.witness)
        found = [every if w is None else len(w) <= self.depth for w in self.witness]
        return torch.tensor(found)

    @property
    def upper(self) -> Tensor:
        """Largest responsibility that what was tried leaves open; [n_units], float64."""
        smallest_open = torch.full((len(self.witness),), 1 / (self.depth + 1), dtype=torch.float64)
        return torch.where(self.exact, self.responsibility, smallest_open)


def smallest_contingencies(n_units: int, slack: Slack, search: Search) -> Contingencies:
    """Search the smallest contingency set of every unit.

    W is a contingency set of unit f when removing W leaves the event as it is and removing W and
    f flips it. Sets are tried by size up to ``search.depth``; beyond, a beam of the sets closest
    to the flip goes on. What the beam finds first is a smallest set only at its first size;
    later it bounds the size from above, and the responsibility from below.

    Parameters
    ----------
    n_units : int
    slack : callable
        Sets of units to be removed -> Tensor [n_sets]: how far the event is from flipping; negative
        where it is flipped.
    search : Search

    Returns
    -------
    Contingencies

    Notes
    -----
    Source: Chockler and Halpern (2004), "Responsibility and blame"; Debbi (2021).

    Examples
    --------
    The event flips when unit 0 is gone, or two of the units 1, 2 and 3:

    >>> def slack(sets):
    ...     gone = [(0 in s) * 2 + len({1, 2, 3} & set(s)) for s in sets]
    ...     return 1.5 - torch.tensor(gone)
    >>> found = smallest_contingencies(5, slack, Search(max_contingency=1))
    >>> found.responsibility.tolist(), found.witness[1]
    ([1.0, 0.5, 0.5, 0.5, 0.0], (2,))
    """
    witness: list[Units | None] = [None] * n_units
    depth, n_sets = search.depth(n_units), 0
    held: dict[Units, float] = {(): math.inf}
    limit = min(max(depth, search.beam_contingency + 1 if search.beam_width else 0), n_units)
    for size in range(1, limit + 1):
        if size <= depth:
            sets: Iterable[Units] = itertools.combinations(range(n_units), size)
        else:
            closest = sorted(held, key=lambda units: (held[units], units))[: search.beam_width]
            sets = _grown(closest, n_units)
        tried = list(sets)
        if not tried:
            break
        values = slack(tried).tolist()
        n_sets += len(tried)
        flipped = [units for units, value in zip(tried, values, strict=True) if value < 0]
        _take_witnesses(witness, flipped, held)
        rests = _untried_rests(witness, flipped, search.beam_width) if size > depth else []
        if rests:
            n_sets += len(rests)
            holds = (slack(rests) >= 0).tolist()
            _take_witnesses(witness, flipped, set(itertools.compress(rests, holds)))
        if None not in witness:
            break
        held = {units: v for units, v in zip(tried, values, strict=True) if v >= 0}
    return Contingencies(tuple(witness), depth, n_sets)


def _grown(sets: Iterable[Units], n_units: int) -> list[Units]:
    """Every set with one more unit, each once."""
    return sorted(
        {
            tuple(sorted((*units, unit)))
            for units in sets
            for unit in range(n_units)
            if unit not in units
        }
    )


def _take_witnesses(
    witness: list[Units | None], flipped: Iterable[Units], held: Collection[Units]
) -> None:
    """Note the units without which a flipped set holds, where no smaller set is known."""
    for units in flipped:
        for place, unit in enumerate(units):
            rest = units[:place] + units[place + 1 :]
            if witness[unit] is None and rest in held:
                witness[unit] = rest


def _untried_rests(
    witness: Sequence[Units | None], flipped: Sequence[Units], at_most: int
) -> list[Units]:
    """Flipped sets less a unit without witness, at most so many for each such unit.

    The sets that a beam grows share their strongest units, so for these nothing else is tried.
    """
    rests: set[Units] = set()
    for unit, known in enumerate(witness):
        if known is None:
            having = [units for units in flipped if unit in units][:at_most]
            rests |= {tuple(other for other in units if other != unit) for units in having}
    return sorted(rests)
