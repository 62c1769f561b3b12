"""What a network holds and computes as a function of how many units each group keeps."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from causalprune.errors import InvalidArgumentError
from causalprune.graph import Consumer, Owned, Span, UnitGraph, UnitGroup, evaluating, frozen
from causalprune.graph.units import widths_in
from causalprune.measures.size import counted_attention
from causalprune.pruning.attention import macs_within, parameters_of_heads

__all__ = ["Footprint", "LayerSize", "Sizes", "sizes_of"]


@dataclass(frozen=True)
class Footprint:
    """Size of a network.

    Attributes
    ----------
    parameters : int
        Number of parameters.
    macs : int
        Multiply-accumulates of one image, as ``torch.utils.flop_counter`` counts (FLOPs / 2).
    bytes : int
        Bytes of parameters and buffers.
    units : int
        Number of removable units.
    memory : int or None
        Bytes of parameters and buffers and, at its peak, of the activations of one image
        (:func:`causalprune.measures.peak_activation_bytes`); ``None`` where it was not asked for.
    """

    parameters: int
    macs: int
    bytes: int
    units: int
    memory: int | None = None


@dataclass(frozen=True)
class LayerSize:
    """Parameters, multiply-accumulates of one image, and bytes that are a layer's own."""

    parameters: int = 0
    macs: int = 0
    bytes: int = 0


Counts = Mapping[str, Sequence[int]]
"""Group name to how many units of each of its classes there are."""


@dataclass(frozen=True)
class _Extent:
    """Length of one dimension of a tensor: `fixed`, and so many places for a unit of each class."""

    fixed: int
    widths: tuple[tuple[str, tuple[int, ...]], ...] = ()

    def of(self, counts: Counts) -> int:
        return self.fixed + sum(
            width * count
            for group, widths in self.widths
            for width, count in zip(widths, counts[group], strict=True)
        )


@dataclass(frozen=True)
class _Tensor:
    """A tensor [rows, columns, kernel] of a layer, which every image meets `positions` times."""

    layer: str
    rows: _Extent
    columns: _Extent = _Extent(1)
    kernel: int = 1
    positions: int = 0
    item_bytes: int = 0
    trained: bool = True

    def elements(self, counts: Counts) -> int:
        return self.rows.of(counts) * self.columns.of(counts) * self.kernel


