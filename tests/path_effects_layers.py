"""Layers, inputs and the tolerance of the path_effects tests."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from causalprune import _native, reference
from causalprune.ops import path_effects

ACTIVATIONS = ("identity", "relu", "gelu", "silu", "hardswish")
ISAS = tuple(_native.available_isas())


@contextmanager
def instruction_set(name: str) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CAUSALPRUNE_ISA", name)
        assert _native.chosen_isa() == name
        yield


def generator(*seed: object) -> torch.Generator:
    return torch.Generator().manual_seed(sum(map(ord, repr(seed))))


def conv_inputs(
    x_shape: tuple[int, int, int, int],
    n_outputs: int,
    kernel: tuple[int, int],
    *,
    signed: bool = False,
    seed: object = 0,
    **geometry: Any,
) -> dict[str, Tensor]:
    """x (behind a ReLU unless signed), weight, pre and grad of a convolution."""
    random = generator(x_shape, n_outputs, kernel, seed)
    x = torch.randn(x_shape, generator=random)
    x = x if signed else x.relu()
    inner = x_shape[1] // geometry.get("groups", 1)
    weight = torch.randn(n_outputs, inner, *kernel, generator=random)
    weight /= max(1, inner * kernel[0] * kernel[1]) ** 0.5
    pre = nn.functional.conv2d(x, weight, **geometry)
    pre = pre + 0.5 * torch.randn(pre.shape, generator=random)
    return {"x": x, "weight": weight, "pre": pre, "grad": torch.randn(pre.shape, generator=random)}


def as_images(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """A linear layer's tensors as those of a 1x1 convolution, as the oracle takes them."""
    images = {}
    for name, tensor in tensors.items():
        if tensor.ndim == 3:
            tensor = tensor.transpose(1, 2)
        images[name] = tensor[(...,) + (None,) * (4 - tensor.ndim)]
    return images


def unit_scale(tensors: dict[str, Tensor], grad: Tensor | None, **options: Any) -> Tensor:
    """No less than the sum of |grad d| behind each unit effect [N, I]."""
    x, weight, pre = tensors["x"], tensors["weight"], tensors["pre"]
    groups = options.get("groups", 1)
    rows = []
    for n in range(x.shape[0]):
        edge, _ = reference.path_effects(x[n : n + 1], weight, pre[n : n + 1], **options)
        rows.append(edge[..., 1].unflatten(0, (groups, -1)).sum(1).flatten())
    largest = 1.0 if grad is None or grad.numel() == 0 else grad.abs().max().item()
    return torch.stack(rows) * largest if rows else x.new_zeros(0, x.shape[1]).double()


def tolerance(scale: Tensor, dims: tuple[int, ...]) -> Tensor:
    """1e-5 of each sum's own terms, and 1e-6 of the layer's largest.

    The second term is for edges of nearly no weight, where phi(pre - c) - phi(pre) cancels.
    """
    if scale.numel() == 0:
        return scale
    return 1e-5 * scale + 1e-6 * scale.amax(dims, keepdim=True)


def assert_agrees(tensors: dict[str, Tensor], *, with_grad: bool = True, **options: Any) -> None:
    """The operator on every instruction set against the float64 oracle, on the same tensors."""
    images = as_images(tensors) if tensors["weight"].ndim == 2 else tensors
    grad = images["grad"] if with_grad else None
    edge, unit = reference.path_effects(
        images["x"], images["weight"], images["pre"], grad, **options
    )
    largest = 1.0 if grad is None or grad.numel() == 0 else grad.abs().max().item()
    absolute, square = edge[..., 1], edge[..., 2]
    edge_scale = torch.stack([absolute, absolute, square, absolute * largest], -1)
    edge_bound = tolerance(edge_scale, (0, 1))
    unit_bound = tolerance(unit_scale(images, grad, **options), (0, 1))
    given_grad = tensors["grad"] if with_grad else None
    for isa in ISAS:
        with instruction_set(isa):
            given = (tensors["x"], tensors["weight"], tensors["pre"], given_grad)
            got = path_effects(*given, **options)
            alone = path_effects(*given, **options, statistics="grad_weighted")
        assert got.edge.dtype == got.unit.dtype == torch.float64
        assert got.edge.shape == edge.shape and got.unit.shape == unit.shape
        assert got.edge.is_contiguous() and got.unit.is_contiguous()
        assert torch.equal(alone.edge, got.edge[..., -1:]) and torch.equal(alone.unit, got.unit)
        excess = (got.edge - edge).abs() - edge_bound
        assert (excess <= 0).all(), f"{isa}: edge off by {excess.max().item()} more than allowed"
        excess = (got.unit - unit).abs() - unit_bound
        assert (excess <= 0).all(), f"{isa}: unit off by {excess.max().item()} more than allowed"


