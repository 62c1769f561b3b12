"""Sparse and channel-pruned convolutions beside the best dense ones: table, figures, picture.

``python compare_convolutions.py sparse|channel [layer] [--threads 2] [--machine NAME]`` times every
layer of kernels at batch 1, 8 and 64 and writes
benchmarks/results/<kind>_convolutions[_2_threads][_NAME].{json,md,png}; with two threads it is wall
time. All alternatives of a row run in turns; the fastest of many short rounds counts.
"""

from __future__ import annotations

import argparse
import json
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import causalprune as cp
from causalprune.measures.kernel_benchmarks import (
    LAYERS,
    ConvolutionTiming,
    channel_timings,
    sparse_timings,
)

RESULTS = Path(__file__).parents[1] / "results"
SPARSITIES = (0.0, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.98)


def provenance(threads: int) -> str:
    commit = subprocess.run(
        ["git", "rev-parse", "--short=12", "HEAD"], cwd=RESULTS, capture_output=True, text=True
    ).stdout.strip()
    facts = cp.info()
    clock = "CPU time of one thread" if threads == 1 else f"wall time of {threads} threads"
    return (
        f"Commit {commit}, {facts['machine']['name']}, {facts['isa']}, "
        f"{facts['build']['compiler']}, torch {facts['versions']['torch']}, {clock}."
    )


def sparse_table(rows: Sequence[ConvolutionTiming]) -> list[str]:
    """Speed-up over the best dense way, in the layout and with packing around."""
    lines = [
        "| layer | images | " + " | ".join(f"{s:.0%}" for s in SPARSITIES) + " | GFLOP/s at 90% |",
        "|---|---|" + "---|" * (len(SPARSITIES) + 1),
    ]
    for (layer, batch), found in grouped(rows).items():
        cells = [
            f"{t.speedup:.2f} ({t.best_dense_ms / t.with_packing_ms:.2f})" for t in found.values()
        ]
        at_90 = next((t for kept, t in found.items() if abs(kept - 0.1) < 1e-6), None)
        useful = "-" if at_90 is None else f"{at_90.gflops:.0f} of {at_90.peak_gflops:.0f}"
        lines.append(f"| {layer} | {batch} | " + " | ".join(cells) + f" | {useful} |")
    return lines


def channel_table(rows: Sequence[ConvolutionTiming]) -> list[str]:
    """Time of the whole dense layer x kept x kept over ours, and over the ways torch has."""
    shares = sorted({t.kept for t in rows}, reverse=True)
    lines = [
        "| layer | images | "
        + " | ".join(f"{share:.0%} of the channels" for share in shares)
        + " |",
        "|---|---|" + "---|" * len(shares),
    ]
    for (layer, batch), found in grouped(rows).items():
        cells = []
        for t in found.values():
            ideal = t.best_dense_ms * t.kept**2
            narrow = min(ms for name, ms in t.peers_ms.items() if name.startswith("narrow"))
            cells.append(
                f"{ideal / t.native_ms:.2f} (narrow {ideal / narrow:.2f}, "
                f"gather {ideal / t.peers_ms['gather']:.2f})"
            )
        lines.append(f"| {layer} | {batch} | " + " | ".join(cells) + " |")
    return lines


def grouped(
    rows: Sequence[ConvolutionTiming],
) -> dict[tuple[str, int], dict[float, ConvolutionTiming]]:
    found: dict[tuple[str, int], dict[float, ConvolutionTiming]] = {}
    for row in rows:
        found.setdefault((row.layer, row.batch), {})[row.kept] = row
    return found


def picture(rows: Sequence[ConvolutionTiming], path: Path) -> None:
    """Speed-up over the best dense convolution against sparsity, a line a layer."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    batches = sorted({t.batch for t in rows})
    figure, axes = pyplot.subplots(
        1, len(batches), figsize=(4.2 * len(batches), 4.0), sharey=True, layout="constrained"
    )
    colours = pyplot.get_cmap("tab10").colors  # type: ignore[attr-defined]
    for axis, batch in zip([axes] if len(batches) == 1 else axes, batches, strict=True):
        for number, layer in enumerate(LAYERS):
            found = [t for t in rows if t.layer == layer.name and t.batch == batch]
            axis.plot(
                [100 * (1 - t.kept) for t in found],
                [t.speedup for t in found],
                color=colours[number % 10],
                linestyle="-" if layer.kernel == 3 else "--",
                marker="o",
                markersize=3,
                label=layer.name,
            )
        axis.axhline(1.0, color="black", linewidth=0.8)
        axis.set_yscale("log", base=2)
        axis.set_yticks([0.5, 1, 2, 4, 8, 16], ["½", "1", "2", "4", "8", "16"])
        axis.set_xlabel("weights that are zero, %")
        axis.set_title(f"{batch} image{'s' if batch > 1 else ''}")
        axis.grid(alpha=0.3)
    first = axes if len(batches) == 1 else axes[0]
    first.set_ylabel("times faster than the best dense convolution")
    handles, labels = first.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside right center", fontsize=8, frameon=False)
    figure.savefig(path, dpi=150)


def report(kind: str, rows: Sequence[ConvolutionTiming], threads: int) -> str:
    if kind == "sparse":
        told = (
            "Times faster than the fastest of torch's dense convolutions (NCHW, channels_last, "
            "oneDNN's own layout) at the same layer, in the packed layout; in brackets with packing"
            " before and unpacking behind. 0% is our dense kernel. Random zeros."
        )
        table = sparse_table(rows)
    else:
        told = (
            "Time of the whole dense layer times the kept fraction of inputs times that of outputs,"
            " over ours: 1 is ideal. In brackets the same for an equally narrow dense convolution, "
            "and for index_select, narrow convolution and index_copy."
        )
        table = channel_table(rows)
    return "\n".join([f"# {kind} convolutions", "", told, "", *table, "", provenance(threads), ""])


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("kind", choices=("sparse", "channel"))
    parser.add_argument("layer", nargs="?", default="")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=0.3)
    parser.add_argument("--machine", help="ending of the files' names, beside those of another CPU")
    given = parser.parse_args()
    how: dict[str, Any] = {"threads": given.threads, "seconds": given.seconds}
    layers = [layer for layer in LAYERS if given.layer in layer.name]
    timings = (
        sparse_timings(layers, SPARSITIES, **how)
        if given.kind == "sparse"
        else channel_timings(layers, **how)
    )
    rows = []
    for timing in timings:
        rows.append(timing)
        print(timing.layer, timing.batch, f"{timing.kept:.2f}", f"{timing.speedup:.2f}", flush=True)
    threads = "" if given.threads == 1 else f"_{given.threads}_threads"
    name = "_".join(part for part in (f"{given.kind}_convolutions{threads}", given.machine) if part)
    record = {"info": cp.info(), "rows": [row.as_dict() for row in rows]}
    (RESULTS / f"{name}.json").write_text(json.dumps(record, indent=1) + "\n")
    (RESULTS / f"{name}.md").write_text(report(given.kind, rows, given.threads))
    if given.kind == "sparse":
        picture(rows, RESULTS / f"{name}.png")


if __name__ == "__main__":
    main()
