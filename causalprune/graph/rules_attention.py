"""Rules of attention that a network's own code computes, head by head.

Queries, keys and values [N, H, L, d] meet in products that keep the heads apart. All features of
one head, of the three of them, are therefore one unit: whoever reads what the head puts out can do
without it, and then nothing else reads its queries and keys.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from torch import fx

from causalprune.graph.flow import Flow, Labels, Walk, describe, varies
from causalprune.graph.functional import innermost
from causalprune.graph.rules_shapes import argument, input_labels
from causalprune.graph.trace import shape_of

__all__ = ["masked_fill", "matmul", "scaled_dot_product_attention"]

_HEADS, _ROWS, _FEATURES = 1, 2, 3


def scaled_dot_product_attention(walk: Walk, node: fx.Node) -> Flow | None:
    """Fused attention of queries, keys and values [N, H, L, d]."""
    given = [argument(node, k, name) for k, name in enumerate(("query", "key", "value"))]
    found = [_by_head(walk, x, _FEATURES) for x in given]
    others = [x for x in node.all_input_nodes if x not in given and x in walk.flows]
    if walk.alone or others or not _same_heads(found):
        return _apart(walk, node)
    mask = argument(node, 3, "attn_mask")
    shape = (shape_of(mask) if isinstance(mask, fx.Node) else None) or ()
    if len(shape) > 2 and shape[-3] > 1:
        for labels in found:
            if labels is not None:
                walk.not_sliceable(labels, f"{describe(node)} has a mask of its own for each head")
    return _attended(walk, node, [labels for labels in found if labels is not None])


def matmul(walk: Walk, node: fx.Node) -> Flow | None:
    """Products of attention, [N, H, L, d] x [N, H, d, S] and [N, H, L, S] x [N, H, S, d]."""
    given = [argument(node, k, names) for k, names in enumerate((("input", "self"), _SECOND))]
    scores = [_by_head(walk, x, dim) for x, dim in zip(given, (_FEATURES, _ROWS), strict=True)]
    values = [_by_head(walk, x, dim) for x, dim in zip(given, (None, _FEATURES), strict=True)]
    if walk.alone:
        return _apart(walk, node)
    if _same_heads(values):
        return _attended(walk, node, [labels for labels in values if labels is not None])
    if _same_heads(scores):
        coupled = _coupled(walk, [labels for labels in scores if labels is not None])
        return coupled[:, :, :1, :1]
    return _apart(walk, node)


_SECOND = ("other", "mat2", "tensor2")


def masked_fill(walk: Walk, node: fx.Node) -> Flow | None:
    """Overwrite places by a mask, which may be as wide as the units."""
    labels, mask = input_labels(walk, node), argument(node, 1, "mask")
    if labels is None:
        return None
    shape = (shape_of(mask) if isinstance(mask, fx.Node) else None) or ()
    wide = any(
        varies(labels, dim) and size > 1
        for dim, size in zip(range(labels.ndim)[::-1], shape[::-1], strict=False)
    )
    if wide:
        walk.not_sliceable(labels, f"{describe(node)} has a mask of a constant size")
    return labels


def _by_head(walk: Walk, source: Any, dim: int | None) -> Labels | None:
    """Labels [1, H, ...] of a value whose units differ along the heads and `dim` only."""
    labels = walk.flows.get(source) if isinstance(source, fx.Node) else None
    if not isinstance(labels, np.ndarray) or labels.ndim != 4 or bool((labels < 0).any()):
        return None
    shape = shape_of(source) or ()
    apart = all(dim_ in (_HEADS, dim) or not varies(labels, dim_) for dim_ in range(4))
    return labels if apart and labels.shape[_HEADS] == shape[_HEADS] else None


def _same_heads(found: Sequence[Labels | None]) -> bool:
    return len({None if x is None else x.shape[_HEADS] for x in found} | {None}) == 2 and all(
        x is not None for x in found
    )


def _apart(walk: Walk, node: fx.Node) -> Flow | None:
    flows = [walk.flows.get(source) for source in node.all_input_nodes]
    return walk.mix(
        node, flows, f"read by {describe(node)}, which does not keep them apart as heads"
    )


def _coupled(walk: Walk, found: Sequence[Labels]) -> Labels:
    """Make one unit of all atoms of a head; returns the last of `found`."""
    tables = [np.moveaxis(labels, _HEADS, 0).reshape(labels.shape[_HEADS], -1) for labels in found]
    table = np.concatenate(tables, axis=1)
    walk.pairs.append((table[:, :-1].ravel(), table[:, 1:].ravel()))
    return found[-1]


def _attended(walk: Walk, node: fx.Node, found: Sequence[Labels]) -> Labels:
    """Couple the heads, and say which module they are the heads of."""
    values = _coupled(walk, found)
    heads, name = values[0, :, 0, 0], innermost(node)
    if not name:
        walk.not_sliceable(heads, "their attention is computed by the network's own forward")
    elif any(r.layer == name and r.role == "heads" for r in walk.readings):
        walk.not_sliceable(heads, f"{name!r} computes several attentions")
    else:
        walk.read(node, name, "heads", heads)
    return values
