"""The command ``causalprune bench``."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Protocol, TypeVar

import typer

from causalprune.cli.bench_tables import (
    show_convolutions,
    show_information,
    show_path,
    show_replay,
    show_sensitivity,
    show_target,
)
from causalprune.cli.console import errors_in_one_line
from causalprune.errors import InvalidArgumentError

if TYPE_CHECKING:
    from causalprune.measures.convolution_layers import ConvolutionLayer

__all__ = ["bench"]


class _Named(Protocol):
    @property
    def name(self) -> str: ...


_Case = TypeVar("_Case", bound=_Named)


class Kernel(str, Enum):
    """What is timed."""

    sparse = "sparse"
    channel = "channel"
    path = "path"
    sensitivity = "sensitivity"
    mi = "mi"
    replay = "replay"


_BATCHES = {Kernel.sensitivity: "8", Kernel.replay: "64"}
_BLOCKS = ("layer1.1", "layer2.1", "layer3.1")
_TARGET_SECONDS = 60.0


def bench(
    kernel: Annotated[Kernel, typer.Argument(help="What is timed.")],
    json_file: Annotated[
        Path | None, typer.Option("--json", help="File to write all figures to.")
    ] = None,
    layer: Annotated[
        str | None, typer.Option(help="Only layers, or pairs of them, whose name contains this.")
    ] = None,
    batch: Annotated[
        str | None, typer.Option(help="Images. Default: 1,8,64; for sensitivity 8, replay 64.")
    ] = None,
    kept: Annotated[
        str | None,
        typer.Option(help="Fractions of weights (sparse) or channels (channel) that are left."),
    ] = None,
    threads: Annotated[int, typer.Option(help="One: CPU time of the thread; more: wall time.")] = 1,
    seconds: Annotated[float, typer.Option(help="For every figure.")] = 0.3,
    full: Annotated[
        bool,
        typer.Option(
            "--full", help="mi: also one pair of ResNet-56's layers in full, on two threads."
        ),
    ] = False,
    peers: Annotated[
        bool, typer.Option("--peers", help="path: also captum's scores of the same units.")
    ] = False,
) -> None:
    """Time the native kernels beside the best of what does without them.

    sparse, channel: convolutions of ResNet-20 and ResNet-50 with zeros or
    lists of channels, beside torch's dense ones.

    path: the effects of all edges of these layers, all statistics and the
    gradient-weighted sum alone, as multiples of the fastest forward pass.

    sensitivity: relative sensitivities of their weights, beside a Python loop
    and torch's matrix products.

    mi: mutual information between the units of two layers, by histograms and
    spanning trees, beside numpy, torch, scikit-learn and scipy.

    replay: a layer's output after a change of one input channel, and a
    ResNet-20's without each filter of a block, beside running all again.
    """
    with errors_in_one_line():
        if threads < 1:
            raise InvalidArgumentError(f"--threads: expected at least 1, got {threads}")
        _check_options(kernel, batch=batch, kept=kept, full=full or None, peers=peers or None)
        how: dict[str, Any] = {"threads": threads, "seconds": seconds}
        if kernel is Kernel.mi:
            rows = _information(layer, full, how)
        else:
            given = _BATCHES.get(kernel, "1,8,64") if batch is None else batch
            how["batches"] = [int(value) for value in _numbers("--batch", given)]
            shares = None if kept is None else _numbers("--kept", kept)
            if peers:
                how["peers"] = True
            rows = _layers(kernel, layer, shares, how)
        if json_file is not None:
            _write(json_file, kernel, rows)
            print(f"written: {json_file}")


def _check_options(kernel: Kernel, **given: object) -> None:
    """Refuse an option that means nothing for what is timed."""
    meant = {
        "batch": set(Kernel) - {Kernel.mi},
        "kept": {Kernel.sparse, Kernel.channel},
        "full": {Kernel.mi},
        "peers": {Kernel.path},
    }
    for name, value in given.items():
        if value is not None and kernel not in meant[name]:
            known = ", ".join(each.value for each in Kernel if each in meant[name])
            raise InvalidArgumentError(
                f"--{name}: expected with {known} only, got it with {kernel.value}"
            )


def _numbers(name: str, text: str) -> list[float]:
    try:
        values = [float(part) for part in text.split(",")]
    except ValueError:
        values = []
    if not values or min(values) <= 0:
        raise InvalidArgumentError(f"{name}: expected positive numbers such as 1,8, got {text!r}")
    return values


def _chosen(cases: Sequence[_Case], part: str | None) -> list[_Case]:
    return [case for case in cases if part is None or part in case.name]


def _check_chosen(chosen: Iterable[object], known: Iterable[_Named], part: str | None) -> None:
    if not any(chosen):
        names = ", ".join(each.name for each in known)
        raise InvalidArgumentError(f"--layer: expected part of one of {names}, got {part!r}")


def _layers(
    kernel: Kernel, part: str | None, kept: list[float] | None, how: dict[str, Any]
) -> list[dict[str, Any]]:
    from causalprune.measures.convolution_layers import LAYERS

    layers = _chosen(LAYERS, part)
    if kernel is Kernel.replay:
        return _replay(layers, part, how)
    _check_chosen(layers, LAYERS, part)
    if kernel is Kernel.sparse:
        from causalprune.measures.kernel_benchmarks import sparse_timings

        if kept is not None:
            how["sparsities"] = [1 - share for share in kept]
        return show_convolutions(sparse_timings(layers, **how))
    if kernel is Kernel.channel:
        from causalprune.measures.kernel_benchmarks import channel_timings

        if kept is not None:
            how["kept"] = kept
        return show_convolutions(channel_timings(layers, **how))
    if kernel is Kernel.path:
        from causalprune.measures.path_timings import path_timings

        return show_path(path_timings(layers, **how))
    from causalprune.measures.sensitivity_timings import sensitivity_timings

    return show_sensitivity(sensitivity_timings(layers, **how))


def _replay(
    layers: list[ConvolutionLayer], part: str | None, how: dict[str, Any]
) -> list[dict[str, Any]]:
    import torch

    from causalprune.experiments.cifar_resnets import cifar_resnet
    from causalprune.measures.convolution_layers import LAYERS
    from causalprune.measures.replay_timings import network_replay_timing, update_timings

    network = "ResNet-20 network"
    blocks = [name for name in _BLOCKS if part is None or part in f"{network} {name}"]
    if not layers and not blocks:
        known = ", ".join([*(each.name for each in LAYERS), *(f"{network} {b}" for b in _BLOCKS)])
        raise InvalidArgumentError(f"--layer: expected part of one of {known}, got {part!r}")
    batches = how.pop("batches")
    torch.manual_seed(0)
    model, images = cifar_resnet(20).eval(), torch.randn(max(batches), 3, 32, 32)
    return show_replay(
        update_timings(layers, batches, **how),
        (network_replay_timing(model, images, block, network=network, **how) for block in blocks),
    )


def _information(part: str | None, full: bool, how: dict[str, Any]) -> list[dict[str, Any]]:
    from causalprune.measures.information_peers import HISTOGRAMS, TREES
    from causalprune.measures.information_timings import (
        histogram_timings,
        target_timing,
        tree_timings,
    )

    histograms, trees = _chosen(HISTOGRAMS, part), _chosen(TREES, part)
    _check_chosen((*histograms, *trees), (*HISTOGRAMS, *TREES), part)
    rows = show_information(histogram_timings(histograms, **how), tree_timings(trees, **how))
    if full:
        timing = target_timing(threads=max(2, how["threads"]))
        rows += show_target(timing, _TARGET_SECONDS)
    return rows


def _write(path: Path, kernel: Kernel, rows: list[dict[str, Any]]) -> None:
    from causalprune.files import replace_file
    from causalprune.measures import info

    record = {"schema": 1, "kernel": kernel.value, "info": info(), "rows": rows}
    replace_file(path, json.dumps(record, indent=1) + "\n")
