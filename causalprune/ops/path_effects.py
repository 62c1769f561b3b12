"""Path effects of a layer: what cutting each edge, and each input unit, does to it."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from causalprune import _native
from causalprune.errors import InvalidArgumentError
from causalprune.ops.registration import expect_cuda_build, register_operator

__all__ = ["EDGE_STATISTICS", "PathEffects", "path_effects"]

EDGE_STATISTICS = ("sum", "abs", "square", "grad_weighted")
STATISTICS = ("all", "grad_weighted")
ACTIVATIONS = ("gelu", "hardswish", "identity", "relu", "silu")

_LARGEST = 2**31 - 1

_SIGNATURE = (
    "(Tensor x, Tensor weight, Tensor pre, Tensor? grad, str activation, int[2] stride, "
    "int[2] padding, int[2] dilation, int groups, str statistics) -> (Tensor, Tensor)"
)


class PathEffects(NamedTuple):
    """Effects of one layer's paths.

    Attributes
    ----------
    edge : Tensor [O, I / groups, 4 or 1], float64
        For the edge from input channel i to output channel j, sums over images and positions of
        ``d``, ``|d|``, ``d**2`` and ``grad * d`` (the order of ``EDGE_STATISTICS``), or of the last
        alone.
    unit : Tensor [N, I], float64
        For each image and input channel, ``grad * d`` summed over outputs and positions: the
        first-order effect on the outcome of removing the channel from this layer's input.
    """

    edge: Tensor
    unit: Tensor


def path_effects(
    x: Tensor,
    weight: Tensor,
    pre: Tensor,
    grad: Tensor | None = None,
    *,
    activation: str = "relu",
    stride: int | tuple[int, int] = 1,
    padding: int | tuple[int, int] = 0,
    dilation: int | tuple[int, int] = 1,
    groups: int = 1,
    statistics: str = "all",
) -> PathEffects:
    r"""Effect of the intervention "cut the path i -> j", for every edge of a layer at once.

    Cutting the path takes input channel i's contribution ``c_ji = weight[j, i] * x_i`` out of
    output j's pre-activation; behind the activation the output then changes by

    .. math:: d_{ji} = \varphi(pre_j - W_{ji} * x_i) - \varphi(pre_j)

    exactly. ``grad`` carries the change on to an outcome Y to first order. The cost is about that
    of a few forward passes of the layer; ``[N, O, I, P]`` is never materialised.

    Parameters
    ----------
    x : Tensor, float32, CPU or CUDA
        What the layer reads: ``[N, I, H, W]`` for a convolution; ``[N, I]`` or ``[N, T, I]``
        (tokens as positions) for a linear layer. Any strides.
    weight : Tensor, float32
        ``[O, I / groups, kh, kw]`` or ``[O, I]``. Batch norm behind the layer is folded in:
        multiply output channel j by its scale.
    pre : Tensor, float32
        What enters the activation, ``[N, O, Ho, Wo]``, ``[N, O]`` or ``[N, T, O]``: bias, batch
        norm and shortcut included.
    grad : Tensor, float32, optional
        dY / d(activation output), shaped as ``pre``, one outcome an image. ``None`` stands for
        ones: the outcome is then the sum of the layer's activations.
    activation : {"relu", "identity", "gelu", "silu", "hardswish"}
        phi. "gelu" is the exact form (erf), torch's default.
    stride, padding, dilation : int or pair of int
    groups : int
        As in :func:`torch.nn.functional.conv2d`; linear layers take the defaults only.
    statistics : {"all", "grad_weighted"}
        Of the edges; ``"grad_weighted"`` leaves out the first three, which saves a twentieth to a
        quarter of the time on the CPU, more where few images meet many edges. ``unit`` is the same.

    Returns
    -------
    PathEffects
        ``edge [O, I / groups, 4 or 1]`` and ``unit [N, I]``, float64, on the device of ``x``. Sums,
        not means: divide by N for a mean over images. The same bits for any number of threads.

    Raises
    ------
    InvalidArgumentError
        (a ``ValueError``) for a wrong dtype, shape, device, activation or statistics, or non-finite
        values.

    Notes
    -----
    Source: the local edge intervention of Ahmad, Béreux, Baret et al. 2023 ("Causal analysis for
    robust interpretability"), all edges at once; agrees with the float64 definition in
    :func:`causalprune.reference.path_effects` to 1e-5 of the edge's sum of absolute effects plus
    1e-6 of the layer's largest (float32 cancellation, for edges of nearly no weight under a smooth
    activation).
    Not differentiable: scores are read, not trained through.

    Examples
    --------
    >>> import torch
    >>> from causalprune.ops import path_effects
    >>> x = torch.tensor([[1.0, 2.0]])                # one image, two inputs
    >>> weight = torch.tensor([[3.0, -1.0]])          # one output
    >>> effects = path_effects(x, weight, x @ weight.T)
    >>> effects.edge[0, :, 0].tolist()                # cut input 0: relu(1-3)-relu(1); input 1: +2
    [-1.0, 2.0]
    >>> effects.unit.tolist()
    [[-1.0, 2.0]]
    """
    _check_tensors(x=x, weight=weight, pre=pre, grad=grad)
    if activation not in ACTIVATIONS:
        raise InvalidArgumentError(
            f"activation: expected one of {', '.join(ACTIVATIONS)}, got {activation!r}"
        )
    if statistics not in STATISTICS:
        raise InvalidArgumentError(
            f"statistics: expected one of {', '.join(STATISTICS)}, got {statistics!r}"
        )
    layout = _as_convolution(x, weight, pre, grad)
    geometry = (
        _pair("stride", stride, 1),
        _pair("padding", padding, 0),
        _pair("dilation", dilation, 1),
    )
    if not isinstance(groups, int) or not 1 <= groups <= _LARGEST:
        raise InvalidArgumentError(f"groups: expected an int of at least 1, got {groups!r}")
    if weight.ndim == 2 and (*geometry, groups) != ([1, 1], [0, 0], [1, 1], 1):
        raise InvalidArgumentError(
            "stride, padding, dilation, groups: expected their defaults for a linear layer "
            f"(weight {list(weight.shape)}), got {stride}, {padding}, {dilation}, {groups}"
        )
    try:
        edge, unit = torch.ops.causalprune.path_effects(
            *layout, activation, *geometry, groups, statistics
        )
    except ValueError as error:
        if weight.ndim == 2:
            _check_finite(x=x, weight=weight, pre=pre, grad=grad)
        raise InvalidArgumentError(str(error)) from None
    return PathEffects(edge, unit)


def _check_tensors(**tensors: Tensor | None) -> None:
    device = None
    for name, tensor in tensors.items():
        if tensor is None and name == "grad":
            continue
        if not isinstance(tensor, Tensor):
            raise InvalidArgumentError(f"{name}: expected a tensor, got {type(tensor).__name__}")
        if tensor.layout != torch.strided:
            raise InvalidArgumentError(f"{name}: expected a dense tensor, got {tensor.layout}")
        if tensor.dtype != torch.float32:
            raise InvalidArgumentError(f"{name}: expected dtype float32, got {tensor.dtype}")
        device = tensor.device if device is None else device
        if tensor.device != device:
            raise InvalidArgumentError(
                f"{name}: expected a tensor on {device}, as x is, got one on {tensor.device}"
            )
        if device.type not in ("cpu", "cuda", "meta"):
            raise InvalidArgumentError(f"{name}: expected a CPU or CUDA tensor, got {device}")


def _check_finite(**tensors: Tensor | None) -> None:
    """Name the value that the kernel refused by its place in the caller's tensor."""
    for name, tensor in tensors.items():
        broken = [] if tensor is None else (~tensor.isfinite()).nonzero().tolist()
        if tensor is not None and broken:
            value = tensor[tuple(broken[0])].item()
            raise InvalidArgumentError(
                f"{name}: expected finite values, got {value} at {broken[0]}"
            )


