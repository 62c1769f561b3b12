"""What the tests of explanatory graphs share."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def predicted(model: nn.Module, n: int = 90) -> tuple[tuple[Tensor, Tensor], int, Tensor]:
    """Fresh images with the network's own predictions, its likeliest class, and its images."""
    images = torch.randn(n, 1, 16, 16)
    with torch.no_grad():
        targets = model.eval()(images).argmax(1)
    target = int(targets.mode().values)
    return (images, targets), target, images[targets == target]
