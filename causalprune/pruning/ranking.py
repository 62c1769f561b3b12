"""In which order the units of a network may go, and in what steps."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from causalprune.errors import InvalidArgumentError
from causalprune.graph import UnitGraph, UnitGroup
from causalprune.graph.units import widths_in
from causalprune.pruning.footprint import Sizes

__all__ = ["Block", "Course", "course_of", "importances", "per_saving", "ranks_of"]

Counts = NDArray[np.int64]


def importances(graph: UnitGraph, frame: pd.DataFrame) -> dict[str, list[float]]:
    """Return the importance of every unit of every removable group, from a frame of scores.

    Raises
    ------
    InvalidArgumentError
        If units are missing, there twice, or unknown to the network, or an importance is no
        finite number.
    """
    for column, kinds in (("unit", "iu"), ("importance", "iuf")):
        if frame[column].dtype.kind not in kinds:
            raise InvalidArgumentError(
                f"scores: expected numbers as {column}, got dtype {frame[column].dtype}"
            )
    _check_groups(graph, {str(name) for name in frame["group"]})
    found = {}
    for group in graph.removable:
        rows = frame[frame["group"] == group.name].sort_values("unit")
        _check_units(group, rows["unit"].tolist())
        found[group.name] = [float(value) for value in rows["importance"]]
        wrong = [u for u, value in enumerate(found[group.name]) if not math.isfinite(value)]
        if wrong:
            raise InvalidArgumentError(
                f"scores: expected finite importances, that of unit {wrong[0]} of "
                f"{group.name!r} is not finite ({found[group.name][wrong[0]]})"
            )
    return found


def _check_groups(graph: UnitGraph, scored: Collection[str]) -> None:
    extra = sorted(set(scored) - {group.name for group in graph.groups})
    if not extra:
        return
    whole = {layer: group.name for group in graph.groups for layer in group.producers}
    if extra[0] in whole:
        raise InvalidArgumentError(
            f"scores: expected scores of units as surgery removes them, got those of "
            f"{extra[0]!r} alone, which goes together with {whole[extra[0]]!r}: score with "
            'units="groups"'
        )
    raise InvalidArgumentError(
        f"scores: expected groups of this network, got {', '.join(map(repr, extra))}"
    )


def _check_units(group: UnitGroup, units: Sequence[int]) -> None:
    every = range(group.n_units)
    if list(units) == list(every):
        return
    missing = [unit for unit in every if unit not in set(units)]
    extra = [unit for unit in units if unit not in every]
    twice = sorted({unit for unit in units if units.count(unit) > 1})
    told = [
        f"{what} {', '.join(map(str, found[:8]))}{', ...' if len(found) > 8 else ''}"
        for what, found in (("lacks", missing), ("has twice", twice), ("has also", extra))
        if found
    ]
    raise InvalidArgumentError(
        f"scores: expected one row for each of the {group.n_units} units of {group.name!r}, got "
        f"{len(units)}: {'; '.join(told)}"
    )


def ranks_of(
    importance: Mapping[str, Sequence[float]], scope: str, saved: Mapping[str, Sequence[float]]
) -> dict[str, list[float]]:
    """Return what the units of all groups are ordered by, lowest first.

    Parameters
    ----------
    importance : Mapping of str to sequence of float [n]
        Group name to the importance of its n units.
    scope : str
        ``"layer"``: the quantile within the group. Else the importance per what the unit saves.
    saved : Mapping of str to sequence of float [n]
        What each unit alone saves of the target; units that save nothing go last.
    """
    ranks = {}
    for name, values in importance.items():
        if scope == "layer":
            ranks[name] = [0.0] * len(values)
            for place, unit in enumerate(sorted(range(len(values)), key=values.__getitem__)):
                ranks[name][unit] = (place + 0.5) / len(values)
        else:
            ranks[name] = list(map(per_saving, values, saved[name]))
    return ranks


def per_saving(importance: float, saved: float) -> float:
    """Return the rank; what is worth less than nothing goes the sooner, the more it saves.

    Examples
    --------
    >>> per_saving(6.0, 2.0), per_saving(-6.0, 2.0), per_saving(-6.0, 0.0)
    (3.0, -12.0, inf)
    """
    if saved <= 0:
        return math.inf
    return importance / saved if importance >= 0 else importance * saved


@dataclass(frozen=True)
class Block:
    """Units of one lane (a column of :attr:`Sizes.lanes`) that go at once.

    With their mean rank, and the sum of their importances.
    """

    lane: int
    units: tuple[int, ...]
    rank: float
    importance: float


@dataclass(frozen=True)
class Course:
    """All blocks that may go, in their order.

    A choice is a vector [L] of how many blocks of each lane are taken, in the order of their
    ranks: units of a lane cost the same, so there is never a reason to spare a lower one.

    Attributes
    ----------
    order : tuple of Block
        By ascending rank.
    sizes : Sizes
    """

    order: tuple[Block, ...]
    sizes: Sizes

    @cached_property
    def blocks(self) -> tuple[tuple[Block, ...], ...]:
        """Blocks [L] of every lane, in their order."""
        found: list[list[Block]] = [[] for _ in self.sizes.lanes]
        for block in self.order:
            found[block.lane].append(block)
        return tuple(tuple(blocks) for blocks in found)

    @cached_property
    def limits(self) -> Counts:
        """How many blocks [L] there are in every lane."""
        return np.array([len(blocks) for blocks in self.blocks], np.int64)

    def first(self, n: int) -> Counts:
        """Return the choice [L] of the first `n` blocks."""
        lanes = np.array([block.lane for block in self.order[:n]], np.int64)
        return np.bincount(lanes, minlength=len(self.limits)).astype(np.int64)

    def importance(self, choices: Counts) -> NDArray[np.float64]:
        """Return the summed importance [n] of what choices [n, L] take."""
        sums = np.zeros((len(self.limits), int(self.limits.max(initial=0)) + 1))
        for lane, blocks in enumerate(self.blocks):
            sums[lane, 1 : len(blocks) + 1] = np.cumsum([block.importance for block in blocks])
        found = np.take_along_axis(sums[None], choices[:, :, None], axis=2)
        return np.asarray(found[:, :, 0].sum(1), np.float64)

    def kept(self, choices: Counts) -> Counts:
        """Return the units [n, L] that stay of every lane, for choices [n, L]."""
        return np.take_along_axis(self._left[None], choices[:, :, None], axis=2)[:, :, 0]

    @cached_property
    def _left(self) -> Counts:
        """Units [L, max blocks + 1] that are left of a lane when so many blocks are taken."""
        left = np.zeros((len(self.limits), int(self.limits.max(initial=0)) + 1), np.int64)
        for lane, (group, number) in enumerate(self.sizes.lanes):
            gone = np.cumsum([0, *(len(block.units) for block in self.blocks[lane])])
            left[lane, : len(gone)] = self.sizes.counts[group][number] - gone
        return left

    def remove(self, choice: Counts) -> dict[str, tuple[int, ...]]:
        """Return the units of every group that a choice [L] removes, ascending."""
        gone: dict[str, list[int]] = {group: [] for group, _ in self.sizes.lanes}
        for lane, (group, _) in enumerate(self.sizes.lanes):
            for block in self.blocks[lane][: int(choice[lane])]:
                gone[group] += block.units
        return {group: tuple(sorted(units)) for group, units in gone.items() if units}


def course_of(
    graph: UnitGraph,
    sizes: Sizes,
    ranks: Mapping[str, Sequence[float]],
    held: Collection[str] = (),
    round_to: int = 1,
    importance: Mapping[str, Sequence[float]] | None = None,
) -> Course:
    """Order the units of all groups but those `held`; at least one unit of each lane stays.

    What the units are worth is their `importance`, or else their rank.

    With ``round_to`` above 1 units go in blocks that leave every layer which makes them a
    multiple of `round_to` channels; a lane that has no more than `round_to` stays whole.
    """
    groups = {group.name: group for group in graph.removable}
    order: list[tuple[float, int, int, Block]] = []
    for lane, (name, number) in enumerate(sizes.lanes):
        if name in held:
            continue
        units = [unit for unit, k in enumerate(sizes.classes[name]) if k == number]
        units.sort(key=lambda unit: (ranks[name][unit], unit))
        step = _step(groups[name], units[0], round_to)
        last = -math.inf
        for place, (start, end) in enumerate(_cuts(len(units), step)):
            # The means of a lane ascend but for rounding.
            last = max(last, math.fsum(ranks[name][u] for u in units[start:end]) / (end - start))
            worth = math.fsum((importance or ranks)[name][u] for u in units[start:end])
            block = Block(lane, tuple(units[start:end]), last, worth)
            order.append((last, lane, place, block))
    return Course(tuple(block for *_, block in sorted(order, key=lambda item: item[:3])), sizes)


def _step(group: UnitGroup, unit: int, round_to: int) -> int:
    """How many units make a multiple of `round_to` channels in every layer that makes `unit`."""
    if group.kind == "head":  # a place of an attention layer is a whole head
        widths = [consumer.features_per_unit for consumer in group.consumers]
    else:
        made = [owned for owned in group.owned if owned.role != "norm"]
        widths = [int(widths_in(owned.spans, group.n_units)[unit]) for owned in made]
    return math.lcm(1, *(round_to // math.gcd(round_to, width) for width in widths if width))


def _cuts(n_units: int, step: int) -> list[tuple[int, int]]:
    """Cut ``n_units`` into blocks that leave multiples of `step`, and `step` at last."""
    first = n_units % step or step
    starts = [0, *range(first, n_units - step, step)]
    ends = [*starts[1:], n_units - step]
    return list(zip(starts, ends, strict=True)) if n_units > step else []