def _pair(name: str, value: int | tuple[int, int], least: int) -> list[int]:
    pair = [value, value] if isinstance(value, int) else value
    if (
        not isinstance(pair, tuple | list)
        or len(pair) != 2
        or not all(isinstance(size, int) and least <= size <= _LARGEST for size in pair)
    ):
        raise InvalidArgumentError(
            f"{name}: expected an int or two ints of at least {least} and below 2**31, "
            f"got {value!r}"
        )
    return list(pair)


def _as_convolution(
    x: Tensor, weight: Tensor, pre: Tensor, grad: Tensor | None
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """View a linear layer as a 1x1 convolution whose positions are its tokens."""
    ranks = {4: (4,), 2: (2, 3)}.get(weight.ndim)
    if ranks is None:
        raise InvalidArgumentError(
            f"weight: expected [O, I / groups, kh, kw] or [O, I], got shape {list(weight.shape)}"
        )
    wanted = "[N, I, H, W]" if weight.ndim == 4 else "[N, I] or [N, T, I]"
    if x.ndim not in ranks:
        raise InvalidArgumentError(
            f"x: expected {wanted} for a weight of {weight.ndim} dimensions, "
            f"got shape {list(x.shape)}"
        )
    for name, tensor in (("pre", pre), ("grad", grad)):
        if tensor is not None and tensor.ndim != x.ndim:
            raise InvalidArgumentError(
                f"{name}: expected {x.ndim} dimensions, as x has, got shape {list(tensor.shape)}"
            )
    if weight.ndim == 4:
        return x, weight, pre, grad
    _check_linear_shapes(x, weight, pre, grad)
    as_image = _token_image if x.ndim == 3 else _pixel_image
    return (
        as_image(x),
        weight[:, :, None, None],
        as_image(pre),
        None if grad is None else as_image(grad),
    )


def _check_linear_shapes(x: Tensor, weight: Tensor, pre: Tensor, grad: Tensor | None) -> None:
    if weight.shape[1] != x.shape[-1]:
        raise InvalidArgumentError(
            f"weight: expected shape [O, {x.shape[-1]}] for the channels of x "
            f"({list(x.shape)}), got {list(weight.shape)}"
        )
    expected = (*x.shape[:-1], weight.shape[0])
    for name, tensor in (("pre", pre), ("grad", grad)):
        if tensor is not None and tensor.shape != expected:
            raise InvalidArgumentError(
                f"{name}: expected shape {list(expected)} for x {list(x.shape)} and weight "
                f"{list(weight.shape)}, got {list(tensor.shape)}"
            )


def _token_image(tokens: Tensor) -> Tensor:
    return tokens.transpose(1, 2).unsqueeze(-1)


def _pixel_image(features: Tensor) -> Tensor:
    return features[:, :, None, None]


def _empty_results(x: Tensor, weight: Tensor, statistics: str) -> tuple[Tensor, Tensor]:
    n_outputs, inputs_per_group = weight.shape[0], weight.shape[1]
    n_statistics = len(EDGE_STATISTICS) if statistics == "all" else 1
    edge = x.new_empty((n_outputs, inputs_per_group, n_statistics), dtype=torch.float64)
    unit = x.new_empty((x.shape[0], x.shape[1]), dtype=torch.float64)
    return edge, unit


def _fake(
    x: Tensor,
    weight: Tensor,
    pre: Tensor,
    grad: Tensor | None,
    activation: str,
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    groups: int,
    statistics: str,
) -> tuple[Tensor, Tensor]:
    return _empty_results(x, weight, statistics)


def _cpu(
    x: Tensor,
    weight: Tensor,
    pre: Tensor,
    grad: Tensor | None,
    activation: str,
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    groups: int,
    statistics: str,
) -> tuple[Tensor, Tensor]:
    edge, unit = _empty_results(x, weight, statistics)
    _native.path_effects(
        x,
        weight.contiguous(),
        pre,
        grad,
        edge,
        unit,
        activation,
        stride,
        padding,
        dilation,
        groups,
        torch.get_num_threads(),
    )
    return edge, unit


def _cuda(
    x: Tensor,
    weight: Tensor,
    pre: Tensor,
    grad: Tensor | None,
    activation: str,
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    groups: int,
    statistics: str,
) -> tuple[Tensor, Tensor]:
    expect_cuda_build()
    edge, unit = _empty_results(x, weight, "all")  # the kernel has no other
    size = _native.path_effects_cuda_workspace(x.shape[0], x.shape[1], weight.shape[0], groups)
    _native.path_effects_cuda(
        x,
        weight.contiguous(),
        pre,
        grad,
        edge,
        unit,
        x.new_empty(size, dtype=torch.float64),
        activation,
        stride,
        padding,
        dilation,
        groups,
    )
    return edge if statistics == "all" else edge[..., -1:].contiguous(), unit


register_operator(
    "path_effects",
    _SIGNATURE,
    kernels={"CPU": _cpu, "CUDA": _cuda},
    fake=_fake,
    not_differentiable="it scores a network, it is no layer of one; call it under torch.no_grad()",
)
