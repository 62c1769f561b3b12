"""The input that a network is captured, measured and verified with."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from causalprune.errors import InvalidArgumentError

__all__ = ["example_of", "probes"]

MORE_PROBES = 5
"""On one image all rectifiers behind a narrow layer may be shut, which hides any wrong slice."""


def example_of(
    model: nn.Module, shape: Sequence[int], dtype: str, example: Tensor | None = None
) -> Tensor:
    """Return one image on the model's device: the first of `example`, or noise of `shape`."""
    tensor = next(iter([*model.parameters(), *model.buffers()]), None)
    device = torch.device("cpu") if tensor is None else tensor.device
    if example is not None:
        if not isinstance(example, Tensor) or example.ndim < 2 or len(example) < 1:
            raise InvalidArgumentError("example: expected a batch of inputs [N, ...]")
        return example[:1].to(device)
    noise = torch.randn(tuple(shape), generator=torch.Generator().manual_seed(0))
    return noise.to(device, getattr(torch, dtype))


def probes(image: Tensor) -> Iterator[Tensor]:
    """Yield `image`, then noise of its mean and spread, one image at a time (a network may insist).

    Images that are not of floating-point numbers come alone: what numbers they may hold is unknown.
    """
    yield image
    if not image.is_floating_point():
        return
    generator = torch.Generator().manual_seed(1)
    mean, spread = image.double().mean(), image.double().std(correction=0)
    for _ in range(MORE_PROBES):
        noise = torch.randn(image.shape, generator=generator, dtype=torch.float64)
        yield (mean + (spread if spread > 0 else 1.0) * noise.to(image.device)).to(image.dtype)
