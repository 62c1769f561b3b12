"""A convolution that skips the zeros of its weight."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from causalprune import _native
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

__all__ = ["sparse_conv2d"]

_SIGNATURE = (
    "(Tensor x, Tensor weight, Tensor? bias, Tensor? residual, int[2] stride, int[2] padding, "
    "int[2] dilation, int groups, str activation) -> Tensor"
)


def sparse_conv2d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    stride: int | tuple[int, int] = 1,
    padding: int | tuple[int, int] = 0,
    dilation: int | tuple[int, int] = 1,
    groups: int = 1,
    activation: str = "none",
    residual: Tensor | None = None,
) -> Tensor:
    r"""Return ``activation(conv2d(x, weight) + bias + residual)``, skipping zeros of `weight`.

    Any pattern of zeros will do; the weight stays an ordinary dense tensor. float32 runs natively,
    on the CPU and, in builds with CUDA kernels, on CUDA; other dtypes run dense by torch. The first
    call for a weight and a shape times ways to run (up to a second for large layers); what is
    found is kept as :mod:`causalprune.ops.plan_cache` says. Writes to the weight are noticed,
    except those through ``weight.data`` or NumPy: call
    :func:`causalprune.ops.plan_cache.forget_plans` after them.

    Parameters
    ----------
    x : Tensor [N, I, H, W], floating point, CPU or CUDA
        Any strides.
    weight : Tensor [O, I / groups, kh, kw]
        dtype and device of `x`, as all that follow. All zero is allowed.
    bias : Tensor [O], optional
    stride, padding, dilation : int or pair of int
    groups : int
        As in :func:`torch.nn.functional.conv2d`.
    activation : {"none", "relu", "relu6", "hardswish", "silu", "gelu"}
        "gelu" is the exact form (erf).
    residual : Tensor [N, O, Ho, Wo], optional
        Added before the activation.

    Returns
    -------
    Tensor [N, O, Ho, Wo]
        dtype and device of `x`; in ``torch.channels_last`` if `x` is. Within 1e-6 (CPU) or 1e-5
        (CUDA) of the sum of absolute terms; on the CPU the same bits for any number of threads.

    Raises
    ------
    InvalidArgumentError
        (a ``ValueError``) naming the argument: a wrong dtype, device, shape, option or activation.
    MemoryError
        If there is no room for the packed tensors.

    Notes
    -----
    NaN and infinities in `x`, `weight`, `bias` and `residual` propagate. A zero weight is not
    there, so 0 * inf need not give NaN: the CPU runs tensors with such values dense, where it does;
    CUDA skips the zero, so that it does not.

    The derivative is that of the dense convolution, computed by torch; smooth activations repeat
    the convolution for it. By `weight` it is zero where the weight is zero: pruned weights stay
    zero under every optimiser that starts from an empty state, with or without weight decay.

    Examples
    --------
    >>> x = torch.randn(2, 3, 8, 8)
    >>> weight = torch.randn(4, 3, 3, 3)
    >>> weight[weight.abs() < 1.5] = 0
    >>> got = sparse_conv2d(x, weight, padding=1, activation="relu")
    >>> torch.allclose(got, torch.nn.functional.conv2d(x, weight, padding=1).relu(), atol=1e-5)
    True
    """
    check_dense_layout(x=x, weight=weight, bias=bias, residual=residual)
    check_activation(activation)
    geometry = as_pair("stride", stride), as_pair("padding", padding), as_pair("dilation", dilation)
    result: Tensor = torch.ops.causalprune.sparse_conv2d(
        x, weight, bias, residual, *geometry, groups, activation
    )
    return result


def _checked(
    x: Tensor, weight: Tensor, bias: Tensor | None, residual: Tensor | None, *options: Any
) -> tuple[ConvolutionOptions, Tensor]:
    """Return the options, and memory for the result."""
    wanted = convolution_options(*options)
    shape = check_convolution(x, weight, bias, residual, wanted)
    return wanted, empty_output(x, shape)


def _fake(*arguments: Any) -> Tensor:
    return _checked(*arguments)[1]


def _cpu(
    x: Tensor, weight: Tensor, bias: Tensor | None, residual: Tensor | None, *options: Any
) -> Tensor:
    wanted, out = _checked(x, weight, bias, residual, *options)
    if is_native(x, weight, out):
        task = ConvolutionTask(
            x_shape=tuple(x.shape),
            n_outputs=out.shape[1],
            inputs=None,
            outputs=None,
            has_residual=residual is not None,
            options=wanted,
            threads=torch.get_num_threads(),
            isa=_native.chosen_isa(),
        )
        if run_packed(task, x, weight, bias, residual, out):
            return out
    return with_strides_of(_dense(x, weight, bias, residual, wanted), out)


def _cuda(
    x: Tensor, weight: Tensor, bias: Tensor | None, residual: Tensor | None, *options: Any
) -> Tensor:
    wanted, out = _checked(x, weight, bias, residual, *options)
    # Beyond these sizes a tap does not fit into the lists of the CUDA kernel.
    fits = max(weight.shape[2:]) <= 64 and weight.shape[1] <= 2**20
    if fits and is_native(x, weight, out) and _native.with_cuda:
        from causalprune.ops.sparse_conv2d_cuda import sparse_conv2d_cuda, sparse_plan_cuda

        groups = wanted.groups
        plan = kept_plan(weight, None, groups, lambda: sparse_plan_cuda(weight, groups))
        if plan is not None:
            result = sparse_conv2d_cuda(
                x,
                weight,
                bias,
                residual,
                wanted.stride,
                wanted.padding,
                wanted.dilation,
                groups,
                wanted.activation,
                plan,
            )
            return with_strides_of(result, out)
    return with_strides_of(_dense(x, weight, bias, residual, wanted), out)


def _before_activation(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    residual: Tensor | None,
    options: ConvolutionOptions,
) -> Tensor:
    result = dense_convolution(x, weight, bias, options)
    return result if residual is None else result + residual


def _dense(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    residual: Tensor | None,
    options: ConvolutionOptions,
) -> Tensor:
    return ACTIVATIONS[options.activation](_before_activation(x, weight, bias, residual, options))


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, weight, bias, residual, *options = inputs
    ctx.options = convolution_options(*options)
    ctx.save_for_backward(x, weight, bias, residual, output)


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    x, weight, bias, residual, out = ctx.saved_tensors
    options: ConvolutionOptions = ctx.options
    wanted = ctx.needs_input_grad

    def pre() -> Tensor:
        return _before_activation(x, weight, bias, residual, options)

    grad = activation_gradient(options.activation, grad, out, pre)
    by_x, by_weight = convolution_gradients(grad, x, weight, options, wanted[:2])
    return (
        by_x,
        None if by_weight is None else by_weight.masked_fill(weight == 0, 0),
        grad.sum((0, 2, 3)) if wanted[2] else None,
        grad if wanted[3] else None,
        *[None] * 5,
    )


register_operator(
    "sparse_conv2d",
    _SIGNATURE,
    kernels={"CPU": _cpu, "CUDA": _cuda},
    fake=_fake,
    setup_context=_setup_context,
    backward=_backward,
)
