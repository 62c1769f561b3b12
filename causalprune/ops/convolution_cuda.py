"""What the launchers of the CUDA convolutions share."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from causalprune.errors import InvalidArgumentError
from causalprune.ops.registration import expect_cuda_build

__all__ = ["check_cuda_tensors", "coalesced", "new_output"]


def check_cuda_tensors(x: Tensor, **others: Tensor | None) -> None:
    """Refuse what the kernels cannot take: another device or dtype, or a build without them.

    Parameters
    ----------
    x : Tensor [N, I, H, W], float32, CUDA
    **others : Tensor, float32, on the device of x, or None
        By the names that messages use.

    Raises
    ------
    InvalidArgumentError
    """
    expect_cuda_build()
    if x.device.type != "cuda":
        raise InvalidArgumentError(f"x: expected a CUDA tensor, got one on {x.device}")
    if x.ndim != 4:
        raise InvalidArgumentError(f"x: expected [N, I, H, W], got shape {list(x.shape)}")
    for name, tensor in {"x": x, **others}.items():
        if tensor is None:
            continue
        if tensor.dtype != torch.float32:
            raise InvalidArgumentError(f"{name}: expected dtype float32, got {tensor.dtype}")
        if tensor.device != x.device:
            raise InvalidArgumentError(
                f"{name}: expected a tensor on {x.device}, as x is, got one on {tensor.device}"
            )


def coalesced(x: Tensor) -> Tensor:
    """Return x, or a copy whose columns are neighbours in memory, as the kernels' loads want."""
    return x if x.stride(-1) == 1 else x.contiguous()


def new_output(
    x: Tensor,
    n_outputs: int,
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
) -> Tensor:
    """Return uninitialised memory for the output of a convolution.

    Parameters
    ----------
    x : Tensor [N, I, H, W]
    n_outputs : int
    kernel, stride, padding, dilation : pair of int

    Returns
    -------
    Tensor [N, n_outputs, Ho, Wo], contiguous
        dtype and device of x.

    Raises
    ------
    InvalidArgumentError
        If the kernel does not fit into the padded image.
    """
    extents = []
    for axis, size in enumerate(x.shape[2:]):
        if stride[axis] < 1:
            raise InvalidArgumentError(f"stride: expected at least 1, got {stride[axis]}")
        span = dilation[axis] * (kernel[axis] - 1) + 1
        room = size + 2 * padding[axis] - span
        if room < 0:
            raise InvalidArgumentError(
                f"weight: expected a kernel that fits in {size} + 2 * {padding[axis]}, got {span}"
            )
        extents.append(room // stride[axis] + 1)
    return x.new_empty((x.shape[0], n_outputs, *extents))
