"""The relative sensitivity of a layer's weights by its definition: unfolded patches, in float64."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["SMALLEST_DENOMINATOR", "relative_sensitivity"]

SMALLEST_DENOMINATOR = torch.finfo(torch.float32).eps
"""A sum of at most this much makes every share in it zero (float32's epsilon, 1.19e-7)."""


def relative_sensitivity(
    x: Tensor,
    weight: Tensor,
    *,
    aggregate: str = "mean",
    stride: int | tuple[int, int] = 1,
    padding: int | tuple[int, int] = 0,
    dilation: int | tuple[int, int] = 1,
    groups: int = 1,
    dtype: torch.dtype = torch.float64,
) -> Tensor:
    """Largest share that every weight of one convolution has in the sums of its own sign.

    The definition, image by image and group by group: with the patches ``a[f, p]`` of the image's
    positive (then negative) part, the share of the weight at f of filter i at position p is
    ``|W[i, f]| a[f, p] / sum_f' |W'[i, f']| a[f', p]``, where ``W'`` keeps the weights of the sign
    of ``W[i, f]``; shares are aggregated over p by mean or maximum, and over images and parts by
    maximum. This is the oracle of :func:`causalprune.ops.relative_sensitivity`, which documents
    the arguments; in float32 it is what one would write in torch without a kernel.

    Parameters
    ----------
    x : Tensor [N, I, H, W], any floating dtype
    weight : Tensor [O, I / groups, kh, kw]
    aggregate : {"mean", "max"}
    dtype : torch.dtype
        What to compute in.

    Returns
    -------
    Tensor [O, I / groups, kh, kw], `dtype`

    Examples
    --------
    >>> x, weight = torch.ones(1, 2, 1, 1), torch.tensor([3.0, 1.0]).reshape(1, 2, 1, 1)
    >>> relative_sensitivity(x, weight).flatten().tolist()
    [0.75, 0.25]
    """
    x, weight = x.to(dtype), weight.to(dtype)
    best = torch.zeros_like(weight).flatten(1)
    rows = weight.flatten(1).chunk(groups)
    for image in x:
        for part in (image.clamp_min(0), (-image).clamp_min(0)):
            if not bool(part.any()):
                continue
            patches = F.unfold(part[None], weight.shape[2:], dilation, padding, stride)[0]
            if patches.shape[1] == 0:
                continue
            found = [
                _shares(own, group, aggregate)
                for own, group in zip(rows, patches.chunk(groups), strict=True)
            ]
            best = torch.maximum(best, torch.cat(found))
    return best.reshape(weight.shape)


def _shares(weight: Tensor, patches: Tensor, aggregate: str) -> Tensor:
    """Return aggregated shares [O, F] from weight [O, F] and the patches [F, P] of one point."""
    shares = torch.zeros_like(weight)
    for signed in (weight.clamp_min(0), (-weight).clamp_min(0)):
        sums = signed @ patches
        sums = sums.masked_fill(sums <= SMALLEST_DENOMINATOR, torch.inf)
        for f, values in enumerate(patches):
            share = signed[:, f, None] * values / sums
            shares[:, f] += share.mean(1) if aggregate == "mean" else share.amax(1)
    return shares
