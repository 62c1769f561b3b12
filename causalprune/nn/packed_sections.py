"""Cutting a stretch into sections, each with lanes of its own, and compiling a section.

A section is a native program for so many images. Between sections values lie in ordinary tensors,
so that each section has the lanes that suit its sizes: strips of large images, many small images.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from copy import copy
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor, nn

from causalprune import _native
from causalprune.nn.packed_geometry import Pair, Shape, geometry_of
from causalprune.nn.packed_operations import (
    Combination,
    Concatenation,
    Convolution,
    GlobalAverage,
    Operation,
    Pooling,
    Subsampling,
)
from causalprune.ops.packed_layouts import Lanes, Window, native_layout

__all__ = ["Blocking", "Section", "SectionProgram"]

Blocking = tuple[int, int, int, int]


@dataclass(frozen=True)
class Section:
    """Some operations of a stretch and how they run.

    Attributes
    ----------
    first, last : int
        The operations [first, last) of the stretch.
    images : int
        How many images a run takes.
    lanes : Lanes
    blockings : tuple
        How each convolution is blocked, in order; empty until it has been timed.
    """

    first: int
    last: int
    images: int
    lanes: Lanes
    blockings: tuple[Blocking, ...] = ()


@dataclass(frozen=True)
class _Key:
    """What decides how a convolution is best blocked."""

    sizes: tuple[int, ...]
    window_groups: tuple[Window, int]
    strips: tuple[Pair, Pair, tuple[int, int, int, int]]
    taken: int  # twentieths of the weights


# ---- compiling ----------------------------------------------------------------------------------


class SectionProgram:
    """The native program of a section, for its number of images.

    Parameters
    ----------
    operations : sequence of Operation
    layers : nn.Module
        Has the layers that they name.
    shapes : mapping
        Channels, height and width of every value.
    outputs : sequence of str
        Values that are read outside.
    section : Section
        Its blockings are used where they are there, and else timed.
    threads : int
    timed : dict
        Blockings by geometry, read and extended: layers of the same size are timed once.

    Attributes
    ----------
    inputs, outputs : tuple of str
        The values that a run takes and gives, in order.
    blockings : tuple
        Of the convolutions.
    """

    def __init__(
        self,
        operations: Sequence[Operation],
        layers: nn.Module,
        shapes: Mapping[str, Shape],
        outputs: Sequence[str],
        section: Section,
        threads: int,
        timed: dict[object, Blocking],
    ) -> None:
        self._timed = timed
        self.operations, self.layers, self.shapes = tuple(operations), layers, shapes
        self.section, self.threads = section, threads
        self.geometry = geometry_of(operations, shapes, section.lanes)
        written = {op.name for op in operations}
        read = dict.fromkeys(s for op in operations for s in op.sources)
        self.inputs = tuple(name for name in read if name not in written)
        self.outputs = tuple(name for name in outputs if name in written)
        self.program = _native.PackedProgram()
        self.plans: dict[str, _native.PackedConvolution] = {}
        self._roots: dict[str, int] = {}
        self._buffers: dict[str, int] = {}
        self._outside: dict[str, float] = {}
        self._build()

    @property
    def blockings(self) -> tuple[Blocking, ...]:
        """How every convolution is blocked."""
        return tuple(plan.blocking for plan in self.plans.values())

    @property
    def workspace_floats(self) -> int:
        """Size of the workspace of a run."""
        return int(self.program.workspace_floats)

    def run(self, inputs: Sequence[Tensor], outputs: Sequence[Tensor], workspace: Tensor) -> bool:
        """Compute `outputs` [N, C, H, W]; false if an input was not finite."""
        return self.program.run(inputs, outputs, workspace, True, self.threads)

    # ---- memory ----

    @cached_property
    def _homes(self) -> dict[str, tuple[str, int]]:
        """Return where every value lies: a root, and the first channel there."""
        homes: dict[str, tuple[str, int]] = {}
        for op in reversed(self.operations):
            if isinstance(op, Concatenation):
                self._place(op, homes)
        for name in self.geometry.strips:
            homes.setdefault(name, (name, 0))
        return homes

    def _place(self, op: Concatenation, homes: dict[str, tuple[str, int]]) -> None:
        if op.name not in homes:
            # The shorter ones of a growing list are the beginning of the longest.
            first = homes.get(op.sources[0])
            at = first[1] if first else 0
            known = first is not None
            for source in op.sources:
                known = known and first is not None and homes.get(source) == (first[0], at)
                at += self.shapes[source][0]
            homes[op.name] = first if known and first is not None else (op.name, 0)
        root, at = homes[op.name]
        for source in op.sources:
            homes.setdefault(source, (root, at))
            at += self.shapes[source][0]

    def _halo(self, root: str) -> tuple[int, int, int, int]:
        halos = [self.geometry.halos[v] for v, home in self._homes.items() if home[0] == root]
        top, bottom, left, right = (max(h[k] for h in halos) for k in range(4))
        return top, bottom, left, right

    def _layout(self, name: str) -> _native.PackedLayout:
        strips, channels = self.geometry.strips[name], self.shapes[name][0]
        halo = self._halo(self._homes[name][0])
        return native_layout(strips, self.section.images, channels, halo)

    def _buffer(self, name: str) -> int:
        if name not in self._buffers:
            root, first = self._homes[name]
            if root not in self._roots:
                self._roots[root] = self.program.buffer(self._layout(root))
            self._buffers[name] = self.program.slice(self._roots[root], first, self.shapes[name][0])
        return self._buffers[name]

    # ---- steps ----

    def _build(self) -> None:
        for k, name in enumerate(self.inputs):
            self.program.pack(k, self._buffer(name))
        for op in self.operations:
            self._add(op)
            if op.name in self.outputs and not isinstance(op, GlobalAverage):
                self.program.unpack(self._buffer(op.name), self.outputs.index(op.name))
        self.program.finish()

    def alone(self, op: Operation) -> _native.PackedProgram:
        """Return a program of one operation on what the workspace holds, to be timed."""
        twin = copy(self)
        twin.program, twin._roots, twin._buffers, twin._outside = (
            _native.PackedProgram(),
            {},
            {},
            {},
        )
        twin.outputs = (op.name,)
        twin._add(op)
        twin.program.finish()
        return twin.program

    def _add(self, op: Operation) -> None:
        if isinstance(op, Convolution):
            self._convolve(op)
        elif isinstance(op, Combination):
            self._combine(op)
        elif isinstance(op, Pooling):
            self._pool(op)
        elif isinstance(op, Concatenation):
            self._concatenate(op)
        elif isinstance(op, Subsampling):
            self._subsample(op)
        else:
            # Behind the image strips hold anything.
            if self._outside.get(op.source) != 0.0:
                self._fill_all(op.source, 0.0)
            self.program.global_average(self._buffer(op.source), self.outputs.index(op.name))

    def _pool(self, op: Pooling) -> None:
        window = op.window
        self._fill(op.source, -math.inf if op.kind == "max" else 0.0, window)
        source, target = self._buffer(op.source), self._buffer(op.name)
        self.program.pool(
            op.kind,
            source,
            target,
            window.kernel,
            window.stride,
            window.padding,
            op.count_padding,
        )

    def _fill(self, name: str, outside: float, window: Window) -> None:
        """Fill the halo of a value for a reader, unless it is or nobody looks."""
        looks = window.kernel != (1, 1) or window.padding != (0, 0)
        if looks and self._outside.get(name) != outside:
            self._fill_all(name, outside)

    def _fill_all(self, name: str, outside: float) -> None:
        self.program.fill_halo(self._buffer(name), outside)
        root = self._homes[name][0]
        # What shares the memory may have wanted something else there.
        for other, value in list(self._outside.items()):
            if self._homes[other][0] == root and value != outside:
                del self._outside[other]
        self._outside[name] = outside

    def _convolve(self, op: Convolution) -> None:
        layer = self.layers.get_submodule(op.layer)
        assert isinstance(layer, nn.Conv2d)
        self._fill(op.source, 0.0, op.window)
        bias = None if layer.bias is None else layer.bias.detach().contiguous()
        plan = self._plan(op, layer.weight.detach().contiguous(), bias)
        residual = self._buffer(op.residual) if op.residual else -1
        self.program.convolve(plan, self._buffer(op.source), self._buffer(op.name), residual)

    def _subsample(self, op: Subsampling) -> None:
        channels = self.shapes[op.source][0]
        weight = torch.zeros(channels + op.before + op.after, channels, 1, 1)
        weight[op.before : op.before + channels, :, 0, 0] = torch.eye(channels)
        as_convolution = Convolution(op.name, op.source, "", Window((1, 1), op.step), 1)
        plan = self._plan(as_convolution, weight, None)
        self.program.convolve(plan, self._buffer(op.source), self._buffer(op.name))

    def _plan(
        self, op: Convolution, weight: Tensor, bias: Tensor | None
    ) -> _native.PackedConvolution:
        if op.name in self.plans:
            return self.plans[op.name]
        window, known = op.window, self.section.blockings
        key = self._key(op, weight)
        wanted = known[len(self.plans)] if known else self._timed.get(key, _open_blocking(key))
        # An in-plane view of a layer in channels_last format is not contiguous in this sense.
        weight = torch.empty(weight.shape).copy_(weight)
        plan = _native.PackedConvolution(
            weight,
            bias,
            self._layout(op.source),
            self._layout(op.name),
            list(range(weight.shape[1] * op.groups)),
            list(range(weight.shape[0])),
            window.stride,
            window.padding,
            window.dilation,
            op.groups,
            op.activation,
            wanted,
            self.threads,
        )
        self._timed[key] = plan.blocking
        self.plans[op.name] = plan
        return plan

    def _key(self, op: Convolution, weight: Tensor) -> _Key:
        strips, halo = self.geometry.strips, self._halo(self._homes[op.source][0])
        taken = torch.count_nonzero(weight).item() / max(1, weight.numel())
        return _Key(
            tuple(weight.shape),
            (op.window, op.groups),
            (strips[op.source].strip, strips[op.name].strip, halo),
            round(20 * taken),
        )

    def _combine(self, op: Combination) -> None:
        scale = shift = None
        if op.layer:
            norm = self.layers.get_submodule(op.layer)
            assert isinstance(norm, nn.BatchNorm2d)
            assert norm.running_mean is not None and norm.running_var is not None
            scale = (norm.running_var.double() + norm.eps).rsqrt()
            if norm.weight is not None:
                scale = scale * norm.weight.detach().double()
            shift = -norm.running_mean.double() * scale
            if norm.bias is not None:
                shift = shift + norm.bias.detach().double()
            scale, shift = scale.float(), shift.float()
        b = self._buffer(op.b) if op.b else -1
        self.program.combine(
            self._buffer(op.a), b, self._buffer(op.name), scale, shift, op.activation
        )

    def _concatenate(self, op: Concatenation) -> None:
        root, at = self._homes[op.name]
        for k, source in enumerate(op.sources):
            channels = self.shapes[source][0]
            # Lies there already, unless another list or an earlier place has it.
            if self._homes[source] != (root, at) or source in op.sources[:k]:
                first = at - self._homes[op.name][1]
                part = self.program.slice(self._buffer(op.name), first, channels)
                self.program.combine(self._buffer(source), -1, part, None, None, "none")
            at += channels


def _open_blocking(key: _Key) -> Blocking:
    """Return what is left to timing: where most weights are zero, dense rows cannot win."""
    alone = key.sizes[0] == key.window_groups[1]
    return (1 if key.taken < 8 or alone else 0, 0, 0, 0)
