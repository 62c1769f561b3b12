"""Convolutions of known networks that kernels are timed on, and torch's ways to run them."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["LAYERS", "ConvolutionLayer", "dense_alternatives", "layer_tensors"]


@dataclass(frozen=True)
class ConvolutionLayer:
    """A convolution of stride 1 that keeps the size of its input.

    Attributes
    ----------
    name : str
    inputs, outputs : int
        Channels.
    size : int
        Height and width.
    kernel : int
    """

    name: str
    inputs: int
    outputs: int
    size: int
    kernel: int

    @property
    def padding(self) -> int:
        """What keeps the size."""
        return self.kernel // 2

    def multiply_adds(self, images: int) -> int:
        """Weights times output positions, those at the border included."""
        return images * self.size**2 * self.outputs * self.inputs * self.kernel**2


LAYERS = (
    ConvolutionLayer("ResNet-20 16x32x32", 16, 16, 32, 3),
    ConvolutionLayer("ResNet-20 32x16x16", 32, 32, 16, 3),
    ConvolutionLayer("ResNet-20 64x8x8", 64, 64, 8, 3),
    ConvolutionLayer("ResNet-50 64x56x56", 64, 64, 56, 3),
    ConvolutionLayer("ResNet-50 128x28x28", 128, 128, 28, 3),
    ConvolutionLayer("ResNet-50 256x14x14", 256, 256, 14, 3),
    ConvolutionLayer("ResNet-50 512x7x7", 512, 512, 7, 3),
    ConvolutionLayer("ResNet-50 1x1 256-64 56x56", 256, 64, 56, 1),
    ConvolutionLayer("ResNet-50 1x1 1024-256 14x14", 1024, 256, 14, 1),
    ConvolutionLayer("ResNet-50 1x1 512-2048 7x7", 512, 2048, 7, 1),
)


def layer_tensors(
    layer: ConvolutionLayer, batch: int, generator: torch.Generator
) -> tuple[Tensor, Tensor, Tensor]:
    """Draw an input, a weight and a bias from normal distributions, float32, CPU.

    Parameters
    ----------
    layer : ConvolutionLayer
    batch : int
        Images.
    generator : torch.Generator

    Returns
    -------
    x : Tensor [N, I, H, W]
    weight : Tensor [O, I, k, k]
        Scaled so that outputs vary about as much as inputs.
    bias : Tensor [O]

    Examples
    --------
    >>> x, weight, bias = layer_tensors(LAYERS[0], 2, torch.Generator())
    >>> list(x.shape), list(weight.shape), list(bias.shape)
    ([2, 16, 32, 32], [16, 16, 3, 3], [16])
    """
    shape = (layer.outputs, layer.inputs, layer.kernel, layer.kernel)
    scale = 1 / math.sqrt(layer.inputs * layer.kernel**2)
    return (
        torch.randn(batch, layer.inputs, layer.size, layer.size, generator=generator),
        torch.randn(shape, generator=generator) * scale,
        torch.randn(layer.outputs, generator=generator),
    )


def dense_alternatives(x: Tensor, weight: Tensor, bias: Tensor) -> dict[str, Callable[[], object]]:
    """Return torch's ways to run a convolution that keeps its size, in float32.

    Parameters
    ----------
    x : Tensor [N, I, H, W], float32, CPU
    weight : Tensor [O, I, k, k]
    bias : Tensor [O]
    """
    padding = weight.shape[-1] // 2
    last_x = x.contiguous(memory_format=torch.channels_last)
    last_weight = weight.contiguous(memory_format=torch.channels_last)
    found: dict[str, Callable[[], object]] = {
        "nchw": lambda: F.conv2d(x, weight, bias, padding=padding),
        "channels_last": lambda: F.conv2d(last_x, last_weight, bias, padding=padding),
    }
    if torch._C._has_mkldnn:
        pair = (padding, padding)
        reorder: Any = torch._C._nn.mkldnn_reorder_conv2d_weight  # its stub lacks the input's shape
        packed = reorder(weight.to_mkldnn(), pair, (1, 1), (1, 1), 1, list(x.shape))
        own = x.to_mkldnn()
        found["prepacked"] = lambda: torch.conv2d(own, packed, bias, padding=pair)
    return found
