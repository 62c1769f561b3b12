"""sparse_conv2d on a CUDA device: the nonzeros of a weight as lists, and the launch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from causalprune import _native
from causalprune.errors import InvalidArgumentError
from causalprune.ops.convolution_cuda import check_cuda_tensors, coalesced, new_output

__all__ = ["SparsePlan", "sparse_conv2d_cuda", "sparse_plan_cuda"]

# As in csrc/cuda/sparse_tile.cuh: 20 bits of channel, 6 of kernel row, 6 of kernel column.
_TAP_BITS = 6
_MOST_TAPS = 1 << _TAP_BITS
_MOST_CHANNELS = 1 << 20


@dataclass(frozen=True)
class SparsePlan:
    """The nonzeros of a weight, in the order in which the kernel takes them.

    Attributes
    ----------
    channel : Tensor [O], int64
        Output channels, those of a group together, the fullest first.
    row_start : Tensor [O + 1], int64
        Where each one's entries begin.
    entries : Tensor [nonzeros, 2], int32
        ``channel << 12 | ky << 6 | kx``, the channel counted within the group, and the bits of the
        float32 value; sorted within an output channel.
    kernel : pair of int
    inputs_per_group, groups : int
    """

    channel: Tensor
    row_start: Tensor
    entries: Tensor
    kernel: tuple[int, int]
    inputs_per_group: int
    groups: int


def sparse_plan_cuda(weight: Tensor, groups: int = 1) -> SparsePlan:
    """List the nonzeros of a weight for :func:`sparse_conv2d_cuda`.

    Waits for the device once, to learn how many there are: make the plan once, not on every call,
    and again whenever the weight changes. Works on any device; the plan lies where the weight does.

    Parameters
    ----------
    weight : Tensor [O, I / groups, kh, kw], float32
    groups : int

    Returns
    -------
    SparsePlan

    Raises
    ------
    InvalidArgumentError
        For another dtype or rank, for groups that do not divide O, and beyond kernels of 64 x 64
        or 2**20 input channels a group.

    Examples
    --------
    >>> weight = torch.zeros(2, 3, 1, 1)
    >>> weight[1, 2] = 0.5
    >>> plan = sparse_plan_cuda(weight)
    >>> plan.channel.tolist(), plan.row_start.tolist(), plan.entries[:, 0].tolist()
    ([1, 0], [0, 1, 1], [8192])
    """
    if weight.dtype != torch.float32 or weight.ndim != 4:
        raise InvalidArgumentError(
            f"weight: expected float32 [O, I / groups, kh, kw], got {weight.dtype} "
            f"{list(weight.shape)}"
        )
    n_outputs, inputs, height, width = weight.shape
    if groups < 1 or n_outputs % groups:
        raise InvalidArgumentError(
            f"groups: expected a divisor of {n_outputs} outputs, got {groups}"
        )
    if height > _MOST_TAPS or width > _MOST_TAPS or inputs > _MOST_CHANNELS:
        raise InvalidArgumentError(
            f"weight: expected a kernel of at most {_MOST_TAPS} x {_MOST_TAPS} and at most "
            f"{_MOST_CHANNELS} inputs a group on CUDA, got {list(weight.shape)}"
        )
    rows = weight.detach().reshape(n_outputs, inputs * height * width)
    counts = (rows != 0).sum(1)
    group = torch.arange(n_outputs, device=weight.device) // max(n_outputs // groups, 1)
    order = (group * (rows.shape[1] + 1) + rows.shape[1] - counts).argsort(stable=True)
    rows = rows[order]
    row, column = (rows != 0).nonzero(as_tuple=True)
    tap = column % (height * width)
    code = (column // (height * width)) << (2 * _TAP_BITS) | (tap // width) << _TAP_BITS
    code = (code | tap % width).to(torch.int32)
    return SparsePlan(
        channel=order,
        row_start=torch.nn.functional.pad(counts[order].cumsum(0), (1, 0)),
        entries=torch.stack((code, rows[row, column].view(torch.int32)), dim=1),
        kernel=(height, width),
        inputs_per_group=inputs,
        groups=groups,
    )


def sparse_conv2d_cuda(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    residual: Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    activation: str,
    plan: SparsePlan | None = None,
) -> Tensor:
    """Launch ``activation(conv2d(x, weight) + bias + residual)`` over the nonzero weights.

    With a plan, on the current stream and without waiting; without one the plan is made first.

    Parameters
    ----------
    x : Tensor [N, I, H, W], float32, CUDA
        Any strides; where columns are not neighbours in memory it is copied first.
    weight : Tensor [O, I / groups, kh, kw], float32
    bias : Tensor [O], float32, optional
    residual : Tensor [N, O, Ho, Wo], float32, optional
    stride, padding, dilation : pair of int
    groups : int
    activation : {"none", "relu", "relu6", "hardswish", "silu", "gelu"}
    plan : SparsePlan, optional
        Of this weight and these groups, from :func:`sparse_plan_cuda`.

    Returns
    -------
    Tensor [N, O, Ho, Wo], float32, contiguous
        Within 1e-5 of the sum of absolute terms. A zero weight times a value that is not finite is
        not computed.

    Raises
    ------
    InvalidArgumentError
        For wrong devices, dtypes, shapes or activations, and a plan of another weight.
    RuntimeError
        If the launch fails.
    """
    check_cuda_tensors(x, weight=weight, bias=bias, residual=residual)
    if groups < 1 or x.shape[1] % groups or weight.shape[1] * groups != x.shape[1]:
        raise InvalidArgumentError(
            f"weight: expected [O, I / groups, kh, kw] for {x.shape[1]} inputs in {groups} groups, "
            f"got shape {list(weight.shape)}"
        )
    plan = sparse_plan_cuda(weight, groups) if plan is None else plan
    n_outputs = plan.channel.shape[0]
    made_for = (n_outputs, plan.inputs_per_group, *plan.kernel, plan.groups)
    if made_for != (*weight.shape, groups):
        raise InvalidArgumentError(
            f"plan: expected one of weight {list(weight.shape)} in {groups} groups, got one of "
            f"{list(made_for[:4])} in {plan.groups}"
        )
    out = new_output(x, n_outputs, plan.kernel, stride, padding, dilation)
    try:
        _native.sparse_conv2d_cuda(
            coalesced(x),
            plan.channel,
            plan.row_start,
            plan.entries,
            out,
            None if residual is None else residual.contiguous(),
            None if bias is None else bias.contiguous(),
            plan.kernel,
            stride,
            padding,
            dilation,
            groups,
            activation,
        )
    except ValueError as error:
        raise InvalidArgumentError(str(error)) from None
    return out
