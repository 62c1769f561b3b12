"""Oracles of the sparse and the channel-pruned convolution: the definition, tap by tap."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["CONVOLUTION_ACTIVATIONS", "channel_conv2d", "sparse_conv2d"]

CONVOLUTION_ACTIVATIONS: Mapping[str, Callable[[Tensor], Tensor]] = MappingProxyType(
    {
        "none": lambda z: z,
        "relu": lambda z: z.clamp(min=0),
        "relu6": lambda z: z.clamp(0, 6),
        "hardswish": lambda z: z * (z + 3).clamp(0, 6) / 6,
        "silu": lambda z: z * torch.sigmoid(z),
        "gelu": lambda z: z * 0.5 * (1 + torch.erf(z / 2**0.5)),
    }
)


def sparse_conv2d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    stride: tuple[int, int] = (1, 1),
    padding: tuple[int, int] = (0, 0),
    dilation: tuple[int, int] = (1, 1),
    groups: int = 1,
    activation: str = "none",
    residual: Tensor | None = None,
) -> Tensor:
    """Compute :func:`causalprune.ops.sparse_conv2d` in float64, one tap at a time.

    Parameters
    ----------
    x : Tensor [N, I, H, W]
    weight : Tensor [O, I / groups, kh, kw]
    bias : Tensor [O], optional
    stride, padding, dilation : pair of int
    groups : int
    activation : str
        A key of ``CONVOLUTION_ACTIVATIONS``.
    residual : Tensor [N, O, Ho, Wo], optional

    Returns
    -------
    Tensor [N, O, Ho, Wo], float64

    Examples
    --------
    >>> ones = torch.ones(1, 1, 1, 1)
    >>> sparse_conv2d(ones, -3 * ones, torch.ones(1), activation="relu", residual=4 * ones)
    tensor([[[[2.]]]], dtype=torch.float64)
    """
    n_outputs, inner, *kernel = weight.shape
    padded = F.pad(x.double(), (padding[1], padding[1], padding[0], padding[0]))
    height, width = (
        (padded.shape[2 + axis] - dilation[axis] * (kernel[axis] - 1) - 1) // stride[axis] + 1
        for axis in (0, 1)
    )
    result = torch.zeros(x.shape[0], n_outputs, height, width, dtype=torch.float64)
    for o in range(n_outputs):
        first = o // (n_outputs // groups) * inner  # input channel of this output's group
        for ky in range(kernel[0]):
            for kx in range(kernel[1]):
                top, left = ky * dilation[0], kx * dilation[1]
                seen = padded[:, first : first + inner, top :: stride[0], left :: stride[1]]
                taps = weight[o, :, ky, kx].double()
                result[:, o] += torch.einsum("nihw,i->nhw", seen[:, :, :height, :width], taps)
    if bias is not None:
        result += bias.double()[:, None, None]
    if residual is not None:
        result += residual.double()
    return CONVOLUTION_ACTIVATIONS[activation](result)


def channel_conv2d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    inputs: Tensor,
    outputs: Tensor,
    n_outputs: int,
    *,
    stride: tuple[int, int] = (1, 1),
    padding: tuple[int, int] = (0, 0),
    dilation: tuple[int, int] = (1, 1),
    groups: int = 1,
    activation: str = "none",
    residual: Tensor | None = None,
) -> Tensor:
    """Compute :func:`causalprune.ops.channel_conv2d` in float64, one tap at a time.

    Parameters
    ----------
    x : Tensor [N, I, H, W]
    weight : Tensor [len(outputs), len(inputs) / groups, kh, kw]
    bias : Tensor [len(outputs)], optional
    inputs, outputs : Tensor of int64
        Channels of `x` that are read, channels of the result that are written.
    n_outputs : int
    stride, padding, dilation : pair of int
    groups : int
    activation : str
    residual : Tensor [N, n_outputs, Ho, Wo], optional

    Returns
    -------
    Tensor [N, n_outputs, Ho, Wo], float64

    Examples
    --------
    >>> x = torch.tensor([1.0, 5.0]).reshape(1, 2, 1, 1)
    >>> weight = torch.full((1, 1, 1, 1), 2.0)
    >>> channel_conv2d(x, weight, None, torch.tensor([1]), torch.tensor([2]), 3).flatten()
    tensor([ 0.,  0., 10.], dtype=torch.float64)
    """
    narrow = sparse_conv2d(
        x[:, inputs], weight, bias, stride=stride, padding=padding, dilation=dilation, groups=groups
    )
    result = narrow.new_zeros(x.shape[0], n_outputs, *narrow.shape[2:])
    if residual is not None:
        result += residual.double()
    result[:, outputs] += narrow
    return CONVOLUTION_ACTIVATIONS[activation](result)
