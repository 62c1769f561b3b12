"""Rules of the operators that compute with several places or values: sums, products, means."""

from __future__ import annotations

from typing import Any

import numpy as np
from torch import fx

from causalprune.graph.flow import Flow, Labels, Walk, compressed, describe, varies
from causalprune.graph.rules_shapes import argument, input_labels
from causalprune.graph.trace import shape_of

__all__ = [
    "add",
    "along_dimension",
    "layer_norm",
    "multiply",
    "normalised_together",
    "pool",
    "reduce",
]


def _operands(node: fx.Node) -> list[fx.Node]:
    """Return the tensors among the two operands."""
    given = (argument(node, 0, ("input", "self")), argument(node, 1, ("other", "value")))
    return [x for x in given if isinstance(x, fx.Node) and shape_of(x) is not None]


def _labels(walk: Walk, operand: fx.Node, n_dims: int) -> Labels | None:
    """Labels of an operand, with leading dimensions as broadcasting adds them."""
    flow = walk.flows.get(operand)
    if not isinstance(flow, np.ndarray):
        return None
    return flow.reshape((1,) * (n_dims - flow.ndim) + flow.shape)


def _size(operand: fx.Node, dim: int, n_dims: int) -> int:
    shape = shape_of(operand) or ()
    place = dim - (n_dims - len(shape))
    return shape[place] if place >= 0 else 1


def add(walk: Walk, node: fx.Node) -> Flow | None:
    """Couple the units of two tensors; adding a number changes nothing."""
    return _combine(walk, node, product=False)


def multiply(walk: Walk, node: fx.Node) -> Flow | None:
    """Couple the units of a tensor with those of its gate; a number or a map leaves them be."""
    return _combine(walk, node, product=True)


def _combine(walk: Walk, node: fx.Node, *, product: bool) -> Flow | None:
    operands = _operands(node)
    n_dims = len(shape_of(node) or ())
    found = [_labels(walk, operand, n_dims) for operand in operands]
    carrying = [labels for labels in found if labels is not None]
    if not carrying:
        return None
    if len(operands) == 1:
        return carrying[0]
    first, second = found
    if first is not None and second is not None:
        return _coupled(walk, node, first, second, product=product)
    labels = carrying[0]
    other = operands[0] if first is None else operands[1]
    widened = any(varies(labels, d) and _size(other, d, n_dims) > 1 for d in range(n_dims))
    if other not in walk.constants and (not product or widened):
        return walk.mix(
            node, carrying, f"{describe(node)} combines them with a tensor that does not carry them"
        )
    if widened:
        walk.not_sliceable(
            labels, f"{describe(node)} combines them with {_named(other)} of a constant size"
        )
    return labels


def _named(node: fx.Node) -> str:
    return f"the parameter {node.target!r}" if node.op == "get_attr" else "a tensor"


def _coupled(
    walk: Walk, node: fx.Node, first: Labels, second: Labels, *, product: bool
) -> Flow | None:
    if first is second or (first.shape == second.shape and bool((first == second).all())):
        return first
    spread = [_is_spread(first, second), _is_spread(second, first)]
    if not any(spread):
        return walk.couple(node, first, second)
    reason = f"{describe(node)} spreads a unit over the units of another layer"
    if all(spread) or not product:
        return walk.mix(node, [first, second], reason)
    # A gate over all units of the other value: that value keeps its units.
    gate, gated = (first, second) if spread[0] else (second, first)
    walk.mix(node, [gate], reason)
    return gated


def _is_spread(labels: Labels, other: Labels) -> bool:
    """Whether one unit of `labels` meets several units of `other`."""
    return bool((labels >= 0).any()) and any(
        _several_units(other, dim) and not varies(labels, dim) for dim in range(labels.ndim)
    )


def _several_units(labels: Labels, dim: int) -> bool:
    """Whether different units, not only a unit and nothing, lie along `dim`."""
    if not varies(labels, dim):
        return False
    largest = labels.max(axis=dim)
    smallest = np.where(labels < 0, np.iinfo(np.int64).max, labels).min(axis=dim)
    return bool((largest > smallest).any())


# --- over dimensions -----------------------------------------------------------------------------


def _mixed_along(
    walk: Walk, node: fx.Node, labels: Labels, dims: list[int], what: str
) -> Flow | None:
    if any(varies(labels, dim) for dim in dims):
        return walk.mix(node, [labels], f"{describe(node)} {what}")
    return labels


def reduce(walk: Walk, node: fx.Node) -> Flow | None:
    """Mean, sum, maximum over given dimensions, or over all."""
    labels = input_labels(walk, node)
    if labels is None:
        return None
    given = argument(node, 1, ("dim", "axis"))
    keep = bool(argument(node, 2, "keepdim", False))
    dims = (
        list(range(labels.ndim)) if given is None else [given] if isinstance(given, int) else given
    )
    dims = sorted({dim % labels.ndim for dim in dims})
    flow = _mixed_along(walk, node, labels, dims, "averages over the units")
    if flow is not labels or keep:
        return flow
    if not isinstance(node.meta.get("tensor_meta"), tuple) or shape_of(node) is None:
        return walk.mix(node, [labels], f"{describe(node)} returns several values")
    return labels.squeeze(tuple(dims)) if dims else labels


def pool(walk: Walk, node: fx.Node) -> Flow | None:
    """Anything over the spatial dimensions: pooling, upsampling."""
    labels = input_labels(walk, node)
    if labels is None:
        return None
    spatial = list(range(max(1, labels.ndim - 2), labels.ndim))
    if shape_of(node) is None or len(shape_of(node) or ()) != labels.ndim:
        return walk.mix(node, [labels], f"{describe(node)} returns more than a pooled map")
    return _mixed_along(walk, node, labels, spatial, "pools over the units")


def along_dimension(walk: Walk, node: fx.Node) -> Flow | None:
    """Softmax and other functions of all places along one dimension."""
    labels = input_labels(walk, node)
    if labels is None:
        return None
    module = walk.modules.get(str(node.target)) if node.op == "call_module" else None
    dim = argument(node, 1, "dim") if module is None else getattr(module, "dim", None)
    if not isinstance(dim, int):
        return walk.mix(node, [labels], f"{describe(node)} without a dimension has no rule")
    return _mixed_along(walk, node, labels, [dim], "normalises them together")


def layer_norm(walk: Walk, node: fx.Node) -> Flow | None:
    """Functional layer norm over the trailing dimensions."""
    labels = input_labels(walk, node)
    if labels is None:
        return None
    shape: Any = argument(node, 1, "normalized_shape")
    trailing = 1 if isinstance(shape, int) else len(shape)
    return normalised_together(walk, node, labels, list(range(labels.ndim - trailing, labels.ndim)))


def normalised_together(walk: Walk, node: fx.Node, labels: Labels, dims: list[int]) -> Flow | None:
    """Refuse units that one normalisation mixes; they are still the units of its output."""
    if not any(varies(labels, dim) for dim in dims):
        return labels
    reason = f"{describe(node)} normalises all units of a position together"
    if walk.alone:
        return walk.mix(node, [labels], reason)
    # Inside one head, say, it is all of one unit that is normalised.
    walk.refuse(
        labels, reason, lambda units: not any(varies(compressed(units), dim) for dim in dims)
    )
    return labels
