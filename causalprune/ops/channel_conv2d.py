"""A convolution that reads some channels of a tensor and writes some of another, in place."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from causalprune import _native
from causalprune.errors import InvalidArgumentError
from causalprune.ops.convolutions import (
    ACTIVATIONS,
    ConvolutionOptions,
    activation_gradient,
    as_pair,
    check_activation,
    check_convolution,
    check_dense_layout,
    convolution_gradients,
    convolution_options,
    dense_convolution,
    empty_output,
    is_native,
    with_strides_of,
)
from causalprune.ops.packed_plans import ConvolutionTask, run_packed
from causalprune.ops.plan_cache import kept_plan
from causalprune.ops.registration import register_operator

__all__ = ["channel_conv2d"]

_SIGNATURE = (
    "(Tensor x, Tensor weight, Tensor? bias, Tensor? residual, Tensor inputs, Tensor outputs, "
    "SymInt n_outputs, int[2] stride, int[2] padding, int[2] dilation, int groups, "
    "str activation) -> Tensor"
)


def channel_conv2d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    inputs: Tensor,
    outputs: Tensor,
    n_outputs: int,
    *,
    stride: int | tuple[int, int] = 1,
    padding: int | tuple[int, int] = 0,
    dilation: int | tuple[int, int] = 1,
    groups: int = 1,
    activation: str = "none",
    residual: Tensor | None = None,
) -> Tensor:
    r"""Convolve listed channels of `x` into listed channels of the result.

    ``out[:, outputs[k]] = activation(conv2d(x[:, inputs], weight)[k] + bias[k] +
    residual[:, outputs[k]])``; the other channels are ``activation(residual)``, or 0 without one.
    So a layer of which a part is pruned costs that part, while the tensors around it (a residual
    stream) keep their width; ``x[:, inputs]`` is never made. float32 runs natively, on the CPU and,
    in builds with CUDA kernels, on CUDA; other dtypes run by torch, with a gather. What
    :func:`causalprune.ops.sparse_conv2d` says of first calls, plans and writes to the weight holds
    here too; zeros of the weight are skipped where that pays.

    Parameters
    ----------
    x : Tensor [N, I, H, W], floating point, CPU or CUDA
        Any strides.
    weight : Tensor [len(outputs), len(inputs) / groups, kh, kw]
        dtype and device of `x`.
    bias : Tensor [len(outputs)] or None
    inputs, outputs : Tensor of int64, on the device of `x`
        Channels that are read and written; every one once, in any order, which is that of the
        weight. With groups, each group takes the next ``len / groups`` of them. Either may be
        empty: a layer without inputs gives its bias.
    n_outputs : int
        Channels of the result.
    stride, padding, dilation : int or pair of int
    groups : int
    activation : {"none", "relu", "relu6", "hardswish", "silu", "gelu"}
    residual : Tensor [N, n_outputs, Ho, Wo], optional

    Returns
    -------
    Tensor [N, n_outputs, Ho, Wo]
        dtype and device of `x`; in ``torch.channels_last`` if `x` is. Within 1e-6 (CPU) or 1e-5
        (CUDA) of the sum of absolute terms; on the CPU the same bits for any number of threads.

    Raises
    ------
    InvalidArgumentError
        (a ``ValueError``) naming the argument: channels that do not exist or are listed twice,
        lists that do not fit the weight, a wrong dtype, device, shape, option or activation.
    MemoryError
        If there is no room for the packed tensors.

    Notes
    -----
    NaN and infinities propagate as in the dense convolution of the listed channels; channels of
    `x` that are not listed are not read.

    Examples
    --------
    >>> x, weight = torch.randn(2, 6, 8, 8), torch.randn(2, 3, 3, 3)
    >>> inputs, outputs = torch.tensor([5, 0, 2]), torch.tensor([3, 1])
    >>> out = channel_conv2d(x, weight, None, inputs, outputs, 4)
    >>> wanted = torch.nn.functional.conv2d(x[:, inputs], weight)
    >>> torch.allclose(out[:, outputs], wanted, atol=1e-5), out[:, [0, 2]].count_nonzero().item()
    (True, 0)
    """
    check_dense_layout(
        x=x, weight=weight, bias=bias, residual=residual, inputs=inputs, outputs=outputs
    )
    check_activation(activation)
    geometry = as_pair("stride", stride), as_pair("padding", padding), as_pair("dilation", dilation)
    result: Tensor = torch.ops.causalprune.channel_conv2d(
        x, weight, bias, residual, inputs, outputs, n_outputs, *geometry, groups, activation
    )
    return result


def _checked(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    residual: Tensor | None,
    inputs: Tensor,
    outputs: Tensor,
    n_outputs: int,
    *options: Any,
) -> tuple[ConvolutionOptions, Tensor]:
    """Return the options, and memory for the result."""
    for name, channels in (("inputs", inputs), ("outputs", outputs)):
        if channels.ndim != 1 or channels.dtype != torch.int64:
            raise InvalidArgumentError(
                f"{name}: expected a list of int64, got {channels.dtype} {list(channels.shape)}"
            )
        if channels.device != x.device:
            raise InvalidArgumentError(
                f"{name}: expected a tensor on {x.device}, as x is, got one on {channels.device}"
            )
    if n_outputs < 0:
        raise InvalidArgumentError(f"n_outputs: expected at least 0, got {n_outputs}")
    if weight.ndim == 4 and weight.shape[0] != outputs.shape[0]:
        raise InvalidArgumentError(
            f"outputs: expected {weight.shape[0]} channels for weight {list(weight.shape)}, "
            f"got {outputs.shape[0]}"
        )
    wanted = convolution_options(*options)
    shape = check_convolution(
        x, weight, bias, residual, wanted, n_inputs=inputs.shape[0], n_outputs=n_outputs
    )
    return wanted, empty_output(x, shape)


def _checked_channels(name: str, channels: Tensor, n_channels: int) -> tuple[int, ...]:
    listed: list[int] = channels.tolist()
    if listed and not (min(listed) >= 0 and max(listed) < n_channels):
        wrong = next(channel for channel in listed if not 0 <= channel < n_channels)
        raise InvalidArgumentError(f"{name}: expected channels in [0, {n_channels}), got {wrong}")
    if len(set(listed)) < len(listed):
        twice = next(channel for k, channel in enumerate(listed) if channel in listed[:k])
        raise InvalidArgumentError(f"{name}: expected every channel once, got {twice} twice")
    return tuple(listed)


def _fake(*arguments: Any) -> Tensor:
    return _checked(*arguments)[1]


def _cpu(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    residual: Tensor | None,
    inputs: Tensor,
    outputs: Tensor,
    n_outputs: int,
    *options: Any,
) -> Tensor:
    wanted, out = _checked(x, weight, bias, residual, inputs, outputs, n_outputs, *options)
    reads = _checked_channels("inputs", inputs, x.shape[1])
    writes = _checked_channels("outputs", outputs, n_outputs)
    if is_native(x, weight, out):
        task = ConvolutionTask(
            x_shape=tuple(x.shape),
            n_outputs=n_outputs,
            inputs=reads,
            outputs=writes,
            has_residual=residual is not None,
            options=wanted,
            threads=torch.get_num_threads(),
            isa=_native.chosen_isa(),
        )
        if run_packed(task, x, weight, bias, residual, out):
            return out
    result = _dense(x, weight, bias, residual, inputs, outputs, n_outputs, wanted)
    return with_strides_of(result, out)


def _cuda(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    residual: Tensor | None,
    inputs: Tensor,
    outputs: Tensor,
    n_outputs: int,
    *options: Any,
) -> Tensor:
    wanted, out = _checked(x, weight, bias, residual, inputs, outputs, n_outputs, *options)
    if is_native(x, weight, out) and _native.with_cuda:
        from causalprune.ops.channel_conv2d_cuda import channel_conv2d_cuda, channel_plan_cuda

        # The lists are kept with the plan, so that no other tensor gets to lie where they do.
        sizes = x.shape[1], n_outputs, wanted.groups
        key = _state_of(inputs), _state_of(outputs), *sizes
        kept = kept_plan(
            weight,
            None,
            key,
            lambda: (channel_plan_cuda(weight, inputs, outputs, *sizes), inputs, outputs),
        )
        if kept is not None:
            result = channel_conv2d_cuda(
                x,
                weight,
                bias,
                residual,
                inputs,
                outputs,
                n_outputs,
                wanted.stride,
                wanted.padding,
                wanted.dilation,
                wanted.groups,
                wanted.activation,
                kept[0],
            )
            return with_strides_of(result, out)
    _checked_channels("inputs", inputs, x.shape[1])
    _checked_channels("outputs", outputs, n_outputs)
    result = _dense(x, weight, bias, residual, inputs, outputs, n_outputs, wanted)
    return with_strides_of(result, out)


def _before_activation(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    residual: Tensor | None,
    inputs: Tensor,
    outputs: Tensor,
    n_outputs: int,
    options: ConvolutionOptions,
) -> Tensor:
    listed = dense_convolution(x.index_select(1, inputs), weight, bias, options)
    if residual is None:
        residual = listed.new_zeros([x.shape[0], n_outputs, *listed.shape[2:]])
    return residual.index_add(1, outputs, listed)


def _dense(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    residual: Tensor | None,
    inputs: Tensor,
    outputs: Tensor,
    n_outputs: int,
    options: ConvolutionOptions,
) -> Tensor:
    result = _before_activation(x, weight, bias, residual, inputs, outputs, n_outputs, options)
    return ACTIVATIONS[options.activation](result)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    *tensors, ctx.n_outputs, stride, padding, dilation, groups, activation = inputs
    ctx.options = convolution_options(stride, padding, dilation, groups, activation)
    ctx.save_for_backward(*tensors, output)


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    x, weight, bias, residual, inputs, outputs, out = ctx.saved_tensors
    options: ConvolutionOptions = ctx.options
    wanted = ctx.needs_input_grad

    def pre() -> Tensor:
        return _before_activation(
            x, weight, bias, residual, inputs, outputs, ctx.n_outputs, options
        )

    grad = activation_gradient(options.activation, grad, out, pre)
    listed = grad.index_select(1, outputs)
    by_read, by_weight = convolution_gradients(
        listed, x.index_select(1, inputs), weight, options, wanted[:2]
    )
    return (
        None if by_read is None else torch.zeros_like(x).index_add(1, inputs, by_read),
        by_weight,
        listed.sum((0, 2, 3)) if wanted[2] else None,
        grad if wanted[3] else None,
        *[None] * 8,
    )


def _state_of(tensor: Tensor) -> tuple[object, ...]:
    version = -1 if tensor.is_inference() else tensor._version
    return tensor.data_ptr(), tensor.stride(), tensor.shape, version


register_operator(
    "channel_conv2d",
    _SIGNATURE,
    kernels={"CPU": _cpu, "CUDA": _cuda},
    fake=_fake,
    setup_context=_setup_context,
    backward=_backward,
)
