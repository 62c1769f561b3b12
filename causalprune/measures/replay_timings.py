"""What a change of one unit costs: one layer by update, a whole network by suffix replay."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from copy import deepcopy
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from causalprune.errors import InvalidArgumentError
from causalprune.graph import Interventions, capture
from causalprune.graph.intervene import removed
from causalprune.measures.convolution_layers import (
    LAYERS,
    ConvolutionLayer,
    dense_alternatives,
    layer_tensors,
)
from causalprune.measures.kernel_timing import fastest_seconds
from causalprune.measures.latency import torch_threads
from causalprune.ops import channel_update

__all__ = ["NetworkReplayTiming", "UpdateTiming", "network_replay_timing", "update_timings"]


@dataclass(frozen=True)
class UpdateTiming:
    """One layer's output after a change of one of its input channels, in every row.

    Attributes
    ----------
    layer : str
    rows, threads : int
        A row is an image with a unit changed.
    whole_ms : dict of str to float
        The layer again by torch, by memory layout.
    difference_ms : dict of str to float
        Torch's convolution of the changed channel's difference, added to the plain output, by
        memory layout.
    native_ms : float
        ``causalprune.ops.channel_update``.
    gflops : float
        Of ours: two operations for every output and tap, in 1e9 a second.
    gigabytes_per_second : float
        Of ours: the plain output and the difference read once, the new output written once.
    """

    layer: str
    rows: int
    threads: int
    whole_ms: dict[str, float]
    difference_ms: dict[str, float]
    native_ms: float
    gflops: float
    gigabytes_per_second: float

    @property
    def faster_than_whole(self) -> float:
        """How much faster than the fastest way to run the layer again."""
        return min(self.whole_ms.values()) / self.native_ms

    @property
    def faster_than_difference(self) -> float:
        """How much faster than the faster of torch's convolutions of the difference."""
        return min(self.difference_ms.values()) / self.native_ms

    def as_dict(self) -> dict[str, Any]:
        """Return everything as JSON values."""
        return {
            **asdict(self),
            "faster_than_whole": self.faster_than_whole,
            "faster_than_difference": self.faster_than_difference,
        }


@dataclass(frozen=True)
class NetworkReplayTiming:
    """The network's output without each filter of one module, one at a time.

    Attributes
    ----------
    network, module : str
    units, images, threads : int
    native_us : float
        Suffix replay, for one unit and image; the plain run that it starts from is not in it.
    forward_us : dict of str to float
        Whole forward passes with the unit zeroed by a hook, for one unit and image, by memory
        layout; timed on one unit of every layer.
    """

    network: str
    module: str
    units: int
    images: int
    threads: int
    native_us: float
    forward_us: dict[str, float]

    @property
    def speedup(self) -> float:
        """How much faster than the faster of the whole forward passes."""
        return min(self.forward_us.values()) / self.native_us

    def as_dict(self) -> dict[str, Any]:
        """Return everything as JSON values."""
        return {**asdict(self), "speedup": self.speedup}


def update_timings(
    layers: Sequence[ConvolutionLayer] = LAYERS,
    batches: Sequence[int] = (64,),
    *,
    threads: int = 1,
    seconds: float = 0.3,
    seed: int = 0,
) -> Iterator[UpdateTiming]:
    """Time layers of which one input channel is set to zero, one after the other.

    Parameters
    ----------
    layers, threads, seconds, seed
        See :func:`causalprune.measures.kernel_benchmarks.sparse_timings`.
    batches : sequence of int
        Rows.

    Yields
    ------
    UpdateTiming
    """
    with torch_threads(threads), torch.no_grad():
        for layer in layers:
            for batch in batches:
                generator = torch.Generator().manual_seed(seed)
                x, weight, bias = layer_tensors(layer, batch, generator)
                yield _update_timing(layer, x, weight, bias, threads, seconds)


