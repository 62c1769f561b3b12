"""Path effects beside the forward pass that they are measured against, layer by layer."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F

from causalprune.errors import MissingDependencyError
from causalprune.measures.captum_peers import CaptumPeer, captum_peers
from causalprune.measures.kernel_benchmarks import LAYERS, ConvolutionLayer, dense_alternatives
from causalprune.measures.kernel_timing import fastest_seconds
from causalprune.measures.latency import torch_threads
from causalprune.ops import path_effects

__all__ = ["PathTiming", "path_timings"]


@dataclass(frozen=True)
class PathTiming:
    """The effects of all edges of one layer, with gradient.

    Attributes
    ----------
    layer : str
    batch, threads : int
    forward_ms : dict of str to float
        The layer itself by torch, by memory layout.
    native_ms : float
        ``causalprune.ops.path_effects``, all statistics.
    weighted_ms : float
        The gradient-weighted sum alone.
    units : int
        Input channels.
    captum_ms : dict of str to float
        Captum's methods, which score these units and no edges, scaled from part of the work; empty
        unless asked for.
    skipped : dict of str to str
        What could not be timed, and why.
    """

    layer: str
    batch: int
    threads: int
    forward_ms: dict[str, float]
    native_ms: float
    weighted_ms: float
    units: int
    captum_ms: dict[str, float] = field(default_factory=dict)
    skipped: dict[str, str] = field(default_factory=dict)

    @property
    def times_forward(self) -> float:
        """How many of the fastest forward passes it takes."""
        return self.native_ms / min(self.forward_ms.values())

    @property
    def weighted_times_forward(self) -> float:
        """How many of the fastest forward passes the weighted sum alone takes."""
        return self.weighted_ms / min(self.forward_ms.values())

    def as_dict(self) -> dict[str, Any]:
        """Return everything as JSON values."""
        return {
            **asdict(self),
            "times_forward": self.times_forward,
            "weighted_times_forward": self.weighted_times_forward,
        }


def path_timings(
    layers: Sequence[ConvolutionLayer] = LAYERS,
    batches: Sequence[int] = (8,),
    *,
    threads: int = 1,
    seconds: float = 0.3,
    seed: int = 0,
    peers: bool = False,
) -> Iterator[PathTiming]:
    """Time layers behind and before a ReLU, one after the other.

    Parameters
    ----------
    layers, batches, threads, seconds, seed
        See :func:`causalprune.measures.kernel_benchmarks.sparse_timings`.
    peers : bool
        Whether captum's methods are timed too, where it is installed.

    Yields
    ------
    PathTiming
    """
    with torch_threads(threads), torch.no_grad():
        for layer in layers:
            for batch in batches:
                generator = torch.Generator().manual_seed(seed)
                size, padding = (layer.size, layer.size), layer.kernel // 2
                x = torch.randn(batch, layer.inputs, *size, generator=generator).relu_()
                shape = (layer.outputs, layer.inputs, layer.kernel, layer.kernel)
                weight = torch.randn(shape, generator=generator) * 0.05
                bias = torch.zeros(layer.outputs)
                pre = F.conv2d(x, weight, bias, padding=padding)
                grad = torch.randn(pre.shape, generator=generator)
                ours = partial(path_effects, x, weight, pre, grad, padding=padding)
                alone = partial(ours, statistics="grad_weighted")
                found = fastest_seconds(
                    {**dense_alternatives(x, weight, bias), "native": ours, "weighted": alone},
                    threads=threads,
                    seconds=seconds,
                )
                milliseconds = {name: 1e3 * value for name, value in found.items()}
                all_ms, weighted_ms = (milliseconds.pop(name) for name in ("native", "weighted"))
                captum_ms, skipped = {}, {}
                if peers:
                    try:
                        captum = captum_peers(x, weight, bias, grad, padding)
                        captum_ms = _captum_ms(captum, threads, seconds)
                    except MissingDependencyError as error:
                        skipped["captum"] = str(error)
                yield PathTiming(
                    layer.name,
                    batch,
                    threads,
                    milliseconds,
                    all_ms,
                    weighted_ms,
                    layer.inputs,
                    captum_ms,
                    skipped,
                )


def _captum_ms(peers: Mapping[str, CaptumPeer], threads: int, seconds: float) -> dict[str, float]:
    runs = {name: peer.run for name, peer in peers.items()}
    found = fastest_seconds(runs, threads=threads, seconds=seconds, least_rounds=1)
    return {name: 1e3 * found[name] * peer.scale for name, peer in peers.items()}
