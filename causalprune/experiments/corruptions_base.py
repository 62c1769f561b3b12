"""What a corruption is, and the random numbers that belong to one image."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.random import Generator
from torch import Tensor

__all__ = ["SMALL_SIDE", "Corruption", "Draws", "draws_for", "stacked"]

Draws = Sequence[Generator]
"""One generator of random numbers for each image of a batch."""

SMALL_SIDE = 64
"""Images whose smaller side is below this many pixels get the parameters of CIFAR-10-C."""


@dataclass(frozen=True)
class Corruption:
    """A corruption of images, with its published parameters.

    Attributes
    ----------
    name : str
        Its name in the literature.
    theme : str
        ``"noise"``, ``"blur"``, ``"weather"`` or ``"digital"``.
    apply : callable
        ``(images, draws, *parameters) -> Tensor``: images ``[N, C, H, W]`` float32 in [0, 1] on
        the CPU, one generator an image; the result may leave [0, 1].
    small, large : tuple of tuple
        The parameters of severities 1 to 5, as in CIFAR-10-C (32 pixels) and in ImageNet-C (224).
    extra : bool
        One of the four that the benchmark keeps apart from its fifteen.
    channels : tuple of int
        Numbers of channels it is defined for.
    """

    name: str
    theme: str
    apply: Callable[..., Tensor]
    small: tuple[tuple[float, ...], ...]
    large: tuple[tuple[float, ...], ...]
    extra: bool = False
    channels: tuple[int, ...] = (1, 3)

    def parameters(self, severity: int, height: int, width: int) -> tuple[float, ...]:
        """Return the parameters of a severity (1 to 5) for images of a size in pixels."""
        table = self.small if min(height, width) < SMALL_SIDE else self.large
        return table[severity - 1]


def draws_for(seed: int, name: str, severity: int, first: int, count: int) -> list[Generator]:
    """Return the generators of ``count`` images, of which the first has the index ``first``.

    Every image has a stream of its own, so it does not matter with which others it comes.
    """
    key = zlib.crc32(name.encode())
    return [
        Generator(np.random.PCG64(np.random.SeedSequence(seed, spawn_key=(key, severity, index))))
        for index in range(first, first + count)
    ]


def stacked(draws: Draws, draw: Callable[[Generator], Any]) -> Tensor:
    """Return what ``draw`` makes with each image's generator: ``[N, ...]``, in its dtype."""
    return torch.from_numpy(np.stack([np.asarray(draw(generator)) for generator in draws]))