def _update_timing(
    layer: ConvolutionLayer, x: Tensor, weight: Tensor, bias: Tensor, threads: int, seconds: float
) -> UpdateTiming:
    whole = dense_alternatives(x, weight, bias)
    part = weight[:, :1].contiguous()
    plain = F.conv2d(x, weight, bias, padding=layer.padding)
    differences = {}
    for name, layout in (
        ("nchw", torch.contiguous_format),
        ("channels_last", torch.channels_last),
    ):
        moved = (tensor.contiguous(memory_format=layout) for tensor in (plain, -x[:, :1], part))
        differences[f"difference {name}"] = partial(_by_difference, layer.padding, *moved)
    last = plain.contiguous(memory_format=torch.channels_last)
    difference = (-x[:, :1]).contiguous()
    native = partial(channel_update, last, difference, part, padding=layer.padding)
    found = fastest_seconds(
        {**whole, **differences, "native": native}, threads=threads, seconds=seconds
    )
    operations = 2.0 * plain.numel() * layer.kernel**2
    moved_bytes = 4.0 * (2 * plain.numel() + difference.numel())
    return UpdateTiming(
        layer.name,
        len(x),
        threads,
        {name: 1e3 * found[name] for name in whole},
        {name.split()[1]: 1e3 * found[name] for name in differences},
        1e3 * found["native"],
        operations / found["native"] / 1e9,
        moved_bytes / found["native"] / 1e9,
    )


def _by_difference(padding: int, plain: Tensor, difference: Tensor, weight: Tensor) -> Tensor:
    return F.conv2d(difference, weight, padding=padding).add_(plain)


def network_replay_timing(
    model: nn.Module,
    images: Tensor,
    module: str,
    *,
    network: str = "",
    threads: int = 1,
    seconds: float = 0.3,
) -> NetworkReplayTiming:
    """Time the exact ablation of all filters below one module, one filter at a time.

    Parameters
    ----------
    model : nn.Module
        In eval mode.
    images : Tensor [N, ...]
    module : str
        Dotted name: a block, whose convolutions' filters are removed.
    network : str
        What to call `model`.
    threads, seconds
        See :func:`causalprune.measures.kernel_benchmarks.sparse_timings`.

    Returns
    -------
    NetworkReplayTiming

    Raises
    ------
    InvalidArgumentError
        If no layer with filters that can be removed lies in `module`.

    Examples
    --------
    >>> model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 2, 3), nn.Flatten())
    >>> network_replay_timing(model.eval(), torch.randn(2, 3, 6, 6), "0", seconds=0.0).units
    4
    """
    with torch_threads(threads), torch.no_grad():
        graph = capture(model, images[:1], units="filters")
        layers = {g.name: g.n_units for g in graph.groups if f"{g.name}.".startswith(f"{module}.")}
        if not layers:
            known = ", ".join(group.name for group in graph.groups)
            raise InvalidArgumentError(f"module: expected part of one of {known}, got {module!r}")
        interventions = Interventions(model, graph, example=images[:1])
        interventions.observe(images)

        def replay() -> list[Tensor]:
            return [interventions.remove(name, range(n)) for name, n in layers.items()]

        def whole(copy: nn.Module, inputs: Tensor) -> None:
            for name in layers:
                with removed(copy, graph, {name: [0]}):
                    copy(inputs)

        last = torch.channels_last
        alternatives: dict[str, Callable[[], object]] = {
            "nchw": partial(whole, model, images),
            "channels_last": partial(
                whole,
                deepcopy(model).to(memory_format=last),  # type: ignore[call-overload]
                images.contiguous(memory_format=last),
            ),
        }
        found = fastest_seconds(
            {**alternatives, "native": replay}, threads=threads, seconds=seconds, least_rounds=1
        )
    units = sum(layers.values())
    return NetworkReplayTiming(
        network,
        module,
        units,
        len(images),
        threads,
        1e6 * found["native"] / units / len(images),
        {name: 1e6 * found[name] / len(layers) / len(images) for name in alternatives},
    )
