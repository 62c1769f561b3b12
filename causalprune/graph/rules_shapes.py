"""Rules of the operators that move values about: reshape, permute, slice, concatenate, pad."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
from torch import fx

from causalprune.graph.flow import Condition, Flow, Labels, Walk, compressed, describe, varies
from causalprune.graph.functional import innermost
from causalprune.graph.trace import shape_of

__all__ = [
    "argument",
    "broadcast",
    "chunk",
    "flatten",
    "getitem",
    "input_labels",
    "input_node",
    "numbers",
    "pass_on",
    "permute",
    "reshape_as",
    "roll",
    "select",
    "slice_dim",
    "squeeze",
    "transpose",
    "unflatten",
    "unsqueeze",
    "view",
]

Rule = Callable[[Walk, fx.Node], "Flow | None"]


def argument(node: fx.Node, place: int, names: str | Sequence[str], default: Any = None) -> Any:
    """Argument number `place` of the call, or the keyword argument of one of `names`."""
    if len(node.args) > place:
        return node.args[place]
    for name in [names] if isinstance(names, str) else names:
        if name in node.kwargs:
            return node.kwargs[name]
    return default


def input_node(node: fx.Node) -> fx.Node | None:
    """Return the node that the operator works on."""
    source = argument(node, 0, ("input", "x", "self", "query"))
    return source if isinstance(source, fx.Node) else None


def input_labels(walk: Walk, node: fx.Node) -> Labels | None:
    """Labels of the value that the operator works on."""
    source = input_node(node)
    flow = None if source is None else walk.flows.get(source)
    return flow if isinstance(flow, np.ndarray) else None


def _shapes(node: fx.Node) -> tuple[tuple[int, ...], tuple[int, ...]]:
    source = input_node(node)
    return (shape_of(source) if source else None) or (), shape_of(node) or ()


def numbers(node: fx.Node, place: int, names: str | Sequence[str]) -> list[Any]:
    """Sizes or dimensions given one by one, or as one sequence, from argument `place` on."""
    given: Any = node.args[place:] if len(node.args) > place else argument(node, place, names, ())
    if isinstance(given, (tuple, list)) and len(given) == 1 and isinstance(given[0], (tuple, list)):
        given = given[0]
    return list(given) if isinstance(given, (tuple, list)) else [given]


def pass_on(walk: Walk, node: fx.Node) -> Flow | None:
    """Elementwise: the units stay where they are."""
    source = input_node(node)
    return None if source is None else walk.flows.get(source)


def broadcast(labels: Labels, shape: Sequence[int], dims: Sequence[int]) -> Labels:
    """Labels at full size along `dims` of a value of `shape`."""
    full = list(labels.shape)
    for dim in dims:
        full[dim] = shape[dim]
    return np.broadcast_to(labels, full)


# --- reshape -------------------------------------------------------------------------------------


def _aligned(
    before: Sequence[int], after: Sequence[int]
) -> list[tuple[tuple[int, ...], tuple[int, ...]]]:
    """Pair runs of old and new dimensions that hold the same elements, as small as possible."""
    runs, i, j = [], 0, 0
    while i < len(before) or j < len(after):
        old: list[int] = []
        new: list[int] = []
        left = right = 1
        while True:
            if (left < right or not old) and i < len(before):
                left *= before[i]
                old.append(i)
                i += 1
            elif j < len(after):
                right *= after[j]
                new.append(j)
                j += 1
            else:
                break
            if left == right and old and new:
                break
        runs.append((tuple(old), tuple(new)))
    return runs


def reshaped(labels: Labels, before: Sequence[int], after: Sequence[int]) -> Labels:
    """Labels of a value of shape `before` that is read in shape `after`."""
    full, found = list(labels.shape), [1] * len(after)
    for old, new in _aligned(before, after):
        if any(varies(labels, dim) for dim in old):
            for dim in old:
                full[dim] = before[dim]
            for dim in new:
                found[dim] = after[dim]
    return compressed(np.broadcast_to(labels, full).reshape(found))


def flatten(walk: Walk, node: fx.Node) -> Flow | None:
    """Any change of shape whose sizes follow from the value: flatten, squeeze, unsqueeze."""
    labels = input_labels(walk, node)
    if labels is None:
        return None
    before, after = _shapes(node)
    if math.prod(before) != math.prod(after):
        return walk.mix(node, [labels], f"read by {describe(node)}, which changes their number")
    found = reshaped(labels, before, after)
    split = [dim for dim in range(found.ndim) if varies(found, dim)]
    if len(split) > 1:
        walk.not_sliceable(
            found,
            f"{describe(node)} from {before} to {after} spreads them over dimensions",
            lambda units: sum(varies(compressed(units), dim) for dim in split) < 2,
        )
    return found


def view(walk: Walk, node: fx.Node) -> Flow | None:
    """Reshape with given sizes; a constant for the units' dimension forbids surgery."""
    return _with_sizes(walk, node, flatten(walk, node), numbers(node, 1, ("shape", "size")))


