"""The native convolutions beside the best dense ones, layer by layer."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from causalprune import _native
from causalprune.errors import InvalidArgumentError
from causalprune.measures.convolution_layers import (
    LAYERS,
    ConvolutionLayer,
    dense_alternatives,
    layer_tensors,
)
from causalprune.measures.kernel_timing import fastest_seconds, round_times
from causalprune.measures.latency import torch_threads
from causalprune.ops.packed_layouts import Lanes, Window, lane_choices, native_layout, strips_for

__all__ = [
    "LAYERS",
    "ConvolutionLayer",
    "ConvolutionTiming",
    "channel_timings",
    "dense_alternatives",
    "sparse_timings",
]


@dataclass(frozen=True)
class ConvolutionTiming:
    """One layer at one sparsity, or with one fraction of its channels.

    Attributes
    ----------
    layer : str
    batch, threads : int
    kept : float
        Fraction of the weights, or of the channels on both sides, that is left.
    dense_ms : dict of str to float
        The whole layer by torch: ``"nchw"``, ``"channels_last"`` and ``"prepacked"`` (oneDNN's own
        layout for weights and activations).
    peers_ms : dict of str to float
        Other ways to profit, by name.
    native_ms : float
        Ours on activations that are in the packed layout, block after block of images as a
        network of packed layers runs.
    with_packing_ms : float
        The same with packing before and unpacking behind.
    gflops : float
        Of multiplications that count, in 1e9 a second.
    peak_gflops : float
        Of one thread on registers alone.
    lanes : tuple of int
        Images, row strips, column strips.
    blocking : tuple of int
        Rows that share taps, tile height and width, channels of a block.
    spread : float
        How much longer the median round of ours in the packed layout took, as a fraction.
    """

    layer: str
    batch: int
    threads: int
    kept: float
    dense_ms: dict[str, float]
    peers_ms: dict[str, float]
    native_ms: float
    with_packing_ms: float
    gflops: float
    peak_gflops: float
    lanes: tuple[int, int, int]
    blocking: tuple[int, int, int, int]
    spread: float

    @property
    def best_dense_ms(self) -> float:
        """The fastest dense way."""
        return min(self.dense_ms.values())

    @property
    def speedup(self) -> float:
        """How much faster than the fastest dense way, in the packed layout."""
        return self.best_dense_ms / self.native_ms

    def as_dict(self) -> dict[str, Any]:
        """Return everything as JSON values."""
        return {**asdict(self), "best_dense_ms": self.best_dense_ms, "speedup": self.speedup}


def sparse_timings(
    layers: Sequence[ConvolutionLayer] = LAYERS,
    sparsities: Sequence[float] = (0.0, 0.3, 0.4, 0.5, 0.7, 0.8, 0.9, 0.95, 0.98),
    batches: Sequence[int] = (1, 8, 64),
    *,
    threads: int = 1,
    seconds: float = 0.3,
    seed: int = 0,
) -> Iterator[ConvolutionTiming]:
    """Time layers whose weights are zero at random places, one after the other.

    Parameters
    ----------
    layers : sequence of ConvolutionLayer
    sparsities : sequence of float
        Fractions of zeros, in [0, 1).
    batches : sequence of int
        Images.
    threads : int
        One: CPU time. More: wall time.
    seconds : float
        For each layer, sparsity and batch.
    seed : int

    Yields
    ------
    ConvolutionTiming

    Raises
    ------
    InvalidArgumentError
        If a sparsity is out of range.
    """
    for sparsity in sparsities:
        if not 0 <= sparsity < 1:
            raise InvalidArgumentError(f"sparsities: expected numbers in [0, 1), got {sparsity!r}")
    peak = _native.peak_gflops()
    with torch_threads(threads), torch.no_grad():
        for layer in layers:
            for batch in batches:
                generator = torch.Generator().manual_seed(seed)
                x, dense, bias = layer_tensors(layer, batch, generator)
                order = torch.rand(dense.shape, generator=generator)
                for sparsity in sparsities:
                    weight = dense * (order >= sparsity)
                    channels = range(layer.inputs), range(layer.outputs)
                    rows = (1,) if sparsity > 0 else (2, 4)
                    yield _timing(
                        layer,
                        x,
                        weight,
                        bias,
                        channels,
                        rows,
                        1 - sparsity,
                        {},
                        threads,
                        seconds,
                        peak,
                    )


def channel_timings(
    layers: Sequence[ConvolutionLayer] = LAYERS,
    kept: Sequence[float] = (1.0, 0.75, 0.5, 0.25, 0.125),
    batches: Sequence[int] = (1, 8, 64),
    *,
    threads: int = 1,
    seconds: float = 0.3,
    seed: int = 0,
) -> Iterator[ConvolutionTiming]:
    """Time layers of which some input and output channels are left, by lists, in place.

    Peers: ``"gather"`` (index_select, the narrow convolution, index_copy) and ``"narrow"`` (the
    equally narrow convolution alone, the best of torch's layouts).

    Parameters
    ----------
    layers, batches, threads, seconds, seed
        See :func:`sparse_timings`.
    kept : sequence of float
        Fraction of the channels that is left on either side, in (0, 1].

    Yields
    ------
    ConvolutionTiming
    """
    peak = _native.peak_gflops()
    with torch_threads(threads), torch.no_grad():
        for layer in layers:
            for batch in batches:
                generator = torch.Generator().manual_seed(seed)
                x, dense, bias = layer_tensors(layer, batch, generator)
                for share in kept:
                    inputs, outputs = (
                        torch.randperm(n, generator=generator)[: max(1, round(n * share))]
                        .sort()
                        .values
                        for n in (layer.inputs, layer.outputs)
                    )
                    weight = dense[outputs][:, inputs].contiguous()
                    peers = _gathered(x, weight, bias[outputs], inputs, outputs, layer)
                    channels = inputs.tolist(), outputs.tolist()
                    yield _timing(
                        layer,
                        x,
                        weight,
                        bias[outputs],
                        channels,
                        (2, 4),
                        share,
                        peers,
                        threads,
                        seconds,
                        peak,
                        whole=(dense, bias),
                    )


def _gathered(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    inputs: Tensor,
    outputs: Tensor,
    layer: ConvolutionLayer,
) -> dict[str, Callable[[], object]]:
    padding = layer.kernel // 2
    target = torch.zeros(len(x), layer.outputs, layer.size, layer.size)

    def gather() -> Tensor:
        narrow = F.conv2d(x.index_select(1, inputs), weight, bias, padding=padding)
        return target.index_copy_(1, outputs, narrow)

    narrow = dense_alternatives(x[:, inputs].contiguous(), weight, bias)
    return {"gather": gather, **{f"narrow {name}": run for name, run in narrow.items()}}


def _timing(
    layer: ConvolutionLayer,
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    channels: tuple[Sequence[int], Sequence[int]],
    rows: Sequence[int],
    kept: float,
    peers: Mapping[str, Callable[[], object]],
    threads: int,
    seconds: float,
    peak: float,
    whole: tuple[Tensor, Tensor] | None = None,
) -> ConvolutionTiming:
    dense = dense_alternatives(x, *(whole or (weight, bias)))
    choices = [
        _PackedLayer(layer, x, weight, bias, channels, lanes, row, threads)
        for lanes in lane_choices(len(x), (layer.size, layer.size), layer.inputs)[:2]
        for row in rows
    ]
    packed = {f"packed {k}": each.run for k, each in enumerate(choices)}
    first = fastest_seconds(packed, threads=threads, seconds=seconds / 4, least_rounds=2)
    best = choices[int(min(first, key=first.__getitem__).split()[1])]
    found = round_times(
        {**dense, **peers, "native": best.run, "with packing": best.run_with_packing},
        threads=threads,
        seconds=seconds,
    )
    milliseconds = {name: 1e3 * times.seconds for name, times in found.items()}
    operations = 2.0 * best.plan.n_taps * layer.size**2 * len(x)
    return ConvolutionTiming(
        layer.name,
        len(x),
        threads,
        kept,
        {name: milliseconds[name] for name in dense},
        {name: milliseconds[name] for name in peers},
        milliseconds["native"],
        milliseconds["with packing"],
        operations / found["native"].seconds / 1e9,
        peak * threads,
        (best.lanes.images, best.lanes.rows, best.lanes.columns),
        best.plan.blocking,
        found["native"].spread,
    )


class _PackedLayer:
    """One convolution, a block of images at a time, with and without packing around it."""

    def __init__(
        self,
        layer: ConvolutionLayer,
        x: Tensor,
        weight: Tensor,
        bias: Tensor,
        channels: tuple[Sequence[int], Sequence[int]],
        lanes: Lanes,
        rows: int,
        threads: int,
    ) -> None:
        size, padding = (layer.size, layer.size), layer.kernel // 2
        window = Window((layer.kernel, layer.kernel), padding=(padding, padding))
        # Several threads share the blocks that they are given at once.
        images = min(len(x), lanes.images * threads)
        (strips,) = strips_for(lanes, [(size, (1, 1))])
        halo = window.halo(strips.strip, strips.strip)
        source = native_layout(strips, images, layer.inputs, halo)
        target = native_layout(strips, images, layer.outputs, (0, 0, 0, 0))
        self.lanes, self.threads, self.x, self.images = lanes, threads, x, images
        self.plan = _native.PackedConvolution(
            weight, bias, source, target, list(channels[0]), list(channels[1]), window.stride,
            window.padding, window.dilation, 1, "none", (rows, 0, 0, 0), threads,
        )  # fmt: skip
        self.program = self._program(source, target, packing=False)
        self.whole = self._program(source, target, packing=True)
        floats = max(self.program.workspace_floats, self.whole.workspace_floats)
        self.workspace = torch.zeros(floats)
        self.out = torch.empty(images, layer.outputs, *size)

    def _program(
        self, source: _native.PackedLayout, target: _native.PackedLayout, *, packing: bool
    ) -> _native.PackedProgram:
        program = _native.PackedProgram()
        a, b = program.buffer(source), program.buffer(target)
        if packing:
            program.pack(0, a)
            program.fill_halo(a, 0.0)
        program.convolve(self.plan, a, b)
        if packing:
            program.unpack(b, 0)
        program.finish()
        return program

    def run(self) -> None:
        for _ in range(math.ceil(len(self.x) / self.images)):
            self.program.run([], [], self.workspace, False, self.threads)

    def run_with_packing(self) -> None:
        for first in range(0, len(self.x) - self.images + 1, self.images):
            part = self.x[first : first + self.images]
            self.whole.run([part], [self.out], self.workspace, False, self.threads)
