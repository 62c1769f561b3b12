"""The input that a network is captured, measured and verified with."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from causalprune.errors import InvalidArgumentError

__all__ = ["example_of"]


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