def unflatten(walk: Walk, node: fx.Node) -> Flow | None:
    """Split one dimension into several of given sizes."""
    labels, dim = input_labels(walk, node), argument(node, 1, "dim")
    sizes = argument(node, 2, "sizes", ())
    if node.op == "call_module":
        layer: Any = walk.modules[str(node.target)]
        dim, sizes = layer.dim, layer.unflattened_size
    if labels is None or not isinstance(dim, int) or not isinstance(sizes, (tuple, list)):
        return flatten(walk, node)
    return _with_sizes(walk, node, flatten(walk, node), [None] * (dim % labels.ndim) + [*sizes])


def _with_sizes(walk: Walk, node: fx.Node, found: Flow | None, sizes: list[Any]) -> Flow | None:
    """Look for constants among the `sizes` of a value, from its first dimension on."""
    if not isinstance(found, np.ndarray):
        return found
    split = sum(varies(found, dim) for dim in range(found.ndim)) > 1
    what, instead = ("heads", "-1") if split else ("features", "torch.flatten(x, 1)")
    for dim, fixed in zip(range(found.ndim), sizes, strict=False):
        if varies(found, dim) and isinstance(fixed, int) and fixed != -1:
            walk.not_sliceable(
                found,
                f"{describe(node)} fixes the number of {what} to the constant {fixed}; "
                f"write {instead}",
                partial(_is_one_unit_along, dim),
                (innermost(node), fixed),
            )
    return found


def _is_one_unit_along(dim: int, units: Labels) -> bool:
    """Whether all places along a dimension belong to the same unit, or the same units."""
    return not varies(compressed(units), dim)


def reshape_as(walk: Walk, node: fx.Node) -> Flow | None:
    """Reshape to the sizes of another value; they follow if that carries the same units."""
    found, other = flatten(walk, node), argument(node, 1, "other")
    like = walk.flows.get(other) if isinstance(other, fx.Node) else None
    if isinstance(found, np.ndarray) and not (
        isinstance(like, np.ndarray) and np.array_equal(found, like)
    ):
        walk.not_sliceable(found, f"{describe(node)} takes its sizes from another value")
    return found


def squeeze(walk: Walk, node: fx.Node) -> Flow | None:
    """Drop dimensions of size 1; without naming them, a last unit could be dropped."""
    labels = input_labels(walk, node)
    if labels is not None and argument(node, 1, "dim") is None:
        walk.not_sliceable(
            labels, f"{describe(node)} without a dimension would drop the units' when one is left"
        )
    return flatten(walk, node)


unsqueeze = flatten


# --- permutations --------------------------------------------------------------------------------


def permute(walk: Walk, node: fx.Node) -> Flow | None:
    """Reorder all dimensions; as a function or layer (``Permute``)."""
    labels = input_labels(walk, node)
    if labels is None:
        return None
    module = walk.modules.get(str(node.target)) if node.op == "call_module" else None
    order = numbers(node, 1, "dims") if module is None else list(getattr(module, "dims", ()))
    return labels.transpose([dim % labels.ndim for dim in order])


def transpose(walk: Walk, node: fx.Node) -> Flow | None:
    """Swap two dimensions."""
    labels = input_labels(walk, node)
    if labels is None:
        return None
    first = argument(node, 1, ("dim0", "axis0"))
    second = argument(node, 2, ("dim1", "axis1"))
    if first is None and labels.ndim == 2:  # Tensor.t
        first, second = 0, 1
    return labels.swapaxes(first, second)


def roll(walk: Walk, node: fx.Node) -> Flow | None:
    """Cyclic shift."""
    labels = input_labels(walk, node)
    if labels is None:
        return None
    dims, shifts = argument(node, 2, "dims"), argument(node, 1, "shifts")
    dims = [dims] if isinstance(dims, int) else list(dims or ())
    if not dims:
        return walk.mix(node, [labels], f"{describe(node)} without dimensions mixes them")
    if any(varies(labels, dim) for dim in dims):
        walk.not_sliceable(labels, f"{describe(node)} shifts them")
    return np.roll(labels, shifts, dims)


# --- slices --------------------------------------------------------------------------------------


