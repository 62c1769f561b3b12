"""One rule per operator: how units travel from its inputs to its output.

A rule gets the walk and the node and returns the flow of the node's value (``None``: it carries
no units). Operators without a rule end up in :func:`refuse_inputs`, never in silence.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx, nn

from causalprune.graph.flow import Flow, Walk
from causalprune.graph.trace import shape_of
from causalprune.graph.units import Consumer

__all__ = ["describe", "refuse_inputs", "rule_of"]

Rule = Callable[[Walk, fx.Node], "Flow | None"]


def describe(node: fx.Node) -> str:
    """Name of the operator of `node`, as a user would recognise it."""
    if node.op == "call_module":
        return f"layer {node.target!r}"
    if node.op == "call_method":
        return f"Tensor.{node.target}"
    return getattr(node.target, "__name__", str(node.target))


def refuse_inputs(walk: Walk, node: fx.Node, reason: str) -> None:
    """Refuse every group of units that `node` reads."""
    for source in node.all_input_nodes:
        if source in walk.flows:
            walk.refuse(walk.flows[source].space, reason)


def _module_name(node: fx.Node) -> str:
    return str(node.target)


def _input(node: fx.Node) -> fx.Node | None:
    source = node.args[0] if node.args else node.kwargs.get("input")
    return source if isinstance(source, fx.Node) else None


def _input_flow(walk: Walk, node: fx.Node) -> Flow | None:
    source = _input(node)
    return None if source is None else walk.flows.get(source)


def _shapes(node: fx.Node) -> tuple[tuple[int, ...], tuple[int, ...]]:
    source = _input(node)
    return (shape_of(source) if source else None) or (), shape_of(node) or ()


# --- layers with parameters ------------------------------------------------------------------


def _produce(walk: Walk, node: fx.Node, n_units: int, axis: int, kind: str) -> Flow:
    name = _module_name(node)
    space = walk.new_space(n_units, producer=name, kind=kind)
    if name in walk.unusable:
        walk.refuse(space, walk.unusable[name])
    return Flow(space, axis)


def _consume(walk: Walk, node: fx.Node, flow: Flow, kind: str) -> None:
    name = _module_name(node)
    if name in walk.unusable:
        walk.refuse(flow.space, f"read by layer {name!r}, which {walk.unusable[name]}")
    walk[flow.space].consumers.append(Consumer(name, kind, flow.repeat))


def _conv2d(walk: Walk, node: fx.Node) -> Flow | None:
    conv = walk.modules[_module_name(node)]
    assert isinstance(conv, nn.Conv2d)
    flow = _input_flow(walk, node)
    if flow is not None and (flow.axis != 1 or flow.repeat != 1 or len(_shapes(node)[0]) != 4):
        walk.refuse(flow.space, f"{describe(node)} does not read the units as its channels")
        flow = None
    if conv.groups == 1:
        if flow is not None:
            _consume(walk, node, flow, "conv")
        return _produce(walk, node, conv.out_channels, 1, "filter")
    if conv.groups == conv.in_channels == conv.out_channels and flow is not None:
        name = _module_name(node)
        walk[flow.space].depthwise.append(name)
        if name in walk.unusable:
            walk.refuse(flow.space, f"passes layer {name!r}, which {walk.unusable[name]}")
        return flow
    reason = f"{describe(node)} is a grouped convolution with {conv.groups} groups"
    refuse_inputs(walk, node, reason)
    produced = _produce(walk, node, conv.out_channels, 1, "filter")
    walk.refuse(produced.space, reason)
    return produced


def _linear(walk: Walk, node: fx.Node) -> Flow | None:
    linear = walk.modules[_module_name(node)]
    assert isinstance(linear, nn.Linear)
    before, after = _shapes(node)
    flow = _input_flow(walk, node)
    if flow is not None and flow.axis == len(before) - 1:
        _consume(walk, node, flow, "linear")
    elif flow is not None:
        walk.refuse(flow.space, f"{describe(node)} does not read the units as its features")
    return _produce(walk, node, linear.out_features, len(after) - 1, "hidden")


def _batch_norm(walk: Walk, node: fx.Node) -> Flow | None:
    flow = _input_flow(walk, node)
    name = _module_name(node)
    if flow is None:
        return None
    if flow.axis != 1 or flow.repeat != 1:
        walk.refuse(flow.space, f"{describe(node)} does not normalise the units as its channels")
    if name in walk.unusable:
        walk.refuse(flow.space, f"passes layer {name!r}, which {walk.unusable[name]}")
    walk[flow.space].norms.append(name)
    return flow


# --- operators without parameters --------------------------------------------------------------


def _pass(walk: Walk, node: fx.Node) -> Flow | None:
    return _input_flow(walk, node)


def _prelu(walk: Walk, node: fx.Node) -> Flow | None:
    module = walk.modules[_module_name(node)]
    if isinstance(module, nn.PReLU) and module.num_parameters != 1:
        refuse_inputs(walk, node, f"{describe(node)} has one slope per channel")
    return _input_flow(walk, node)


def _pool(walk: Walk, node: fx.Node) -> Flow | None:
    before, after = _shapes(node)
    flow = _input_flow(walk, node)
    if flow is not None and (not after or flow.axis >= len(before) - 2):
        refuse_inputs(walk, node, f"{describe(node)} pools over the units")
        return None
    return flow


def _reshape(walk: Walk, node: fx.Node) -> Flow | None:
    """Flatten, squeeze, unsqueeze: the unit axis may swallow the axes behind it."""
    flow = _input_flow(walk, node)
    if flow is None:
        return None
    before, after = _shapes(node)
    axis = flow.axis
    if len(after) > axis and before[:axis] == after[:axis]:
        for end in range(axis + 1, len(before) + 1):
            if after[axis] == math.prod(before[axis:end]) and math.prod(before[end:]) == math.prod(
                after[axis + 1 :]
            ):
                swallowed = math.prod(before[axis + 1 : end])
                return Flow(flow.space, axis, flow.repeat * swallowed)
    walk.refuse(flow.space, f"{describe(node)} from {before} to {after} mixes the units")
    return None


def _view(walk: Walk, node: fx.Node) -> Flow | None:
    flow = _reshape(walk, node)
    if flow is None:
        return None
    sizes: Any = node.args[1:] or tuple(node.kwargs.values())[-1:]
    if len(sizes) == 1 and isinstance(sizes[0], (tuple, list)):
        sizes = sizes[0]
    fixed = sizes[flow.axis] if flow.axis < len(sizes) else None
    if isinstance(fixed, int) and fixed != -1:
        walk.refuse(
            flow.space,
            f"{describe(node)} fixes the number of features to the constant {fixed}; "
            "write torch.flatten(x, 1)",
        )
    return flow


def _squeeze(walk: Walk, node: fx.Node) -> Flow | None:
    if len(node.args) < 2 and "dim" not in node.kwargs:
        refuse_inputs(walk, node, f"{describe(node)} without a dimension could drop a last unit")
    return _reshape(walk, node)


def _mean(walk: Walk, node: fx.Node) -> Flow | None:
    flow = _input_flow(walk, node)
    if flow is None:
        return None
    n_axes = len(_shapes(node)[0])
    given: Any = node.args[1] if len(node.args) > 1 else node.kwargs.get("dim")
    keep: Any = node.args[2] if len(node.args) > 2 else node.kwargs.get("keepdim", False)
    dims = [given] if isinstance(given, int) else list(given or range(n_axes))
    dims = [dim % n_axes for dim in dims]
    if flow.axis in dims:
        walk.refuse(flow.space, f"{describe(node)} averages over the units")
        return None
    dropped = 0 if keep else sum(dim < flow.axis for dim in dims)
    return Flow(flow.space, flow.axis - dropped, flow.repeat)


def _permute(walk: Walk, node: fx.Node) -> Flow | None:
    flow = _input_flow(walk, node)
    if flow is None:
        return None
    n_axes = len(_shapes(node)[0])
    order: Any = node.args[1:] or tuple(node.kwargs.values())[-1:]
    if len(order) == 1 and isinstance(order[0], (tuple, list)):
        order = order[0]
    return Flow(flow.space, [d % n_axes for d in order].index(flow.axis), flow.repeat)


def _transpose(walk: Walk, node: fx.Node) -> Flow | None:
    flow = _input_flow(walk, node)
    pair: Any = node.args[1:3]
    if flow is None or len(pair) < 2:
        refuse_inputs(walk, node, f"{describe(node)} with named dimensions has no rule")
        return None
    n_axes = len(_shapes(node)[0])
    first, second = (dim % n_axes for dim in pair)
    return Flow(flow.space, {first: second, second: first}.get(flow.axis, flow.axis), flow.repeat)


def _add(walk: Walk, node: fx.Node) -> Flow | None:
    """Couple the units of two tensors; adding a number changes nothing."""
    terms = [term for term in node.args[:2] if isinstance(term, fx.Node) and shape_of(term)]
    if len(terms) < 2:
        if len(node.args) < 2:
            refuse_inputs(walk, node, f"{describe(node)} with named operands has no rule")
        return walk.flows.get(terms[0]) if terms else None
    flows = [walk.flows.get(term) for term in terms]
    first, second = flows
    shapes = {shape_of(term) for term in terms}
    if first is None or second is None or len(shapes) > 1:
        refuse_inputs(walk, node, f"{describe(node)} adds a tensor that does not carry the units")
        return first or second
    if (first.axis, first.repeat) != (second.axis, second.repeat):
        refuse_inputs(walk, node, f"{describe(node)} adds units to something else")
        return first
    walk.merge(first.space, second.space)
    return first


def _scale(walk: Walk, node: fx.Node) -> Flow | None:
    terms = [term for term in node.args if isinstance(term, fx.Node) and shape_of(term) is not None]
    if len(terms) != 1:
        refuse_inputs(walk, node, f"{describe(node)} of two tensors has no rule")
        return None
    return walk.flows.get(terms[0])


# --- registries ----------------------------------------------------------------------------------

_ACTIVATION_MODULES: tuple[type[nn.Module], ...] = (
    nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.ELU, nn.SELU, nn.CELU, nn.GELU, nn.SiLU, nn.Mish,
    nn.Hardswish, nn.Hardsigmoid, nn.Hardtanh, nn.Sigmoid, nn.Tanh, nn.Softplus, nn.Softsign,
)  # fmt: skip
_INERT_MODULES = (nn.Identity, nn.Dropout, nn.Dropout2d, nn.AlphaDropout)
_POOL_MODULES: tuple[type[nn.Module], ...] = (
    nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d, nn.ZeroPad2d,
)  # fmt: skip

_MODULE_RULES: dict[type[nn.Module], Rule] = {
    nn.Conv2d: _conv2d,
    nn.Linear: _linear,
    nn.BatchNorm1d: _batch_norm,
    nn.BatchNorm2d: _batch_norm,
    nn.PReLU: _prelu,
    nn.Flatten: _reshape,
    **dict.fromkeys((*_ACTIVATION_MODULES, *_INERT_MODULES), _pass),
    **dict.fromkeys(_POOL_MODULES, _pool),
}

_ELEMENTWISE = (
    "relu", "relu_", "relu6", "leaky_relu", "elu", "selu", "celu", "gelu",
    "silu", "mish", "hardswish", "hardsigmoid", "hardtanh", "sigmoid", "tanh", "softplus",
    "softsign", "dropout", "dropout2d", "alpha_dropout", "abs", "neg", "square", "clamp",
    "contiguous", "clone", "detach", "float", "double", "half", "to",
)  # fmt: skip

_FUNCTION_RULES: dict[Any, Rule] = {
    **{
        getattr(room, name): _pass
        for room in (torch, F)
        for name in _ELEMENTWISE
        if hasattr(room, name) and callable(getattr(room, name)) and name not in ("float", "to")
    },
    **dict.fromkeys(
        (
            F.max_pool2d, F.avg_pool2d, F.adaptive_avg_pool2d, F.adaptive_max_pool2d,
            torch.max_pool2d,
        ),
        _pool,
    ),
    torch.flatten: _reshape,
    torch.unsqueeze: _reshape,
    torch.squeeze: _squeeze,
    torch.reshape: _view,
    torch.mean: _mean,
    torch.permute: _permute,
    torch.transpose: _transpose,
    **dict.fromkeys((operator.add, operator.iadd, torch.add, operator.sub, operator.isub), _add),
    **dict.fromkeys((operator.mul, operator.imul, torch.mul, operator.truediv), _scale),
    operator.neg: _pass,
}  # fmt: skip

_METHOD_RULES: dict[str, Rule] = {
    **dict.fromkeys(_ELEMENTWISE, _pass),
    "flatten": _reshape,
    "unsqueeze": _reshape,
    "squeeze": _squeeze,
    "view": _view,
    "reshape": _view,
    "mean": _mean,
    "permute": _permute,
    "transpose": _transpose,
    "add": _add,
    "add_": _add,
    "mul": _scale,
    "mul_": _scale,
}


def rule_of(walk: Walk, node: fx.Node) -> Rule | None:
    """Return the rule of the operator of `node`, or ``None`` where there is none."""
    if node.op == "call_module":
        return _MODULE_RULES.get(type(walk.modules[_module_name(node)]))
    if node.op == "call_method":
        return _METHOD_RULES.get(str(node.target))
    return _FUNCTION_RULES.get(node.target)
