"""The command ``causalprune bench``."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from causalprune.cli.console import errors_in_one_line
from causalprune.errors import InvalidArgumentError

if TYPE_CHECKING:
    from causalprune.measures.kernel_benchmarks import ConvolutionLayer, ConvolutionTiming
    from causalprune.measures.path_timings import PathTiming

__all__ = ["bench"]


class Kernel(str, Enum):
    """What is timed."""

    sparse = "sparse"
    channel = "channel"
    path = "path"


def bench(
    kernel: Annotated[Kernel, typer.Argument(help="sparse, channel or path.")],
    json_file: Annotated[
        Path | None, typer.Option("--json", help="File to write all figures to.")
    ] = None,
    layer: Annotated[str | None, typer.Option(help="Only layers whose name contains this.")] = None,
    batch: Annotated[str, typer.Option(help="Images.")] = "1,8,64",
    kept: Annotated[
        str | None,
        typer.Option(help="Fractions of weights (sparse) or channels (channel) that are left."),
    ] = None,
    threads: Annotated[int, typer.Option(help="One: CPU time of the thread; more: wall time.")] = 1,
    seconds: Annotated[float, typer.Option(help="For every figure.")] = 0.3,
) -> None:
    """Time the native kernels beside the best dense ones, on layers of ResNet-20 and ResNet-50.

    For path: all statistics of all edges, and the gradient-weighted sum alone, as multiples of
    the fastest forward pass.
    """
    with errors_in_one_line():
        from causalprune.measures.kernel_benchmarks import LAYERS

        layers = [each for each in LAYERS if layer is None or layer in each.name]
        if not layers:
            known = ", ".join(each.name for each in LAYERS)
            raise InvalidArgumentError(f"--layer: expected part of one of {known}, got {layer!r}")
        batches = [int(value) for value in _numbers("--batch", batch)]
        shares = None if kept is None else _numbers("--kept", kept)
        if threads < 1:
            raise InvalidArgumentError(f"--threads: expected at least 1, got {threads}")
        if kernel is Kernel.path:
            if shares is not None:
                raise InvalidArgumentError("--kept: expected none for path, whose layers are whole")
            rows = _path(layers, batches, threads, seconds)
        else:
            rows = _convolutions(kernel, layers, shares, batches, threads, seconds)
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


def _convolutions(
    kernel: Kernel,
    layers: list[ConvolutionLayer],
    kept: list[float] | None,
    batches: list[int],
    threads: int,
    seconds: float,
) -> list[dict[str, Any]]:
    from causalprune.measures.kernel_benchmarks import channel_timings, sparse_timings

    how: dict[str, Any] = {"batches": batches, "threads": threads, "seconds": seconds}
    timings: Iterator[ConvolutionTiming]
    if kernel is Kernel.sparse:
        if kept is not None:
            how["sparsities"] = [1 - share for share in kept]
        timings = sparse_timings(layers, **how)
    else:
        if kept is not None:
            how["kept"] = kept
        timings = channel_timings(layers, **how)
    table = _table("layer", "n", "left", "dense ms", "ours ms", "+packing", "faster", "GFLOP/s")
    return _shown(table, timings, _convolution_cells)


def _convolution_cells(t: ConvolutionTiming) -> tuple[str, ...]:
    times = (t.best_dense_ms, t.native_ms, t.with_packing_ms)
    shown = (f"{time:.3f}" for time in times)
    return t.layer, str(t.batch), f"{t.kept:.0%}", *shown, f"{t.speedup:.2f}x", f"{t.gflops:.0f}"


def _path(
    layers: list[ConvolutionLayer], batches: list[int], threads: int, seconds: float
) -> list[dict[str, Any]]:
    from causalprune.measures.path_timings import path_timings

    table = _table("layer", "n", "forward ms", "all ms", "all", "weighted")
    timings = path_timings(layers, batches, threads=threads, seconds=seconds)
    return _shown(table, timings, _path_cells)


def _path_cells(t: PathTiming) -> tuple[str, ...]:
    times = (min(t.forward_ms.values()), t.native_ms)
    shares = (t.times_forward, t.weighted_times_forward)
    return (
        *(t.layer, str(t.batch)),
        *(f"{time:.3f}" for time in times),
        *(f"{share:.2f}x" for share in shares),
    )


def _table(*columns: str) -> Table:
    table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for number, column in enumerate(columns):
        table.add_column(column, justify="left" if number == 0 else "right", no_wrap=True)
    return table


def _shown(table: Table, timings: Iterable[Any], cells: Any) -> list[dict[str, Any]]:
    rows = []
    for timing in timings:
        rows.append(timing.as_dict())
        table.add_row(*cells(timing))
    Console().print(table)
    return rows


def _write(path: Path, kernel: Kernel, rows: list[dict[str, Any]]) -> None:
    from causalprune.files import replace_file
    from causalprune.measures import info

    record = {"schema": 1, "kernel": kernel.value, "info": info(), "rows": rows}
    replace_file(path, json.dumps(record, indent=1) + "\n")
