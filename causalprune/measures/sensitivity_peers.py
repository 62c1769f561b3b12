"""Relative sensitivity as it is written without a kernel: filter by filter, and in products."""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from causalprune.reference.relative_sensitivity import SMALLEST_DENOMINATOR

__all__ = ["filter_shares", "loop_sensitivity", "point_patches", "product_sensitivity"]

_TOGETHER = 64  # weight positions whose shares are in memory at once


def point_patches(
    x: Tensor, kernel: tuple[int, int], stride: int = 1, padding: int = 0
) -> Iterator[Tensor]:
    """Yield the patches of every point: of an image's positive and of its negative part.

    Parameters
    ----------
    x : Tensor [N, I, H, W]
    kernel : pair of int
    stride, padding : int

    Yields
    ------
    Tensor [I kh kw, P]
        Values of at least zero; parts that are zero everywhere are passed over.

    Examples
    --------
    >>> [list(patches.shape) for patches in point_patches(torch.ones(1, 2, 3, 3), (3, 3))]
    [[18, 1]]
    """
    for image in x:
        for part in (image.clamp_min(0), (-image).clamp_min(0)):
            if bool(part.any()):
                yield F.unfold(part[None], kernel, 1, padding, stride)[0]


def filter_shares(row: Tensor, patches: Tensor, aggregate: str) -> Tensor:
    """Return the shares [F] of one filter's weights at one point, every product in memory.

    Parameters
    ----------
    row : Tensor [F]
        The filter's weights.
    patches : Tensor [F, P]
        Values of at least zero.
    aggregate : {"mean", "max"}
        Over positions.

    Examples
    --------
    >>> filter_shares(torch.tensor([3.0, 1.0]), torch.ones(2, 4), "mean")
    tensor([0.7500, 0.2500])
    """
    found = torch.zeros_like(row)
    for signed in (row.clamp_min(0), (-row).clamp_min(0)):
        products = signed[:, None] * patches
        sums = products.sum(0)
        shares = products / sums.masked_fill(sums <= SMALLEST_DENOMINATOR, torch.inf)
        found += shares.mean(1) if aggregate == "mean" else shares.amax(1)
    return found


def loop_sensitivity(
    x: Tensor, weight: Tensor, aggregate: str, *, stride: int = 1, padding: int = 0
) -> Tensor:
    """Relative sensitivity by a loop over images and filters, the way published code goes.

    Parameters
    ----------
    x : Tensor [N, I, H, W], float32
    weight : Tensor [O, I, kh, kw]
    aggregate : {"mean", "max"}
        See :func:`causalprune.ops.relative_sensitivity`.
    stride, padding : int

    Returns
    -------
    Tensor [O, I, kh, kw]

    Examples
    --------
    >>> weight = torch.tensor([3.0, 1.0]).reshape(1, 2, 1, 1)
    >>> loop_sensitivity(torch.ones(1, 2, 1, 1), weight, "max").flatten().tolist()
    [0.75, 0.25]
    """
    rows = weight.flatten(1)
    best = torch.zeros_like(rows)
    for patches in point_patches(x, (weight.shape[2], weight.shape[3]), stride, padding):
        for i, row in enumerate(rows):
            best[i] = torch.maximum(best[i], filter_shares(row, patches, aggregate))
    return best.reshape(weight.shape)


def product_sensitivity(
    x: Tensor, weight: Tensor, aggregate: str, *, stride: int = 1, padding: int = 0
) -> Tensor:
    """Relative sensitivity by torch's matrix products, as far as they go.

    The denominators of all filters are one product; the mean of the shares is a second one,
    because the weight can be taken out of the sum. The maximum has no such form.

    Parameters
    ----------
    x, weight, aggregate, stride, padding
        See :func:`loop_sensitivity`.

    Returns
    -------
    Tensor [O, I, kh, kw]

    Examples
    --------
    >>> weight = torch.tensor([3.0, 1.0]).reshape(1, 2, 1, 1)
    >>> product_sensitivity(torch.ones(1, 2, 1, 1), weight, "mean").flatten().tolist()
    [0.75, 0.25]
    """
    rows = weight.flatten(1)
    signed = torch.stack([rows.clamp_min(0), (-rows).clamp_min(0)])
    best = torch.zeros_like(rows)
    for patches in point_patches(x, (weight.shape[2], weight.shape[3]), stride, padding):
        sums = signed @ patches
        inverse = torch.where(sums > SMALLEST_DENOMINATOR, sums.reciprocal(), 0.0)
        if aggregate == "mean":
            found = signed * (inverse @ patches.T) / patches.shape[1]
        else:
            found = signed * _largest(inverse, patches)
        best = torch.maximum(best, found.sum(0))
    return best.reshape(weight.shape)


def _largest(inverse: Tensor, patches: Tensor) -> Tensor:
    """Maximum over p of inverse [2, O, P] times patches [F, P], a few f at a time."""
    chunks = torch.split(patches, _TOGETHER)
    parts = [(inverse[:, :, None] * chunk).amax(-1) for chunk in chunks]
    return torch.cat(parts, -1)
