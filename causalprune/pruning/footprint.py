"""What a network holds and computes as a function of how many units each group keeps."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from causalprune.graph import Consumer, UnitGraph, UnitGroup, evaluating

__all__ = ["Footprint", "Sizes", "sizes_of"]


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
    """

    parameters: int
    macs: int
    bytes: int
    units: int


@dataclass(frozen=True)
class _Term:
    """A tensor whose size is proportional to the product of the units its groups keep."""

    groups: tuple[str, ...]
    elements: int = 0
    macs: int = 0
    bytes: int = 0
    trained: bool = True


@dataclass(frozen=True)
class Sizes:
    """Exact footprint of a network for any number of kept units per group."""

    whole: Footprint
    units: Mapping[str, int]
    _terms: tuple[_Term, ...]

    def footprint(self, kept: Mapping[str, int]) -> Footprint:
        """Return the footprint when group g keeps ``kept[g]`` units (default: all)."""
        counts = {**self.units, **kept}
        parameters, macs, n_bytes, units = (
            self.whole.parameters,
            self.whole.macs,
            self.whole.bytes,
            sum(counts.values()),
        )
        for term in self._terms:
            gone = math.prod(self.units[g] for g in term.groups)
            gone -= math.prod(counts[g] for g in term.groups)
            parameters -= term.trained * term.elements * gone
            macs -= term.macs * gone
            n_bytes -= term.bytes * gone
        return Footprint(parameters, macs, n_bytes, units)


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
    with evaluating(model), torch.no_grad(), counter:
        model(example)
    units = {group.name: group.n_units for group in graph.removable}
    parameters = list(model.parameters())
    whole = Footprint(
        parameters=sum(p.numel() for p in parameters),
        macs=counter.get_total_flops() // 2,
        bytes=sum(t.numel() * t.element_size() for t in [*parameters, *model.buffers()]),
        units=sum(units.values()),
    )
    return Sizes(whole, units, _terms(model, graph))


def _terms(model: nn.Module, graph: UnitGraph) -> tuple[_Term, ...]:
    makes = {name: group for group in graph.removable for name in group.producers}
    reads: dict[str, list[tuple[UnitGroup, Consumer]]] = {}
    for group in graph.removable:
        for consumer in group.consumers:
            reads.setdefault(consumer.layer, []).append((group, consumer))
    terms: list[_Term] = []
    for layer in dict.fromkeys([*makes, *reads]):
        module, positions = model.get_submodule(layer), graph.positions[layer]
        terms += _weight_terms(module, positions, makes.get(layer), reads.get(layer, []))
    for group in graph.removable:
        for owned in group.owned:
            per_unit = sum(span.n_units * span.width for span in owned.spans) // group.n_units
            module = model.get_submodule(owned.layer)
            if owned.role == "depthwise":
                weight = _tensor(module, "weight")
                elements = weight[0].numel() * per_unit
                macs = elements * graph.positions[owned.layer]
                n_bytes = elements * weight.element_size()
                terms.append(_Term((group.name,), elements, macs, n_bytes))
            names = {
                "producer": ("bias",),
                "depthwise": ("bias",),
                "norm": ("weight", "bias", "running_mean", "running_var"),
            }[owned.role]
            vectors = [getattr(module, name) for name in names]
            terms += [_vector(group.name, v, per_unit) for v in vectors if isinstance(v, Tensor)]
    return tuple(terms)


def _weight_terms(
    module: nn.Module,
    positions: int,
    made: UnitGroup | None,
    read: Sequence[tuple[UnitGroup, Consumer]],
) -> list[_Term]:
    """Terms of a weight whose rows are units, and whose columns are those of several groups."""
    weight = _tensor(module, "weight")
    kernel = weight[0, 0].numel()
    rows = 1 if made is not None else weight.shape[0]
    makers = () if made is None else (made.name,)
    columns = [((*makers, group.name), consumer.features_per_unit) for group, consumer in read]
    rest = weight.shape[1] - sum(g.n_units * c.features_per_unit for g, c in read)
    if rest and makers:
        columns.append((makers, rest))
    terms = []
    for groups, width in columns:
        elements = rows * width * kernel
        terms.append(
            _Term(groups, elements, elements * positions, elements * weight.element_size())
        )
    return terms


def _tensor(module: nn.Module, name: str) -> Tensor:
    tensor = getattr(module, name)
    assert isinstance(tensor, Tensor)
    return tensor


def _vector(group: str, vector: Tensor, per_unit: int) -> _Term:
    trained = isinstance(vector, nn.Parameter)
    return _Term((group,), per_unit, 0, per_unit * vector.element_size(), trained)
