"""Sizes and peers of the information benchmarks: what a user would write without the operators."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np
import torch
from scipy.sparse.csgraph import minimum_spanning_tree
from sklearn.metrics import mutual_info_score
from torch import Tensor

from causalprune.ops import histogram_information, spanning_tree_crossings


@dataclass(frozen=True)
class Pairs:
    """Two layers' activations; `peer_pairs` bounds how much of them a slow peer is timed on."""

    name: str
    samples: int
    parents: int
    children: int
    peer_pairs: int

    @property
    def n_pairs(self) -> int:
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


def activations(pairs: Pairs) -> tuple[Tensor, Tensor]:
    """Parents [N, P] and children [N, C] that know them a little; Gaussian."""
    generator = torch.Generator().manual_seed(pairs.samples)
    parents = torch.randn(pairs.samples, pairs.parents, generator=generator)
    weight = torch.randn(pairs.parents, pairs.children, generator=generator)
    noise = torch.randn(pairs.samples, pairs.children, generator=generator)
    return parents, parents @ weight / pairs.parents**0.5 + noise


# ---- histograms ----------------------------------------------------------------------------------


def histogram_native(pairs: Pairs) -> Callable[[], object]:
    parents, children = activations(pairs)
    return lambda: histogram_information(parents, children, 64)


def _plug_in(counts: np.ndarray) -> float:
    share = counts / counts.sum()
    product = share.sum(1, keepdims=True) * share.sum(0, keepdims=True)
    filled = share > 0
    return float((share[filled] * np.log2(share[filled] / product[filled])).sum())


def histogram_numpy(pairs: Pairs) -> Callable[[], object]:
    """A loop over pairs of ``numpy.histogram2d``."""
    parents, children = (tensor.numpy() for tensor in activations(pairs))

    def run() -> None:
        for k in range(pairs.peer_pairs):
            _plug_in(np.histogram2d(parents[:, k % pairs.parents], children[:, 0], bins=64)[0])

    return run


def histogram_bincount(pairs: Pairs) -> Callable[[], object]:
    """Columns binned once, then a loop over pairs of ``torch.bincount``."""
    parents, children = activations(pairs)

    def codes(columns: Tensor) -> Tensor:
        low, high = columns.amin(0), columns.amax(0)
        return ((columns - low) * (64 / (high - low))).long().clamp(max=63).T.contiguous()

    first, second = codes(parents), codes(children)

    def run() -> None:
        for k in range(pairs.peer_pairs):
            cells = first[k % pairs.parents] * 64 + second[0]
            share = torch.bincount(cells, minlength=4096).view(64, 64) / pairs.samples
            product = share.sum(1, keepdim=True) * share.sum(0, keepdim=True)
            torch.special.xlogy(share, share / product.clamp(min=1e-30)).sum()

    return run


def histogram_sklearn(pairs: Pairs) -> Callable[[], object]:
    """Columns binned beforehand, then ``sklearn.metrics.mutual_info_score`` for each pair."""
    first, second = (
        ((t - t.amin(0)) * (64 / (t.amax(0) - t.amin(0)))).long().clamp(max=63).numpy()
        for t in activations(pairs)
    )

    def run() -> None:
        for k in range(pairs.peer_pairs):
            mutual_info_score(first[:, k % pairs.parents], second[:, 0])

    return run


# ---- spanning trees ------------------------------------------------------------------------------


def trees_native(pairs: Pairs) -> Callable[[], object]:
    parents, children = activations(pairs)
    parents, children = parents / parents.std(0), children / children.std(0)
    return lambda: spanning_tree_crossings(children, parents)


def trees_scipy(pairs: Pairs) -> Callable[[], object]:
    """scipy's tree alone: the distances of the pair are given as a dense matrix."""
    parents, children = activations(pairs)
    points = torch.cat([parents, children[:, :1]], 1)[: pairs.samples // 3 * 2].double()
    distances = np.triu(torch.cdist(points, points).numpy(), 1)

    def run() -> None:
        for _ in range(pairs.peer_pairs):
            minimum_spanning_tree(distances)

    return run


HISTOGRAM_PEERS: Mapping[str, Callable[[Pairs], Callable[[], object]]] = MappingProxyType(
    {
        "numpy histogram2d": histogram_numpy,
        "torch bincount": histogram_bincount,
        "sklearn mutual_info_score": histogram_sklearn,
    }
)
TREE_PEERS: Mapping[str, Callable[[Pairs], Callable[[], object]]] = MappingProxyType(
    {"scipy minimum_spanning_tree": trees_scipy}
)
