"""What a target is a fraction of, and how much of it a choice of units removes."""

from __future__ import annotations

import numbers
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from causalprune.errors import InvalidArgumentError, UnknownNameError
from causalprune.graph import UnitGraph
from causalprune.measures import parameter_bytes, peak_activation_bytes
from causalprune.pruning.footprint import Sizes
from causalprune.pruning.ranking import Course
from causalprune.pruning.search import Measure
from causalprune.pruning.surgery import shrunk_copy

__all__ = [
    "QUANTITIES",
    "check_request",
    "check_round_to",
    "counted",
    "memory_of",
    "memory_saved",
    "saved_by_units",
    "weighed",
]

COUNTED = ("parameters", "macs", "bytes", "units")
"""Columns of :meth:`Sizes.tally`."""

QUANTITIES = ("parameters", "macs", "memory", "latency", "units")


def check_request(ratio: object, of: str, scope: object) -> None:
    """Refuse a target that no plan could be made for."""
    if not (ratio is None and isinstance(scope, Mapping)):
        _check_fraction("ratio", ratio)
    if of not in QUANTITIES:
        raise UnknownNameError("quantity (of)", of, QUANTITIES)
    if isinstance(scope, Mapping):
        for name, share in scope.items():
            if not isinstance(name, str):
                raise InvalidArgumentError(f"scope: expected names of layers, got {name!r}")
            _check_fraction(f"scope[{name!r}]", share)
    elif scope not in ("global", "layer"):
        raise UnknownNameError("scope", scope, ("global", "layer", "a mapping of layer to ratio"))


def _check_fraction(argument: str, value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, numbers.Real) or not 0 <= float(value) < 1:
        raise InvalidArgumentError(f"{argument}: expected a number in [0, 1), got {value!r}")


def check_round_to(round_to: object) -> int:
    """Return what the numbers of kept channels are to be multiples of; ``None`` is 1."""
    if round_to is None:
        return 1
    whole = isinstance(round_to, numbers.Integral) and not isinstance(round_to, bool)
    if not whole or int(round_to) < 1:  # type: ignore[call-overload]
        raise InvalidArgumentError(f"round_to: expected an integer of at least 1, got {round_to!r}")
    return int(round_to)  # type: ignore[call-overload, no-any-return]


def counted(course: Course, of: str) -> Measure:
    """Return the exact fraction of parameters, macs or units that a choice removes."""
    column = COUNTED.index(of)
    sizes = course.sizes
    whole = getattr(sizes.whole, of)

    def measure(choices: NDArray[np.int64]) -> NDArray[np.float64]:
        left = sizes.tally(course.kept(choices))[:, column]
        return np.zeros(len(choices)) if not whole else 1 - left / whole

    return measure


def weighed(course: Course, model: nn.Module, graph: UnitGraph, image: Tensor) -> Measure:
    """Return the fraction of memory that a choice removes, from running what it leaves."""
    whole = memory_of(model, image)
    known: dict[bytes, float] = {}

    def measure(choices: NDArray[np.int64]) -> NDArray[np.float64]:
        for choice in choices:
            if choice.tobytes() not in known:
                small = shrunk_copy(model, graph, course.remove(choice))
                known[choice.tobytes()] = 1 - memory_of(small, image) / whole
        return np.array([known[choice.tobytes()] for choice in choices])

    return measure


def memory_of(model: nn.Module, image: Tensor) -> int:
    """Return the bytes of parameters, buffers and, at their peak, activations of one image.

    The network is run where it is: another device, the meta device too, chooses other operators
    and so has another peak.
    """
    return parameter_bytes(model) + peak_activation_bytes(model, image)


def saved_by_units(sizes: Sizes, of: str) -> dict[str, list[float]]:
    """Return what each unit alone saves of parameters, macs, bytes or units."""
    everything = np.array([sizes.counts[g][k] for g, k in sizes.lanes], np.int64)
    one_less = everything - np.eye(len(everything), dtype=np.int64)
    column = COUNTED.index(of)
    saved = sizes.tally(everything[None])[0, column] - sizes.tally(one_less)[:, column]
    by_lane = dict(zip(sizes.lanes, saved.tolist(), strict=True))
    return {g: [float(by_lane[g, k]) for k in classes] for g, classes in sizes.classes.items()}


def memory_saved(
    model: nn.Module, graph: UnitGraph, sizes: Sizes, image: Tensor
) -> dict[str, list[float]]:
    """Return what a unit saves of memory: its bytes, and its share of the peak of activations.

    Few groups are alive at the peak, and they are found by halving sets of groups: a set whose
    units do not lower the peak when half of them go is not searched any further.
    """
    whole = peak_activation_bytes(model, image)
    shares: dict[str, float] = {}

    def search(halves: dict[str, tuple[int, ...]]) -> None:
        if not halves:
            return
        lower = whole - peak_activation_bytes(shrunk_copy(model, graph, halves), image)
        names = list(halves)
        if lower > 0 and len(names) == 1:
            shares[names[0]] = lower / len(halves[names[0]])
        elif lower > 0:
            middle = len(names) // 2
            search({name: halves[name] for name in names[:middle]})
            search({name: halves[name] for name in names[middle:]})

    search(_halves(sizes))
    in_bytes = saved_by_units(sizes, "bytes")
    return {
        name: [each + shares.get(name, 0.0) for each in values] for name, values in in_bytes.items()
    }


def _halves(sizes: Sizes) -> dict[str, tuple[int, ...]]:
    """Half of the units of every class of every group, where a class has more than one."""
    halves: dict[str, tuple[int, ...]] = {}
    for name, number in sizes.lanes:
        units = [unit for unit, k in enumerate(sizes.classes[name]) if k == number]
        halves[name] = (*halves.get(name, ()), *units[: len(units) // 2])
    return {name: units for name, units in halves.items() if units}
