"""Where a constant that is to be added to a layer's output finds a place."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, fx, nn

from causalprune.graph.trace import shape_of

__all__ = ["Place", "place_of"]

_INERT = (nn.Identity, nn.Dropout, nn.Dropout2d, nn.MaxPool2d)
"""Layers of eval mode through which a constant per channel passes as it is."""
_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d)


@dataclass(frozen=True)
class Place:
    """The bias of a layer, or the running means of all batch norms that read it.

    Either way the names and shapes in the network's state stay what they are. In a batch norm a
    constant has no effect in training mode, where it subtracts the mean of the batch.

    Attributes
    ----------
    bias : Tensor [O] or None
    norms : tuple of (batch norm, int)
        With the place of the layer's first channel among those of the norm.
    """

    bias: Tensor | None
    norms: tuple[tuple[nn.BatchNorm1d | nn.BatchNorm2d, int], ...] = ()

    def add(self, constant: Tensor) -> None:
        """Add `constant` [O] to the layer's output, in place."""
        if self.bias is not None:
            self.bias.add_(constant.to(self.bias))
        for norm, start in self.norms:
            means = norm.running_mean
            assert means is not None
            means[start : start + len(constant)].sub_(constant.to(means))


def place_of(bias: Tensor | None, node: fx.Node, modules: Mapping[str, nn.Module]) -> Place | None:
    """Return the place for a constant in the output of a layer, if there is one.

    Parameters
    ----------
    bias : Tensor [O] or None
        The layer's.
    node : fx.Node
        Its tensor in the traced network, with the shape of its value.
    modules : Mapping of str to nn.Module
        Of the traced network.
    """
    if bias is not None:
        return Place(bias)
    norms: dict[tuple[str, int], nn.BatchNorm1d | nn.BatchNorm2d] = {}
    calls: set[fx.Node] = set()
    waiting, seen = [(node, 0)], {(node, 0)}
    while waiting:
        current, start = waiting.pop()
        for user in current.users:
            module = modules.get(str(user.target)) if user.op == "call_module" else None
            if isinstance(module, _NORMS) and module.running_mean is not None:
                norms[str(user.target), start] = module
                calls.add(user)
                continue
            passed = _passed(user, current, module)
            if not passed:
                return None
            following = [(user, start + shift) for shift in passed]
            waiting += [each for each in following if each not in seen]
            seen.update(following)
    # Added twice to one value, the constant would count twice in what follows.
    if not norms or len({name for name, _ in norms}) != len(norms):
        return None
    if _called_elsewhere(calls, modules):
        return None
    return Place(None, tuple((norm, start) for (_, start), norm in norms.items()))


def _called_elsewhere(calls: set[fx.Node], modules: Mapping[str, nn.Module]) -> bool:
    """Whether a norm is called on another value too, which its running means would move as well."""
    norms = {id(modules[str(call.target)]) for call in calls}
    graph = next(iter(calls)).graph
    others = (node for node in graph.nodes if node.op == "call_module" and node not in calls)
    return any(id(modules.get(str(other.target))) in norms for other in others)


def _passed(user: fx.Node, current: fx.Node, module: nn.Module | None) -> list[int]:
    """By how many channels the value is moved in that of `user`; empty where it cannot pass."""
    if isinstance(module, _INERT):
        return [0]
    if user.target is not torch.cat and getattr(user.target, "__name__", "") not in _CATS:
        return []
    parts = user.args[0] if user.args else user.kwargs.get("tensors")
    dim = user.args[1] if len(user.args) > 1 else user.kwargs.get("dim", 0)
    shape = shape_of(current)
    if not isinstance(parts, (list, tuple)) or shape is None or dim not in (1, 1 - len(shape)):
        return []
    starts, start = [], 0
    for part in parts:
        if part is current:
            starts.append(start)
        sizes = shape_of(part) if isinstance(part, fx.Node) else None
        if sizes is None:
            return []
        start += sizes[1]
    return starts


_CATS = ("cat", "concat", "concatenate", "cat.default")
