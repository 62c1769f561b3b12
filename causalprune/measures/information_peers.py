"""Pairs of layers to time information between, and how it is computed without the operators."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from causalprune.ops import histogram_information, spanning_tree_crossings

__all__ = [
    "HISTOGRAMS",
    "HISTOGRAM_PEERS",
    "TARGET",
    "TREES",
    "TREE_PEERS",
    "Pairs",
    "activations",
    "histogram_native",
    "trees_native",
]

Peer = Callable[["Pairs"], Callable[[], object]]
"""Prepares the activations; returns what is timed."""

BINS = 64


@dataclass(frozen=True)
class Pairs:
    """The units of two layers, every one of the first with every one of the second.

    Attributes
    ----------
    name : str
    samples : int
    parents, children : int
        Units of the first and of the second layer.
    peer_pairs : int
        On how many of the pairs a peer is timed; its time for a pair does not depend on it.
    """

    name: str
    samples: int
    parents: int
    children: int
    peer_pairs: int

    @property
    def n_pairs(self) -> int:
        """All pairs."""
        return self.parents * self.children


HISTOGRAMS = (
    Pairs("64 x 64 units, 10,000 samples", 10_000, 64, 64, 16),
    Pairs("16 x 32 units, 100,000 samples", 100_000, 16, 32, 4),
)
TREES = (
    Pairs("32 x 32 units, 600 samples (M = 400)", 600, 32, 32, 4),
    Pairs("16 x 16 units, 1,500 samples (M = 1,000)", 1500, 16, 16, 2),
    Pairs("8 x 16 units, 2,500 samples (M = 1,666)", 2500, 8, 16, 1),
)
TARGET = Pairs("ResNet-56 layer pair, 64 x 64 groups, 6,500 samples", 6500, 64, 64, 1)
"""What MINT asks of one pair of ResNet-56's last layers."""


def activations(pairs: Pairs) -> tuple[Tensor, Tensor]:
    """Draw Gaussian parents and children that know them a little.

    Parameters
    ----------
    pairs : Pairs

    Returns
    -------
    parents : Tensor [N, P], float32
    children : Tensor [N, C], float32

    Examples
    --------
    >>> parents, children = activations(Pairs("small", 5, 2, 3, 1))
    >>> list(parents.shape), list(children.shape)
    ([5, 2], [5, 3])
    """
    generator = torch.Generator().manual_seed(pairs.samples)
    parents = torch.randn(pairs.samples, pairs.parents, generator=generator)
    weight = torch.randn(pairs.parents, pairs.children, generator=generator)
    noise = torch.randn(pairs.samples, pairs.children, generator=generator)
    return parents, parents @ weight / pairs.parents**0.5 + noise


# ---- histograms ----------------------------------------------------------------------------------


def histogram_native(pairs: Pairs) -> Callable[[], Tensor]:
    """Return a run of ``causalprune.ops.histogram_information`` on all pairs, binning included.

    Parameters
    ----------
    pairs : Pairs

    Returns
    -------
    callable
        Returns bits [C, P].

    Examples
    --------
    >>> list(histogram_native(Pairs("small", 9, 2, 3, 1))().shape)
    [3, 2]
    """
    parents, children = activations(pairs)
    return lambda: histogram_information(parents, children, BINS)


def _plug_in(counts: npt.NDArray[np.float64]) -> float:
    share = counts / counts.sum()
    product = share.sum(1, keepdims=True) * share.sum(0, keepdims=True)
    filled = share > 0
    return float((share[filled] * np.log2(share[filled] / product[filled])).sum())


def _codes(columns: Tensor) -> Tensor:
    """Bins [columns, N] of [N, columns]."""
    low, high = columns.amin(0), columns.amax(0)
    return ((columns - low) * (BINS / (high - low))).long().clamp(max=BINS - 1).T.contiguous()


def _histogram_numpy(pairs: Pairs) -> Callable[[], list[float]]:
    """Loop over pairs with ``numpy.histogram2d``."""
    parents, children = (tensor.numpy() for tensor in activations(pairs))
    return lambda: [
        _plug_in(np.histogram2d(parents[:, k % pairs.parents], children[:, 0], bins=BINS)[0])
        for k in range(pairs.peer_pairs)
    ]


def _histogram_bincount(pairs: Pairs) -> Callable[[], list[Tensor]]:
    """Loop over pairs with ``torch.bincount``, on columns binned beforehand."""
    first, second = (_codes(tensor) for tensor in activations(pairs))

    def information(cells: Tensor) -> Tensor:
        share = torch.bincount(cells, minlength=BINS**2).view(BINS, BINS) / pairs.samples
        product = share.sum(1, keepdim=True) * share.sum(0, keepdim=True)
        nats: Tensor = torch.special.xlogy(share, share / product.clamp(min=1e-30)).sum()
        return nats / math.log(2)

    return lambda: [
        information(first[k % pairs.parents] * BINS + second[0]) for k in range(pairs.peer_pairs)
    ]


def _histogram_sklearn(pairs: Pairs) -> Callable[[], list[float]]:
    """Loop over pairs with ``sklearn.metrics.mutual_info_score``, on binned columns."""
    from sklearn.metrics import mutual_info_score

    first, second = (_codes(tensor).numpy() for tensor in activations(pairs))
    return lambda: [
        mutual_info_score(first[k % pairs.parents], second[0]) / math.log(2)
        for k in range(pairs.peer_pairs)
    ]


# ---- spanning trees ------------------------------------------------------------------------------


def trees_native(pairs: Pairs) -> Callable[[], Tensor]:
    """Return a run of ``causalprune.ops.spanning_tree_crossings`` on all pairs.

    Parameters
    ----------
    pairs : Pairs

    Returns
    -------
    callable
        Returns crossings [C, P] of standardised activations.

    Examples
    --------
    >>> list(trees_native(Pairs("small", 9, 2, 3, 1))().shape)
    [3, 2]
    """
    parents, children = activations(pairs)
    parents, children = parents / parents.std(0), children / children.std(0)
    return lambda: spanning_tree_crossings(children, parents)


def _trees_scipy(pairs: Pairs) -> Callable[[], object]:
    """Scipy's tree alone: the distances of the pair are given as a dense matrix."""
    from scipy.sparse.csgraph import minimum_spanning_tree

    parents, children = activations(pairs)
    points = torch.cat([parents, children[:, :1]], 1)[: pairs.samples // 3 * 2].double()
    distances = np.triu(torch.cdist(points, points).numpy(), 1)

    def run() -> None:
        for _ in range(pairs.peer_pairs):
            minimum_spanning_tree(distances)

    return run


HISTOGRAM_PEERS: Mapping[str, Peer] = MappingProxyType(
    {
        "numpy histogram2d": _histogram_numpy,
        "torch bincount": _histogram_bincount,
        "sklearn mutual_info_score": _histogram_sklearn,
    }
)
"""In bits for each of the first pairs. A package that is missing raises ImportError."""

TREE_PEERS: Mapping[str, Peer] = MappingProxyType({"scipy minimum_spanning_tree": _trees_scipy})
"""The tree alone: neither the nearest neighbours nor the distances are in it."""
