"""channel_conv2d on a CUDA device: lists and packed weight, and the launch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from causalprune import _native
from causalprune.errors import InvalidArgumentError
from causalprune.ops.convolution_cuda import check_cuda_tensors, coalesced, new_output

__all__ = ["ChannelPlan", "channel_conv2d_cuda", "channel_plan_cuda"]


@dataclass(frozen=True)
class ChannelPlan:
    """Lists of channels that have been checked, and the weight as the kernel reads it.

    Attributes
    ----------
    inputs, outputs : Tensor, int64
        Channels that are read and written.
    others : Tensor, int64
        The output channels that `outputs` lacks.
    weight : Tensor [groups, kh, kw, inputs / groups, outputs / groups], float32
    n_inputs, n_outputs, groups : int
        Channels of the tensors that the lists point into.
    """

    inputs: Tensor
    outputs: Tensor
    others: Tensor
    weight: Tensor
    n_inputs: int
    n_outputs: int
    groups: int


def channel_plan_cuda(
    weight: Tensor,
    inputs: Tensor,
    outputs: Tensor,
    n_inputs: int,
    n_outputs: int,
    groups: int = 1,
) -> ChannelPlan:
    """Check the lists and pack the weight for :func:`channel_conv2d_cuda`.

    Reads the lists back, which waits for the device where they lie on it: make the plan once, not
    on every call, and again whenever the weight changes. The plan lies where the weight does.

    Parameters
    ----------
    weight : Tensor [len(outputs), len(inputs) / groups, kh, kw], float32
    inputs, outputs : Tensor, int64, any device
        Without repeats, any order.
    n_inputs, n_outputs : int
        Channels of x and of the output.
    groups : int

    Returns
    -------
    ChannelPlan

    Raises
    ------
    InvalidArgumentError
        For lists with repeats, channels out of range or lengths that do not fit the weight.

    Examples
    --------
    >>> weight = torch.ones(1, 2, 3, 3)
    >>> plan = channel_plan_cuda(weight, torch.tensor([4, 1]), torch.tensor([2]), 6, 3)
    >>> plan.others.tolist(), list(plan.weight.shape)
    ([0, 1], [1, 3, 3, 2, 1])
    """
    if weight.dtype != torch.float32 or weight.ndim != 4:
        raise InvalidArgumentError(
            f"weight: expected float32 [outputs, inputs / groups, kh, kw], got {weight.dtype} "
            f"{list(weight.shape)}"
        )
    reads = _checked_list("inputs", inputs, n_inputs)
    writes = _checked_list("outputs", outputs, n_outputs)
    if groups < 1 or len(reads) % groups or len(writes) % groups:
        raise InvalidArgumentError(
            f"groups: expected a divisor of {len(reads)} inputs and {len(writes)} outputs, "
            f"got {groups}"
        )
    if weight.shape[:2] != (len(writes), len(reads) // groups):
        raise InvalidArgumentError(
            f"weight: expected shape [{len(writes)}, {len(reads) // groups}, kh, kw] for the lists "
            f"and {groups} groups, got {list(weight.shape)}"
        )
    height, width = weight.shape[2:]
    by_group = weight.detach().reshape(
        groups, len(writes) // groups, len(reads) // groups, height, width
    )
    written = set(writes)
    others = [channel for channel in range(n_outputs) if channel not in written]
    return ChannelPlan(
        inputs=inputs.to(weight.device).contiguous(),
        outputs=outputs.to(weight.device).contiguous(),
        others=torch.tensor(others, dtype=torch.int64, device=weight.device),
        weight=by_group.permute(0, 3, 4, 2, 1).contiguous(),
        n_inputs=n_inputs,
        n_outputs=n_outputs,
        groups=groups,
    )


def _checked_list(name: str, channels: Tensor, n_channels: int) -> list[int]:
    if channels.dtype != torch.int64 or channels.ndim != 1:
        raise InvalidArgumentError(
            f"{name}: expected an int64 vector, got {channels.dtype} {list(channels.shape)}"
        )
    listed: list[int] = channels.tolist()
    if any(not 0 <= channel < n_channels for channel in listed):
        raise InvalidArgumentError(
            f"{name}: expected channels from 0 to {n_channels - 1}, got {min(listed)} to "
            f"{max(listed)}"
        )
    if len(set(listed)) != len(listed):
        raise InvalidArgumentError(f"{name}: expected every channel once, got repeats")
    return listed


def channel_conv2d_cuda(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    residual: Tensor | None,
    inputs: Tensor,
    outputs: Tensor,
    n_outputs: int,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    activation: str,
    plan: ChannelPlan | None = None,
) -> Tensor:
    """Launch a convolution of the listed input channels into the listed output channels.

    ``out[:, outputs[k]] = activation(conv2d(x[:, inputs], weight)[k] + bias[k] + residual)``; the
    other channels are ``activation(residual)``, or 0. With a plan, on the current stream and
    without waiting; without one the plan is made first.

    Parameters
    ----------
    x : Tensor [N, I, H, W], float32, CUDA
        Any strides; where columns are not neighbours in memory it is copied first.
    weight : Tensor [len(outputs), len(inputs) / groups, kh, kw], float32
    bias : Tensor [len(outputs)], float32, optional
    residual : Tensor [N, n_outputs, Ho, Wo], float32, optional
    inputs, outputs : Tensor, int64
    n_outputs : int
    stride, padding, dilation : pair of int
    groups : int
    activation : {"none", "relu", "relu6", "hardswish", "silu", "gelu"}
    plan : ChannelPlan, optional
        Of this weight and these lists, from :func:`channel_plan_cuda`.

    Returns
    -------
    Tensor [N, n_outputs, Ho, Wo], float32, contiguous
        Within 1e-5 of the sum of absolute terms.

    Raises
    ------
    InvalidArgumentError
        For wrong devices, dtypes, shapes, lists or activations, and a plan of other lists.
    RuntimeError
        If the launch fails.
    """
    check_cuda_tensors(x, weight=weight, bias=bias, residual=residual)
    if plan is None:
        plan = channel_plan_cuda(weight, inputs, outputs, x.shape[1], n_outputs, groups)
    made_for = (plan.n_inputs, plan.n_outputs, plan.groups, *plan.weight.shape[1:3])
    if made_for != (x.shape[1], n_outputs, groups, *weight.shape[2:]):
        raise InvalidArgumentError(
            f"plan: expected one for {x.shape[1]} and {n_outputs} channels in {groups} groups and "
            f"weight {list(weight.shape)}, got one for {plan.n_inputs} and {plan.n_outputs} "
            f"channels in {plan.groups} groups and weight {list(plan.weight.shape)}"
        )
    out = new_output(x, n_outputs, plan.weight.shape[1:3], stride, padding, dilation)
    try:
        _native.channel_conv2d_cuda(
            coalesced(x),
            plan.weight,
            plan.inputs,
            plan.outputs,
            plan.others,
            out,
            None if residual is None else residual.contiguous(),
            None if bias is None else bias.contiguous(),
            stride,
            padding,
            dilation,
            groups,
            activation,
        )
    except ValueError as error:
        raise InvalidArgumentError(str(error)) from None
    return out
