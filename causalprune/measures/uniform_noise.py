"""Uniform noise on a network's input, image by image the same in any batch."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from causalprune.errors import InvalidArgumentError

__all__ = ["add_uniform_noise", "next_noise", "noise_streams"]

# Images whose noise is drawn before it is added: all of a data set's would double its memory.
_IMAGES = 1024


def noise_streams(seed: int, first: int, count: int) -> list[np.random.Generator]:
    """Return a stream of noise for each of `count` images, the first of which has index `first`."""
    return [np.random.default_rng([seed, first + index]) for index in range(count)]


def next_noise(streams: Sequence[np.random.Generator], images: Tensor) -> Tensor:
    """Draw the next noise of every image.

    Parameters
    ----------
    streams : sequence of Generator [N]
        See :func:`noise_streams`.
    images : Tensor
        ``[N, ...]``.

    Returns
    -------
    Tensor
        Uniform in [-1, 1), independent over pixels and channels, in the shape, dtype and device
        of `images`.
    """
    shape = tuple(images.shape[1:])
    drawn = np.stack([stream.random(shape, dtype=np.float32) for stream in streams])
    return (2 * torch.from_numpy(drawn) - 1).to(images)


def add_uniform_noise(images: Tensor, level: float, seed: int = 0, *, first: int = 0) -> Tensor:
    """Add l-infinity noise: ``x + u``, u uniform in ``[-level, level]``, not clipped.

    Parameters
    ----------
    images : Tensor
        ``[N, ...]``, floating point, as the network takes them (standardised).
    level : float
        Half width of the noise, at least 0, in units of `images`: a level of 0.1 on images that
        were divided by a standard deviation of 0.3 changes pixels in [0, 1] by up to 0.03.
    seed : int
        Not negative. With the index of an image it determines that image's noise, which every
        level scales: differences between levels are no luck.
    first : int
        Index of the first image, for batches out of a larger set.

    Returns
    -------
    Tensor
        ``[N, ...]`` in the dtype and on the device of `images`.

    Raises
    ------
    InvalidArgumentError
        If the images are not floating point, or a number is out of range.

    References
    ----------
    Liebenwein, Baykal, Carter, Gifford and Rus (2021), "Lost in Pruning": noise in the
    normalised space, levels 0 to 0.7.

    Examples
    --------
    >>> images = torch.zeros(5, 1, 9, 9)
    >>> noisy = add_uniform_noise(images, 0.3)
    >>> bool(0.25 < noisy.abs().max() <= 0.3)
    True
    >>> torch.equal(add_uniform_noise(images[3:], 0.3, first=3), noisy[3:])
    True
    """
    if not isinstance(images, Tensor) or not images.is_floating_point() or images.dim() < 2:
        got = f"{images.dtype} {list(images.shape)}" if isinstance(images, Tensor) else type(images)
        raise InvalidArgumentError(f"images: expected a floating-point tensor [N, ...], got {got}")
    if isinstance(level, bool) or not 0 <= level < math.inf:
        raise InvalidArgumentError(f"level: expected a finite number >= 0, got {level!r}")
    for name, value in (("seed", seed), ("first", first)):
        if isinstance(value, bool) or not isinstance(value, int) or value < 0:
            raise InvalidArgumentError(f"{name}: expected an integer >= 0, got {value!r}")
    noisy = images.detach().clone()
    for part in torch.split(noisy, _IMAGES):
        if len(part):
            part.add_(next_noise(noise_streams(seed, first, len(part)), part), alpha=float(level))
            first += len(part)
    return noisy
