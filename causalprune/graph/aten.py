"""ATen operators as a network's author would have written them.

The rules of capture know ``torch`` and ``torch.nn.functional``; an exported program knows ATen.
:func:`as_written` takes the one to the other. An operator that is not in its tables stays what it
is: it runs, and capture refuses the units it reads by its name.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx

__all__ = ["ASSERTIONS", "PASSES_THROUGH", "Form", "as_written", "out_of_place"]

_aten = torch.ops.aten

ASSERTIONS = frozenset(
    getattr(getattr(_aten, name), "default")  # noqa: B009 - an overload, not an attribute
    for name in (
        "_assert_scalar",
        "_assert_async",
        "_assert_tensor_metadata",
        "sym_constrain_range",
        "sym_constrain_range_for_size",
    )
)
"""Operators without a value, which only state what export assumed."""

PASSES_THROUGH = frozenset({_aten.lift_fresh_copy.default, _aten.alias.default})
"""Operators whose value is that of their input."""

# Same operator, same arguments in the same order.
_FUNCTIONS: Mapping[str, Callable[..., Any]] = {
    **{f"aten::{name}": getattr(F, name) for name in (
        "relu", "relu6", "hardtanh", "silu", "gelu", "hardswish", "hardsigmoid", "leaky_relu",
        "elu", "mish", "softplus", "dropout", "max_pool2d", "avg_pool2d", "adaptive_avg_pool2d",
        "pad", "linear", "conv2d", "scaled_dot_product_attention", "pixel_shuffle",
    )},
    **{f"aten::{name}": getattr(torch, name) for name in (
        "sigmoid", "tanh", "flatten", "mean", "cat", "stack", "chunk", "split", "permute",
        "transpose", "unsqueeze", "squeeze", "roll", "matmul", "bmm", "softmax", "exp", "abs",
        "square", "clamp", "unbind", "flip", "amax",
    )},
    "aten::split_with_sizes": torch.split,
    "aten::mul": operator.mul,
    "aten::div": operator.truediv,
    "aten::neg": operator.neg,
}  # fmt: skip

_METHODS = frozenset({"contiguous", "clone"})
_METHODS_OF_SIZES = frozenset({"view", "reshape", "expand"})

Form = tuple[str, Any, tuple[Any, ...], dict[str, Any]]
"""Kind of node, target, arguments, keyword arguments."""


def out_of_place(target: Any) -> Any | None:
    """Return the overload that computes what `target` writes, or ``None`` if there is none."""
    name = target._schema.name.removeprefix("aten::")
    packet = getattr(_aten, name.removesuffix("_"), None)
    if not name.endswith("_") or packet is None:
        return None
    return getattr(packet, target._overloadname, None)


def as_written(
    target: Any, args: tuple[Any, ...], kwargs: dict[str, Any], n_axes: int
) -> Form | fx.Node:
    """Return what computes ``target(*args, **kwargs)`` in the language of the rules.

    A form to make a node of, or one of the arguments where the operator hands it on.

    Parameters
    ----------
    target : OpOverload or callable
    args, kwargs
        Arguments, nodes among them.
    n_axes : int
        Number of dimensions of the first argument.
    """
    plain = ("call_function", target, args, kwargs)
    if not isinstance(target, torch._ops.OpOverload):
        return plain
    full = target._schema.name
    name = full.removeprefix("aten::")
    if full in _FUNCTIONS:
        return "call_function", _FUNCTIONS[full], args, kwargs
    if name in _METHODS:
        return "call_method", name, args, kwargs
    if name in _METHODS_OF_SIZES and len(args) == 2 and not kwargs:
        return "call_method", name, (args[0], *args[1]), {}
    special = _SPECIAL.get(name)
    return (special(args, kwargs, n_axes) if special else None) or plain


def _sum_of_two(function: Callable[..., Any], full: Callable[..., Any]) -> Any:
    def form(args: tuple[Any, ...], kwargs: dict[str, Any], n_axes: int) -> Form:
        if kwargs.get("alpha", 1) == 1 and len(args) == 2:
            return "call_function", function, args, {}
        return "call_function", full, args, kwargs

    return form


def _slice(args: tuple[Any, ...], kwargs: dict[str, Any], n_axes: int) -> Form | fx.Node | None:
    if kwargs:
        return None
    given = [*args, *(0, None, None, 1)[len(args) - 1 :]]
    tensor, dim, start, end, step = given
    start = None if isinstance(start, int) and start == 0 else start
    end = None if isinstance(end, int) and end >= 2**62 else end
    step = None if step == 1 else step
    if start is None and end is None and step is None:
        found: fx.Node = tensor
        return found
    return _indexed(tensor, dim, slice(start, end, step), n_axes)


def _detach(args: tuple[Any, ...], kwargs: dict[str, Any], n_axes: int) -> Form | fx.Node:
    constant = args[0].op == "get_attr"  # torch.tensor(...) in a forward ends in a detach
    return args[0] if constant else ("call_method", "detach", args, kwargs)


def _select(args: tuple[Any, ...], kwargs: dict[str, Any], n_axes: int) -> Form | None:
    return None if kwargs else _indexed(args[0], args[1], args[2], n_axes)


def _indexed(tensor: Any, dim: int, index: Any, n_axes: int) -> Form:
    before = (slice(None),) * (dim % max(n_axes, 1))
    return "call_function", operator.getitem, (tensor, (*before, index)), {}


def _batch_norm(args: tuple[Any, ...], kwargs: dict[str, Any], n_axes: int) -> Form:
    x, weight, bias, mean, variance, training, momentum, eps, *_ = args
    ordered = (x, mean, variance, weight, bias, training, momentum, eps)
    return "call_function", F.batch_norm, ordered, {}


def _norm(function: Callable[..., Any]) -> Any:
    def form(args: tuple[Any, ...], kwargs: dict[str, Any], n_axes: int) -> Form:
        return "call_function", function, args[:5], {}  # the sixth is cuDNN's business

    return form


def _size(args: tuple[Any, ...], kwargs: dict[str, Any], n_axes: int) -> Form:
    return "call_method", "size", args, {}


def _constant_pad(args: tuple[Any, ...], kwargs: dict[str, Any], n_axes: int) -> Form:
    tensor, sides, *value = args
    return "call_function", F.pad, (tensor, sides, "constant", *value), {}


_Special = Callable[[tuple[Any, ...], dict[str, Any], int], "Form | fx.Node | None"]

_SPECIAL: Mapping[str, _Special] = {
    "add": _sum_of_two(operator.add, torch.add),
    "sub": _sum_of_two(operator.sub, torch.sub),
    "detach": _detach,
    "slice": _slice,
    "select": _select,
    "batch_norm": _batch_norm,
    "layer_norm": _norm(F.layer_norm),
    "group_norm": _norm(F.group_norm),
    "sym_size": _size,
    "constant_pad_nd": _constant_pad,
}