@dataclass(frozen=True)
class Sizes:
    """Exact footprint of a network for any choice of kept units.

    Attributes
    ----------
    whole : Footprint
    units : Mapping of str to int
        Group name to the number of its units.
    classes : Mapping of str to tuple of int
        Group name to the class of each unit: units of a class occupy equally many places in every
        layer, so that it does not matter which of them goes. Most groups have one class only.
    layers : Mapping of str to LayerSize
        Every module with parameters, buffers or multiply-accumulates of its own (``""``: the
        network itself), as it is.
    """

    whole: Footprint
    units: Mapping[str, int]
    classes: Mapping[str, tuple[int, ...]]
    layers: Mapping[str, LayerSize]
    _tensors: tuple[_Tensor, ...]

    def footprint(self, kept: Mapping[str, int]) -> Footprint:
        """Return the footprint when group g keeps ``kept[g]`` units (default: all).

        Raises
        ------
        InvalidArgumentError
            If it matters which units of a group are kept; :meth:`without` takes them one by one.
        """
        counts = self._all()
        for group, n_kept in kept.items():
            if len(counts[group]) > 1 and n_kept != self.units[group]:
                raise InvalidArgumentError(
                    f"kept: expected units of one size, got {n_kept} of {group!r}, whose units "
                    "differ in size"
                )
            if len(counts[group]) == 1:
                counts[group] = [n_kept]
        return self._of(counts)

    def without(self, removed: Iterable[tuple[str, int]]) -> Footprint:
        """Return the footprint when the units `removed` (group name, unit) are gone."""
        return self._of(self._left(removed))

    def layers_without(self, removed: Iterable[tuple[str, int]]) -> dict[str, LayerSize]:
        """Return the size of every layer when the units `removed` (group name, unit) are gone."""
        counts, found = self._left(removed), dict(self.layers)
        for tensor in self._tensors:
            gone = tensor.elements(self.counts) - tensor.elements(counts)
            size = found[tensor.layer]
            found[tensor.layer] = LayerSize(
                size.parameters - tensor.trained * gone,
                size.macs - tensor.positions * gone,
                size.bytes - tensor.item_bytes * gone,
            )
        return found

    def _left(self, removed: Iterable[tuple[str, int]]) -> dict[str, list[int]]:
        counts = self._all()
        for group, unit in removed:
            counts[group][self.classes[group][unit]] -= 1
        return counts

    @cached_property
    def counts(self) -> dict[str, list[int]]:
        """How many units of each class every group has."""
        counted = {group: Counter(classes) for group, classes in self.classes.items()}
        return {group: [count[k] for k in range(len(count))] for group, count in counted.items()}

    @cached_property
    def lanes(self) -> tuple[tuple[str, int], ...]:
        """Every class of every group (group name, class): the columns of :meth:`tally`."""
        return tuple((g, k) for g, count in self.counts.items() for k in range(len(count)))

    def tally(self, kept: NDArray[np.int64]) -> NDArray[np.int64]:
        """Count what is left of many choices at once.

        Parameters
        ----------
        kept : ndarray [n, L], int64
            How many units of each of the L `lanes` stay.

        Returns
        -------
        ndarray [n, 4], int64
            Parameters, multiply-accumulates, bytes and units, as in :class:`Footprint`.
        """
        sides, scale = self._matrices
        everything = np.array([self.counts[g][k] for g, k in self.lanes], np.int64)
        elements = [
            math.prod(fixed + choices @ widths for fixed, widths in sides)
            for choices in (everything[None], kept)
        ]
        whole = np.array([self.whole.parameters, self.whole.macs, self.whole.bytes])
        left = whole - (elements[0] - elements[1]) @ scale
        return np.concatenate([left, kept.sum(1, keepdims=True)], axis=1)

    @cached_property
    def _matrices(
        self,
    ) -> tuple[list[tuple[NDArray[np.int64], NDArray[np.int64]]], NDArray[np.int64]]:
        """Rows and columns of the tensors as affine functions of the lanes, and their worth."""
        column = {lane: index for index, lane in enumerate(self.lanes)}
        sides = []
        for extents in ([t.rows for t in self._tensors], [t.columns for t in self._tensors]):
            widths = np.zeros((len(column), len(extents)), np.int64)
            for index, extent in enumerate(extents):
                for group, of_class in extent.widths:
                    for number, width in enumerate(of_class):
                        widths[column[group, number], index] += width
            sides.append((np.array([e.fixed for e in extents], np.int64), widths))
        worth = [(t.trained, t.positions, t.item_bytes) for t in self._tensors]
        kernels = np.array([t.kernel for t in self._tensors], np.int64)
        return sides, np.array(worth, np.int64).reshape(-1, 3) * kernels[:, None]

    def _all(self) -> dict[str, list[int]]:
        return {group: list(count) for group, count in self.counts.items()}

    def _of(self, counts: Counts) -> Footprint:
        kept = np.array([[counts[g][k] for g, k in self.lanes]], np.int64)
        return Footprint(*(int(value) for value in self.tally(kept)[0]))


def sizes_of(model: nn.Module, graph: UnitGraph, example: Tensor) -> Sizes:
    """Measure the whole network on one image, and derive how it shrinks.

    Parameters
    ----------
    model : nn.Module
    graph : UnitGraph
    example : Tensor [1, ...]
        On the model's device.
    """
    counter = FlopCounterMode(display=False)
    # The counter cannot follow tensors that ask for a gradient outside of it.
    with evaluating(model), frozen(model), torch.no_grad(), counted_attention(), counter:
        model(example)
    units = {group.name: group.n_units for group in graph.removable}
    parameters = list(model.parameters())
    whole = Footprint(
        parameters=sum(p.numel() for p in parameters),
        macs=counter.get_total_flops() // 2,
        bytes=sum(t.numel() * t.element_size() for t in [*parameters, *model.buffers()]),
        units=sum(units.values()),
    )
    classes = {group.name: _classes(group) for group in graph.removable}
    tensors = (*_tensors(model, graph, classes), *_heads(model, graph, classes, counter))
    return Sizes(whole, units, classes, _layers(model, counter), tensors)


def _layers(model: nn.Module, counter: FlopCounterMode) -> dict[str, LayerSize]:
    """Size of every module in what is its own: neither its children's, nor another's before it."""
    macs = _own_macs(model, counter)
    seen: set[int] = set()
    found: dict[str, LayerSize] = {}
    for name, module in model.named_modules():
        own = [p for p in module.parameters(recurse=False) if id(p) not in seen]
        held = [*own, *(b for b in module.buffers(recurse=False) if id(b) not in seen)]
        seen.update(id(tensor) for tensor in held)
        n_bytes = sum(t.numel() * t.element_size() for t in held)
        size = LayerSize(sum(p.numel() for p in own), macs.get(name, 0), n_bytes)
        if size != LayerSize():
            found[name] = size
    return found


