"""Filters and random fields that several corruptions are made of."""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from causalprune.experiments.corruptions_base import Draws, stacked

__all__ = [
    "luminance",
    "magnified",
    "plasma",
    "separable",
    "smearing",
    "smoothed",
    "smoothing_matrix",
    "weighted_shifts",
]


def separable(images: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Apply a matrix ``[H', H]`` to the columns of images and another ``[W', W]`` to their rows.

    The sums are in float64: rounded to float32, they do not depend on the size of the batch.
    """
    return (rows @ images.double() @ columns.T).float()


@lru_cache(maxsize=64)
def smoothing_matrix(size: int, sd: float, truncate: float = 4.0, border: str = "edge") -> Tensor:
    """Return the matrix ``[size, size]`` float64 of a Gaussian filter along one axis.

    Parameters
    ----------
    size : int
        Number of pixels.
    sd : float
        Standard deviation in pixels.
    truncate : float
        Where the Gaussian ends, in standard deviations.
    border : str
        ``"edge"``: the last pixel goes on; ``"mirror"``: the image goes on in reverse.
    """
    radius = int(truncate * sd + 0.5)
    steps = np.arange(-radius, radius + 1)
    weights = np.exp(-0.5 * (steps / max(sd, 1e-9)) ** 2)
    places = np.arange(size)[:, None] + steps
    if border == "edge":
        places = places.clip(0, size - 1)
    else:
        places = places % (2 * size)
        places = np.where(places < size, places, 2 * size - 1 - places)
    matrix = np.zeros((size, size))
    rows = np.broadcast_to(np.arange(size)[:, None], places.shape)
    np.add.at(matrix, (rows, places), np.broadcast_to(weights / weights.sum(), places.shape))
    return torch.from_numpy(matrix)


def smoothed(images: Tensor, sd: float) -> Tensor:
    """Filter images ``[..., H, W]`` with a Gaussian of ``sd`` pixels that ends at four of them."""
    height, width = images.shape[-2:]
    return separable(images, smoothing_matrix(height, sd), smoothing_matrix(width, sd))


def weighted_shifts(images: Tensor, kernel: np.ndarray) -> Tensor:
    """Correlate images ``[N, C, H, W]`` with a kernel of odd sides; borders mirror at a pixel.

    Shift by shift: a convolution may sum in another order for another batch size.
    """
    down, across = kernel.shape[0] // 2, kernel.shape[1] // 2
    height, width = images.shape[-2:]
    padded = functional.pad(images, (across, across, down, down), mode="reflect")
    total = torch.zeros_like(images)
    for row, column in np.argwhere(kernel != 0).tolist():
        shifted = padded[..., row : row + height, column : column + width]
        total += shifted * float(kernel[row, column])
    return total


def smearing(
    images: Tensor, draws: Draws, radius: int, sd: float, low: float, high: float
) -> Tensor:
    """Smear every image ``[N, C, H, W]`` along a direction of its own.

    A half Gaussian of ``sd`` pixels over ``2 * radius + 1`` pixels from the pixel on, along an
    angle that is drawn between ``low`` and ``high`` degrees; borders go on with the last pixel.
    """
    height, width = images.shape[-2:]
    taps = np.arange(2 * radius + 1)
    weights = np.exp(-0.5 * (taps / sd) ** 2)
    weights /= weights.sum()
    reach = 2 * radius
    padded = functional.pad(images, (reach,) * 4, mode="replicate")
    result = torch.zeros_like(images)
    for image, (source, generator) in enumerate(zip(padded, draws, strict=True)):
        angle = math.radians(generator.uniform(low, high))
        for tap, weight in zip(taps.tolist(), weights.tolist(), strict=True):
            row = reach + round(tap * math.sin(angle))
            column = reach + round(tap * math.cos(angle))
            result[image] += source[:, row : row + height, column : column + width] * weight
    return result


def magnified(images: Tensor, zoom: float) -> Tensor:
    """Return the middle of images ``[N, C, H, W]``, ``zoom`` >= 1 times larger, in their size."""
    height, width = images.shape[-2:]
    rows, columns = math.ceil(height / zoom), math.ceil(width / zoom)
    top, left = (height - rows) // 2, (width - columns) // 2
    large = functional.interpolate(
        images[..., top : top + rows, left : left + columns],
        (max(height, round(rows * zoom)), max(width, round(columns * zoom))),
        mode="bilinear",
        align_corners=True,
    )
    top, left = (large.shape[-2] - height) // 2, (large.shape[-1] - width) // 2
    return large[..., top : top + height, left : left + width]


def plasma(draws: Draws, height: int, width: int, decay: float) -> Tensor:
    """Draw a fractal surface for every image: ``[N, 1, H, W]`` float32 within [0, 1].

    Midpoint displacement (diamond and square) on a torus whose side is the next power of two;
    displacements are ``decay`` times smaller at every halving of the step. The lowest point of
    the whole torus is 0, the highest 1.
    """
    side = 1 << (max(height, width) - 1).bit_length()
    noise = stacked(draws, lambda generator: generator.uniform(-1.0, 1.0, (side, side)))
    surface = torch.zeros_like(noise)
    step, size = side, 1.0
    while step > 1:
        half = step // 2
        # Every point is set once, so one field of noise serves all steps.
        corners = surface[:, ::step, ::step]
        beside, below = corners.roll(-1, 2), corners.roll(-1, 1)
        middles = (corners + beside + below + below.roll(-1, 2)) / 4
        middles = middles + size * noise[:, half::step, half::step]
        tops = (corners + beside + middles + middles.roll(1, 1)) / 4
        sides = (corners + below + middles + middles.roll(1, 2)) / 4
        surface[:, half::step, half::step] = middles
        surface[:, ::step, half::step] = tops + size * noise[:, ::step, half::step]
        surface[:, half::step, ::step] = sides + size * noise[:, half::step, ::step]
        step, size = half, size / decay
    lowest, highest = surface.amin((1, 2), keepdim=True), surface.amax((1, 2), keepdim=True)
    surface = (surface - lowest) / (highest - lowest)
    return surface[:, None, :height, :width].float()


def luminance(images: Tensor) -> Tensor:
    """Return the brightness ``[N, 1, H, W]`` of images of one or three channels (ITU-R 601)."""
    if images.shape[1] == 1:
        return images
    weights = torch.tensor([0.299, 0.587, 0.114])[:, None, None]
    return (images.double() * weights).sum(1, keepdim=True).float()
