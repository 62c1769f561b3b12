"""Capturing a network: from a torch.fx trace to groups of units."""

from __future__ import annotations

import math
from collections import Counter

import numpy as np
from torch import Tensor, fx, nn
from torch.nn.utils import parametrize

from causalprune.errors import UnknownNameError, UntraceableModelError
from causalprune.graph.assembly import groups_of
from causalprune.graph.branches import branch_cuts
from causalprune.graph.flow import Flow, Walk, describe, labels_of
from causalprune.graph.hooked import capture_by_hooks
from causalprune.graph.rules import SEVERAL_INPUTS, overwritten_by, rule_of
from causalprune.graph.rules_shapes import input_node
from causalprune.graph.sites import site_of
from causalprune.graph.trace import exported_in, layers_of, shape_of, trace_shapes
from causalprune.graph.training import called_in_training, join_training, trace_training
from causalprune.graph.units import Consumer, ConsumerSite, UnitGraph

__all__ = ["capture"]

_SLICED = (nn.Conv2d, nn.Linear, nn.BatchNorm1d, nn.BatchNorm2d, nn.InstanceNorm2d)
_PRODUCING = (nn.modules.conv._ConvNd, nn.Linear, nn.MultiheadAttention)


def capture(model: nn.Module, example: Tensor, *, units: str = "groups") -> UnitGraph:
    """Find the units of a network, who reads them, and which of them can be removed for good.

    The network is traced in eval mode (and put back into the mode it was in), with torch.fx or
    where that fails with torch.export, and walked once. Where neither can trace it, its layers
    are captured by hooks, with a warning.

    Convolutions, linear layers and attention layers open units; activations, poolings, norms,
    depthwise convolutions, reshapes, slices and concatenations carry them on; a residual addition
    and the product with a gate couple them; the next convolution or linear layer consumes them.
    A grouped convolution couples all channels that one of its groups reads and makes: the unit is
    then that group. Where training mode calls layers that eval mode does not (auxiliary
    classifiers), it is traced too, and what these layers read is in ``UnitGroup.training``.

    Every layer that produces units ends in a group, or in ``refused`` with the reason: its units
    feed the output, are normalised together (layer norm), or meet an operator without a rule. A
    group whose ``surgery`` is not empty has a well defined intervention, but the code of the
    network would not follow if units were removed for good (a channel shuffle, zero channels that
    are padded to a shortcut, the heads of an attention whose weights are read).

    Parameters
    ----------
    model : nn.Module
        Takes one tensor. It is not changed.
    example : Tensor [N, ...]
        An input batch; only its shape and dtype matter.
    units : str
        ``"groups"``: what surgery has to remove together is one group, cut where its consumers
        read it. ``"filters"``: every layer's own output channels are a group. Where an addition
        or a gate couples them they are cut on their own branch, at the output of the last layer
        before it (consumers of kind ``"map"`` and ``"features"``), as are channels that are
        normalised together.

    Returns
    -------
    UnitGraph

    Raises
    ------
    InvalidArgumentError
        If `example` does not fit the network.
    UnknownNameError
        If `units` is neither of the two.
    UnsupportedModelError
        If the network can neither be traced nor captured by hooks, takes several inputs, or
        returns something else than a tensor.

    Warns
    -----
    CapturedByHooksWarning
        If the network cannot be traced: says where, and what still works.

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
    if units not in ("groups", "filters"):
        raise UnknownNameError("choice of units", units, ("groups", "filters"))
    try:
        traced = trace_shapes(model, example)
    except UntraceableModelError as error:
        return capture_by_hooks(model, example, str(error))
    walk = _walked(traced, model, alone=units == "filters")
    idle = _idle(traced, walk.modules)
    if idle:
        _look_at_training(walk, model, example, idle)
    return _graph(walk, traced)


def _walked(traced: fx.GraphModule, model: nn.Module, *, alone: bool) -> Walk:
    modules = layers_of(traced, model)
    walk = Walk(modules, _unusable_layers(traced, modules), alone=alone)
    for node in traced.graph.nodes:
        walk.note(node, _step(walk, node), overwritten_by(node))
    return walk


def _look_at_training(walk: Walk, model: nn.Module, example: Tensor, idle: list[str]) -> None:
    """Learn who reads the units in training mode, if that calls layers which eval mode does not."""
    try:
        traced = trace_training(model, example, idle)
        if traced is not None:
            join_training(walk, _walked(traced, model, alone=False))
    except Exception as error:  # runs and traces the user's forward: anything may come
        if called_in_training(model, example, idle) == []:
            return
        reason = (
            f"{', '.join(idle)} may read them in training mode, where the network cannot be run on "
            f"the example, or not be traced: {error}"
        )
        walk.not_sliceable(np.arange(walk.n_atoms), reason)


def _graph(walk: Walk, traced: fx.GraphModule) -> UnitGraph:
    cuts: dict[int, tuple[Consumer, fx.Node]] = {}
    if walk.alone:
        walk.pass_refusals_back()
        cuts, reasons = branch_cuts(walk)
        for producer in walk.producers:
            if producer.first in reasons:
                walk.refuse(producer.atoms, reasons[producer.first])
    groups, refused = groups_of(walk, {first: cut for first, (cut, _) in cuts.items()})
    sites: dict[str, ConsumerSite] = {}
    read = {consumer.layer for group in groups for consumer in group.consumers}
    for cut, node in cuts.values():
        if cut.layer in read:
            sites[cut.layer] = site_of(node, walk.modules, cut.layer, at_output=True)
    for reading in walk.readings:
        if reading.layer in read and reading.layer not in sites and reading.role not in _PASSED:
            sites[reading.layer] = site_of(reading.node, walk.modules, reading.layer)
    producing = {name for group in groups for name in group.producers}
    refused = {**walk.refused_layers, **refused, **_uncalled(walk, traced, producing)}
    exported = exported_in(traced)
    return UnitGraph(
        groups, refused, sites, _all_positions(walk, traced), exported=exported, masks=walk.masks
    )


_PASSED = ("norm", "depthwise", "heads")


def _step(walk: Walk, node: fx.Node) -> Flow | None:
    if node.op == "placeholder":
        return None
    shape = shape_of(node)
    if node.op == "output":
        for source in node.all_input_nodes:
            for labels in labels_of(walk.flows.get(source)):
                walk.refuse(labels, "feeds the model's output")
        return None
    has_value = shape is not None or "tensor_meta" in node.meta
    if not has_value or all(source in walk.constants for source in node.all_input_nodes):
        walk.constants.add(node)  # parameters, sizes, and what is computed from them
        if node.op != "call_module":
            return None
    if not has_value:
        return None
    rule = rule_of(walk, node)
    carrying = [source for source in node.all_input_nodes if source in walk.flows]
    if rule is None:
        why = walk.unusable.get(str(node.target)) if node.op == "call_module" else None
        reason = f"read by {describe(node)}, which {why or 'has no rule'}"
        return walk.mix(node, [walk.flows[source] for source in carrying], reason)
    if rule not in SEVERAL_INPUTS and any(source is not input_node(node) for source in carrying):
        reason = f"{describe(node)} reads several values that carry units"
        return walk.mix(node, [walk.flows[source] for source in carrying], reason)
    return rule(walk, node)


def _unusable_layers(traced: fx.GraphModule, modules: dict[str, nn.Module]) -> dict[str, str]:
    """Layers whose tensors cannot be sliced on their own, with the reason."""
    calls = Counter(str(n.target) for n in traced.graph.nodes if n.op == "call_module")
    direct = {str(n.target) for n in traced.graph.nodes if n.op == "get_attr"}
    owners: dict[int, list[str]] = {}
    for name, module in modules.items():
        for parameter in module.parameters(recurse=False):
            owners.setdefault(id(parameter), []).append(name)
    reasons: dict[str, str] = {}
    for name, module in modules.items():
        if not isinstance(module, _SLICED):
            continue
        own = dict(module.named_parameters(recurse=False))
        sharing = [other for p in own.values() for other in owners[id(p)] if other != name]
        if calls[name] > 1:
            reasons[name] = f"is called {calls[name]} times"
        elif parametrize.is_parametrized(module) or not set(own) <= {"weight", "bias"}:
            reasons[name] = "is parametrised or masked by another tool"
        elif sharing:
            reasons[name] = f"shares its parameters with layer {sharing[0]!r}"
        elif calls[name] and any(f"{name}.{parameter}" in direct for parameter in own):
            reasons[name] = "has its parameters read outside of it"
    return reasons


def _positions(node: fx.Node, module: nn.Conv2d | nn.Linear, n_images: int) -> int:
    # The images need not be the first dimension: tokens may be, or windows of all images.
    shape = list(shape_of(node) or (0,))
    del shape[1 if isinstance(module, nn.Conv2d) else -1]
    return math.prod(shape) // n_images


def _all_positions(walk: Walk, traced: fx.GraphModule) -> dict[str, int]:
    positions: dict[str, int] = {}
    (source,) = (node for node in traced.graph.nodes if node.op == "placeholder")
    n_images = (shape_of(source) or (1,))[0]
    for node in traced.graph.nodes:
        module = walk.modules.get(str(node.target)) if node.op == "call_module" else None
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            positions[str(node.target)] = _positions(node, module, n_images)
    return positions


def _idle(traced: fx.GraphModule, modules: dict[str, nn.Module]) -> list[str]:
    """Layers with parameters that the trace neither calls nor reads the parameters of."""
    used = {str(n.target) for n in traced.graph.nodes if n.op in ("call_module", "get_attr")}
    idle = []
    for name, module in modules.items():
        own = [f"{name}.{parameter}" for parameter, _ in module.named_parameters(recurse=False)]
        above = name.split(".")
        called = any(".".join(above[: k + 1]) in used for k in range(len(above)))
        if name and own and not called and used.isdisjoint(own):
            idle.append(name)
    return idle


def _uncalled(walk: Walk, traced: fx.GraphModule, producing: set[str]) -> dict[str, str]:
    """Layers that the trace does not call, or that no rule saw as one."""
    called = {str(n.target) for n in traced.graph.nodes if n.op == "call_module"}
    direct = {str(n.target).rpartition(".")[0] for n in traced.graph.nodes if n.op == "get_attr"}
    known = {
        *producing,
        *walk.refused_layers,
        *(producer.layer for producer in walk.producers),
        *(reading.layer for reading in walk.readings if reading.role == "depthwise"),
    }
    reasons: dict[str, str] = {}
    for name, module in walk.modules.items():
        if not isinstance(module, _PRODUCING) or name in known:
            continue
        if name in called:
            reasons[name] = f"is a {type(module).__name__}, which has no rule"
        elif name in direct:
            reasons[name] = "is not called as a layer: its parameters are used directly"
        elif around := next((layer for layer in called if name.startswith(f"{layer}.")), ""):
            reasons[name] = f"lies inside of layer {around!r}, which is traced as one"
        else:
            reasons[name] = "is not called in eval mode"
    return reasons
