"""Shapes and peers of the path_effects benchmark: what a user would write without the operator."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

import torch
import torch.nn.functional as F
from torch import Tensor

from causalprune.ops import path_effects


@dataclass(frozen=True)
class Shape:
    name: str
    images: int
    inputs: int
    outputs: int
    size: int
    kernel: int

    @property
    def multiply_adds(self) -> int:
        per_position = self.inputs * self.outputs * self.kernel**2
        return self.images * self.size**2 * per_position


SHAPES = (
    Shape("resnet20 16x32x32", 64, 16, 16, 32, 3),
    Shape("resnet20 64x8x8", 64, 64, 64, 8, 3),
    Shape("resnet50 64x56x56", 4, 64, 64, 56, 3),
    Shape("resnet50 128x28x28", 8, 128, 128, 28, 3),
    Shape("resnet50 256x14x14", 8, 256, 256, 14, 3),
    Shape("resnet50 512x7x7", 8, 512, 512, 7, 3),
    Shape("resnet50 1x1 64-256 56x56", 8, 64, 256, 56, 1),
    Shape("resnet50 1x1 256-64 56x56", 8, 256, 64, 56, 1),
    Shape("resnet50 1x1 1024-256 14x14", 16, 1024, 256, 14, 1),
    Shape("resnet50 1x1 512-2048 7x7", 64, 512, 2048, 7, 1),
)


@dataclass(frozen=True)
class Layer:
    """One layer behind a ReLU: its input, its weight, what enters its activation, a gradient."""

    shape: Shape
    x: Tensor
    weight: Tensor
    pre: Tensor
    grad: Tensor

    @property
    def padding(self) -> int:
        return self.shape.kernel // 2


def layer(shape: Shape, *, rectified: bool = True) -> Layer:
    generator = torch.Generator().manual_seed(shape.inputs + shape.size)

    def draw(*size: int) -> Tensor:
        return torch.randn(*size, generator=generator)

    x = draw(shape.images, shape.inputs, shape.size, shape.size)
    fan_in = shape.inputs * shape.kernel**2
    weight = draw(shape.outputs, shape.inputs, shape.kernel, shape.kernel) * (2 / fan_in) ** 0.5
    x = x.relu() if rectified else x
    pre = F.conv2d(x, weight, draw(shape.outputs) * 0.1, padding=shape.kernel // 2)
    return Layer(shape, x, weight, pre, draw(*pre.shape))


def forward_nchw(given: Layer) -> Callable[[], object]:
    return lambda: F.conv2d(given.x, given.weight, padding=given.padding)


def forward_channels_last(given: Layer) -> Callable[[], object]:
    x = given.x.contiguous(memory_format=torch.channels_last)
    weight = given.weight.contiguous(memory_format=torch.channels_last)
    return lambda: F.conv2d(x, weight, padding=given.padding)


def native(given: Layer) -> Callable[[], object]:
    return lambda: path_effects(given.x, given.weight, given.pre, given.grad, padding=given.padding)


def native_weighted(given: Layer) -> Callable[[], object]:
    """Only the statistic that scores read."""
    return lambda: path_effects(
        given.x,
        given.weight,
        given.pre,
        given.grad,
        padding=given.padding,
        statistics="grad_weighted",
    )


def _statistics(change: Tensor, grad: Tensor, dims: tuple[int, ...]) -> tuple[Tensor, ...]:
    weighted = change * grad
    return (
        change.sum(dims),
        change.abs().sum(dims),
        change.square().sum(dims),
        weighted.sum(dims),
        weighted.flatten(1).sum(1),
    )


def naive_loop(given: Layer, channels: int | None = None) -> Callable[[], object]:
    """One convolution for each input channel, then the activation and the sums.

    `channels` bounds the loop, so that a slow peer can be timed on part of it and scaled.
    """

    def run() -> None:
        after = given.pre.relu()
        for i in range(given.shape.inputs if channels is None else channels):
            one = F.conv2d(given.x[:, i : i + 1], given.weight[:, i : i + 1], padding=given.padding)
            _statistics((given.pre - one).relu_().sub_(after), given.grad, (0, 2, 3))

    return run


def grouped(given: Layer, images: int | None = None) -> Callable[[], object]:
    """Every contribution [N, I, O, H, W] materialised by one grouped convolution, by image."""
    shape = given.shape
    weight = given.weight.transpose(0, 1).reshape(-1, 1, shape.kernel, shape.kernel).contiguous()

    def run() -> None:
        for n in range(shape.images if images is None else images):
            x, pre = given.x[n : n + 1], given.pre[n : n + 1, None]
            contribution = F.conv2d(x, weight, padding=given.padding, groups=shape.inputs)
            contribution = contribution.view(1, shape.inputs, shape.outputs, *pre.shape[-2:])
            change = (pre - contribution).relu_().sub_(pre.relu())
            _statistics(change, given.grad[n : n + 1, None], (0, 3, 4))

    return run


PEERS: Mapping[str, Callable[[Layer], Callable[[], object]]] = MappingProxyType(
    {
        "forward (NCHW)": forward_nchw,
        "forward (channels_last)": forward_channels_last,
        "path_effects": native,
        "path_effects, grad_weighted": native_weighted,
    }
)
