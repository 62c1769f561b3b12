"""Noise similarity: whether two networks still say the same when their input is disturbed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from torch import Tensor, nn

from causalprune.errors import InvalidArgumentError
from causalprune.measures.network_outputs import device_of, logits_from, measuring
from causalprune.measures.uniform_noise import next_noise, noise_streams
from causalprune.scoring.data import as_batches

__all__ = ["NOISE_LEVELS", "NoiseSimilarity", "noise_similarity"]

NOISE_LEVELS = tuple(round(0.05 * step, 2) for step in range(15))
"""Half widths of the noise: 0 to 0.7 in steps of 0.05, in units of the normalised images."""


@dataclass(frozen=True)
class NoiseSimilarity:
    """How alike two networks are under growing noise.

    Attributes
    ----------
    frame : DataFrame
        One row a noise level: level, matching (fraction of images on which both predict the same
        class), matching_sd, distance (l2 norm of the difference of the softmax outputs, mean over
        images; at most the square root of 2), distance_sd. Means over draws of the noise of the
        mean over images; sd over draws (n - 1; NaN of a single draw).
    n_images, n_draws : int
    """

    frame: pd.DataFrame
    n_images: int
    n_draws: int


def noise_similarity(
    model: nn.Module,
    reference: nn.Module,
    data: Any,
    *,
    levels: Sequence[float] = NOISE_LEVELS,
    n_images: int = 1000,
    n_draws: int = 100,
    batch_size: int = 256,
    seed: int = 0,
) -> NoiseSimilarity:
    """Compare two networks' outputs on images with uniform noise.

    Both see ``x + u``, u uniform in ``[-level, level]``, independent over pixels and channels, in
    the space that the networks take (normalised), not clipped. Baselines to compare with: the
    unpruned network beside one that was trained separately.

    Parameters
    ----------
    model, reference : nn.Module
        Take ``[N, ...]``, return logits ``[N, K]`` of the same K classes. They run in eval mode,
        each on its own device, and get their modes back.
    data : DataLoader, Dataset, iterable, pair of tensors, or Tensor
        Normalised images ``[N, ...]``, with or without labels; read once.
    levels : sequence of float
        At least 0.
    n_images : int
        The first so many are used.
    n_draws : int
        Draws of the noise for each image.
    batch_size : int
        Images a forward pass, where `data` has no batches of its own. No more than one batch of
        images, its noise and the outputs are in memory.
    seed : int
        Every image has a noise of its own from the seed and its place, whatever the batches and
        devices. The levels scale the same draws, so that differences between levels are no luck.

    Returns
    -------
    NoiseSimilarity

    Raises
    ------
    InvalidArgumentError, DataError
        If an argument is out of range or the data holds no finite images.
    UnsupportedModelError
        If a network does not return finite logits [N, K] of equal K.

    References
    ----------
    Liebenwein, Baykal, Carter, Gifford and Rus (2021), "Lost in Pruning": 1000 images, 100 draws.

    Examples
    --------
    >>> import torch
    >>> _ = torch.manual_seed(0)
    >>> network = nn.Sequential(nn.Flatten(), nn.Linear(9, 4))
    >>> found = noise_similarity(
    ...     network, network, torch.randn(5, 1, 3, 3), levels=(0, 0.5), n_draws=2
    ... )
    >>> found.frame["matching"].tolist(), found.n_images
    ([1.0, 1.0], 5)
    """
    scales = _levels(levels)
    for name, value, least in (
        ("n_images", n_images, 1),
        ("n_draws", n_draws, 1),
        ("batch_size", batch_size, 1),
        ("seed", seed, 0),
    ):
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise InvalidArgumentError(f"{name}: expected an integer >= {least}, got {value!r}")
    totals, n = np.zeros((2, len(scales), n_draws)), 0
    with measuring(model=model, reference=reference):
        batches = as_batches(
            data,
            batch_size=batch_size,
            max_images=n_images,
            labels=False,
            device=device_of(model),
        )
        for batch in batches:
            totals += _sums(model, reference, batch.inputs, scales, n_draws, seed, first=n)
            n += len(batch.inputs)
    return NoiseSimilarity(_frame(scales, totals / n), n, n_draws)


def _levels(levels: Sequence[float]) -> tuple[float, ...]:
    scales = tuple(float(level) for level in levels)
    wrong = [level for level in scales if not 0 <= level < float("inf")]
    if wrong or not scales:
        raise InvalidArgumentError(
            f"levels: expected finite numbers >= 0, got {wrong[0] if wrong else 'none'}"
        )
    return scales


def _sums(
    model: nn.Module,
    reference: nn.Module,
    images: Tensor,
    scales: Sequence[float],
    n_draws: int,
    seed: int,
    first: int,
) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Return sums over images [2, levels, draws] of equal labels and of distances."""
    sums = np.zeros((2, len(scales), n_draws))
    streams = noise_streams(seed, first, len(images))
    for draw in range(n_draws):
        noise = next_noise(streams, images)
        for place, scale in enumerate(scales):
            if scale == 0 and draw:  # without noise every draw is the first one
                sums[:, place, draw] = sums[:, place, 0]
                continue
            sums[:, place, draw] = _compare(model, reference, images + scale * noise)
    return sums


def _compare(model: nn.Module, reference: nn.Module, images: Tensor) -> tuple[float, float]:
    got = logits_from(model, images, "model").double()
    expected = logits_from(reference, images, "reference").to(got)
    if got.shape != expected.shape:
        raise InvalidArgumentError(
            f"reference: expected as many classes as model has, {got.shape[1]}, "
            f"got {expected.shape[1]}"
        )
    same = (got.argmax(1) == expected.argmax(1)).sum()
    distance = (got.softmax(1) - expected.softmax(1)).norm(dim=1).sum()
    return float(same), float(distance)


def _frame(scales: Sequence[float], means: np.ndarray[Any, np.dtype[np.float64]]) -> pd.DataFrame:
    several = means.shape[2] > 1
    sd = means.std(2, ddof=1) if several else np.full(means.shape[:2], np.nan)
    matching, distance = means.mean(2)
    return pd.DataFrame(
        {
            "level": scales,
            "matching": matching,
            "matching_sd": sd[0],
            "distance": distance,
            "distance_sd": sd[1],
        }
    )
