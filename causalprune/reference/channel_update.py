"""Oracle of the channel update: the definition, tap by tap."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["channel_update"]


def channel_update(
    plain: Tensor,
    difference: Tensor,
    weight: Tensor,
    *,
    stride: tuple[int, int] = (1, 1),
    padding: tuple[int, int] = (0, 0),
    dilation: tuple[int, int] = (1, 1),
    relu: bool = False,
) -> Tensor:
    """Compute :func:`causalprune.ops.channel_update` in float64, one tap at a time.

    Parameters
    ----------
    plain : Tensor [R, O, Ho, Wo]
    difference : Tensor [R, C, H, W]
    weight : Tensor [O, C, kh, kw]
    stride, padding, dilation : pair of int
    relu : bool

    Returns
    -------
    Tensor [R, O, Ho, Wo], float64

    Examples
    --------
    >>> ones = torch.ones(1, 1, 1, 1)
    >>> channel_update(ones, 2 * ones, -3 * ones, relu=True)
    tensor([[[[0.]]]], dtype=torch.float64)
    """
    result = plain.double().clone()
    height, width = plain.shape[2:]
    x = F.pad(difference.double(), (padding[1], padding[1], padding[0], padding[0]))
    for ky in range(weight.shape[2]):
        for kx in range(weight.shape[3]):
            top, left = ky * dilation[0], kx * dilation[1]
            seen = x[:, :, top :: stride[0], left :: stride[1]][:, :, :height, :width]
            result += torch.einsum("rchw,oc->rohw", seen, weight[:, :, ky, kx].double())
    return result.relu() if relu else result
