"""Digital corruptions: contrast, elastic transform, pixelate, JPEG, saturation."""

from __future__ import annotations

import io
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from causalprune.errors import MissingDependencyError
from causalprune.experiments.corruptions_base import Corruption, Draws, stacked
from causalprune.experiments.corruptions_fields import separable, smoothing_matrix

__all__ = [
    "DIGITAL",
    "contrast",
    "elastic_transform",
    "jpeg_compression",
    "pixelate",
    "saturate",
]


def contrast(images: Tensor, draws: Draws, scale: float) -> Tensor:
    """Scale the distance of every value from its image's and channel's mean."""
    means = images.mean((-2, -1), keepdim=True, dtype=torch.float64).float()
    return (images - means) * scale + means


def elastic_transform(
    images: Tensor, draws: Draws, height: float, smooth: float, shift: float
) -> Tensor:
    """Move three points of the image, and all its pixels along a smooth random field.

    ``height`` scales the field, ``smooth`` is the standard deviation of its Gaussian filter and
    ``shift`` the most that a point moves along an axis, all in shorter sides of the image. The
    published program samples twice, once for the points and once for the field; here both
    are one map and the image is interpolated once.
    """
    rows, columns = images.shape[-2:]
    side = min(rows, columns)
    moves = stacked(draws, lambda generator: generator.uniform(-1.0, 1.0, (3, 2)))
    ys, xs = torch.meshgrid(
        torch.arange(rows, dtype=torch.float64),
        torch.arange(columns, dtype=torch.float64),
        indexing="ij",
    )
    places = torch.stack([xs, ys], -1).expand(len(images), -1, -1, -1)
    if height > 0:
        shape = (2, rows, columns)
        field = stacked(draws, lambda generator: generator.uniform(-1.0, 1.0, shape))
        down = smoothing_matrix(rows, smooth * side, 3.0, "mirror")
        across = smoothing_matrix(columns, smooth * side, 3.0, "mirror")
        field = height * side * (down @ field @ across.T)
        places = places + field.permute(0, 2, 3, 1)
    third = side // 3
    middle = torch.tensor([columns // 2, rows // 2], dtype=torch.float64)
    corners = torch.tensor([[third, third], [third, -third], [-third, -third]]) + middle
    moved = functional.pad(corners + shift * side * moves, (0, 1), value=1.0)
    back = torch.linalg.solve(moved, corners.expand(len(images), -1, -1))
    places = functional.pad(places, (0, 1), value=1.0).flatten(1, 2) @ back
    size = torch.tensor([columns, rows], dtype=torch.float64)
    grid = ((2 * places + 1) / size - 1).view(len(images), rows, columns, 2).float()
    return functional.grid_sample(
        images, grid, mode="bilinear", padding_mode="reflection", align_corners=False
    )


def pixelate(images: Tensor, draws: Draws, scale: float) -> Tensor:
    """Average to ``scale`` times the size and repeat the pixels back to the size before."""
    height, width = images.shape[-2:]
    return separable(images, _blocks(height, scale), _blocks(width, scale))


@lru_cache(maxsize=32)
def _blocks(size: int, scale: float) -> Tensor:
    """Return the matrix ``[size, size]`` that averages blocks along an axis and repeats them."""
    fewer = int(size * scale)
    wide = size / fewer
    centres = (np.arange(fewer) + 0.5) * wide
    pixels = np.arange(size) + 0.5
    inside = (pixels > centres[:, None] - wide / 2) & (pixels <= centres[:, None] + wide / 2)
    averages = inside / inside.sum(1, keepdims=True)
    nearest = (pixels / wide).astype(int)
    return torch.from_numpy(averages[nearest])


def jpeg_compression(images: Tensor, draws: Draws, quality: int) -> Tensor:
    """Write every image as a JPEG file of a quality, in memory, and read it back."""
    try:
        from PIL import Image
    except ImportError as error:
        raise MissingDependencyError(
            "jpeg_compression needs Pillow: pip install 'causalprune[vision]'"
        ) from error
    eight_bit = (images * 255).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()
    results = []
    for pixels in eight_bit:
        file = io.BytesIO()
        Image.fromarray(pixels.squeeze(-1) if pixels.shape[-1] == 1 else pixels).save(
            file, "JPEG", quality=quality
        )
        with Image.open(file) as read:
            results.append(np.asarray(read, dtype=np.float32).reshape(pixels.shape) / 255)
    return torch.from_numpy(np.stack(results)).permute(0, 3, 1, 2).contiguous()


def saturate(images: Tensor, draws: Draws, scale: float, shift: float) -> Tensor:
    """Scale the saturation in hue, saturation and value, and shift it, within [0, 1].

    A grey pixel has the hue of red, as in the published program, and turns reddish by a shift.
    """
    value = images.amax(1, keepdim=True)
    spread = value - images.amin(1, keepdim=True)
    saturation = spread / value.clamp(min=1e-12)
    wanted = (saturation * scale + shift).clamp(0.0, 1.0)
    # Hue and value stay where all channels keep their share of the distance from the largest.
    share = (value - images) / spread.clamp(min=1e-12)
    red = torch.tensor([0.0, 1.0, 1.0])[:, None, None]
    return value * (1 - wanted * torch.where(spread > 0, share, red))


# The published program has 244 where it means the 224 pixels of its images.
_SLIP = 244 / 224

DIGITAL = (
    Corruption(
        "contrast",
        "digital",
        contrast,
        small=((0.75,), (0.5,), (0.4,), (0.3,), (0.15,)),
        large=((0.4,), (0.3,), (0.2,), (0.1,), (0.05,)),
    ),
    Corruption(
        "elastic_transform",
        "digital",
        elastic_transform,
        small=(
            (0, 0, 0.08),
            (0.05, 0.2, 0.07),
            (0.08, 0.06, 0.06),
            (0.1, 0.04, 0.05),
            (0.1, 0.03, 0.03),
        ),
        large=(
            (2 * _SLIP, 0.7 * _SLIP, 0.1 * _SLIP),
            (2 * _SLIP, 0.08 * _SLIP, 0.2 * _SLIP),
            (0.05 * _SLIP, 0.01 * _SLIP, 0.02 * _SLIP),
            (0.07 * _SLIP, 0.01 * _SLIP, 0.02 * _SLIP),
            (0.12 * _SLIP, 0.01 * _SLIP, 0.02 * _SLIP),
        ),
    ),
    Corruption(
        "pixelate",
        "digital",
        pixelate,
        small=((0.95,), (0.9,), (0.85,), (0.75,), (0.65,)),
        large=((0.6,), (0.5,), (0.4,), (0.3,), (0.25,)),
    ),
    Corruption(
        "jpeg_compression",
        "digital",
        jpeg_compression,
        small=((80,), (65,), (58,), (50,), (40,)),
        large=((25,), (18,), (15,), (10,), (7,)),
    ),
    Corruption(
        "saturate",
        "digital",
        saturate,
        small=((0.3, 0), (0.1, 0), (1.5, 0), (2, 0.1), (2.5, 0.2)),
        large=((0.3, 0), (0.1, 0), (2, 0), (5, 0.1), (20, 0.2)),
        extra=True,
        channels=(3,),
    ),
)
