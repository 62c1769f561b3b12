"""Images that the tests of corruptions share; deterministic from their seed."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional


def smooth_images(count: int, channels: int, height: int, width: int, seed: int = 0) -> Tensor:
    coarse = torch.rand(count, channels, 7, 7, generator=torch.Generator().manual_seed(seed))
    return functional.interpolate(coarse, (height, width), mode="bicubic").clamp(0.0, 1.0)
