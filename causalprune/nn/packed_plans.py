"""Which lanes each part of a stretch should have, by estimate."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import nn

from causalprune.nn.packed_geometry import DoesNotFit, Shape, geometry_of, scales_of
from causalprune.nn.packed_operations import Combination, Concatenation, Convolution, Operation
from causalprune.nn.packed_sections import Section
from causalprune.ops.packed_layouts import LANES, Lanes

__all__ = ["plans_for"]

_CYCLE_NS = 0.25
_NS_A_FLOAT_MOVED = 4.0  # out of the layout and into another
_NS_A_RUN = 4000.0
_CACHES = ((1 << 20, 0.02), (16 << 20, 0.04), (math.inf, 0.15))
"""Bytes that are in use at a time, and nanoseconds a float of a layer then takes."""


def plans_for(
    operations: Sequence[Operation],
    shapes: Mapping[str, Shape],
    outputs: Sequence[str],
    layers: nn.Module,
    n_images: int,
    most: int = 4,
) -> list[tuple[Section, ...]]:
    """Return ways to cut a stretch into sections, those that look fastest first.

    Parameters
    ----------
    operations, shapes, outputs, layers
        As for :class:`causalprune.nn.packed_sections.SectionProgram`.
    n_images : int
        Images that come at a time; every section takes a divisor of it.
    most : int
        How many ways to return: the best of all, then the best of one section only.
    """
    nonzero = _nonzero(operations, layers)
    cuts = _cuts(operations, shapes, outputs)
    choices = [(images, lanes) for images in _divisors(n_images) for lanes in _lanes_for(images)]
    # costs[i][j]: the cheapest way to run what lies between cuts i and j as one section.
    ranked: dict[tuple[int, int], list[tuple[float, Section]]] = {}
    for i, first in enumerate(cuts[:-1]):
        for last in cuts[i + 1 :]:
            part = operations[first:last]
            try:
                scales = scales_of(part)
            except DoesNotFit:
                scales = None
            found = []
            for images, lanes in choices:
                cost = _cost(part, shapes, nonzero, images, lanes, scales)
                if cost < math.inf:
                    section = Section(first, last, images, lanes)
                    found.append((cost * (n_images // images), section))
            found.sort(key=lambda pair: pair[0])
            ranked[first, last] = found[: 2 * most]
    return _distinct([*_best_path(cuts, ranked, operations, shapes, n_images, most)], most)


def _best_path(
    cuts: Sequence[int],
    ranked: Mapping[tuple[int, int], list[tuple[float, Section]]],
    operations: Sequence[Operation],
    shapes: Mapping[str, Shape],
    n_images: int,
    most: int,
) -> list[tuple[Section, ...]]:
    best: dict[int, list[tuple[float, tuple[Section, ...]]]] = {cuts[0]: [(0.0, ())]}
    for k, last in enumerate(cuts[1:], start=1):
        found = []
        for first in cuts[:k]:
            moved = _moved(operations, shapes, first) * n_images * _NS_A_FLOAT_MOVED
            for cost, sections in best.get(first, []):
                for own, section in ranked[first, last][:2]:
                    found.append((cost + own + (moved if first else 0.0), (*sections, section)))
        found.sort(key=lambda pair: pair[0])
        best[last] = found[: 2 * most]
    paths = [sections for _, sections in best[cuts[-1]]]
    whole = [(section,) for _, section in ranked[cuts[0], cuts[-1]]]
    n_paths = max(1, most - 2)
    return [*paths[:n_paths], *whole[: most - n_paths], *paths[n_paths:], *whole]


def _distinct(plans: Sequence[tuple[Section, ...]], most: int) -> list[tuple[Section, ...]]:
    return list(dict.fromkeys(plans))[:most]


def _divisors(n: int) -> list[int]:
    powers = [1, 2, 4, 8, 16]
    return [k for k in dict.fromkeys([*powers, n]) if k <= n and n % k == 0]


def _lanes_for(images: int) -> list[Lanes]:
    found = []
    for n in (1, 2, 4, 8, 16):
        for rows in (1, 2, 4, 8, 16):
            if n * rows <= LANES and n < 2 * images:
                found.append(Lanes(n, rows, LANES // (n * rows)))
    return found


def _nonzero(operations: Sequence[Operation], layers: nn.Module) -> dict[str, int]:
    found: dict[str, int] = {}
    for op in operations:
        if isinstance(op, Convolution):
            weight = layers.get_submodule(op.layer).weight
            assert isinstance(weight, torch.Tensor)
            taken = int(torch.count_nonzero(weight))
            # Dense rows share what they read: about three quarters of the time.
            dense = taken > 0.4 * weight.numel()
            found[op.name] = int(0.75 * weight.numel()) if dense else taken
    return found


def _cuts(
    operations: Sequence[Operation], shapes: Mapping[str, Shape], outputs: Sequence[str]
) -> list[int]:
    """Return where a stretch may be cut: one value goes on, and another size begins there."""
    last_use = {s: k for k, op in enumerate(operations) for s in op.sources}
    cuts, sizes = [0], [shapes[op.name][1:] for op in operations]
    for k in range(1, len(operations)):
        made = {s for op in operations[:k] for s in (op.name, *op.sources)}
        crossing = [name for name in made if last_use.get(name, -1) >= k]
        if len(crossing) == 1 and operations[k].sources[0] == crossing[0]:
            before = shapes[crossing[0]][1:]
            ahead = sizes[k : k + 4]
            if any(size != before and size != (1, 1) for size in ahead):
                cuts.append(k)
    return [*cuts, len(operations)]


def _moved(operations: Sequence[Operation], shapes: Mapping[str, Shape], cut: int) -> float:
    c, h, w = shapes[operations[cut].sources[0]]
    return float(c * h * w)


def _cost(
    operations: Sequence[Operation],
    shapes: Mapping[str, Shape],
    nonzero: Mapping[str, int],
    images: int,
    lanes: Lanes,
    scales: Mapping[str, tuple[int, int]] | None,
) -> float:
    """Estimate nanoseconds of a run."""
    if scales is None and lanes.rows * lanes.columns > 1:
        return math.inf
    geometry = geometry_of(operations, shapes, lanes, scales)
    blocks = math.ceil(images / lanes.images)
    cycles, traffic, largest = 0.0, 0.0, 0.0
    for op in operations:
        strips = geometry.strips.get(op.name)
        if strips is None:
            continue
        vectors = strips.strip[0] * strips.strip[1]
        floats = float(shapes[op.name][0] * vectors * LANES * blocks)
        halo = geometry.halos[op.name]
        padded = (strips.strip[0] + halo[0] + halo[1]) * (strips.strip[1] + halo[2] + halo[3])
        edges = float(shapes[op.name][0] * (padded - vectors)) * blocks
        source = geometry.strips[op.sources[0]].strip
        read = float(shapes[op.sources[0]][0] * source[0] * source[1] * LANES * blocks)
        if not isinstance(op, Concatenation):
            traffic += floats + (read if isinstance(op, Convolution) else 0.0)
        largest = max(largest, 4 * (floats + read))
        cycles += 1.5 * edges
        if isinstance(op, Convolution):
            cycles += blocks * nonzero[op.name] * _tap_cycles(vectors)
        elif isinstance(op, Combination):
            cycles += floats / LANES
    rate = next(ns for most, ns in _CACHES if largest <= most)
    return _CYCLE_NS * cycles + rate * traffic + _NS_A_RUN


def _tap_cycles(vectors: int) -> float:
    """Cycles that one tap takes on a strip, in tiles of at most fourteen positions."""
    tiles = math.ceil(vectors / 14)
    return tiles * max(4.0, 0.5 * (vectors / tiles + 3))
