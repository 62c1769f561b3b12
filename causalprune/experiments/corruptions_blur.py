"""Corruptions by blur: defocus, frosted glass, motion, zoom, Gaussian."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from causalprune.experiments.corruptions_base import Corruption, Draws
from causalprune.experiments.corruptions_fields import (
    magnified,
    smearing,
    smoothed,
    smoothing_matrix,
    weighted_shifts,
)

__all__ = ["BLUR", "defocus_blur", "gaussian_blur", "glass_blur", "motion_blur", "zoom_blur"]


def defocus_blur(images: Tensor, draws: Draws, radius: float, softness: float) -> Tensor:
    """Average over a disc of ``radius`` pixels with an edge softened over ``softness`` pixels."""
    # Three pixels of softening below a radius of 8, five above, as published.
    margin = 1 if radius <= 8 else 2
    reach = math.ceil(radius) + margin
    places = np.arange(-reach, reach + 1)
    disc = (places[:, None] ** 2 + places**2 <= radius**2).astype(np.float64)
    soften = smoothing_matrix(len(places), softness, truncate=margin / softness).numpy()
    kernel = soften @ disc @ soften.T
    return weighted_shifts(images, kernel / kernel.sum())


def glass_blur(images: Tensor, draws: Draws, sd: float, reach: int, passes: int) -> Tensor:
    """Smooth, let pixels take the values of random neighbours, smooth again.

    Pixel by pixel, from the lower right to the upper left, each takes the value that another
    ``-reach`` to ``reach - 1`` pixels away has by then. (The published program sets out to
    exchange the two, but exchanges views of one array, which copies; its images show this.)
    """
    height, width = images.shape[-2:]
    sources = [_jittered(height, width, reach, passes, generator) for generator in draws]
    order = torch.from_numpy(np.stack(sources))[:, None].expand(-1, images.shape[1], -1)
    moved = smoothed(images, sd).flatten(2).gather(2, order).view_as(images)
    return smoothed(moved, sd)


def _jittered(
    height: int, width: int, reach: int, passes: int, generator: np.random.Generator
) -> np.ndarray:
    """Return for every pixel the place in the image that its value comes from."""
    source = list(range(height * width))
    rows = np.arange(height - reach, reach, -1)[:, None]
    columns = np.arange(width - reach, reach, -1)
    for _ in range(passes):
        steps = generator.integers(-reach, reach, (2, len(rows), len(columns)))
        here = (rows * width + columns).ravel()
        there = ((rows + steps[0]) * width + columns + steps[1]).ravel()
        for pixel, other in zip(here.tolist(), there.tolist(), strict=True):
            source[pixel] = source[other]
    return np.array(source)


def motion_blur(images: Tensor, draws: Draws, radius: int, sd: float) -> Tensor:
    """Smear along a line at a random angle within 45 degrees of the horizontal."""
    return smearing(images, draws, radius, sd, -45.0, 45.0)


def zoom_blur(images: Tensor, draws: Draws, step: float, zooms: int) -> Tensor:
    """Average the images with ``zooms`` magnified ones: 1, 1 + ``step``, 1 + 2 ``step``..."""
    total = images.clone()
    for number in range(zooms):
        total += magnified(images, 1 + number * step)
    return total / (zooms + 1)


def gaussian_blur(images: Tensor, draws: Draws, sd: float) -> Tensor:
    """Filter with a Gaussian of ``sd`` pixels."""
    return smoothed(images, sd)


BLUR = (
    Corruption(
        "defocus_blur",
        "blur",
        defocus_blur,
        small=((0.3, 0.4), (0.4, 0.5), (0.5, 0.6), (1, 0.2), (1.5, 0.1)),
        large=((3, 0.1), (4, 0.5), (6, 0.5), (8, 0.5), (10, 0.5)),
    ),
    Corruption(
        "glass_blur",
        "blur",
        glass_blur,
        small=((0.05, 1, 1), (0.25, 1, 1), (0.4, 1, 1), (0.25, 1, 2), (0.4, 1, 2)),
        large=((0.7, 1, 2), (0.9, 2, 1), (1, 2, 3), (1.1, 3, 2), (1.5, 4, 2)),
    ),
    Corruption(
        "motion_blur",
        "blur",
        motion_blur,
        small=((6, 1), (6, 1.5), (6, 2), (8, 2), (9, 2.5)),
        large=((10, 3), (15, 5), (15, 8), (15, 12), (20, 15)),
    ),
    Corruption(
        "zoom_blur",
        "blur",
        zoom_blur,
        small=((0.01, 7), (0.01, 12), (0.01, 16), (0.01, 21), (0.01, 26)),
        large=((0.01, 12), (0.01, 16), (0.02, 11), (0.02, 13), (0.03, 11)),
    ),
    Corruption(
        "gaussian_blur",
        "blur",
        gaussian_blur,
        small=((0.4,), (0.6,), (0.7,), (0.8,), (1,)),
        large=((1,), (2,), (3,), (4,), (6,)),
        extra=True,
    ),
)
