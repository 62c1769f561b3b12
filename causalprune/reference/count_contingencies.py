"""Contingency sets by their definition: every row, every unit of it, every image."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["count_contingencies"]


def count_contingencies(
    sets: Tensor, flipped: Tensor, *, max_size: int | None = None
) -> tuple[Tensor, Tensor]:
    """Count every unit's contingency sets by size, and find the first of the smallest.

    The oracle of :func:`causalprune.ops.count_contingencies`, which documents the arguments.

    Parameters
    ----------
    sets : Tensor [M, U], bool
    flipped : Tensor [M, N], bool
    max_size : int, optional

    Returns
    -------
    counts : Tensor [N, U, max_size], int64
    first : Tensor [N, U], int64

    Examples
    --------
    >>> import torch
    >>> counts, first = count_contingencies(torch.eye(2).bool(), torch.tensor([[True], [False]]))
    >>> counts[0].tolist(), first.tolist()
    ([[1], [0]], [[0, -1]])
    """
    rows = [frozenset(row.nonzero().flatten().tolist()) for row in sets]
    if max_size is None:
        max_size = max(map(len, rows), default=0)
    counts = torch.zeros(flipped.shape[1], sets.shape[1], max_size, dtype=torch.int64)
    first = torch.full(counts.shape[:2], -1)
    for image, flips in enumerate(flipped.T.tolist()):
        holds: set[frozenset[int]] = {frozenset()}
        holds |= {row for row, flip in zip(rows, flips, strict=True) if not flip}
        for index in sorted(range(len(rows)), key=lambda index: len(rows[index])):
            for unit in rows[index]:
                rest = rows[index] - {unit}
                if flips[index] and rest in holds:
                    counts[image, unit, len(rest)] += 1
                    if first[image, unit] < 0:
                        first[image, unit] = index
    return counts, first