LAYERS: dict[str, tuple[Any, ...]] = {
    "1 to 1": ((1, 1, 1, 1), 1, (1, 1), {}),
    "15 to 33, 1x1": ((2, 15, 5, 6), 33, (1, 1), {}),
    "97 to 15, 1x1": ((1, 97, 4, 4), 15, (1, 1), {}),
    "3 to 97, 3x3": ((2, 3, 7, 6), 97, (3, 3), {"padding": 1}),
    "33 to 15, 3x3": ((1, 33, 9, 9), 15, (3, 3), {}),
    "5x5": ((2, 3, 9, 11), 17, (5, 5), {"padding": 2}),
    "7x7 stride 2": ((1, 3, 23, 22), 16, (7, 7), {"stride": 2, "padding": 3}),
    "1x3": ((2, 4, 6, 17), 15, (1, 3), {"padding": (0, 1)}),
    "3x1": ((2, 4, 17, 6), 15, (3, 1), {"padding": (1, 0), "stride": (2, 1)}),
    "1x1 stride 2": ((2, 5, 9, 8), 17, (1, 1), {"stride": 2}),
    "1x1 padded": ((2, 5, 3, 4), 17, (1, 1), {"padding": (2, 1)}),
    "stride 1x3": ((1, 4, 9, 20), 18, (3, 3), {"stride": (1, 3), "padding": (0, 2)}),
    "dilation 2x3": ((2, 3, 11, 13), 15, (3, 3), {"dilation": (2, 3), "padding": (2, 1)}),
    "4 groups": ((2, 12, 6, 7), 20, (3, 3), {"groups": 4, "padding": 1}),
    "3 groups, 1x1": ((2, 9, 5, 5), 51, (1, 1), {"groups": 3}),
    "depthwise": ((2, 33, 7, 7), 33, (3, 3), {"groups": 33, "padding": 1}),
    "depthwise times 2": ((1, 15, 8, 7), 30, (3, 3), {"groups": 15, "stride": 2}),
    "tile spans images": ((33, 5, 2, 3), 15, (1, 1), {}),
    "one pixel, 3x3": ((5, 6, 1, 1), 17, (3, 3), {"padding": 1}),
    "wide, 3x3": ((1, 2, 4, 301), 15, (3, 3), {"padding": 1}),
    "wide, 1x1": ((1, 3, 3, 301), 33, (1, 1), {}),
    "many positions": ((2, 1, 70, 70), 3, (3, 3), {}),
    "300 inputs": ((2, 300, 3, 3), 17, (3, 3), {"padding": 1}),
}


def strided(tensor: Tensor, how: str) -> Tensor:
    """The same values in another layout of memory."""
    if how == "channels_last":
        return tensor.contiguous(memory_format=torch.channels_last)
    if how == "transposed":
        return tensor.transpose(2, 3).contiguous().transpose(2, 3)
    if how == "gaps":
        shape = [2 * size for size in tensor.shape]
        target = tensor.new_full(shape, float("nan"))[::2, ::2, 1::2, ::2]
        return target.copy_(tensor)
    assert how == "batch innermost"
    return tensor.permute(1, 2, 3, 0).contiguous().permute(3, 0, 1, 2)
