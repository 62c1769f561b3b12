"""What the roofline shows: ceilings of this machine, and operators by work, traffic and time.

How operations are counted, for every output position and image, padding included (who leaves it
out, as torch's convolutions do, can come out above the limit on small maps):

- forward: two for every weight (a multiplication and an addition).
- path_effects: those two for every weight, which make the contribution of each edge; then for every
  edge one for the maximum that ReLU leaves and two for the sum weighted by the gradient; with all
  statistics four more (the sum, the sum of absolute values, a square and its sum).
- relative_sensitivity: six for every weight: multiply-adds of two denominators and of one share.
- sparse_conv2d: two for every weight that is not zero.
- channel_update: two for every weight of the changed channel.

How bytes are counted: every tensor that comes in is read once and every one that goes out is
written once, whatever the caches do; float32, results of path_effects float64, a weight that is not
zero with its offset 8 bytes. Inputs are positive everywhere, so that no zero lets anything be
skipped and an image is one point of relative_sensitivity.

The horizontal limit is that of multiply-adds; additions and maxima run beside them, which is how
path_effects with all statistics comes out above it in 1x1 layers. Outputs are fresh memory: above
some 32 MB the system's first touch of every page is most of channel_update's time there.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F

from causalprune import _native
from causalprune.measures.convolution_layers import (
    ConvolutionLayer,
    dense_alternatives,
    layer_tensors,
)
from causalprune.measures.kernel_benchmarks import sparse_timings
from causalprune.measures.kernel_timing import round_times
from causalprune.ops import channel_update, path_effects, relative_sensitivity

IMAGES, ROWS, SPARSITY = 8, 64, 0.9
FORWARD = "torch, best forward"
ONE, ALL = "path_effects, one statistic", "path_effects, all"
MEAN, LARGEST = "relative_sensitivity, mean", "relative_sensitivity, max"
SPARSE = f"sparse_conv2d, {SPARSITY:.0%} zeros"
UPDATE = f"channel_update, {ROWS} rows"
OPERATORS = (FORWARD, ONE, ALL, MEAN, LARGEST, SPARSE, UPDATE)


@dataclass(frozen=True)
class Ceiling:
    """A limit: 1e9 operations, or 1e9 bytes read, a second."""

    name: str
    rate: float
    spread: float  # how far the median of several measurements is below the best


@dataclass(frozen=True)
class Point:
    operator: str
    layer: str
    operations: float
    bytes: float
    seconds: float
    spread: float

    @property
    def intensity(self) -> float:
        """Operations for a byte."""
        return self.operations / self.bytes

    @property
    def gflops(self) -> float:
        return self.operations / self.seconds / 1e9


# ---- ceilings ------------------------------------------------------------------------------------


def cache_bytes() -> tuple[int, int, int]:
    """Sizes of the caches of the first core; those of a common server where none are told."""
    found = {1: 32 << 10, 2: 1 << 20, 3: 32 << 20}
    for folder in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*"):
        try:
            kind, level, size = (
                (folder / name).read_text().strip() for name in ("type", "level", "size")
            )
        except OSError:  # virtual machines do not tell all of them
            continue
        if kind != "Instruction":
            found[int(level)] = int(size.rstrip("KM")) << (20 if size.endswith("M") else 10)
    return found[1], found[2], found[3]


def ceilings() -> list[Ceiling]:
    """Multiply-adds; reads of what fills half of a cache, a quarter of the shared one."""
    first, second, third = cache_bytes()
    reads = {
        "L1": first // 2,
        "L2": second // 2,
        "L3": third // 4,
        "memory": min(max(4 * third, 128 << 20), 512 << 20),
    }
    found = [_ceiling("multiply-adds", _native.peak_gflops)]
    for name, size in reads.items():
        read = partial(_native.read_gigabytes_per_second, size)
        found.append(_ceiling(f"{name} ({_size(size)} read)", read))
    return found


def _ceiling(name: str, measure: Callable[[], float]) -> Ceiling:
    rates = [measure() for _ in range(3)]
    best = max(rates)
    return Ceiling(name, best, 1 - statistics.median(rates) / best)


def _size(size: int) -> str:
    return f"{size >> 20} MiB" if size >= 1 << 20 else f"{size >> 10} KiB"


# ---- work and traffic ----------------------------------------------------------------------------


def counts(layer: ConvolutionLayer, operator: str) -> tuple[float, float]:
    """Operations and bytes of an operator on a layer, counted as said above."""
    positions = layer.size**2
    weights = layer.outputs * layer.inputs * layer.kernel**2
    edges = layer.outputs * layer.inputs
    read, written = (4.0 * IMAGES * n * positions for n in (layer.inputs, layer.outputs))
    dense = 2.0 * IMAGES * positions * weights
    if operator == FORWARD:
        return dense, read + 4 * weights + written
    if operator in (ONE, ALL):
        each, kept = (3, 1) if operator == ONE else (7, 4)
        # The pre-activation and the gradient are read as large as the output.
        results = 8.0 * (edges * kept + IMAGES * layer.inputs)
        return (
            dense + each * IMAGES * positions * edges,
            read + 4 * weights + 2 * written + results,
        )
    if operator in (MEAN, LARGEST):
        return 3 * dense, read + 8 * weights
    if operator == SPARSE:
        share = 1 - SPARSITY
        return dense * share, read + 8 * weights * share + written
    if operator == UPDATE:
        out = ROWS * layer.outputs * positions
        part = layer.outputs * layer.kernel**2
        return 2.0 * out * layer.kernel**2, 4.0 * (2 * out + ROWS * positions + part)
    raise ValueError(f"operator: expected one of {', '.join(OPERATORS)}, got {operator!r}")


# ---- time ----------------------------------------------------------------------------------------


def points(layers: Sequence[ConvolutionLayer], seconds: float) -> list[Point]:
    """Every operator on every layer: one thread, its CPU time, all of a layer in turns."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with torch.no_grad():
            return [point for layer in layers for point in _points(layer, seconds)]
    finally:
        torch.set_num_threads(before)


