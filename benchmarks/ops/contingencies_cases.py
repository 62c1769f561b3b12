"""Sizes and peers of the contingency benchmarks: what a user would write without the operator."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

import torch
from torch import Tensor

from causalprune.ops import count_contingencies

Units = tuple[int, ...]


@dataclass(frozen=True)
class Searched:
    """All sets of up to so many units of a group, tried on images; a slow peer sees few of them."""

    n_units: int
    largest: int
    n_images: int
    peer_images: int

    @property
    def name(self) -> str:
        n = len(tuples_of(self))
        return f"{self.n_units} units, {n:,} sets of up to {self.largest}, {self.n_images:,} images"


CASES = (Searched(64, 3, 1, 1), Searched(64, 3, 64, 2), Searched(64, 3, 1000, 2))


def tuples_of(case: Searched) -> list[Units]:
    sizes = range(1, case.largest + 1)
    return [w for size in sizes for w in itertools.combinations(range(case.n_units), size)]


def tables(case: Searched) -> tuple[Tensor, Tensor]:
    """Sets [M, U] and flips [M, N]: units' exponential effects add up, and 5 is too much.

    One set in a hundred of one unit flips, one in 25 of two, one in 8 of three.
    """
    generator = torch.Generator().manual_seed(case.n_images)
    effects = torch.empty(case.n_units, case.n_images).exponential_(generator=generator)
    every = tuples_of(case)
    sets = torch.zeros(len(every), case.n_units, dtype=torch.bool)
    for row, units in enumerate(every):
        sets[row, list(units)] = True
    return sets, sets.float() @ effects > 5


def native(case: Searched) -> Callable[[], object]:
    sets, flipped = tables(case)
    return lambda: count_contingencies(sets, flipped)


def vectorised(case: Searched) -> Callable[[], object]:
    """torch: rows by binary search for the sets' bits, then unit by unit; counts and first rows."""
    sets, flipped = tables(case)
    peer_flipped = flipped[:, : case.peer_images].contiguous()

    def run() -> tuple[Tensor, Tensor]:
        weights = torch.ones(case.n_units, dtype=torch.int64) << torch.arange(case.n_units)
        keys = (sets * weights).sum(1)
        order = torch.cat([keys, keys.new_zeros(1)]).sort()
        sizes, n_images = sets.sum(1), peer_flipped.shape[1]
        holds = torch.cat([~peer_flipped, peer_flipped.new_ones(1, n_images)])
        counts = torch.zeros(n_images, case.n_units, case.largest, dtype=torch.int64)
        first = torch.full((n_images, case.n_units), -1)
        for unit in range(case.n_units):
            rows = sets[:, unit].nonzero().flatten()
            rests = keys[rows] - weights[unit]
            at = torch.searchsorted(order.values, rests).clamp(max=len(keys))
            known = order.values[at] == rests
            rows, rests = rows[known], order.indices[at[known]]
            for size in range(case.largest):
                of_size = sizes[rows] == size + 1
                witness = peer_flipped[rows[of_size]] & holds[rests[of_size]]
                counts[:, unit, size] = witness.sum(0)
                new = (first[:, unit] < 0) & (counts[:, unit, size] > 0)
                if bool(new.any()):
                    least = rows[of_size][witness.to(torch.uint8).argmax(0)]
                    first[:, unit] = torch.where(new, least, first[:, unit])
        return counts, first

    return run


def tuples(case: Searched) -> Callable[[], object]:
    """Sets of tuples, image by image, as the search did it before; first sets, no counts."""
    _, flipped = tables(case)
    every = tuples_of(case)

    def run() -> list[list[Units | None]]:
        found = []
        for flips in flipped[:, : case.peer_images].T.tolist():
            witness: list[Units | None] = [None] * case.n_units
            held = {units for units, flip in zip(every, flips, strict=True) if not flip} | {()}
            for units in itertools.compress(every, flips):
                for place, unit in enumerate(units):
                    rest = units[:place] + units[place + 1 :]
                    if witness[unit] is None and rest in held:
                        witness[unit] = rest
            found.append(witness)
        return found

    return run


PEERS: Mapping[str, Callable[[Searched], Callable[[], object]]] = MappingProxyType(
    {"torch": vectorised, "Python tuples": tuples}
)
