"""The command ``causalprune bench``."""

from __future__ import annotations

import json
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from causalprune.cli.bench_tables import show_convolutions, show_path, show_sensitivity
from causalprune.cli.console import errors_in_one_line
from causalprune.errors import InvalidArgumentError

if TYPE_CHECKING:
    from causalprune.measures.convolution_layers import ConvolutionLayer

__all__ = ["bench"]


class Kernel(str, Enum):
    """What is timed."""

    sparse = "sparse"
    channel = "channel"
    path = "path"
    sensitivity = "sensitivity"


_BATCHES = {Kernel.sensitivity: "8"}


def bench(
    kernel: Annotated[Kernel, typer.Argument(help="What is timed.")],
    json_file: Annotated[
        Path | None, typer.Option("--json", help="File to write all figures to.")
    ] = None,
    layer: Annotated[str | None, typer.Option(help="Only layers whose name contains this.")] = None,
    batch: Annotated[
        str | None, typer.Option(help="Images. Default: 1,8,64; for sensitivity 8.")
    ] = None,
    kept: Annotated[
        str | None,
        typer.Option(help="Fractions of weights (sparse) or channels (channel) that are left."),
    ] = None,
    threads: Annotated[int, typer.Option(help="One: CPU time of the thread; more: wall time.")] = 1,
    seconds: Annotated[float, typer.Option(help="For every figure.")] = 0.3,
) -> None:
    """Time the native kernels beside the best of what does without them.

    sparse, channel: convolutions of ResNet-20 and ResNet-50 with zero weights or with lists of
    channels, beside torch's dense ones. path: the effects of all edges of these layers, all
    statistics and the gradient-weighted sum alone, as multiples of the fastest forward pass.
    sensitivity: relative sensitivities of their weights, beside a Python loop and torch's matrix
    products.
    """
    with errors_in_one_line():
        from causalprune.measures.convolution_layers import LAYERS

        layers = [each for each in LAYERS if layer is None or layer in each.name]
        if not layers:
            known = ", ".join(each.name for each in LAYERS)
            raise InvalidArgumentError(f"--layer: expected part of one of {known}, got {layer!r}")
        given = _BATCHES.get(kernel, "1,8,64") if batch is None else batch
        batches = [int(value) for value in _numbers("--batch", given)]
        shares = None if kept is None else _numbers("--kept", kept)
        if threads < 1:
            raise InvalidArgumentError(f"--threads: expected at least 1, got {threads}")
        if shares is not None and kernel not in (Kernel.sparse, Kernel.channel):
            raise InvalidArgumentError(
                f"--kept: expected none for {kernel.value}, whose layers are whole"
            )
        how: dict[str, Any] = {"threads": threads, "seconds": seconds}
        rows = _rows(kernel, layers, shares, {"batches": batches, **how})
        if json_file is not None:
            _write(json_file, kernel, rows)
            print(f"written: {json_file}")


def _numbers(name: str, text: str) -> list[float]:
    try:
        values = [float(part) for part in text.split(",")]
    except ValueError:
        values = []
    if not values or min(values) <= 0:
        raise InvalidArgumentError(f"{name}: expected positive numbers such as 1,8, got {text!r}")
    return values


def _rows(
    kernel: Kernel, layers: list[ConvolutionLayer], kept: list[float] | None, how: dict[str, Any]
) -> list[dict[str, Any]]:
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


def _write(path: Path, kernel: Kernel, rows: list[dict[str, Any]]) -> None:
    from causalprune.files import replace_file
    from causalprune.measures import info

    record = {"schema": 1, "kernel": kernel.value, "info": info(), "rows": rows}
    replace_file(path, json.dumps(record, indent=1) + "\n")
