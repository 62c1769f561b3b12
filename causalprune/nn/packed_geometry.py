"""Sizes of the values of a stretch, and how they are cut into strips."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction

from torch import nn

from causalprune.nn.packed_operations import (
    Combination,
    Concatenation,
    Convolution,
    GlobalAverage,
    Operation,
    Pooling,
    Subsampling,
    cuts_no_window,
)
from causalprune.ops.packed_layouts import Lanes, Strips, Window, strips_for

__all__ = ["DoesNotFit", "Geometry", "Pair", "Shape", "geometry_of", "scales_of", "shapes_in"]

Shape = tuple[int, int, int]
"""Channels, height, width."""
Pair = tuple[int, int]


class DoesNotFit(Exception):
    """A stretch cannot run packed on images of this size; torch computes it then."""


def shapes_in(
    operations: Sequence[Operation], inputs: Mapping[str, Shape], layers: nn.Module
) -> dict[str, Shape]:
    """Return channels, height and width of every value.

    Raises
    ------
    DoesNotFit
        Where an operation does not take images of this size.
    """
    shapes = dict(inputs)
    for op in operations:
        c, h, w = shapes[op.sources[0]]
        if isinstance(op, Convolution):
            layer = layers.get_submodule(op.layer)
            assert isinstance(layer, nn.Conv2d)
            _expect(c == layer.in_channels)
            shapes[op.name] = (layer.out_channels, *op.window.output_size((h, w)))
            _expect(not op.residual or shapes[op.residual] == shapes[op.name])
        elif isinstance(op, Combination):
            shapes[op.name] = (c, h, w)
            norm = layers.get_submodule(op.layer) if op.layer else None
            _expect(not isinstance(norm, nn.BatchNorm2d) or norm.num_features == c)
            _expect(not op.b or shapes[op.b] == (c, h, w))
        elif isinstance(op, Pooling):
            shapes[op.name] = (c, *op.window.output_size((h, w)))
            _expect(not op.exact or cuts_no_window(op.window, (h, w)))
        elif isinstance(op, Concatenation):
            shapes[op.name] = (sum(shapes[s][0] for s in op.sources), h, w)
            _expect(all(shapes[s][1:] == (h, w) for s in op.sources))
        elif isinstance(op, GlobalAverage):
            shapes[op.name] = (c, 1, 1)
            _expect(op.kernel is None or op.kernel == (h, w) or (op.kernel == (0, 0) and h == w))
        else:
            window = Window((1, 1), op.step)
            shapes[op.name] = (c + op.before + op.after, *window.output_size((h, w)))
        _expect(min(shapes[op.name]) >= 1)
    return shapes


def _expect(holds: bool) -> None:
    if not holds:
        raise DoesNotFit


def window_of(op: Operation) -> Window | None:
    """Return the window through which an operation reads its first source."""
    if isinstance(op, Convolution | Pooling):
        return op.window
    return Window((1, 1), op.step) if isinstance(op, Subsampling) else None


@dataclass(frozen=True)
class Geometry:
    """How the values of some operations are cut; see :func:`geometry_of`."""

    strips: Mapping[str, Strips]
    halos: Mapping[str, tuple[int, int, int, int]]


def geometry_of(
    operations: Sequence[Operation],
    shapes: Mapping[str, Shape],
    lanes: Lanes,
    scales: Mapping[str, Pair] | None = None,
) -> Geometry:
    """Cut every value that `operations` touch into strips, with the halos that readers need.

    Raises
    ------
    DoesNotFit
        Where values of two scales meet, and images are cut.
    """
    values = [*_values_of(operations)]
    if lanes.rows == lanes.columns == 1:
        scales = dict.fromkeys(values, (1, 1))
    elif scales is None:
        scales = scales_of(operations)
    cut = strips_for(lanes, [(shapes[v][1:], scales[v]) for v in values])
    strips = dict(zip(values, cut, strict=True))
    halos = dict.fromkeys(values, (0, 0, 0, 0))
    for op in operations:
        window = window_of(op)
        if window is not None:
            source = op.sources[0]
            halo = window.halo(strips[source].strip, strips[op.name].strip)
            old = halos[source]
            halos[source] = (
                max(old[0], halo[0]),
                max(old[1], halo[1]),
                max(old[2], halo[2]),
                max(old[3], halo[3]),
            )
    return Geometry(strips, halos)


def _values_of(operations: Sequence[Operation]) -> dict[str, None]:
    found: dict[str, None] = {}
    for op in operations:
        found.update(dict.fromkeys(op.sources))
        if not isinstance(op, GlobalAverage):
            found[op.name] = None
    return found


def scales_of(operations: Sequence[Operation]) -> dict[str, Pair]:
    """Return how many rows and columns of each value make one of the smallest.

    Raises
    ------
    DoesNotFit
        Where values of two scales meet.
    """
    values = [*_values_of(operations)]
    edges: dict[str, list[tuple[str, tuple[Fraction, Fraction]]]] = {v: [] for v in values}
    for op in operations:
        if isinstance(op, GlobalAverage):
            continue
        window = window_of(op)
        step = window.stride if window is not None else (1, 1)
        for k, source in enumerate(op.sources):
            rate = (Fraction(step[0]), Fraction(step[1])) if k == 0 else (Fraction(1), Fraction(1))
            edges[source].append((op.name, rate))
            edges[op.name].append((source, (1 / rate[0], 1 / rate[1])))
    rates: dict[str, tuple[Fraction, Fraction]] = {}
    for start in values:
        waiting = [] if start in rates else [start]
        rates.setdefault(start, (Fraction(1), Fraction(1)))
        while waiting:
            value = waiting.pop()
            for other, rate in edges[value]:
                there = (rates[value][0] * rate[0], rates[value][1] * rate[1])
                _expect(rates.setdefault(other, there) == there)
                if rates[other] is there:
                    waiting.append(other)
    found: dict[str, Pair] = {}
    common = [
        Fraction(
            math.lcm(*(r[axis].numerator for r in rates.values())),
            math.gcd(*(r[axis].denominator for r in rates.values())),
        )
        for axis in (0, 1)
    ]
    for value, rate in rates.items():
        rows, columns = common[0] / rate[0], common[1] / rate[1]
        _expect(rows.denominator == columns.denominator == 1)
        found[value] = (int(rows), int(columns))
    return found