def _taken(walk: Walk, node: fx.Node, labels: Labels, index: list[Any]) -> Flow | None:
    """Index `labels` with ints, slices and None, one for each dimension."""
    places: list[Any] = []
    dim = 0
    for entry in index:
        if entry is None:
            places.append(None)
            continue
        if not varies(labels, dim):
            places.append(0 if isinstance(entry, int) else slice(None))
        elif isinstance(entry, slice) and any(
            isinstance(part, fx.Node) for part in (entry.start, entry.stop, entry.step)
        ):
            return walk.mix(node, [labels], f"{describe(node)} takes computed places of them")
        else:
            whole = isinstance(entry, slice) and len(range(labels.shape[dim])[entry]) == len(
                range(labels.shape[dim])
            )
            if not whole:
                walk.not_sliceable(
                    labels,
                    f"{describe(node)} takes fixed places of them",
                    partial(_is_one_unit_along, dim),
                )
            places.append(entry)
        dim += 1
    return compressed(labels[tuple(places)])


def _evenly(node: fx.Node, name: str, dim: int, parts: Sequence[Sequence[int]]) -> Condition | None:
    """Return when units can go from parts of equal sizes that follow from the value's size."""
    size = argument(node, 1, ("split_size", "split_size_or_sections"))
    if name != "chunk" and not (name == "split" and isinstance(size, fx.Node)):
        return None

    def condition(units: Labels) -> bool:
        """Whether every unit has equally many places in all parts."""
        if len({part[dim] for part in parts}) > 1:
            return False
        along = np.moveaxis(units, dim, 0).reshape(units.shape[dim], -1)
        sorted_parts = np.sort(np.split(along, len(parts)), axis=1)
        return bool((sorted_parts == sorted_parts[:1]).all())

    return condition


def getitem(walk: Walk, node: fx.Node) -> Flow | None:
    """``value[index]``: an entry of a tuple, or basic indexing of a tensor."""
    source, index = node.args[0], node.args[1]
    flow = walk.flows.get(source) if isinstance(source, fx.Node) else None
    if flow is None:
        return None
    if not isinstance(flow, np.ndarray):
        return flow[index] if isinstance(index, int) else None
    entries = list(index) if isinstance(index, tuple) else [index]
    if any(not isinstance(e, (int, slice, type(None), type(Ellipsis))) for e in entries):
        return walk.mix(node, [flow], f"{describe(node)} with an index that is not constant")
    given = sum(e is not None and e is not Ellipsis for e in entries)
    rest: list[Any] = [slice(None)] * (flow.ndim - given)
    at = entries.index(Ellipsis) if Ellipsis in entries else len(entries)
    return _taken(walk, node, flow, [*entries[:at], *rest, *entries[at + 1 :]])


def select(walk: Walk, node: fx.Node) -> Flow | None:
    """``value.select(dim, index)``."""
    labels = input_labels(walk, node)
    if labels is None:
        return None
    index: list[Any] = [slice(None)] * labels.ndim
    index[argument(node, 1, "dim")] = argument(node, 2, "index")
    return _taken(walk, node, labels, index)


def slice_dim(walk: Walk, node: fx.Node) -> Flow | None:
    """``aten.slice(value, dim, start, end, step)`` and ``narrow(dim, start, length)``."""
    labels = input_labels(walk, node)
    if labels is None:
        return None
    index: list[Any] = [slice(None)] * labels.ndim
    start, end = argument(node, 2, "start"), argument(node, 3, ("end", "length"))
    if str(node.target).split(".")[-1] == "narrow":
        end = start + end
    index[argument(node, 1, "dim", 0)] = slice(start, end, argument(node, 4, "step"))
    return _taken(walk, node, labels, index)


def chunk(walk: Walk, node: fx.Node) -> Flow | None:
    """Split, chunk, unbind: a tuple of slices, whose sizes the trace knows."""
    labels = input_labels(walk, node)
    meta = node.meta.get("tensor_meta")
    if labels is None or not isinstance(meta, (tuple, list)):
        return None
    before, _ = _shapes(node)
    parts = [tuple(part.shape) for part in meta]
    name = str(getattr(node.target, "__name__", node.target)).split(".")[0]
    dim = argument(node, 1 if name == "unbind" else 2, "dim", 0) % labels.ndim
    if not varies(labels, dim):
        return (labels,) * len(parts) if name != "unbind" else (labels.squeeze(dim),) * len(parts)
    walk.not_sliceable(
        labels,
        f"{describe(node)} divides them into parts of its own",
        partial(_is_one_unit_along, dim) if name == "unbind" else _evenly(node, name, dim, parts),
    )
    if name == "unbind":
        return tuple(labels[(slice(None),) * dim + (place,)] for place in range(before[dim]))
    ends = np.cumsum([part[dim] for part in parts])
    return tuple(compressed(part) for part in np.split(labels, ends[:-1], axis=dim))