def _own_macs(model: nn.Module, counter: FlopCounterMode) -> dict[str, int]:
    """Multiply-accumulates that a module computes itself, not by way of a submodule."""
    root = type(model).__name__
    counted = {
        name.removeprefix(root).removeprefix("."): sum(operators.values()) // 2
        for name, operators in counter.get_flop_counts().items()
        if name == root or name.startswith(f"{root}.")
    }
    own = dict(counted)
    for name, macs in counted.items():
        parent = name
        while parent:
            parent = parent.rpartition(".")[0]
            if parent in counted:
                own[parent] -= macs
                break
    return own


def _classes(group: UnitGroup) -> tuple[int, ...]:
    """Return the class of every unit of a group: by what it occupies in the layers."""
    places = [*group.owned, *group.consumers, *group.training]
    signature = np.stack([widths_in(place.spans, group.n_units) for place in places], axis=1)
    _, number = np.unique(signature, axis=0, return_inverse=True)
    return tuple(number.ravel().tolist())


Part = tuple[UnitGroup, tuple[Span, ...]]


def _tensors(
    model: nn.Module, graph: UnitGraph, classes: Mapping[str, tuple[int, ...]]
) -> list[_Tensor]:
    """Return every tensor that shrinks with the units of removable groups."""
    made: dict[str, list[Part]] = {}
    read: dict[str, list[Part]] = {}
    passed: dict[str, list[Part]] = {}
    for group in graph.removable:
        for place in (*group.owned, *group.consumers, *group.training):
            role = getattr(place, "role", "consumer")
            by_layer = {"norm": passed, "consumer": read}.get(role, made)
            if not _attends(model, place):
                by_layer.setdefault(place.layer, []).append((group, place.spans))
    tensors: list[_Tensor] = []
    for layer in dict.fromkeys([*made, *read]):
        module = model.get_submodule(layer)
        weight, bias = module.weight, module.bias
        assert isinstance(weight, Tensor)
        rows = _extent(weight.shape[0], made.get(layer, []), classes)
        columns = _extent(weight.shape[1], read.get(layer, []), classes)
        positions = graph.positions.get(layer, 0)  # 0: a layer that only training calls
        kernel = weight[0, 0].numel()
        tensors.append(_Tensor(layer, rows, columns, kernel, positions, weight.element_size()))
        if isinstance(bias, Tensor):
            tensors.append(_Tensor(layer, rows, item_bytes=bias.element_size()))
    for layer, parts in passed.items():
        module = model.get_submodule(layer)
        for name in ("weight", "bias", "running_mean", "running_var"):
            vector = getattr(module, name)
            if isinstance(vector, Tensor):
                rows, size = _extent(len(vector), parts, classes), vector.element_size()
                trained = isinstance(vector, nn.Parameter)
                tensors.append(_Tensor(layer, rows, item_bytes=size, trained=trained))
    return tensors


def _attends(model: nn.Module, place: Owned | Consumer) -> bool:
    """Whether a layer holds heads as a whole, rather than the features they consist of."""
    whole = isinstance(model.get_submodule(place.layer), nn.MultiheadAttention)
    return whole or getattr(place, "role", "") == "heads"


def _heads(
    model: nn.Module,
    graph: UnitGraph,
    classes: Mapping[str, tuple[int, ...]],
    counter: FlopCounterMode,
) -> list[_Tensor]:
    """Return what attention layers hold and compute; every head has an equal share of it."""
    tensors: list[_Tensor] = []
    for group in graph.removable:
        for owned in group.owned:
            if not _attends(model, owned):
                continue
            layer, n_heads = owned.layer, group.n_units
            rows = _extent(n_heads, [(group, owned.spans)], classes)
            macs = macs_within(counter, model, layer) // n_heads
            tensors.append(_Tensor(layer, rows, positions=macs, trained=False))
            module = model.get_submodule(layer)
            if isinstance(module, nn.MultiheadAttention):
                for parameter in parameters_of_heads(module):
                    share, size = parameter.numel() // n_heads, parameter.element_size()
                    projects = parameter is module.out_proj.weight
                    holder = f"{layer}.out_proj" if projects else layer
                    tensors.append(_Tensor(holder, rows, kernel=share, item_bytes=size))
    return tensors


def _extent(total: int, parts: Sequence[Part], classes: Mapping[str, tuple[int, ...]]) -> _Extent:
    found = []
    for group, spans in parts:
        every = widths_in(spans, group.n_units)
        total -= int(every.sum())
        of_class = dict(zip(classes[group.name], every.tolist(), strict=True))
        found.append((group.name, tuple(of_class[k] for k in range(len(of_class)))))
    return _Extent(total, tuple(found))
