"""Relative sensitivity: the largest share each weight of a layer has in an output."""

from __future__ import annotations

import torch
from torch import Tensor

from causalprune import _native
from causalprune.errors import InvalidArgumentError
from causalprune.ops.registration import expect_cuda_build, register_operator

__all__ = ["AGGREGATES", "relative_sensitivity"]

AGGREGATES = ("max", "mean")

_SIGNATURE = (
    "(Tensor x, Tensor weight, str aggregate, int[2] stride, int[2] padding, int[2] dilation, "
    "int groups) -> Tensor"
)


def relative_sensitivity(
    x: Tensor,
    weight: Tensor,
    *,
    aggregate: str = "mean",
    stride: int | tuple[int, int] = 1,
    padding: int | tuple[int, int] = 0,
    dilation: int | tuple[int, int] = 1,
    groups: int = 1,
) -> Tensor:
    r"""Largest share that every single weight of a layer has in what its filter sums up.

    Filter i adds its positive and its negative weights up separately, over the values
    ``a_f(p) >= 0`` that weight position f (input channel and tap) reads at output position p. The
    share of a weight, with :math:`W^s` the weights of its own sign, is

    .. math:: \frac{|W_{if}|\, a_f(p)}{\sum_{f'} |W^s_{if'}|\, a_{f'}(p)} \in [0, 1]

    and zero where the denominator is at most 1.19e-7. It is aggregated over output positions
    (tokens) by mean or maximum, and over points by maximum. Every image is a point; an image with
    negative values is two, its positive and its negative part. Biases play no part.

    Parameters
    ----------
    x : Tensor [N, I, H, W] or [N, I] or [N, T, I], float32
        The layer's input, on the CPU or CUDA. Any strides.
    weight : Tensor [O, I / groups, kh, kw] or [O, I], float32
        On the device of `x`.
    aggregate : {"mean", "max"}
        Over positions: ``"mean"`` is the sensitivity of SiPP, ``"max"`` that of PFP.
    stride, padding, dilation : int or pair of int
    groups : int
        As in :func:`torch.nn.functional.conv2d`; linear layers take the defaults only.

    Returns
    -------
    Tensor, float32
        In the shape of `weight` and on its device, values in [0, 1] up to rounding; zero for a
        weight that is zero, for an empty batch, and where no positive sum was ever reached. The
        maximum of the results over batches is the result over all images. The same bits for any
        number of threads.

    Raises
    ------
    InvalidArgumentError
        (a ``ValueError``) for a wrong dtype, shape, device, aggregate, non-finite values, or sums
        that do not fit in float32. On CUDA values are not read back, so the last two are not
        refused there: they make the sensitivities they enter NaN (of x: all of every filter that
        reads it; of the weight or a sum: those of its filter and sign).

    Notes
    -----
    Source: Baykal, Liebenwein, Gilitschenski, Feldman, Rus ("SiPPing neural networks", and
    "Provable filter pruning for efficient neural networks", 2020) as used by Liebenwein et al.
    2021, "Lost in Pruning". Agrees with the float64 definition in
    :func:`causalprune.reference.relative_sensitivity` to 3e-5 relative, where no denominator is
    near the threshold. Not differentiable.

    Examples
    --------
    >>> import torch
    >>> x, weight = torch.tensor([[1.0, 1.0, 2.0]]), torch.tensor([[3.0, 1.0, -5.0]])
    >>> relative_sensitivity(x, weight)  # the negative weight is alone among its kind
    tensor([[0.7500, 0.2500, 1.0000]])
    """
    _check_tensors(x=x, weight=weight)
    if aggregate not in AGGREGATES:
        raise InvalidArgumentError(
            f"aggregate: expected one of {', '.join(AGGREGATES)}, got {aggregate!r}"
        )
    geometry = (
        _pair("stride", stride, 1),
        _pair("padding", padding, 0),
        _pair("dilation", dilation, 1),
    )
    if not isinstance(groups, int) or isinstance(groups, bool) or groups < 1:
        raise InvalidArgumentError(f"groups: expected an int of at least 1, got {groups!r}")
    if weight.ndim == 2 and (*geometry, groups) != ([1, 1], [0, 0], [1, 1], 1):
        raise InvalidArgumentError(
            "stride, padding, dilation, groups: expected their defaults for a linear layer "
            f"(weight {list(weight.shape)}), got {stride}, {padding}, {dilation}, {groups}"
        )
    image, kernel = _as_convolution(x, weight)
    try:
        found: Tensor = torch.ops.causalprune.relative_sensitivity(
            image, kernel, aggregate, *geometry, groups
        )
    except ValueError as error:
        raise InvalidArgumentError(str(error)) from None
    return found.reshape(weight.shape)


