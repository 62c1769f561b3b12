"""Pixels in [0, 1] to standardised images, and back."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["Standard", "pixels", "standardised"]

Standard = tuple[tuple[float, ...], tuple[float, ...]]
"""Mean and standard deviation per channel, of pixels in [0, 1]."""


def standardised(images: Tensor, standard: Standard) -> Tensor:
    """Return ``(images - mean) / sd`` for pixels ``[N, C, H, W]`` in [0, 1]."""
    mean, sd = _moments(images, standard)
    return (images - mean) / sd


def pixels(images: Tensor, standard: Standard) -> Tensor:
    """Return ``images * sd + mean``: the pixels that standardised images were made from."""
    mean, sd = _moments(images, standard)
    return images * sd + mean


def _moments(images: Tensor, standard: Standard) -> tuple[Tensor, Tensor]:
    mean, sd = (
        torch.tensor(values, dtype=torch.float32, device=images.device)[:, None, None]
        for values in standard
    )
    if len(mean) not in (1, images.shape[1]):  # grey images of a network for colour, or reversed
        mean, sd = mean.mean(), sd.mean()
    return mean, sd
