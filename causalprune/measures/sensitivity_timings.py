"""Relative sensitivity beside the forward pass and beside plain torch, layer by layer."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from causalprune import _native
from causalprune.measures.convolution_layers import (
    LAYERS,
    ConvolutionLayer,
    dense_alternatives,
    layer_tensors,
)
from causalprune.measures.kernel_timing import fastest_seconds
from causalprune.measures.latency import torch_threads
from causalprune.measures.sensitivity_peers import (
    filter_shares,
    point_patches,
    product_sensitivity,
)
from causalprune.ops.relative_sensitivity import relative_sensitivity

__all__ = ["MULTIPLY_ADDS", "SensitivityTiming", "sensitivity_timings"]

MULTIPLY_ADDS = 3
"""For each weight, position and point: two denominators, one share."""

_BY = ("mean", "max")
_TIMED_FILTERS = 4


@dataclass(frozen=True)
class SensitivityTiming:
    """The sensitivities of one layer's weights behind a ReLU, so that an image is one point.

    Attributes
    ----------
    layer : str
    batch, threads : int
    aggregate : str
        ``"mean"`` (SiPP) or ``"max"`` (PFP).
    forward_ms : dict of str to float
        The layer itself by torch, by memory layout.
    native_ms : float
        ``causalprune.ops.relative_sensitivity``.
    loop_ms : float
        The Python loop over filters, scaled from `loop_filters` filters of one image.
    loop_filters : int
    products_ms : float
        Torch's matrix products, scaled from one image.
    gflops : float
        Of ours: three multiply-adds, two operations each, for every weight, position and image, in
        1e9 a second.
    peak_gflops : float
        Of one thread on registers alone, times threads.
    """

    layer: str
    batch: int
    threads: int
    aggregate: str
    forward_ms: dict[str, float]
    native_ms: float
    loop_ms: float
    loop_filters: int
    products_ms: float
    gflops: float
    peak_gflops: float

    @property
    def times_forward(self) -> float:
        """How many of the fastest forward passes it takes."""
        return self.native_ms / min(self.forward_ms.values())

    def as_dict(self) -> dict[str, Any]:
        """Return everything as JSON values."""
        return {**asdict(self), "times_forward": self.times_forward}


def sensitivity_timings(
    layers: Sequence[ConvolutionLayer] = LAYERS,
    batches: Sequence[int] = (8,),
    *,
    threads: int = 1,
    seconds: float = 0.3,
    seed: int = 0,
) -> Iterator[SensitivityTiming]:
    """Time layers behind a ReLU, one after the other, by mean and by maximum.

    Parameters
    ----------
    layers, batches, threads, seconds, seed
        See :func:`causalprune.measures.kernel_benchmarks.sparse_timings`. The peers, which take
        seconds for a whole layer, run on the first image, the loop on a few of the filters.

    Yields
    ------
    SensitivityTiming
    """
    peak = _native.peak_gflops() * threads
    with torch_threads(threads), torch.no_grad():
        for layer in layers:
            for batch in batches:
                generator = torch.Generator().manual_seed(seed)
                x, weight, bias = layer_tensors(layer, batch, generator)
                yield from _timings(layer, x.relu_(), weight, bias, threads, seconds, peak)


def _timings(
    layer: ConvolutionLayer,
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    threads: int,
    seconds: float,
    peak: float,
) -> Iterator[SensitivityTiming]:
    dense = dense_alternatives(x, weight, bias)
    ours = {
        aggregate: partial(
            relative_sensitivity, x, weight, aggregate=aggregate, padding=layer.padding
        )
        for aggregate in _BY
    }
    found = fastest_seconds({**dense, **ours}, threads=threads, seconds=seconds)
    peers, filters = _peers(layer, x[:1], weight)
    slow = fastest_seconds(peers, threads=threads, seconds=seconds, least_rounds=1)
    operations = 2.0 * MULTIPLY_ADDS * layer.multiply_adds(len(x))
    for aggregate in _BY:
        loop = slow["unfold"] + slow[f"loop {aggregate}"] * layer.outputs / filters
        yield SensitivityTiming(
            layer.name,
            len(x),
            threads,
            aggregate,
            {name: 1e3 * found[name] for name in dense},
            1e3 * found[aggregate],
            1e3 * loop * len(x),
            filters,
            1e3 * slow[f"products {aggregate}"] * len(x),
            operations / found[aggregate] / 1e9,
            peak,
        )


def _peers(
    layer: ConvolutionLayer, image: Tensor, weight: Tensor
) -> tuple[dict[str, Callable[[], object]], int]:
    """Return the peers on one image, and how many filters the loop runs over."""
    kernel = (layer.kernel, layer.kernel)
    (patches,) = point_patches(image, kernel, padding=layer.padding)
    rows = weight.flatten(1)[:_TIMED_FILTERS]

    def loop(aggregate: str) -> list[Tensor]:
        return [filter_shares(row, patches, aggregate) for row in rows]

    found: dict[str, Callable[[], object]] = {
        "unfold": lambda: list(point_patches(image, kernel, padding=layer.padding))
    }
    for aggregate in _BY:
        found[f"loop {aggregate}"] = partial(loop, aggregate)
        found[f"products {aggregate}"] = partial(
            product_sensitivity, image, weight, aggregate, padding=layer.padding
        )
    return found, len(rows)
