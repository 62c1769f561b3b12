"""How far a change of some units stays a change of those units, step by step.

Behind an intervention a value is *plain* (unchanged), *narrow* (only the columns of the unit
changed) or *wide*. A narrow change passes channelwise steps at the cost of its columns, and meets
its next convolution or linear layer as an update, ``y + W[:, columns] (new - old)``: one input
column of that layer's work instead of all.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from causalprune.graph.steps import Step, is_hooked
from causalprune.ops.channel_update import channel_update

__all__ = [
    "Narrow",
    "carries_on",
    "columns_of",
    "is_channelwise",
    "is_linear_layer",
    "materialised",
    "updated",
    "with_columns",
]

_MODULES = (
    nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.ELU, nn.SELU, nn.CELU, nn.GELU, nn.SiLU, nn.Mish,
    nn.Hardswish, nn.Hardsigmoid, nn.Hardtanh, nn.Sigmoid, nn.Tanh, nn.Softplus, nn.Softsign,
    nn.Identity, nn.Dropout, nn.Dropout2d, nn.AlphaDropout,
)  # fmt: skip
_POOLS = (nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d)
_FUNCTIONS = frozenset({
    "relu", "relu6", "leaky_relu", "elu", "selu", "celu", "gelu", "silu", "mish", "hardswish",
    "hardsigmoid", "hardtanh", "sigmoid", "tanh", "softplus", "softsign", "dropout", "abs", "neg",
    "square", "clamp", "contiguous", "clone", "relu_", "stochastic_depth",
})  # fmt: skip
_POOL_FUNCTIONS = frozenset({
    "max_pool2d", "avg_pool2d", "adaptive_avg_pool2d", "adaptive_max_pool2d",
})  # fmt: skip
_ARITHMETIC = frozenset({"add", "sub", "mul"})
_FLATTENS = frozenset({"flatten", "reshape", "view"})

Shapes = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True)
class Narrow:
    """A value that differs from that of a plain run in some columns only.

    Attributes
    ----------
    base : str
        Step whose plain value it is.
    axis : int
        Dimension of the columns, from the front.
    columns : Tensor [c], int64
    new : Tensor
        What stands in the columns now: the shape of the value with c at `axis`.
    """

    base: str
    axis: int
    columns: Tensor
    new: Tensor


def is_linear_layer(step: Step) -> bool:
    """Whether the step is a convolution or linear layer that an update can answer for."""
    module = step.module
    if module is None or is_hooked(module):
        return False
    if type(module) is nn.Conv2d:
        return module.padding_mode == "zeros" and not isinstance(module.padding, str)
    return isinstance(module, nn.Linear) and type(module).forward is nn.Linear.forward


def is_channelwise(step: Step, source: str, axis: int, shapes: Shapes) -> bool:
    """Whether a change of some columns of `source` changes only those columns of the step."""
    before, after = shapes.get(source, ()), shapes.get(step.name, ())
    if step.module is not None and is_hooked(step.module):
        return False
    if isinstance(step.module, _MODULES):
        return True
    if isinstance(step.module, (nn.BatchNorm1d, nn.BatchNorm2d)):
        return axis == 1
    if isinstance(step.module, _POOLS) or step.function in _POOL_FUNCTIONS:
        return axis == 1 and len(before) == 4 and len(after) == 4
    if step.module is not None:
        return isinstance(step.module, nn.Flatten) and _flattens(before, after, axis)
    if step.function in _FUNCTIONS or step.function in _ARITHMETIC:
        return all(shapes[name] == after for name in step.inputs if name in shapes)
    if step.function in _FLATTENS:
        return _flattens(before, after, axis)
    return step.function == "mean" and axis == 1 and len(before) == 4 and _over_positions(step)


def _flattens(before: tuple[int, ...], after: tuple[int, ...], axis: int) -> bool:
    return axis == 1 and len(before) == 4 and len(after) == 2 and before[:1] == after[:1]


def _over_positions(step: Step) -> bool:
    dims: Any = step.args[1] if len(step.args) > 1 else step.kwargs.get("dim")
    return isinstance(dims, (tuple, list)) and sorted(d % 4 for d in dims) == [2, 3]


def carries_on(
    step: Step, change: Narrow, values: Mapping[str, Any], changed: Mapping[str, Narrow]
) -> Narrow:
    """Value of a channelwise step from its changed columns alone.

    Parameters
    ----------
    step : Step
    change : Narrow
        One of its changed inputs.
    values : Mapping of str to Any
        Plain values of its other inputs, for the same images.
    changed : Mapping of str to Narrow
        Its changed inputs; all in the same columns.
    """

    def value_of(name: str) -> Any:
        if name in changed:
            return changed[name].new
        value = values[name]
        if isinstance(value, Tensor) and value.ndim > change.axis:
            return columns_of(value, change.axis, change.columns)
        return value

    module = step.module
    if isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d)):
        new: Tensor = _normalised(module, change)
    elif step.function in _FLATTENS:  # its own arguments may name the number of all columns
        new = change.new.flatten(1)
    else:
        new = step(value_of)
    columns, axis = change.columns, change.axis
    if new.ndim < change.new.ndim:
        width = math.prod(change.new.shape[2:]) if new.shape[1] != len(columns) else 1
        columns = (columns[:, None] * width + torch.arange(width, device=columns.device)).flatten()
    return Narrow(step.name, axis, columns, new)


def _normalised(norm: nn.BatchNorm1d | nn.BatchNorm2d, change: Narrow) -> Tensor:
    stats = (norm.running_mean, norm.running_var, norm.weight, norm.bias)
    mean, var, weight, bias = (None if s is None else s[change.columns] for s in stats)
    return F.batch_norm(change.new, mean, var, weight, bias, False, 0.0, norm.eps)


def materialised(change: Narrow, plain: Tensor) -> Tensor:
    """Return the whole value; `plain` [rows, ...] is that of the plain run."""
    return with_columns(plain, change.axis, change.columns, change.new)


def columns_of(value: Tensor, axis: int, columns: Tensor) -> Tensor:
    """Return `columns` of a value; a view where they are neighbours.

    Selecting channels by index from a channels_last tensor copies all of it first.
    """
    first, n = _run_of(columns)
    if n is None:
        return value.index_select(axis, columns.to(value.device))
    return value.narrow(axis, first, n)


def with_columns(value: Tensor, axis: int, columns: Tensor, new: Tensor) -> Tensor:
    """Return a copy of a value with other `columns`."""
    first, n = _run_of(columns)
    if n is None:
        return value.index_copy(axis, columns.to(value.device), new)
    result = value.clone()
    result.narrow(axis, first, n).copy_(new)
    return result


def _run_of(columns: Tensor) -> tuple[int, int | None]:
    """First of the columns, and how many there are if they are neighbours."""
    n = len(columns)
    if n == 0:
        return 0, 0
    first, last = int(columns[0]), int(columns[-1])
    neighbours = last - first == n - 1 and (n < 3 or bool((columns.diff() == 1).all()))
    return first, n if neighbours else None


def updated(
    step: Step, plain: Tensor, change: Narrow, old: Tensor, *, relu: bool = False
) -> Tensor:
    """Output of a convolution or linear layer whose input changed in some columns.

    Parameters
    ----------
    step : Step
        The layer.
    plain : Tensor [rows, ...]
        Its output in the plain run, or a sum of it with values that do not change.
    change : Narrow
        Its changed input.
    old : Tensor
        The same columns in the plain run.
    relu : bool
        Whether a ReLU follows.
    """
    module, difference = step.module, change.new - old
    if isinstance(module, nn.Linear):
        result = F.linear(difference, module.weight[:, change.columns]).add_(plain)
        return result.relu_() if relu else result
    assert isinstance(module, nn.Conv2d)
    if module.groups == 1:
        weight, padding = module.weight[:, change.columns], module.padding
        assert not isinstance(padding, str)
        return channel_update(
            plain,
            difference,
            weight,
            stride=module.stride,  # type: ignore[arg-type]
            padding=padding,  # type: ignore[arg-type]
            dilation=module.dilation,  # type: ignore[arg-type]
            relu=relu,
        )
    result = _updated_groups(module, plain, change.columns, difference)
    return result.relu_() if relu else result


def _updated_groups(conv: nn.Conv2d, plain: Tensor, columns: Tensor, difference: Tensor) -> Tensor:
    """Add what each changed channel gives to the outputs of its own group."""
    inputs, outputs = conv.in_channels // conv.groups, conv.out_channels // conv.groups
    result = plain.clone()
    for place, column in enumerate(columns.tolist()):
        first = column // inputs * outputs
        weight = conv.weight[first : first + outputs, column % inputs, None]
        result[:, first : first + outputs] += _convolved(conv, difference[:, place, None], weight)
    return result


def _convolved(conv: nn.Conv2d, x: Tensor, weight: Tensor) -> Tensor:
    padding: Any = conv.padding
    return F.conv2d(x, weight, None, conv.stride, padding, conv.dilation)
