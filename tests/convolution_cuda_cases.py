"""Shapes, draws and the float64 definition that the tests of the CUDA convolutions share."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

ACTIVATIONS = ("none", "relu", "relu6", "hardswish", "silu", "gelu")


@dataclass(frozen=True)
class Geometry:
    images: int
    inputs: int
    outputs: int
    size: tuple[int, int]
    kernel: tuple[int, int] = (3, 3)
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int] = (1, 1)
    dilation: tuple[int, int] = (1, 1)
    groups: int = 1

    @property
    def options(self) -> tuple[object, ...]:
        return self.stride, self.padding, self.dilation, self.groups


# One for each way through the kernels: every row distance that has a kernel of its own and others,
# flat tiles, maps of seven and of eight rows, one tile and many, one block of outputs and several.
GEOMETRIES = [
    Geometry(2, 3, 5, (7, 9)),
    Geometry(3, 15, 33, (14, 14)),
    Geometry(9, 40, 150, (28, 30)),
    Geometry(2, 70, 65, (16, 16)),
    Geometry(2, 33, 17, (9, 11), kernel=(1, 1), padding=(0, 0)),
    Geometry(3, 130, 129, (13, 7), kernel=(1, 1), stride=(2, 2), padding=(0, 0)),
    Geometry(2, 8, 12, (13, 10), stride=(2, 2)),
    Geometry(2, 20, 24, (56, 57), stride=(2, 2), groups=2),
    Geometry(2, 8, 12, (13, 10), padding=(2, 2), dilation=(2, 2), groups=4),
    Geometry(1, 6, 16, (14, 14), kernel=(5, 5), padding=(0, 0)),
    Geometry(2, 16, 16, (9, 9), groups=16),
    Geometry(3, 70, 140, (15, 8), groups=70),
    Geometry(33, 15, 97, (1, 1), kernel=(1, 1), padding=(0, 0)),
    Geometry(2, 15, 97, (1, 1), kernel=(1, 1), padding=(0, 0)),
    Geometry(5, 2, 3, (40, 33), kernel=(7, 7), stride=(2, 2), padding=(3, 3)),
    Geometry(2, 4, 9, (31, 20), kernel=(2, 5), stride=(3, 1), padding=(1, 2), dilation=(3, 2)),
    Geometry(1, 2, 3, (130, 140), dilation=(60, 64)),
    Geometry(1, 3, 40, (64, 48), kernel=(16, 16), stride=(16, 16), padding=(0, 0)),
]


def draw(geometry: Geometry) -> tuple[Tensor, Tensor, Tensor]:
    """x, weight and bias."""
    g = geometry
    x = torch.randn(g.images, g.inputs, *g.size, device="cuda")
    fan_in = g.inputs // g.groups * g.kernel[0] * g.kernel[1]
    weight = torch.randn(g.outputs, g.inputs // g.groups, *g.kernel, device="cuda") / fan_in**0.5
    return x, weight, torch.randn(g.outputs, device="cuda")


def activated(value: Tensor, activation: str) -> Tensor:
    return value if activation == "none" else getattr(F, activation)(value)


def definition(
    x: Tensor, weight: Tensor, bias: Tensor | None, geometry: Geometry
) -> tuple[Tensor, Tensor]:
    """The convolution in float64 on the CPU, and the sums of absolute terms behind it."""
    x, weight = x.double().cpu(), weight.double().cpu()
    bias = None if bias is None else bias.double().cpu()
    options = geometry.options
    size = F.conv2d(x.abs(), weight.abs(), None if bias is None else bias.abs(), *options)
    return F.conv2d(x, weight, bias, *options), size


def agree(found: Tensor, expected: Tensor, size: Tensor) -> None:
    assert found.dtype == torch.float32
    assert found.shape == expected.shape
    assert bool(((found.double().cpu() - expected).abs() <= 1e-5 * (size + 1)).all())
