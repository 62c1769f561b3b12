"""The run of a network as it is, and the values that interventions need of it."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from causalprune.graph.changes import columns_of
from causalprune.graph.exported import Exported
from causalprune.graph.steps import Step, is_hooked, steps_of
from causalprune.graph.suffixes import Probe, input_of, probe
from causalprune.graph.trace import trace

__all__ = ["PlainRun", "Rows", "joined"]


@dataclass(frozen=True)
class Rows:
    """Images of the cached part: a slice, the listed ones, or (``None``) all as they are."""

    index: slice | Tensor | None
    n: int

    def of(self, value: Any) -> Any:
        """Return these images of a value [images, ...]."""
        if isinstance(value, (tuple, list)):
            return type(value)(self.of(v) for v in value)
        if not isinstance(value, Tensor) or self.index is None:
            return value
        if isinstance(self.index, slice):
            return value[self.index]
        return value.index_select(0, self.index.to(value.device))


def joined(values: Sequence[Any]) -> Any:
    """Put the values of several runs behind each other."""
    first = values[0]
    if len(values) == 1:
        return first
    if isinstance(first, (tuple, list)):
        return type(first)(joined(parts) for parts in zip(*values, strict=True))
    return torch.cat(list(values)) if isinstance(first, Tensor) else first


class PlainRun:
    """Runs a network part by part and keeps chosen values of one part.

    Attributes
    ----------
    steps : list of Step
    seen : Probe
    images_per_part : int
    start, stop : int
        The images whose values are kept.
    donors : Tensor [stop - start], int64
        For every image of the part another one of it.
    """

    def __init__(
        self, steps: Sequence[Step], example: Tensor, *, max_cache_bytes: int, seed: int
    ) -> None:
        self._channels_last = _prefers_channels_last(example)
        self.steps = _laid_out(steps) if self._channels_last else list(steps)
        self.seen: Probe = probe(self.steps, self._lay_out(example))
        self._max_cache_bytes = max_cache_bytes
        self._seed = seed
        self._kept: frozenset[str] = frozenset()
        self._held: frozenset[str] = frozenset()
        self._values: dict[str, Any] = {}
        self._nonzero: dict[tuple[str, int], Tensor] = {}
        self._inputs = example[:0]
        self.images_per_part = 2**62
        self.start = self.stop = 0
        self.donors = torch.zeros(0, dtype=torch.int64)
        self._last_reader = {name: s.name for s in self.steps for name in s.inputs}
        self._constants = {
            step.name: value
            for step, value in zip(self.steps, self._constant_values(), strict=True)
            if step.name in self.seen.constant
        }

    @classmethod
    def of(
        cls,
        model: nn.Module,
        example: Tensor,
        *,
        keep: set[str],
        max_cache_bytes: int,
        seed: int,
        exported: Exported | None = None,
    ) -> PlainRun | None:
        """Prepare `model`; ``None`` where it writes into tensors that others look at."""
        steps = steps_of(trace(model, example, exported=exported), keep)
        if steps is None:
            return None
        return cls(steps, example, max_cache_bytes=max_cache_bytes, seed=seed)

    def keep(self, names: frozenset[str]) -> None:
        """Choose the values to keep of every part; decides how many images a part has."""
        self._kept = names - self.seen.constant
        held = sum(self.seen.bytes_per_image[name] for name in self._kept)
        self.images_per_part = max(1, self._max_cache_bytes // max(1, held))
        if held > self._max_cache_bytes:
            self._kept = frozenset()  # not even one image: keep what is asked for at a time

    def parts(self) -> list[tuple[int, int]]:
        """Images [start, stop) of every part of the observed ones."""
        n = len(self._inputs)
        # No part of a single image, where there are others: it would have no donor.
        n_parts = max(1, min(-(-n // self.images_per_part), n // 2))
        bounds = [n * part // n_parts for part in range(n_parts + 1)]
        return list(itertools.pairwise(bounds))

    def run(self, inputs: Tensor) -> Tensor:
        """Run the network on `inputs` [N, ...]; returns its output."""
        self._inputs = inputs
        self.start = self.stop = 0
        return torch.cat([self._run(start, stop, self._kept) for start, stop in self.parts()])

    def bring(self, start: int, stop: int, names: frozenset[str]) -> None:
        """Make the values `names` of the images [start, stop) the kept ones."""
        names = names - self.seen.constant
        if (self.start, self.stop) != (start, stop) or not names <= self._held:
            self._run(start, stop, self._kept | names)

    def together(self, name: str, several: Sequence[Rows]) -> Any:
        """Plain value of a step on all of `several`, one behind the other."""
        if name in self._constants:
            return self._constants[name]
        return joined([rows.of(self._values[name]) for rows in several])

    def value(self, name: str, rows: Rows) -> Any:
        """Plain value of a step on `rows` of the kept part."""
        if name in self._constants:
            return self._constants[name]
        return rows.of(self._values[name])

    def whole(self, name: str) -> Tensor:
        """Plain value of a step on the whole kept part."""
        found: Tensor = self._values[name]
        return found

    def columns(self, name: str, axis: int, columns: Tensor, rows: Rows) -> Tensor:
        """Plain value of some columns of a step on `rows` of the kept part."""
        found: Tensor = rows.of(columns_of(self._values[name], axis, columns))
        return found

    def donated(self, name: str, rows: Rows) -> Any:
        """Plain value of a step on the donors of `rows`."""
        return Rows(rows.of(self.donors), rows.n).of(self._values[name])

    def nonzero(self, name: str, axis: int) -> Tensor:
        """Whether a column along `axis` of a step's value has a nonzero: [images, columns]."""
        if (name, axis) not in self._nonzero:
            value = self._values[name]
            others = [d for d in range(1, value.ndim) if d != value.ndim + axis]
            found = value != 0
            self._nonzero[name, axis] = (found.any(others) if others else found).cpu()
        return self._nonzero[name, axis]

    def numbers(self, steps: Sequence[Step], n_rows: int) -> dict[str, Any]:
        """Values of steps that give numbers, for a run of `n_rows` images."""
        found: dict[str, Any] = {}

        def value_of(name: str) -> Any:
            if name in found:
                return found[name]
            if name in self.seen.shapes and name not in self.seen.constant:
                return self.seen.imitation(name, n_rows)
            return self._constants[name]

        for step in steps:
            found[step.name] = step(value_of)
        return found

    def _constant_values(self) -> list[Any]:
        values: dict[str, Any] = {}
        for step in self.steps:
            if step.name in self.seen.constant:
                with torch.no_grad():
                    values[step.name] = step(values.__getitem__)
        return [values.get(step.name) for step in self.steps]

    def _run(self, start: int, stop: int, kept: frozenset[str]) -> Tensor:
        self._values.clear()
        self._nonzero.clear()
        values: dict[str, Any] = dict(self._constants)
        output: Any = None
        for step in self.steps:
            if step.name == input_of(self.steps):
                values[step.name] = self._lay_out(self._inputs[start:stop])
            elif step.name not in values:
                values[step.name] = step(values.__getitem__)
            if step.op == "output":
                output = values[step.name]
            for name in step.inputs:
                if self._last_reader[name] == step.name and name not in kept:
                    del values[name]
        self._values = {name: values[name] for name in kept}
        self._held, self.start, self.stop = kept, start, stop
        generator = torch.Generator().manual_seed(self._seed + start)
        order = torch.randperm(stop - start, generator=generator)
        self.donors = torch.empty_like(order)
        self.donors[order] = order.roll(1)  # one cycle: nobody is its own donor
        result: Tensor = output
        return result

    def _lay_out(self, inputs: Tensor) -> Tensor:
        if not self._channels_last:
            return inputs
        return inputs.contiguous(memory_format=torch.channels_last)


def _prefers_channels_last(example: Tensor) -> bool:
    """Whether float32 convolutions are faster so: by up to half on small maps, with oneDNN."""
    return example.ndim == 4 and example.device.type == "cpu" and example.dtype == torch.float32


def _laid_out(steps: Sequence[Step]) -> list[Step]:
    laid_out = []
    for step in steps:
        if type(step.module) is nn.Conv2d and not is_hooked(step.module):
            module = copy.copy(step.module)
            module._parameters = dict(module._parameters)
            weight = module.weight.detach().contiguous(memory_format=torch.channels_last)
            module.weight = nn.Parameter(weight, requires_grad=False)
            step = replace(step, run=module, module=module)
        laid_out.append(step)
    return laid_out
