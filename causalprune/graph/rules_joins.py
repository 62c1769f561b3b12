"""Rules of the operators that put values together or widen them: concatenate, pad, expand."""

from __future__ import annotations

from typing import Any

import numpy as np
from torch import fx

from causalprune.graph.flow import Flow, Labels, Walk, compressed, describe, varies
from causalprune.graph.rules_shapes import argument, broadcast, input_labels, numbers
from causalprune.graph.trace import shape_of

__all__ = ["cat", "expand", "pad", "patch_merging", "stack"]


def cat(walk: Walk, node: fx.Node) -> Flow | None:
    """Concatenate: every part keeps its units; parts without units leave places without."""
    return _joined(walk, node, argument(node, 1, ("dim", "axis"), 0), new_dim=False)


def stack(walk: Walk, node: fx.Node) -> Flow | None:
    """Concatenate along a new dimension."""
    return _joined(walk, node, argument(node, 1, "dim", 0), new_dim=True)


def _joined(walk: Walk, node: fx.Node, dim: int, *, new_dim: bool) -> Flow | None:
    parts: Any = argument(node, 0, "tensors", ())
    if isinstance(parts, fx.Node):  # a tuple that another operator made
        flow = walk.flows.get(parts)
        return walk.mix(node, [flow], f"{describe(node)} of a computed tuple has no rule")
    dim %= len(shape_of(node) or (0,))
    found: list[Labels] = []
    for part in parts:
        shape = shape_of(part) or ()
        flow = walk.flows.get(part)
        labels = flow if isinstance(flow, np.ndarray) else np.full((1,) * len(shape), -1)
        if new_dim:
            labels, shape = np.expand_dims(labels, dim), (*shape[:dim], 1, *shape[dim:])
        found.append(labels if varies(labels, dim) else broadcast(labels, shape, [dim]))
    carrying = [flow for part in parts if isinstance(flow := walk.flows.get(part), np.ndarray)]
    if not carrying:
        return None
    along = new_dim or any(varies(x, dim) for x in carrying)
    if along or all(x.size == 1 for x in carrying):
        sizes = np.max([labels.shape for labels in found], axis=0).tolist()
        full = [[*sizes[:dim], labels.shape[dim], *sizes[dim + 1 :]] for labels in found]
        whole = [np.broadcast_to(x, size) for x, size in zip(found, full, strict=True)]
        return compressed(np.concatenate(whole, axis=dim))
    return _side_by_side(walk, node, carrying, alone=len(carrying) == len(parts))


def _side_by_side(walk: Walk, node: fx.Node, carrying: list[Labels], *, alone: bool) -> Flow | None:
    """Values whose units lie on another dimension than the concatenated one share their places."""
    whole = carrying[0]
    if not alone:
        walk.not_sliceable(
            whole, f"{describe(node)} puts them beside a value that carries no units"
        )
    for labels in carrying[1:]:
        if labels.shape == whole.shape and bool((labels == whole).all()):
            continue
        merged = walk.couple(node, whole, labels)
        if not isinstance(merged, np.ndarray):
            return merged
        whole = merged
    return whole


def pad(walk: Walk, node: fx.Node) -> Flow | None:
    """Zero padding; along the units' dimension it adds places without units."""
    labels = input_labels(walk, node)
    if labels is None:
        return None
    module = walk.modules.get(str(node.target)) if node.op == "call_module" else None
    widths: Any = argument(node, 1, "pad") if module is None else module.padding
    mode = argument(node, 2, "mode", "constant") if module is None else "constant"
    if isinstance(widths, int):
        widths = (widths,) * 4
    if not isinstance(widths, (tuple, list)):
        return walk.mix(node, [labels], f"{describe(node)} with computed widths has no rule")
    by_dim = [(0, 0)] * labels.ndim
    for k in range(len(widths) // 2):
        by_dim[labels.ndim - 1 - k] = (widths[2 * k], widths[2 * k + 1])
    touched = [d for d, w in enumerate(by_dim) if varies(labels, d) and any(w)]
    if not touched:
        return labels
    if mode != "constant" or min(min(by_dim[d]) for d in touched) < 0:
        return walk.mix(node, [labels], f"{describe(node)} pads them with copies or crops them")
    walk.not_sliceable(
        labels, f"{describe(node)} adds a constant number of channels without units to them"
    )
    extra = [by_dim[d] if d in touched else (0, 0) for d in range(labels.ndim)]
    return np.pad(labels, extra, constant_values=-1)


def expand(walk: Walk, node: fx.Node) -> Flow | None:
    """Repeat along dimensions of size 1, or along new leading ones."""
    labels = input_labels(walk, node)
    after = shape_of(node) or ()
    if labels is None:
        return None
    sizes = numbers(node, 1, "size")
    found = labels.reshape((1,) * (len(after) - labels.ndim) + labels.shape)
    fixed = [
        d
        for d in range(found.ndim)
        if varies(found, d) and d < len(sizes) and isinstance(sizes[d], int) and sizes[d] != -1
    ]
    if fixed:
        walk.not_sliceable(labels, f"{describe(node)} fixes their number to a constant")
    return found


def patch_merging(walk: Walk, node: fx.Node) -> Flow | None:
    """Patch merging of torchvision's Swin: four neighbours, one behind the other."""
    labels = input_labels(walk, node)
    if labels is None:
        return None
    if any(varies(labels, dim) for dim in range(labels.ndim - 1)):
        return walk.mix(node, [labels], f"{describe(node)} merges them with their neighbours")
    return np.concatenate([labels] * 4, axis=-1) if varies(labels, -1) else labels
