"""Layers that a network's own classes call as functions, as layers again.

Many libraries derive from ``nn.BatchNorm2d`` or ``nn.Conv2d`` and call ``F.batch_norm(x,
self.running_mean, ...)`` in a forward of their own, between a padding and an activation. A trace
goes through such a class and ends at the function and its parameters. Where the function is what
the base class would compute on what the layer reads, its node becomes the call of that layer, by
a stand-in of the base class that shares all the layer has.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch.nn.functional as F
from torch import fx, nn
from torch.nn.utils import parametrize

__all__ = ["as_layers", "bound", "stand_ins_in"]

_STAND_INS = "stand_ins"
_BASES: Mapping[Any, tuple[type[nn.Module], ...]] = {
    F.batch_norm: (nn.BatchNorm1d, nn.BatchNorm2d),
    F.conv2d: (nn.Conv2d,),
    F.linear: (nn.Linear,),
}
_TENSORS: Mapping[Any, tuple[str, ...]] = {
    F.batch_norm: ("running_mean", "running_var", "weight", "bias"),
    F.conv2d: ("weight", "bias"),
    F.linear: ("weight", "bias"),
}


def as_layers(graph: fx.Graph, model: nn.Module) -> dict[str, type[nn.Module]]:
    """Turn function calls in `graph` into calls of the layers that own their parameters.

    Returns
    -------
    dict of str to type
        Name of each layer that was turned, and the base class whose call it now is.
    """
    found: dict[str, type[nn.Module]] = {}
    for node in list(graph.nodes):
        if node.op != "call_function" or node.target not in _BASES:
            continue
        name = _owner(node)
        if not name or innermost(node) != name:
            continue
        layer = model.get_submodule(name)
        base = next((b for b in _BASES[node.target] if isinstance(layer, b)), None)
        if base is None or not _computes(node, layer) or not _reads_input(node, name):
            continue
        with graph.inserting_before(node):
            call = graph.call_module(name, (node.args[0],))
        call.meta = dict(node.meta)
        node.replace_all_uses_with(call)
        graph.erase_node(node)
        found[name] = base
    for node in reversed(list(graph.nodes)):
        if node.op == "get_attr" and not node.users:
            graph.erase_node(node)
    return found


def bound(
    model: nn.Module,
    graph: fx.Graph,
    bases: Mapping[str, type[nn.Module]],
    constants: Mapping[str, Any],
) -> fx.GraphModule:
    """Return a graph module that runs `graph` on the layers and tensors of `model`."""
    stand_ins = {name: _stand_in(model.get_submodule(name), base) for name, base in bases.items()}
    attributes: dict[str, Any] = {**constants, **stand_ins}
    for node in graph.nodes:
        name = str(node.target)
        if name in attributes:
            continue
        if node.op == "call_module":
            attributes[name] = model.get_submodule(name)
        elif node.op == "get_attr":
            owner, _, last = name.rpartition(".")
            attributes[name] = getattr(model.get_submodule(owner), last)
    traced = fx.GraphModule(attributes, graph, type(model).__name__)
    traced.meta[_STAND_INS] = stand_ins
    return traced


def stand_ins_in(traced: fx.GraphModule) -> dict[str, nn.Module]:
    """Return the layers of `traced` that stand in for one of a derived class, by their name."""
    found: dict[str, nn.Module] = traced.meta.get(_STAND_INS, {})
    return found


def innermost(node: fx.Node) -> str:
    """Return the name of the module in whose forward `node` was called."""
    stack = node.meta.get("nn_module_stack") or {}
    names = [str(path).partition("@")[0] for path, _ in stack.values()]
    return names[-1] if names else ""


def _stand_in(layer: nn.Module, base: type[nn.Module]) -> nn.Module:
    # Not a copy: the dictionaries of parameters, buffers and children are the layer's own.
    made = base.__new__(base)
    made.__dict__.update(layer.__dict__)
    return made


def _owner(node: fx.Node) -> str:
    """Return the module that has every parameter of the call under the name it should have."""
    names = _TENSORS[node.target]
    given = [*node.args[1 : len(names) + 1], *[None] * len(names)][: len(names)]
    given = [node.kwargs.get(name, value) for name, value in zip(names, given, strict=True)]
    owners: set[str] = set()
    for name, value in zip(names, given, strict=True):
        if value is None:
            continue
        if not isinstance(value, fx.Node) or value.op != "get_attr":
            return ""
        owner, _, last = str(value.target).rpartition(".")
        owners.add(owner if last == name else "")
    return owners.pop() if len(owners) == 1 else ""


def _computes(node: fx.Node, layer: nn.Module) -> bool:
    """Whether the layer's base class would make the same call."""
    if not node.args or parametrize.is_parametrized(layer):
        return False
    if isinstance(layer, nn.Linear):
        return True
    if isinstance(layer, nn.Conv2d):
        names = ("stride", "padding", "dilation", "groups")
        plain = {"stride": (1, 1), "padding": (0, 0), "dilation": (1, 1), "groups": 1}
        given = {**plain, **dict(zip(names, node.args[3:], strict=False)), **node.kwargs}
        same = all(_pair(given[name]) == _pair(getattr(layer, name)) for name in names)
        return same and layer.padding_mode == "zeros"
    options = {"training": False, "momentum": 0.1, "eps": 1e-5}
    given = {**options, **dict(zip(options, node.args[5:], strict=False)), **node.kwargs}
    return given["training"] is layer.training and given["eps"] == layer.eps


def _pair(value: Any) -> Any:
    return tuple(value) if isinstance(value, (tuple, list)) else (value, value)


def _reads_input(node: fx.Node, name: str) -> bool:
    """Whether the call reads what the layer was given, but for a padding of rows and columns."""
    source = node.args[0]
    if isinstance(source, fx.Node) and source.target is F.pad and innermost(source) == name:
        sides = source.args[1] if len(source.args) > 1 else source.kwargs.get("pad")
        if not isinstance(sides, (tuple, list)) or len(sides) > 4:
            return False
        source = source.args[0]
    if not isinstance(source, fx.Node):
        return False
    if source.op == "placeholder":
        return True
    place = innermost(source) if source.op != "call_module" else str(source.target)
    return place != name and not place.startswith(f"{name}.")
