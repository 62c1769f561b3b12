"""A network run piece by piece on calibration images, in step with another one."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from causalprune.graph.steps import Step
from causalprune.graph.suffixes import input_of

__all__ = ["Budget", "Passage", "peak_bytes"]

Amendment = Callable[[Any, Callable[[str], Any]], Any]
"""Takes the value of a step, and what looks up those of others."""


@dataclass
class Budget:
    """Bytes that all passages together may hold between two of their moves."""

    limit: int
    held: int = 0


@dataclass
class Passage:
    """One network on one chunk of images, as far as it has been run.

    The values that later steps read are held. Where the budget does not allow that, the passage
    stays where it was, and what lies behind is run again when it is asked for.

    Attributes
    ----------
    steps : sequence of Step
    images : Tensor [N, ...]
    budget : Budget
    place : int
        Steps before it have been run for good.
    """

    steps: Sequence[Step]
    images: Tensor
    budget: Budget
    place: int = 0
    _values: dict[str, Any] = field(default_factory=dict)
    _bytes: int = 0
    _last: Mapping[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Note which step is the last to read each value."""
        self._last = {name: k for k, step in enumerate(self.steps) for name in step.inputs}

    def move(self, place: int, wanted: Collection[str]) -> dict[str, Any]:
        """Run the steps before `place`; returns the values that later ones read, and `wanted`."""
        place = max(place, self.place)
        values = self.run(place, wanted)
        size = held_bytes(self.steps, values)
        if self.budget.held - self._bytes + size <= self.budget.limit:
            self.budget.held += size - self._bytes
            self._values, self._bytes, self.place = values, size, place
        return values

    def run(
        self,
        stop: int,
        wanted: Collection[str],
        start: tuple[int, Mapping[str, Any]] | None = None,
        amend: Mapping[str, Amendment] | None = None,
    ) -> dict[str, Any]:
        """Run the steps from `start` (a place and the values there) to `stop`; nothing moves.

        The value of a step that `amend` names is what that makes of it.
        """
        place, found = (self.place, self._values) if start is None else start
        values = {n: v for n, v in found.items() if self._last.get(n, -1) >= place or n in wanted}
        source = input_of(self.steps)
        for index in range(place, stop):
            step = self.steps[index]
            if step.name == source:
                values[step.name] = self.images
            else:
                values[step.name] = step(values.__getitem__)
            if amend is not None and step.name in amend:
                values[step.name] = amend[step.name](values[step.name], values.__getitem__)
            for name in (*step.inputs, step.name):
                if self._last.get(name, -1) <= index and name not in wanted:
                    values.pop(name, None)
        return values


def held_bytes(steps: Sequence[Step], values: Mapping[str, Any]) -> int:
    """Bytes of values, without the network's own tensors and its input."""
    own = {step.name for step in steps if step.op in ("get_attr", "placeholder")}
    return sum(_bytes(value) for name, value in values.items() if name not in own)


def peak_bytes(steps: Sequence[Step], image: Tensor) -> int:
    """Most bytes that are alive at a time in a run on `image` [1, ...]."""
    passage, peak = Passage(steps, image, Budget(2**62)), 1
    for place in range(1, len(steps) + 1):
        peak = max(peak, held_bytes(steps, passage.move(place, ())))
    return peak


def _bytes(value: object) -> int:
    if isinstance(value, Tensor):
        return value.numel() * value.element_size()
    return sum(map(_bytes, value)) if isinstance(value, (tuple, list)) else 0
