"""Bookkeeping of one walk through a traced network: which units flow where.

Every unit of every producing layer is an *atom*, an integer. The flow of a value is an array of
atoms, its *labels*: as many dimensions as the value, of size 1 where the units do not vary along a
dimension, else of the dimension's size, and -1 where a place carries no unit. Moving values about
is then indexing the labels, and coupling two values is a list of pairs of atoms.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import fx, nn

__all__ = [
    "Condition",
    "Flow",
    "Labels",
    "Producer",
    "Reading",
    "Walk",
    "compressed",
    "describe",
    "labels_of",
    "varies",
]

Labels = NDArray[np.int64]
Flow = Labels | tuple[Labels | None, ...]
"""Labels of a tensor, or of every tensor of a tuple (``None``: no units)."""
Condition = Callable[[Labels], bool]
"""Whether units, given at every place of a value, can be removed for good."""


@dataclass(frozen=True)
class Producer:
    """A layer whose output channels (or heads) are the atoms ``first, ..., first + n_units - 1``.

    `order` is its place among the producers and readings of the walk.
    """

    layer: str
    kind: str
    node: fx.Node
    first: int
    n_units: int
    order: int

    @property
    def atoms(self) -> Labels:
        """Atoms of the layer, in the order of its output channels."""
        return np.arange(self.first, self.first + self.n_units)


@dataclass(frozen=True)
class Reading:
    """A layer that carries or consumes units: the atom at each place of its channel dimension.

    `role` is the kind of a consumer (``"conv"``, ``"linear"``, ``"attention"``) or the role of a
    layer that the units pass (``"norm"``, ``"depthwise"``).
    """

    layer: str
    role: str
    node: fx.Node
    places: Labels
    order: int


def describe(node: fx.Node) -> str:
    """Name of the operator of `node`, as a user would recognise it."""
    if node.op == "call_module":
        return f"layer {node.target!r}"
    if node.op == "call_method":
        return f"Tensor.{node.target}"
    return getattr(node.target, "__name__", str(node.target))


def varies(labels: Labels, dim: int) -> bool:
    """Whether units differ along dimension `dim`."""
    return bool(labels.shape[dim] > 1)


def compressed(labels: Labels) -> Labels:
    """Shrink every dimension along which `labels` do not vary to size 1."""
    for dim in range(labels.ndim):
        if labels.shape[dim] > 1:
            first = labels.take([0], axis=dim)
            if bool((labels == first).all()):
                labels = first
    return labels


def labels_of(flow: Flow | None) -> list[Labels]:
    """Return all label arrays of a flow."""
    if flow is None:
        return []
    return [flow] if isinstance(flow, np.ndarray) else [part for part in flow if part is not None]


class Walk:
    """State of a capture.

    Parameters
    ----------
    modules : dict of str to nn.Module
        Of the traced network.
    unusable : dict of str to str
        Layers whose tensors cannot be sliced on their own, with the reason.
    alone : bool
        Every producer is a group of its own: what would couple two of them, or mix units, ends
        their flow (``mixed``) instead of merging or refusing them.
    """

    def __init__(
        self, modules: dict[str, nn.Module], unusable: dict[str, str], *, alone: bool = False
    ) -> None:
        self.modules = modules
        self.unusable = unusable
        self.alone = alone
        self.flows: dict[fx.Node, Flow] = {}
        self.first_flows: dict[fx.Node, Flow] = {}
        self.constants: set[fx.Node] = set()
        self.producers: list[Producer] = []
        self.readings: list[Reading] = []
        self.in_training: list[Reading] = []
        self.refused_layers: dict[str, str] = {}
        self.pairs: list[tuple[Labels, Labels]] = []
        self.mixtures: list[tuple[Labels, int]] = []
        self.refusals: list[tuple[Labels, str]] = []
        self.surgeries: list[tuple[Labels, str]] = []
        self.conditions: list[tuple[Labels, str, Condition, tuple[str, int] | None]] = []
        self.mixing: list[tuple[Labels, str, Condition]] = []
        self.masks: dict[str, dict[str, torch.dtype]] = {}
        self.n_atoms = 0

    def note(self, node: fx.Node, flow: Flow | None, overwritten: fx.Node | None) -> None:
        """Keep the flow of a value; who reads what `node` has overwritten later reads it too."""
        if flow is not None:
            self.flows[node] = self.first_flows[node] = flow
        if overwritten is None:
            return
        self.flows.pop(overwritten, None)
        self.constants.discard(overwritten)
        if flow is not None:
            self.flows[overwritten] = flow
        elif node in self.constants:
            self.constants.add(overwritten)

    def produce(self, node: fx.Node, layer: str, kind: str, n_units: int) -> Labels:
        """Open the units of a layer; returns its atoms [n_units]."""
        twin = next((p for p in self.producers if p.layer == layer), None)
        producer = Producer(layer, kind, node, self.n_atoms, n_units, self._order())
        self.producers.append(producer)
        self.n_atoms += n_units
        if layer in self.unusable:
            self.refuse(producer.atoms, self.unusable[layer])
        elif twin is not None:
            for atoms in (twin.atoms, producer.atoms):
                self.refuse(atoms, "is called several times")
        elif self._computes_constant(node):
            self.refuse(producer.atoms, "computes a constant: it does not read the network's input")
        return producer.atoms

    def _order(self) -> int:
        return len(self.producers) + len(self.readings)

    def _computes_constant(self, node: fx.Node) -> bool:
        return all(source in self.constants for source in node.all_input_nodes)

    def read(self, node: fx.Node, layer: str, role: str, places: Labels) -> None:
        """Note that `layer` carries or consumes the atoms at its `places`."""
        self.readings.append(Reading(layer, role, node, places, self._order()))

    def refuse(self, labels: Labels, reason: str, unless: Condition | None = None) -> None:
        """Declare units without a well defined cut; the first reason is kept.

        `unless` gets the unit at every place of `labels`, as in :meth:`not_sliceable`.
        """
        if unless is not None:
            self.mixing.append((labels, reason, unless))
            return
        self.refusals.append((np.unique(labels[labels >= 0]), reason))

    def not_sliceable(
        self,
        labels: Labels,
        reason: str,
        unless: Condition | None = None,
        told: tuple[str, int] | None = None,
    ) -> None:
        """Declare units that can be intervened on but not removed for good.

        Several atoms may turn out to be one unit. `unless` gets the unit at every place of
        `labels`, when they are known, and tells whether these can be removed after all; so can
        the heads of the attention module `told`, if it has an attribute for that size.
        """
        if unless is not None:
            self.conditions.append((labels, reason, unless, told))
            return
        self.surgeries.append((np.unique(labels[labels >= 0]), reason))

    def mix(self, node: fx.Node, flows: Sequence[Flow | None], reason: str) -> Flow | None:
        """End `flows`, whose units no operator behind `node` can tell apart.

        The units are refused, or, where each layer stands alone, cut before `node`; the value of
        `node` then only remembers what went into it, in case it reaches the output.
        """
        found = [labels for flow in flows for labels in labels_of(flow)]
        if not found:
            return None
        if not self.alone:
            for labels in found:
                self.refuse(labels, reason)
            return None
        atoms = np.unique(np.concatenate([labels.ravel() for labels in found]))
        self.mixtures.append((atoms[atoms >= 0], self.n_atoms))
        self.n_atoms += 1
        meta = node.meta.get("tensor_meta")
        shape = getattr(meta, "shape", None)
        return None if shape is None else np.full((1,) * len(shape), self.n_atoms - 1)

    def pass_refusals_back(self) -> None:
        """Refuse what went into a mixture that is refused: it only feeds the output too."""
        for atoms, mixture in reversed(self.mixtures):
            reason = next((why for found, why in self.refusals if mixture in found), "")
            if reason:
                self.refuse(atoms, reason)

    def couple(self, node: fx.Node, first: Labels, second: Labels) -> Flow | None:
        """Merge two values elementwise, with broadcasting; returns the labels of the result."""
        if self.alone:
            return self.mix(node, [first, second], "")
        a, b = np.broadcast_arrays(first, second)
        both = (a >= 0) & (b >= 0) & (a != b)
        self.pairs.append((a[both], b[both]))
        for labels, other in ((a, b), (b, a)):
            lonely = labels[(labels >= 0) & (other < 0)]
            if lonely.size:
                self.not_sliceable(
                    lonely, f"{describe(node)} adds channels that carry no units (padding) to them"
                )
        return np.where(a >= 0, a, b)

    def producer_of(self, atoms: Labels) -> Labels:
        """Index of the producer of every atom; -1 where there is none."""
        firsts = np.array([p.first for p in self.producers], dtype=np.int64)
        ends = np.array([p.first + p.n_units for p in self.producers], dtype=np.int64)
        if not firsts.size:
            return np.full(atoms.shape, -1)
        index = np.searchsorted(firsts, atoms, side="right") - 1
        inside = (index >= 0) & (atoms >= 0) & (atoms < ends[index])
        return np.where(inside, index, -1)
