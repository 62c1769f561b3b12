"""Smallest contingency sets: how many other units must go before a unit decides the outcome."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from causalprune.errors import InvalidArgumentError
from causalprune.ops import count_contingencies

__all__ = [
    "Contingencies",
    "Search",
    "Slack",
    "Tried",
    "Units",
    "grow_sets",
    "smallest_contingencies",
    "try_every_set",
]

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

    def limit(self, n_units: int) -> int:
        """Largest size of a removed set that is tried at all."""
        grown = self.beam_contingency + 1 if self.beam_width else 0
        return min(max(self.depth(n_units), grown), n_units)


@dataclass(frozen=True)
class Contingencies:
    """Smallest contingency set found for every unit of a group, on one image.

    Attributes
    ----------
    witness : tuple of (tuple of int or None) [n_units]
        The set; ``None`` where none was found.
    n_smallest : tuple of (int or None) [n_units]
        How many contingency sets of its size there are: how many ways to make the unit decide.
        0 where there is none of any size, ``None`` where not all sets of that size were tried.
    depth : int
        All removed sets of up to so many units were tried, so every contingency set of fewer.
    n_sets : int
        Removed sets that were run.
    """

    witness: tuple[Units | None, ...]
    n_smallest: tuple[int | None, ...]
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


@dataclass(frozen=True)
class Tried:
    """What trying every set of up to a size tells about one image, and where a beam sets out.

    Attributes
    ----------
    found : Contingencies
    sets : Tensor [M, size], int64
        The sets of the largest size that was run, in lexicographic order.
    slack : Tensor [M], float64
        How far the event is from flipping when they are removed; negative where it is flipped.
    """

    found: Contingencies
    sets: Tensor
    slack: Tensor

    def goes_on(self, search: Search) -> bool:
        """Whether a beam has units to search for, and sizes to search."""
        n_units = len(self.found.witness)
        return None in self.found.witness and search.limit(n_units) > self.found.depth


def smallest_contingencies(n_units: int, slack: Slack, search: Search) -> Contingencies:
    """Search the smallest contingency set of every unit, on one image.

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
    >>> found.responsibility.tolist(), found.witness[1], found.n_smallest
    ([1.0, 0.5, 0.5, 0.5, 0.0], (2,), (1, 2, 2, 2, None))
    """

    def of_image(masks: Tensor) -> Tensor:
        return slack([tuple(mask.nonzero().flatten().tolist()) for mask in masks])[:, None]

    (tried,) = try_every_set(n_units, 1, of_image, search)
    return grow_sets(tried, slack, search)


def try_every_set(
    n_units: int, n_images: int, slack: Callable[[Tensor], Tensor], search: Search
) -> list[Tried]:
    """Find the smallest contingency sets of up to ``search.depth - 1`` units, on several images.

    Parameters
    ----------
    n_units, n_images : int
    slack : callable
        Removed units [M, n_units], bool -> Tensor [M, n_images], as in
        :func:`smallest_contingencies`.
    search : Search

    Returns
    -------
    list of Tried
        One for each image. Sizes are left out once every unit has a set on every image.

    Examples
    --------
    The event flips when unit 0 is gone, on the second image without unit 1, too:

    >>> def slack(masks):
    ...     return 0.5 - masks.double() @ torch.tensor([[1.0, 1.0], [0.0, 1.0]], dtype=torch.double)
    >>> one, other = try_every_set(2, 2, slack, Search())
    >>> one.found.witness, other.found.witness, other.found.n_sets
    (((), None), ((), ()), 3)
    """
    depth, n_sets = search.depth(n_units), 0
    masks, flipped = [], []
    for size in range(1, depth + 1):
        sets = _sets_of(n_units, size)
        masks.append(torch.zeros(len(sets), n_units, dtype=torch.bool).scatter_(1, sets, True))
        values = slack(masks[-1]).double().cpu()
        flipped.append(values < 0)
        n_sets += len(sets)
        removed = torch.cat(masks)
        counts, first = count_contingencies(removed, torch.cat(flipped), max_size=size)
        if bool((first >= 0).all()):
            break
    return [
        Tried(_found(removed, counts[image], first[image], depth, n_sets), sets, values[:, image])
        for image in range(n_images)
    ]


def grow_sets(tried: Tried, slack: Slack, search: Search) -> Contingencies:
    """Search on with a beam for the units that have no contingency set yet, on one image.

    Parameters
    ----------
    tried : Tried
    slack : callable
        As in :func:`smallest_contingencies`.
    search : Search
        What every set was tried with.

    Returns
    -------
    Contingencies

    Examples
    --------
    >>> def slack(sets):
    ...     return 1.5 - torch.tensor([float(len(units)) for units in sets])
    >>> search = Search(max_contingency=0)
    >>> (tried,) = try_every_set(3, 1, lambda masks: 1.5 - masks.sum(1, True), search)
    >>> tried.found.witness[0], grow_sets(tried, slack, search).witness
    (None, ((1,), (0,), (0,)))
    """
    found = tried.found
    if not tried.goes_on(search):
        return found
    witness, n_units, n_sets = list(found.witness), len(found.witness), found.n_sets
    held: dict[Units, float] = {
        tuple(units): value
        for units, value in zip(tried.sets.tolist(), tried.slack.tolist(), strict=True)
        if value >= 0
    }
    for _ in range(found.depth, search.limit(n_units)):
        closest = sorted(held, key=lambda units: (held[units], units))[: search.beam_width]
        sets = _grown(closest, n_units)
        if not sets:
            break
        values = slack(sets).tolist()
        n_sets += len(sets)
        flipped = [units for units, value in zip(sets, values, strict=True) if value < 0]
        _take_witnesses(witness, flipped, held)
        rests = _untried_rests(witness, flipped, search.beam_width)
        if rests:
            n_sets += len(rests)
            holds = (slack(rests) >= 0).tolist()
            _take_witnesses(witness, flipped, set(itertools.compress(rests, holds)))
        if None not in witness:
            break
        held = {units: v for units, v in zip(sets, values, strict=True) if v >= 0}
    return Contingencies(tuple(witness), found.n_smallest, found.depth, n_sets)


def _sets_of(n_units: int, size: int) -> Tensor:
    """Return all sets of so many units [M, size], int64, in lexicographic order."""
    members = itertools.chain.from_iterable(itertools.combinations(range(n_units), size))
    return torch.from_numpy(np.fromiter(members, np.int64).reshape(-1, size))


def _found(
    removed: Tensor, counts: Tensor, first: Tensor, depth: int, n_sets: int
) -> Contingencies:
    """Read one image's counts [n_units, sizes] and rows `first` [n_units] of `removed`."""
    n_units = len(first)
    witness: list[Units | None] = [None] * n_units
    n_smallest: list[int | None] = [0 if depth == n_units else None] * n_units
    for unit, row in enumerate(first.tolist()):
        if row >= 0:
            units = removed[row].nonzero().flatten().tolist()
            witness[unit] = tuple(other for other in units if other != unit)
            n_smallest[unit] = int(counts[unit, len(units) - 1])
    return Contingencies(tuple(witness), tuple(n_smallest), depth, n_sets)


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