def _check_tensors(**tensors: Tensor) -> None:
    for name, tensor in tensors.items():
        if not isinstance(tensor, Tensor):
            raise InvalidArgumentError(f"{name}: expected a tensor, got {type(tensor).__name__}")
        if tensor.layout != torch.strided:
            raise InvalidArgumentError(f"{name}: expected a dense tensor, got {tensor.layout}")
        if tensor.dtype != torch.float32:
            raise InvalidArgumentError(f"{name}: expected dtype float32, got {tensor.dtype}")
        device = tensors["x"].device
        if tensor.device != device or device.type not in ("cpu", "cuda", "meta"):
            raise InvalidArgumentError(
                f"{name}: expected a CPU or CUDA tensor on one device with x ({device}), got one "
                f"on {tensor.device}"
            )


def _pair(name: str, value: int | tuple[int, int], least: int) -> list[int]:
    pair = [value, value] if isinstance(value, int) else value
    if (
        not isinstance(pair, tuple | list)
        or len(pair) != 2
        or not all(isinstance(size, int) and least <= size < 2**31 for size in pair)
    ):
        raise InvalidArgumentError(
            f"{name}: expected an int or two ints of at least {least} and below 2**31, "
            f"got {value!r}"
        )
    return list(pair)


def _as_convolution(x: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """View a linear layer as a 1x1 convolution whose positions are its tokens."""
    ranks = {4: (4,), 2: (2, 3)}.get(weight.ndim)
    if ranks is None:
        raise InvalidArgumentError(
            f"weight: expected [O, I / groups, kh, kw] or [O, I], got shape {list(weight.shape)}"
        )
    if x.ndim not in ranks:
        wanted = "[N, I, H, W]" if weight.ndim == 4 else "[N, I] or [N, T, I]"
        raise InvalidArgumentError(
            f"x: expected {wanted} for a weight of {weight.ndim} dimensions, "
            f"got shape {list(x.shape)}"
        )
    if weight.ndim == 4:
        return x, weight
    if weight.shape[1] != x.shape[-1]:
        raise InvalidArgumentError(
            f"weight: expected shape [O, {x.shape[-1]}] for the channels of x "
            f"({list(x.shape)}), got {list(weight.shape)}"
        )
    image = x[:, :, None, None] if x.ndim == 2 else x.transpose(1, 2).unsqueeze(-1)
    return image, weight[:, :, None, None]


def _fake(
    x: Tensor,
    weight: Tensor,
    aggregate: str,
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    groups: int,
) -> Tensor:
    return weight.new_empty(weight.shape)


def _cpu(
    x: Tensor,
    weight: Tensor,
    aggregate: str,
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    groups: int,
) -> Tensor:
    found = weight.new_empty(weight.shape)
    threads = torch.get_num_threads()
    _native.relative_sensitivity(
        x, weight.contiguous(), found, aggregate, stride, padding, dilation, groups, threads
    )
    return found


def _cuda(
    x: Tensor,
    weight: Tensor,
    aggregate: str,
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    groups: int,
) -> Tensor:
    expect_cuda_build()
    geometry = (stride, padding, dilation, groups)
    size = _native.relative_sensitivity_cuda_workspace(x.shape, weight.shape, *geometry)
    found = weight.new_empty(weight.shape)
    _native.relative_sensitivity_cuda(
        x, weight.contiguous(), found, x.new_empty(size), aggregate, *geometry
    )
    return found


register_operator(
    "relative_sensitivity",
    _SIGNATURE,
    kernels={"CPU": _cpu, "CUDA": _cuda},
    fake=_fake,
    not_differentiable="it scores a network, it is no layer of one; call it under torch.no_grad()",
)
