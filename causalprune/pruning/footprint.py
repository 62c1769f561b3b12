"""What a network holds and computes as a function of how many units each group keeps."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from causalprune.graph import UnitGraph, evaluating

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
    units = {group.name: group.n_units for group in graph.groups}
    parameters = list(model.parameters())
    whole = Footprint(
        parameters=sum(p.numel() for p in parameters),
        macs=counter.get_total_flops() // 2,
        bytes=sum(t.numel() * t.element_size() for t in [*parameters, *model.buffers()]),
        units=sum(units.values()),
    )
    return Sizes(whole, units, _terms(model, graph))


def _terms(model: nn.Module, graph: UnitGraph) -> tuple[_Term, ...]:
    makes = {name: group.name for group in graph.groups for name in group.producers}
    reads = {c.layer: (group.name, c) for group in graph.groups for c in group.consumers}
    terms: list[_Term] = []
    for layer in dict.fromkeys([*makes, *reads]):
        module = model.get_submodule(layer)
        groups, weight = [], _tensor(module, "weight")
        elements = weight.numel()
        if layer in makes:
            groups.append(makes[layer])
        if layer in reads:
            groups.append(reads[layer][0])
        elements //= math.prod(graph.group(g).n_units for g in groups)
        macs = elements * graph.positions[layer]
        terms.append(_Term(tuple(groups), elements, macs, elements * weight.element_size()))
        if layer in makes and module.bias is not None:
            terms.append(_vector(makes[layer], _tensor(module, "bias")))
    for group in graph.groups:
        for layer in group.layers("depthwise"):
            weight = _tensor(model.get_submodule(layer), "weight")
            elements = weight[0].numel()
            macs = elements * graph.positions[layer]
            terms.append(_Term((group.name,), elements, macs, elements * weight.element_size()))
            bias = model.get_submodule(layer).bias
            if isinstance(bias, Tensor):
                terms.append(_vector(group.name, bias))
        for layer in group.layers("norm"):
            module = model.get_submodule(layer)
            for name in ("weight", "bias", "running_mean", "running_var"):
                vector = getattr(module, name)
                if isinstance(vector, Tensor):
                    terms.append(_vector(group.name, vector))
    return tuple(terms)


def _tensor(module: nn.Module, name: str) -> Tensor:
    tensor = getattr(module, name)
    assert isinstance(tensor, Tensor)
    return tensor


def _vector(group: str, vector: Tensor) -> _Term:
    trained = isinstance(vector, nn.Parameter)
    return _Term((group,), 1, 0, vector.element_size(), trained)
