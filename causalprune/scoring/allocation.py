"""Where the next exact effects are worth most: misclassification avoided per forward."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["best_within", "error_reduction", "sample_sizes"]

_NODES = 25
_REACH = 3.5
"""Nodes of the average over what the next images may show, in standard deviations."""


def sample_sizes(n_images: int, first: int) -> list[int]:
    """Return the sizes a unit's sample may have: half more, a third more, ..., all images.

    Examples
    --------
    >>> sample_sizes(100, first=16)
    [16, 24, 32, 48, 64, 96, 100]
    """
    sizes, n = [], first
    while n < n_images:
        sizes += [n, n + n // 2]
        n *= 2
    return [*(size for size in sizes if size < n_images), n_images]


def error_reduction(distance: Tensor, se: Tensor, n: Tensor, goal: Tensor, n_images: int) -> Tensor:
    r"""Drop of the probability that a unit is taken to be on the wrong side, by more images.

    After n images the distance of a unit's mean to the boundary is normal with mean d and
    variance V; after n' it will have V' = V (1/n' - 1/N) / (1/n - 1/N), around a point that is
    today normal with variance V - V':

    .. math:: \Phi(-|d| / \sqrt V) - E_z \Phi(-|d + z \sqrt{V - V'}| / \sqrt{V'})

    Parameters
    ----------
    distance, se : Tensor [n_units], float64
        d, and the square root of V.
    n, goal : Tensor [n_units]
        n and n', n <= n' <= N.
    n_images : int
        N.

    Returns
    -------
    Tensor [n_units], float64
        Not negative; 0 where nothing is uncertain, 1/2 where `se` is not known.

    References
    ----------
    Frazier, Powell and Dayanik (2008), the knowledge gradient; the loss is this package's own.

    Examples
    --------
    >>> d, n = torch.tensor([0.0, 1.0, 9.0], dtype=torch.float64), torch.full((3,), 16)
    >>> error_reduction(d, torch.ones(3).double(), n, 2 * n, n_images=512)
    tensor([0.2527, 0.0272, 0.0000], dtype=torch.float64)
    """
    left = (1 / goal.double() - 1 / n_images) / (1 / n.double() - 1 / n_images).clamp_min(1e-12)
    variance, distance = se.square(), distance.abs()
    then = variance * left.clamp(0, 1)
    z = torch.linspace(-_REACH, _REACH, _NODES, dtype=torch.float64)[:, None]
    weight = torch.exp(-z.square() / 2)
    seen = distance + z * (variance - then).sqrt()
    now = torch.special.ndtr(-distance / se.clamp_min(1e-300))
    later = torch.special.ndtr(-seen.abs() / then.sqrt().clamp_min(1e-300))
    drop = now - (weight * later).sum(0) / weight.sum()
    return torch.where(se > 0, drop.clamp_min(0.0), 0.0).where(se.isfinite(), 0.5)


def best_within(
    rate: Tensor, price: Tensor, images: Tensor, block: Tensor, limit: float, left: float
) -> Tensor:
    """Choose units by falling rate until the next one would exceed `limit`.

    Units of one block take the same further images, whose plain forwards are paid once.

    Parameters
    ----------
    rate, price : Tensor [n_units], float64
        Gain per forward-equivalent, negative for units that take no part; cost of the units' own
        replays on all their further images.
    images, block : Tensor [n_units]
        How many further images, and which block of them.
    limit, left : float
        Forward-equivalents to be spent; at least one unit is chosen where `left` pays for it.

    Returns
    -------
    Tensor [n_units], bool

    Examples
    --------
    >>> price, images, block = torch.tensor([3.0, 3, 3]), torch.tensor([8, 8, 8]), torch.zeros(3)
    >>> best_within(torch.tensor([0.1, 0.3, 0.2]), price, images, block, limit=14.0, left=99.0)
    tensor([False,  True,  True])
    """
    chosen, total, paid = torch.zeros(len(rate), dtype=torch.bool), 0.0, set[int]()
    for unit in rate.argsort(descending=True, stable=True)[: int((rate >= 0).sum())].tolist():
        where = int(block[unit])
        cost = float(price[unit]) + (0.0 if where in paid else float(images[unit]))
        if total + cost <= (limit if paid else left):
            chosen[unit], total = True, total + cost
            paid.add(where)
        elif paid:
            break
    return chosen
