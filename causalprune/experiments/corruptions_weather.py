"""Corruptions by weather: snow, frost, fog, brightness, spatter."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from causalprune.experiments.corruptions_base import Corruption, Draws, stacked
from causalprune.experiments.corruptions_fields import (
    luminance,
    magnified,
    plasma,
    smearing,
    smoothed,
    weighted_shifts,
)

__all__ = ["WEATHER", "brightness", "fog", "frost", "frost_texture", "snow", "spatter"]

_ICE = (0.84, 0.93, 1.0)
_WATER = (175 / 255, 238 / 255, 238 / 255)
_MUD = (63 / 255, 42 / 255, 20 / 255)
_RELIEF = np.array([[-2, -1, 0], [-1, 1, 1], [0, 1, 2]])
# Distances from a drop's outline count up to here, in pixels.
_FAR = 20


def snow(
    images: Tensor,
    draws: Draws,
    mean: float,
    sd: float,
    zoom: float,
    threshold: float,
    radius: int,
    smear: float,
    keep: float,
) -> Tensor:
    """Whiten the images and let flakes fall: magnified noise above a threshold, smeared down.

    ``keep`` is the share of the image in its mixture with a whitened one; the flakes are added
    as they are and once more turned by 180 degrees.
    """
    shape = (1, *images.shape[-2:])
    flakes = stacked(draws, lambda generator: generator.normal(mean, sd, shape)).float()
    flakes = magnified(flakes, zoom)
    flakes = flakes.masked_fill(flakes < threshold, 0.0).clamp(0.0, 1.0)
    flakes = smearing(flakes, draws, radius, smear, -135.0, -45.0)
    white = torch.maximum(images, luminance(images) * 1.5 + 0.5)
    return keep * images + (1 - keep) * white + flakes + flakes.flip(-2, -1)


def frost(images: Tensor, draws: Draws, keep: float, ice: float) -> Tensor:
    """Return ``keep`` times the images plus ``ice`` times a texture of ice for each.

    The published program cuts the texture out of five photographs; here it is drawn.
    """
    texture = frost_texture(draws, images.shape[-2], images.shape[-1])
    return keep * images + ice * _coloured(texture, _ICE, images.shape[1])


def frost_texture(draws: Draws, height: int, width: int) -> Tensor:
    """Draw frost on a pane for every image: ``[N, 1, H, W]`` float32 in [0, 1].

    A fractal veil, and needles of ice where it is thick: scattered points smeared along six
    directions a sixth of a turn apart, of which the brightest counts. Its mean
    is about 0.5 and its standard deviation 0.25.
    """
    veil = plasma(draws, height, width, 1.8)
    thick = ((veil - 0.25) / 0.4).clamp(0.0, 1.0)
    length = max(3, min(height, width) // 10)
    # As many as cover about half of the pane, whatever their length.
    share, shape = 0.09 / length, (1, height, width)
    points = stacked(draws, lambda generator: generator.random(shape) < share).float()
    # A fortieth of the length wide, and as bright after smearing as a point.
    points = smoothed(points, length / 40) * (1.25 * length)
    # A point on the border would go on outside and cast a wedge.
    points = functional.pad(points[..., 1:-1, 1:-1], (1, 1, 1, 1))
    needles = torch.zeros_like(veil)
    for direction in range(6):
        along = smearing(points, draws, length, length, 60.0 * direction, 60.0 * direction + 60.0)
        needles = torch.maximum(needles, along)
    return (0.2 + 0.4 * thick + 0.55 * thick * needles.clamp(max=1.0)).clamp(0.0, 1.0)


def fog(images: Tensor, draws: Draws, density: float, decay: float) -> Tensor:
    """Add ``density`` times a fractal surface and scale back to the brightest value before."""
    brightest = images.amax((1, 2, 3), keepdim=True)
    mist = plasma(draws, images.shape[-2], images.shape[-1], decay)
    return (images + density * mist) * brightest / (brightest + density)


def brightness(images: Tensor, draws: Draws, shift: float) -> Tensor:
    """Add ``shift`` to the value in hue, saturation and value, up to 1."""
    # Hue and saturation stay exactly where all channels are scaled alike; black becomes grey.
    value = images.amax(1, keepdim=True)
    brighter = (value + shift).clamp(max=1.0)
    return torch.where(value > 0, images * (brighter / value.clamp(min=1e-12)), brighter)


def spatter(
    images: Tensor,
    draws: Draws,
    mean: float,
    sd: float,
    smooth: float,
    threshold: float,
    strength: float,
    mud: int,
) -> Tensor:
    """Throw drops of water, or of mud, at the images.

    Drops are where smoothed noise is above a threshold. Water is added, pale turquoise, in
    relief: ``strength`` times the noise times the embossed distance from the drops' outlines
    (inner boundary pixels, where the published program looks for edges with Canny's detector).
    Mud covers what is behind it; ``strength`` is the standard deviation that smooths its drops.
    """
    shape = (1, *images.shape[-2:])
    noise = stacked(draws, lambda generator: generator.normal(mean, sd, shape)).float()
    liquid = smoothed(noise, smooth)
    if mud:
        cover = smoothed((liquid > threshold).float(), strength)
        cover = cover.masked_fill(cover < 0.8, 0.0)
        return images * (1 - cover) + _coloured(cover, _MUD, images.shape[1])
    liquid = liquid.masked_fill(liquid < threshold, 0.0)
    shine = liquid * _relief(liquid > 0)
    highest = shine.amax((1, 2, 3), keepdim=True).clamp(min=1e-6)
    return images + _coloured(strength * shine / highest, _WATER, images.shape[1])


def _relief(drops: Tensor) -> Tensor:
    """Emboss the equalised distance from the outlines of drops ``[N, 1, H, W]``."""
    outside = (~drops).float()
    outline = drops & (functional.max_pool2d(outside, 3, 1, 1) > 0)
    near = _distance(outline).clamp(max=_FAR)
    levels = weighted_shifts(near, np.full((3, 3), 1 / 9)).round()
    embossed = weighted_shifts(_equalised(levels), _RELIEF).clamp(0.0, 255.0)
    return weighted_shifts(embossed, np.full((3, 3), 1 / 9))


def _distance(marked: Tensor) -> Tensor:
    """Return the distance in pixels to the nearest marked one; far above ``_FAR`` is inexact."""
    squared = torch.zeros(marked.shape).masked_fill(~marked, float(4 * _FAR**2))
    for axis in (-1, -2):
        size = squared.shape[axis]
        margin = (_FAR, _FAR, 0, 0) if axis == -1 else (0, 0, _FAR, _FAR)
        padded = functional.pad(squared, margin, value=float(4 * _FAR**2))
        for step in range(-_FAR, _FAR + 1):
            shifted = padded.narrow(axis, _FAR + step, size) + float(step**2)
            squared = torch.minimum(squared, shifted)
    return squared.sqrt()


def _equalised(levels: Tensor) -> Tensor:
    """Spread whole levels 0.._FAR of every image over 0..255 by their cumulated frequency."""
    places = levels.flatten(1).long()
    counts = torch.zeros(len(places), _FAR + 1)
    counts.scatter_add_(1, places, torch.ones(places.shape))
    below = counts.cumsum(1)
    total = float(places.shape[1])
    lowest = below.gather(1, places.amin(1, keepdim=True))
    spread = (below - lowest) / (total - lowest).clamp(min=1.0) * 255.0
    # A single level has nothing to spread.
    spread = torch.where(lowest < total, spread, torch.arange(_FAR + 1.0))
    return spread.gather(1, places).round().view_as(levels)


def _coloured(grey: Tensor, colour: tuple[float, float, float], channels: int) -> Tensor:
    tinted = grey * torch.tensor(colour)[:, None, None]
    return tinted if channels == 3 else luminance(tinted)


WEATHER = (
    Corruption(
        "snow",
        "weather",
        snow,
        small=(
            (0.1, 0.2, 1, 0.6, 8, 3, 0.95),
            (0.1, 0.2, 1, 0.5, 10, 4, 0.9),
            (0.15, 0.3, 1.75, 0.55, 10, 4, 0.9),
            (0.25, 0.3, 2.25, 0.6, 12, 6, 0.85),
            (0.3, 0.3, 1.25, 0.65, 14, 12, 0.8),
        ),
        large=(
            (0.1, 0.3, 3, 0.5, 10, 4, 0.8),
            (0.2, 0.3, 2, 0.5, 12, 4, 0.7),
            (0.55, 0.3, 4, 0.9, 12, 8, 0.7),
            (0.55, 0.3, 4.5, 0.85, 12, 8, 0.65),
            (0.55, 0.3, 2.5, 0.85, 12, 12, 0.55),
        ),
    ),
    Corruption(
        "frost",
        "weather",
        frost,
        small=((1, 0.2), (1, 0.3), (0.9, 0.4), (0.85, 0.4), (0.75, 0.45)),
        large=((1, 0.4), (0.8, 0.6), (0.7, 0.7), (0.65, 0.7), (0.6, 0.75)),
    ),
    Corruption(
        "fog",
        "weather",
        fog,
        small=((0.2, 3), (0.5, 3), (0.75, 2.5), (1, 2), (1.5, 1.75)),
        large=((1.5, 2), (2, 2), (2.5, 1.7), (2.5, 1.5), (3, 1.4)),
    ),
    Corruption(
        "brightness",
        "weather",
        brightness,
        small=((0.05,), (0.1,), (0.15,), (0.2,), (0.3,)),
        large=((0.1,), (0.2,), (0.3,), (0.4,), (0.5,)),
    ),
    Corruption(
        "spatter",
        "weather",
        spatter,
        small=(
            (0.62, 0.1, 0.7, 0.7, 0.5, 0),
            (0.65, 0.1, 0.8, 0.7, 0.5, 0),
            (0.65, 0.3, 1, 0.69, 0.5, 0),
            (0.65, 0.1, 0.7, 0.69, 0.6, 1),
            (0.65, 0.1, 0.5, 0.68, 0.6, 1),
        ),
        large=(
            (0.65, 0.3, 4, 0.69, 0.6, 0),
            (0.65, 0.3, 3, 0.68, 0.6, 0),
            (0.65, 0.3, 2, 0.68, 0.5, 0),
            (0.65, 0.3, 1, 0.65, 1.5, 1),
            (0.67, 0.4, 1, 0.65, 1.5, 1),
        ),
        extra=True,
    ),
)
