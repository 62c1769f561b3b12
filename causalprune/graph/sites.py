"""What stands behind a consumer: the batch norm, shortcut and activation of its path effects."""

from __future__ import annotations

import operator
from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import fx, nn

from causalprune.graph.flow import describe
from causalprune.graph.trace import shape_of
from causalprune.graph.units import ConsumerSite

__all__ = ["site_of"]

_ACTIVATIONS: dict[object, str] = {
    nn.ReLU: "relu",
    F.relu: "relu",
    torch.relu: "relu",
    "relu": "relu",
    nn.GELU: "gelu",
    F.gelu: "gelu",
    nn.SiLU: "silu",
    F.silu: "silu",
    nn.Hardswish: "hardswish",
    F.hardswish: "hardswish",
}
_INERT = (nn.Identity, nn.Dropout, nn.Dropout2d, nn.AlphaDropout)
_LINEAR_BEHIND = (
    nn.Flatten, nn.AvgPool2d, nn.AdaptiveAvgPool2d, nn.MaxPool2d, nn.Conv2d, nn.Linear,
)  # fmt: skip


def site_of(
    node: fx.Node, modules: Mapping[str, nn.Module], layer: str = "", *, at_output: bool = False
) -> ConsumerSite:
    """Follow the value of a consumer as far as the path effects can be exact.

    From the consumer through at most one batch norm in evaluation form, residual additions and
    inert layers to an activation that :func:`causalprune.ops.path_effects` knows. A value that is
    read more than once ends the way: behind it the cut is taken at first order.
    """
    layer = layer or str(node.target)
    start = _tensor_of(node)
    current, norm = start, None
    while len(current.users) == 1:
        (user,) = current.users
        module = modules.get(str(user.target)) if user.op == "call_module" else None
        if isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d)):
            foldable = not at_output and norm is None and current is start
            if not foldable or module.running_var is None:
                break
            norm, current = str(user.target), user
        elif isinstance(module, _INERT) or _is_residual(user, current):
            current = user
        else:
            activation = _activation(user, module)
            if activation is None:
                break
            return ConsumerSite(layer, node.name, norm, activation, current.name, user.name)
    return ConsumerSite(
        layer, node.name, norm, "identity", current.name, current.name, _reason(layer, current)
    )


def _tensor_of(node: fx.Node) -> fx.Node:
    """Return the node of the consumer's tensor, also where it returns a tuple."""
    if shape_of(node) is not None:
        return node
    entries = [user for user in node.users if user.target is operator.getitem]
    return next((entry for entry in entries if entry.args[1] == 0), node)


def _reason(layer: str, current: fx.Node) -> str:
    # What follows a linear operator or the output is exact or first order by definition; only a
    # nonlinearity that sits where an activation would deserves a word.
    users = list(current.users)
    if len(users) != 1 or users[0].op == "output" or not _is_elementwise_nonlinearity(users[0]):
        return ""
    return f"{describe(users[0])} behind {layer!r} is taken at first order"


def _is_elementwise_nonlinearity(user: fx.Node) -> bool:
    if user.op == "call_module":
        owner = user.graph.owning_module
        module = owner.get_submodule(str(user.target)) if owner is not None else None
        return not isinstance(module, _LINEAR_BEHIND)
    name = getattr(user.target, "__name__", str(user.target))
    return name in {"relu6", "leaky_relu", "elu", "selu", "tanh", "sigmoid", "mish", "gelu"}


def _is_residual(user: fx.Node, current: fx.Node) -> bool:
    if user.target not in (operator.add, operator.iadd, torch.add, "add", "add_"):
        return False
    if user.kwargs or len(user.args) != 2:
        return False
    other = [term for term in user.args if term is not current]
    # One operand must be something else, and nothing may broadcast.
    return len(other) == 1 and (
        not isinstance(other[0], fx.Node) or shape_of(other[0]) == shape_of(current)
    )


def _activation(user: fx.Node, module: nn.Module | None) -> str | None:
    key = type(module) if module is not None else user.target
    if isinstance(module, nn.GELU) and module.approximate != "none":
        return None
    if user.op != "call_module" and user.kwargs.get("approximate", "none") != "none":
        return None
    return _ACTIVATIONS.get(key)
