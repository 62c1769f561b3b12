"""Fixed, class-balanced choices of images."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from causalprune.errors import DataError

__all__ = ["stratified_split", "stratified_subset"]

# Splits belong to the data set and not to the run: no seed of the user's enters here.
_SPLIT_SEED = 20_240_229


def stratified_split(labels: Tensor, chosen: int) -> tuple[Tensor, Tensor]:
    """Choose a number of images, classes in proportion; always the same ones.

    Parameters
    ----------
    labels : Tensor
        ``[N]`` int64 class numbers.
    chosen : int
        How many to choose, below N.

    Returns
    -------
    rest, chosen : pair of Tensor
        Sorted indices, int64.

    Raises
    ------
    DataError
        There are too few images.

    Examples
    --------
    >>> rest, chosen = stratified_split(torch.tensor([0, 0, 0, 0, 1, 1]), 3)
    >>> torch.tensor([0, 0, 0, 0, 1, 1])[chosen].tolist(), len(rest)
    ([0, 0, 1], 3)
    """
    total = len(labels)
    if not 0 < chosen < total:
        raise DataError(f"{chosen} of {total} images asked for; expected between 1 and {total - 1}")
    generator = np.random.Generator(np.random.PCG64(_SPLIT_SEED))
    values = labels.numpy()
    classes, counts = np.unique(values, return_counts=True)
    # Largest remainders: the shares are whole numbers and add up.
    exact = counts * (chosen / total)
    shares = np.floor(exact).astype(int)
    largest = np.argsort(-(exact - shares), kind="stable")[: chosen - int(shares.sum())]
    shares[largest] += 1
    picked = [
        generator.permutation(np.flatnonzero(values == label))[:share]
        for label, share in zip(classes, shares, strict=True)
    ]
    mask = np.zeros(total, dtype=bool)
    mask[np.concatenate(picked)] = True
    return torch.from_numpy(np.flatnonzero(~mask)), torch.from_numpy(np.flatnonzero(mask))


def stratified_subset(images: Tensor, labels: Tensor, limit: int | None) -> tuple[Tensor, Tensor]:
    """Keep at most ``limit`` images, classes in proportion; always the same ones."""
    if limit is None or limit >= len(labels):
        return images, labels
    _, chosen = stratified_split(labels, limit)
    return images[chosen], labels[chosen]
