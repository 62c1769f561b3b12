"""Spanning-tree crossings by their definition: all distances of a pair at once, in float64."""

from __future__ import annotations

import numpy as np
import torch
from scipy.sparse.csgraph import minimum_spanning_tree
from torch import Tensor

__all__ = ["spanning_tree_crossings"]


def spanning_tree_crossings(
    children: Tensor, parents: Tensor, *, child_block: int = 1, parent_block: int = 1
) -> Tensor:
    """Edges of each pair's minimum spanning tree that join samples with replaced ones.

    The oracle of :func:`causalprune.ops.spanning_tree_crossings`, which documents the arguments:
    the points of every pair are written out and the tree is scipy's.

    Parameters
    ----------
    children : Tensor [N, C], any floating dtype
    parents : Tensor [N, P]
    child_block, parent_block : int

    Returns
    -------
    Tensor [child blocks, parent blocks], float64

    Examples
    --------
    >>> import torch
    >>> points = torch.arange(6.0)[:, None]
    >>> spanning_tree_crossings(points, points).item() >= 1
    True
    """
    m = len(children) // 3
    children, parents = children.double().cpu(), parents.double().cpu()
    starts = range(0, parents.shape[1], parent_block)
    blocks = [slice(first, first + parent_block) for first in starts]
    rows = []
    for first in range(0, children.shape[1], child_block):
        x = children[: 2 * m, first : first + child_block]
        rows.append([_crossings(x, _replaced(parents, block), m) for block in blocks])
    return torch.tensor(rows, dtype=torch.float64)


def _replaced(parents: Tensor, block: slice) -> Tensor:
    """Parents of S0 and S1, those of S1 with the block of their nearest neighbour in S2."""
    m = len(parents) // 3
    others = torch.ones(parents.shape[1], dtype=torch.bool)
    others[block] = False
    replaced = parents[: 2 * m].clone()
    for row in range(m):
        # Cyclically from the row's own place, so that among equals the next one is taken.
        order = 2 * m + (row + torch.arange(m)) % m
        gaps = parents[order][:, others] - parents[m + row, others]
        neighbour = order[gaps.square().sum(1).argmin()]
        replaced[m + row, block] = parents[neighbour, block]
    return replaced


def _crossings(x: Tensor, parents: Tensor, m: int) -> int:
    points = torch.cat([x, parents], 1).numpy()
    gaps = np.sqrt(np.square(points[:, None] - points[None]).sum(2))
    # scipy takes a zero for a missing edge.
    gaps[gaps == 0] = np.finfo(np.float64).tiny
    tree = minimum_spanning_tree(np.triu(gaps, 1)).tocoo()
    return int(((tree.row < m) != (tree.col < m)).sum())
