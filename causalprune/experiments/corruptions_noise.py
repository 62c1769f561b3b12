"""Corruptions by noise: Gaussian, shot, impulse, speckle."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from causalprune.experiments.corruptions_base import Corruption, Draws, stacked

__all__ = ["NOISE", "gaussian_noise", "impulse_noise", "shot_noise", "speckle_noise"]


def gaussian_noise(images: Tensor, draws: Draws, sd: float) -> Tensor:
    """Add to every value a normal one of standard deviation ``sd``."""
    return images + sd * _normal(images, draws)


def shot_noise(images: Tensor, draws: Draws, photons: float) -> Tensor:
    """Replace every value by a Poisson count of mean ``photons`` times it, over ``photons``."""
    counts = [
        generator.poisson(photons * image.double().numpy())
        for image, generator in zip(images, draws, strict=True)
    ]
    return torch.from_numpy(np.stack(counts).astype(np.float32)) / photons


def impulse_noise(images: Tensor, draws: Draws, share: float) -> Tensor:
    """Set a ``share`` of all values to 0 or 1, one as often as the other."""
    chance = stacked(draws, lambda generator: generator.random(images.shape[1:], np.float32))
    return images.masked_fill(chance < share, 0.0).masked_fill(chance < share / 2, 1.0)


def speckle_noise(images: Tensor, draws: Draws, sd: float) -> Tensor:
    """Add to every value ``sd`` times itself times a standard normal one."""
    return images + images * (sd * _normal(images, draws))


def _normal(images: Tensor, draws: Draws) -> Tensor:
    shape = images.shape[1:]
    return stacked(draws, lambda generator: generator.standard_normal(shape, np.float32))


NOISE = (
    Corruption(
        "gaussian_noise",
        "noise",
        gaussian_noise,
        small=((0.04,), (0.06,), (0.08,), (0.09,), (0.1,)),
        large=((0.08,), (0.12,), (0.18,), (0.26,), (0.38,)),
    ),
    Corruption(
        "shot_noise",
        "noise",
        shot_noise,
        small=((500,), (250,), (100,), (75,), (50,)),
        large=((60,), (25,), (12,), (5,), (3,)),
    ),
    Corruption(
        "impulse_noise",
        "noise",
        impulse_noise,
        small=((0.01,), (0.02,), (0.03,), (0.05,), (0.07,)),
        large=((0.03,), (0.06,), (0.09,), (0.17,), (0.27,)),
    ),
    Corruption(
        "speckle_noise",
        "noise",
        speckle_noise,
        small=((0.06,), (0.1,), (0.12,), (0.16,), (0.2,)),
        large=((0.15,), (0.2,), (0.35,), (0.45,), (0.6,)),
        extra=True,
    ),
)
