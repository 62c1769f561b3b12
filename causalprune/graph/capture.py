"""Capturing a network: from a torch.fx trace to groups of units."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import replace

from torch import Tensor, fx, nn
from torch.nn.utils import parametrize

from causalprune.graph.flow import Flow, Space, Walk
from causalprune.graph.rules import describe, refuse_inputs, rule_of
from causalprune.graph.sites import site_of
from causalprune.graph.trace import shape_of, trace_shapes
from causalprune.graph.units import Consumer, ConsumerSite, Owned, Span, UnitGraph, UnitGroup

__all__ = ["capture"]

_SLICED = (nn.Conv2d, nn.Linear, nn.BatchNorm1d, nn.BatchNorm2d)


def capture(model: nn.Module, example: Tensor, *, units: str = "groups") -> UnitGraph:
    """Find the units of a network that can be removed, and who reads them.

    The network is traced with torch.fx in eval mode (and put back into the mode it was in) and
    walked once: convolutions and linear layers open a set of units, activations, poolings,
    batch norms, depthwise convolutions and flattens carry it on, a residual addition couples
    two sets, and the next convolution or linear layer consumes it. Whatever has no rule
    (concatenation, grouped convolution, a product of two tensors, ...) refuses the units it
    reads by name; so does the output of the network.

    Parameters
    ----------
    model : nn.Module
        Takes one tensor. It is not changed.
    example : Tensor [N, ...]
        An input batch on the model's device; only its shape and dtype matter.

    Returns
    -------
    UnitGraph

    Raises
    ------
    InvalidArgumentError
        If `example` does not fit the network.
    UnsupportedModelError
        If torch.fx cannot trace the network.

    Examples
    --------
    >>> import torch
    >>> from torch import nn
    >>> model = nn.Sequential(
    ...     nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(16, 2)
    ... )
    >>> graph = capture(model, torch.zeros(1, 1, 4, 4))
    >>> graph.groups[0].consumers
    (Consumer(layer='3', kind='linear', features_per_unit=4),)
    >>> graph.refused
    {'3': "feeds the model's output"}
    """
    traced = trace_shapes(model, example)
    modules = dict(model.named_modules())
    walk = Walk(modules, _unusable_layers(traced, modules))
    sites: dict[str, ConsumerSite] = {}
    positions: dict[str, int] = {}
    for node in traced.graph.nodes:
        flow = _step(walk, node)
        if flow is not None:
            walk.flows[node] = flow
        module = modules.get(str(node.target)) if node.op == "call_module" else None
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            sites[str(node.target)] = site_of(node, modules)
            positions[str(node.target)] = _positions(node, module)
    return _assemble(walk, sites, positions)


def _step(walk: Walk, node: fx.Node) -> Flow | None:
    shape = shape_of(node)
    if node.op == "placeholder":
        if shape is None or len(shape) < 2:
            return None
        space = walk.new_space(shape[1])
        walk.refuse(space, "coupled to the network's input")
        return Flow(space, 1)
    if node.op == "output":
        refuse_inputs(walk, node, "feeds the model's output")
        return None
    if node.op == "get_attr":
        return None
    if shape is None and "tensor_meta" not in node.meta:
        return None  # sizes and other numbers carry no units
    rule = rule_of(walk, node)
    if rule is None or shape is None:
        refuse_inputs(walk, node, f"read by {describe(node)}, which has no rule")
        return None
    return rule(walk, node)


def _unusable_layers(traced: fx.GraphModule, modules: dict[str, nn.Module]) -> dict[str, str]:
    """Layers whose tensors cannot be sliced on their own, with the reason."""
    calls = Counter(str(n.target) for n in traced.graph.nodes if n.op == "call_module")
    direct = {str(n.target) for n in traced.graph.nodes if n.op == "get_attr"}
    owners = Counter(
        id(parameter)
        for module in modules.values()
        for parameter in module.parameters(recurse=False)
    )
    reasons: dict[str, str] = {}
    for name, module in modules.items():
        if not isinstance(module, _SLICED):
            continue
        own = dict(module.named_parameters(recurse=False))
        if calls[name] > 1:
            reasons[name] = f"is called {calls[name]} times"
        elif parametrize.is_parametrized(module) or not set(own) <= {"weight", "bias"}:
            reasons[name] = "is parametrised or masked by another tool"
        elif any(owners[id(parameter)] > 1 for parameter in own.values()):
            reasons[name] = "shares its parameters with another layer"
        elif any(f"{name}.{parameter}" in direct for parameter in own):
            reasons[name] = "has its parameters read outside of it"
    return reasons


def _positions(node: fx.Node, module: nn.Conv2d | nn.Linear) -> int:
    shape = shape_of(node) or ()
    return math.prod(shape[2:]) if isinstance(module, nn.Conv2d) else math.prod(shape[1:-1])


def _assemble(walk: Walk, sites: dict[str, ConsumerSite], positions: dict[str, int]) -> UnitGraph:
    groups: list[UnitGroup] = []
    refused: dict[str, str] = {}
    for space in walk.roots():
        reason = space.refusal or _structural_refusal(space)
        if reason:
            refused.update(dict.fromkeys(space.producers, reason))
            continue
        groups.append(
            UnitGroup(
                name=space.producers[0],
                kind="filter" if "filter" in space.kinds else "hidden",
                n_units=space.n_units,
                owned=tuple(_owned(space)),
                consumers=tuple(_spanned(c, space.n_units) for c in space.consumers),
            )
        )
    read = {consumer.layer for group in groups for consumer in group.consumers}
    kept = {layer: site for layer, site in sites.items() if layer in read}
    return UnitGraph(tuple(groups), refused, kept, positions)


def _owned(space: Space) -> list[Owned]:
    layers = {"producer": space.producers, "norm": space.norms, "depthwise": space.depthwise}
    whole = (Span(0, space.n_units, 0),)
    return [Owned(name, role, whole) for role, names in layers.items() for name in names]


def _spanned(consumer: Consumer, n_units: int) -> Consumer:
    width = consumer.features_per_unit
    return replace(consumer, spans=(Span(0, n_units, 0, width, width),))


def _structural_refusal(space: Space) -> str:
    if not space.producers:
        return "no layer produces these units"
    if not space.consumers:
        return "no convolution or linear layer reads these units"
    return ""
