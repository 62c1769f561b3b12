"""What the convolution operators share: their options, checks, sizes, and the dense way."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

import torch
import torch.nn.functional as F
from torch import Tensor

from causalprune.errors import InvalidArgumentError

__all__ = [
    "ACTIVATIONS",
    "ConvolutionOptions",
    "activation_gradient",
    "as_pair",
    "check_activation",
    "check_convolution",
    "check_dense_layout",
    "convolution_gradients",
    "convolution_options",
    "dense_convolution",
    "empty_output",
    "is_native",
    "with_strides_of",
]

ACTIVATIONS: Mapping[str, Callable[[Tensor], Tensor]] = MappingProxyType(
    {
        "none": lambda z: z,
        "relu": F.relu,
        "relu6": F.relu6,
        "hardswish": F.hardswish,
        "silu": F.silu,
        "gelu": F.gelu,
    }
)

_LARGEST = 2**31 - 1


@dataclass(frozen=True)
class ConvolutionOptions:
    """A convolution without its tensors.

    Attributes
    ----------
    stride, padding, dilation : tuple of two int
        Along height and width.
    groups : int
    activation : str
        A key of ``ACTIVATIONS``.
    """

    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    groups: int
    activation: str


def convolution_options(
    stride: list[int], padding: list[int], dilation: list[int], groups: int, activation: str
) -> ConvolutionOptions:
    """Return the options that an operator was called with."""
    return ConvolutionOptions(tuple(stride), tuple(padding), tuple(dilation), groups, activation)


def as_pair(name: str, value: int | tuple[int, int]) -> list[int]:
    """Return two ints, for height and width.

    Raises
    ------
    InvalidArgumentError
        If `value` is neither an int nor two of them.
    """
    pair = [value, value] if isinstance(value, int) else value
    if (
        not isinstance(pair, tuple | list)
        or len(pair) != 2
        or not all(isinstance(size, int) for size in pair)
    ):
        raise InvalidArgumentError(f"{name}: expected an int or two ints, got {value!r}")
    return list(pair)


def check_dense_layout(**tensors: Tensor | None) -> None:
    """Raise InvalidArgumentError for what no kernel would ever see: no tensor, or a sparse one."""
    for name, tensor in tensors.items():
        if tensor is None and name in ("bias", "residual"):
            continue
        if not isinstance(tensor, Tensor):
            raise InvalidArgumentError(f"{name}: expected a tensor, got {type(tensor).__name__}")
        if tensor.layout != torch.strided:
            raise InvalidArgumentError(f"{name}: expected a dense tensor, got {tensor.layout}")


def check_activation(activation: str) -> None:
    """Raise InvalidArgumentError unless there is an activation of this name."""
    if activation not in ACTIVATIONS:
        raise InvalidArgumentError(
            f"activation: expected one of {', '.join(ACTIVATIONS)}, got {activation!r}"
        )


def check_convolution(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    residual: Tensor | None,
    options: ConvolutionOptions,
    *,
    n_inputs: int | None = None,
    n_outputs: int | None = None,
) -> list[int]:
    """Return the shape of a convolution's result after checking metadata alone.

    Parameters
    ----------
    x, weight, bias, residual : Tensor
    options : ConvolutionOptions
    n_inputs : int, optional
        Channels of `x` that are read, if not all.
    n_outputs : int, optional
        Channels of the result, if not those of `weight`.

    Returns
    -------
    list of int
        ``[N, n_outputs, Ho, Wo]``.

    Raises
    ------
    InvalidArgumentError
        Naming the argument, what was expected and what came.
    """
    _check_kinds(x=x, weight=weight, bias=bias, residual=residual)
    _check_options(options)
    for name, tensor, wanted in (
        ("x", x, "[N, I, H, W]"),
        ("weight", weight, "[O, I / groups, kh, kw]"),
    ):
        if tensor.ndim != 4:
            raise InvalidArgumentError(f"{name}: expected {wanted}, got {list(tensor.shape)}")
    groups = options.groups
    n_inputs = x.shape[1] if n_inputs is None else n_inputs
    n_outputs = weight.shape[0] if n_outputs is None else n_outputs
    if n_inputs % groups != 0 or weight.shape[0] % groups != 0:
        raise InvalidArgumentError(
            f"groups: expected a divisor of {n_inputs} input and {weight.shape[0]} output "
            f"channels, got {groups}"
        )
    if weight.shape[1] != n_inputs // groups:
        raise InvalidArgumentError(
            f"weight: expected {n_inputs // groups} channels along dimension 1 for {n_inputs} "
            f"input channels in {groups} groups, got shape {list(weight.shape)}"
        )
    if bias is not None and (bias.ndim != 1 or bias.shape[0] != weight.shape[0]):
        raise InvalidArgumentError(
            f"bias: expected shape [{weight.shape[0]}], got {list(bias.shape)}"
        )
    shape = [x.shape[0], n_outputs, *_output_size(x, weight, options)]
    if residual is not None and list(residual.shape) != shape:
        raise InvalidArgumentError(
            f"residual: expected shape {shape}, as the result has, got {list(residual.shape)}"
        )
    return shape


def _check_kinds(x: Tensor, **others: Tensor | None) -> None:
    if not x.is_floating_point():
        raise InvalidArgumentError(f"x: expected a floating-point dtype, got {x.dtype}")
    if x.device.type not in ("cpu", "cuda", "meta"):
        raise InvalidArgumentError(f"x: expected a CPU or CUDA tensor, got one on {x.device}")
    for name, tensor in others.items():
        if tensor is None:
            continue
        if tensor.dtype != x.dtype:
            raise InvalidArgumentError(
                f"{name}: expected dtype {x.dtype}, as x has, got {tensor.dtype}"
            )
        if tensor.device != x.device:
            raise InvalidArgumentError(
                f"{name}: expected a tensor on {x.device}, as x is, got one on {tensor.device}"
            )


def _check_options(options: ConvolutionOptions) -> None:
    check_activation(options.activation)
    for name, pair, least in (
        ("stride", options.stride, 1),
        ("padding", options.padding, 0),
        ("dilation", options.dilation, 1),
    ):
        if not all(least <= size <= _LARGEST for size in pair):
            raise InvalidArgumentError(
                f"{name}: expected at least {least} and below 2**31, got {pair}"
            )
    if not 1 <= options.groups <= _LARGEST:
        raise InvalidArgumentError(f"groups: expected an int of at least 1, got {options.groups}")


def _output_size(x: Tensor, weight: Tensor, options: ConvolutionOptions) -> list[int]:
    found = []
    for axis, name in ((0, "height"), (1, "width")):
        kernel = weight.shape[2 + axis]
        if kernel < 1:
            raise InvalidArgumentError(
                f"weight: expected a kernel of at least 1 x 1, got shape {list(weight.shape)}"
            )
        reach = options.dilation[axis] * (kernel - 1) + 1
        padded = x.shape[2 + axis] + 2 * options.padding[axis]
        if padded < reach:
            raise InvalidArgumentError(
                f"x: expected a padded {name} of at least {reach}, which the kernel covers, "
                f"got {padded}"
            )
        found.append((padded - reach) // options.stride[axis] + 1)
    return found


def empty_output(x: Tensor, shape: list[int]) -> Tensor:
    """Return memory for the result: in ``torch.channels_last`` where `x` is, as torch does."""
    last = x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous()
    memory_format = torch.channels_last if last else torch.contiguous_format
    return torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=memory_format)


def is_native(x: Tensor, weight: Tensor, out: Tensor) -> bool:
    """Whether the native kernels take these tensors: float32, and none of them empty."""
    return x.dtype == torch.float32 and min(x.numel(), weight.numel(), out.numel()) > 0


def with_strides_of(result: Tensor, out: Tensor) -> Tensor:
    """Return `result`, or a copy in the memory of `out` if that has other strides."""
    return result if result.stride() == out.stride() else out.copy_(result)


def dense_convolution(
    x: Tensor, weight: Tensor, bias: Tensor | None, options: ConvolutionOptions
) -> Tensor:
    """Return the convolution of `options` without its activation, by torch.

    torch refuses some tensors without numbers; there the result is the bias.
    """
    if x.numel() > 0 and weight.numel() > 0:
        geometry = options.stride, options.padding, options.dilation
        return F.conv2d(x, weight, bias, *geometry, options.groups)
    zeros = x.new_zeros([x.shape[0], weight.shape[0], *_output_size(x, weight, options)])
    return zeros if bias is None else zeros + bias[:, None, None]


def convolution_gradients(
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    options: ConvolutionOptions,
    wanted: tuple[bool, bool],
) -> tuple[Tensor | None, Tensor | None]:
    """Return the derivatives of `dense_convolution` by `x` and by `weight`, of those wanted."""
    if x.numel() > 0 and weight.numel() > 0 and grad.numel() > 0:
        geometry = list(options.stride), list(options.padding), list(options.dilation)
        by_x, by_weight, _ = torch.ops.aten.convolution_backward(
            grad, x, weight, None, *geometry, False, [0, 0], options.groups, [*wanted, False]
        )
        return by_x, by_weight
    return (
        torch.zeros_like(x) if wanted[0] else None,
        torch.zeros_like(weight) if wanted[1] else None,
    )


def activation_gradient(
    name: str, grad: Tensor, out: Tensor | None, pre: Callable[[], Tensor]
) -> Tensor:
    """Return the derivative by what enters the activation.

    Parameters
    ----------
    name : str
    grad : Tensor
        Derivative by what comes out of it.
    out : Tensor, optional
        What came out; needed by "relu" and "relu6".
    pre : callable
        Computes what entered; called for the smooth activations only.
    """
    aten = torch.ops.aten
    result: Tensor
    if name == "none":
        return grad
    if name == "relu":
        result = aten.threshold_backward(grad, out, 0)
    elif name == "relu6":
        result = aten.hardtanh_backward(grad, out, 0.0, 6.0)
    elif name == "hardswish":
        result = aten.hardswish_backward(grad, pre())
    elif name == "silu":
        z = pre()
        sigmoid = z.sigmoid()  # torch's own silu_backward has no derivative
        result = grad * sigmoid * (1 + z * (1 - sigmoid))
    else:
        result = aten.gelu_backward(grad, pre())
    return result
