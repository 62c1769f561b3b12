"""A convolution's output after a change of a few of its input channels."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from causalprune import _native
from causalprune.errors import InvalidArgumentError
from causalprune.ops.registration import register_operator

__all__ = ["channel_update"]

_SIGNATURE = (
    "(Tensor plain, Tensor difference, Tensor weight, int[2] stride, int[2] padding, "
    "int[2] dilation, bool relu) -> Tensor"
)


def channel_update(
    plain: Tensor,
    difference: Tensor,
    weight: Tensor,
    *,
    stride: int | tuple[int, int] = 1,
    padding: int | tuple[int, int] = 0,
    dilation: int | tuple[int, int] = 1,
    relu: bool = False,
) -> Tensor:
    """Return what a convolution gives after some of its input channels have changed.

    ``plain + conv2d(difference, weight)``, clipped at zero with `relu`: of the layer's work only
    the share of the changed channels. In float32 by a native kernel (on CUDA in builds that have
    it), else by torch.

    Parameters
    ----------
    plain : Tensor [R, O, Ho, Wo]
        Output of the layer before the change; best in ``torch.channels_last``.
    difference : Tensor [R, C, H, W]
        New minus old values of the C changed input channels.
    weight : Tensor [O, C, kh, kw]
        The layer's weight for these channels.
    stride, padding, dilation : int or pair of int
        Of the layer.
    relu : bool
        Whether a ReLU follows.

    Returns
    -------
    Tensor [R, O, Ho, Wo]
        In ``torch.channels_last``; dtype and device of `plain`. Not differentiable.

    Raises
    ------
    InvalidArgumentError
        If tensors do not share dtype and device, or shapes and options do not fit together.

    Examples
    --------
    >>> x, weight = torch.randn(2, 3, 8, 8), torch.randn(4, 3, 3, 3)
    >>> cut = x.clone()
    >>> cut[:, 1] = 0
    >>> plain = F.conv2d(x, weight)
    >>> new = channel_update(plain, -x[:, 1:2], weight[:, 1:2])
    >>> torch.allclose(new, F.conv2d(cut, weight), atol=1e-5)
    True
    """
    for name, tensor in (("plain", plain), ("difference", difference), ("weight", weight)):
        if tensor.ndim != 4 or tensor.dtype != plain.dtype or tensor.device != plain.device:
            raise InvalidArgumentError(
                f"{name}: expected 4 dimensions, {plain.dtype} on {plain.device} as plain has, "
                f"got {tensor.ndim}, {tensor.dtype} on {tensor.device}"
            )
    try:
        result: Tensor = torch.ops.causalprune.channel_update(
            plain, difference, weight, _pair(stride), _pair(padding), _pair(dilation), relu
        )
    except (ValueError, RuntimeError) as error:
        raise InvalidArgumentError(f"channel_update: {error}") from error
    return result


def _pair(value: int | tuple[int, int]) -> list[int]:
    return [value, value] if isinstance(value, int) else list(value)


def _fake(
    plain: Tensor,
    difference: Tensor,
    weight: Tensor,
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    relu: bool,
) -> Tensor:
    return torch.empty_like(plain, memory_format=torch.channels_last)


def _cpu(
    plain: Tensor,
    difference: Tensor,
    weight: Tensor,
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    relu: bool,
) -> Tensor:
    if plain.dtype != torch.float32:
        return _torch(plain, difference, weight, stride, padding, dilation, relu)
    out = torch.empty_like(plain, memory_format=torch.channels_last)
    _native.channel_update(
        plain.contiguous(memory_format=torch.channels_last),
        difference,
        weight,
        out,
        stride,
        padding,
        dilation,
        relu,
        torch.get_num_threads(),
    )
    return out


def _cuda(
    plain: Tensor,
    difference: Tensor,
    weight: Tensor,
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    relu: bool,
) -> Tensor:
    if plain.dtype != torch.float32 or not _native.with_cuda:
        return _torch(plain, difference, weight, stride, padding, dilation, relu)
    out = torch.empty_like(plain, memory_format=torch.channels_last)
    plain = plain.contiguous(memory_format=torch.channels_last)
    _native.channel_update_cuda(plain, difference, weight, out, stride, padding, dilation, relu)
    return out


def _torch(
    plain: Tensor,
    difference: Tensor,
    weight: Tensor,
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    relu: bool,
) -> Tensor:
    change = F.conv2d(difference, weight, None, stride, padding, dilation)
    if change.shape != plain.shape:
        raise InvalidArgumentError(
            f"plain: expected shape {list(change.shape)}, got {list(plain.shape)}"
        )
    result = change.add_(plain)
    result = result.relu_() if relu else result
    return result.contiguous(memory_format=torch.channels_last)


register_operator(
    "channel_update",
    _SIGNATURE,
    kernels={"CPU": _cpu, "CUDA": _cuda},
    fake=_fake,
    not_differentiable="it replays a network, it is no layer of one; call it under torch.no_grad()",
)