def _points(layer: ConvolutionLayer, seconds: float) -> list[Point]:
    generator = torch.Generator().manual_seed(0)
    x, weight, bias = layer_tensors(layer, IMAGES, generator)
    x = x.abs_().add_(0.01)
    pre = F.conv2d(x, weight, bias, padding=layer.padding)
    grad = torch.randn(pre.shape, generator=generator)
    effects = partial(path_effects, x, weight, pre, grad, padding=layer.padding)
    shares = partial(relative_sensitivity, x, weight, padding=layer.padding)
    rows = torch.randn(ROWS, *pre.shape[1:]).contiguous(memory_format=torch.channels_last)
    change = torch.randn(ROWS, 1, layer.size, layer.size)
    forward = dense_alternatives(x, weight, bias)
    ours: dict[str, Callable[[], object]] = {
        ONE: partial(effects, statistics="grad_weighted"),
        ALL: effects,
        MEAN: partial(shares, aggregate="mean"),
        LARGEST: partial(shares, aggregate="max"),
        UPDATE: partial(
            channel_update, rows, change, weight[:, :1].contiguous(), padding=layer.padding
        ),
    }
    times = round_times({**forward, **ours}, seconds=seconds, least_rounds=3)
    best = min((times[name] for name in forward), key=lambda each: each.seconds)
    found = {FORWARD: (best.seconds, best.spread)}
    found.update({name: (times[name].seconds, times[name].spread) for name in ours})
    (sparse,) = sparse_timings([layer], [SPARSITY], [IMAGES], seconds=seconds)
    found[SPARSE] = (sparse.native_ms / 1e3, sparse.spread)
    return [Point(name, layer.name, *counts(layer, name), *found[name]) for name in OPERATORS]
