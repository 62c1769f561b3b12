"""Write the table of path_effects beside its peers: ``python compare_path_effects.py OUT.json``.

Every cell is the CPU time of one thread, best of several runs, all peers of a shape in the same
process right after each other; the spread is (median - best) / best of path_effects.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from path_effects_cases import (
    SHAPES,
    Shape,
    forward_channels_last,
    forward_nchw,
    grouped,
    layer,
    naive_loop,
    native,
    native_weighted,
)

import causalprune as cp

NAIVE_CHANNELS = 8


def seconds(run: Callable[[], object], least: float = 0.6, repeats: int = 5) -> list[float]:
    run()
    times: list[float] = []
    while len(times) < repeats or sum(times) < least:
        begin = time.thread_time()
        run()
        times.append(time.thread_time() - begin)
    return times


def row(shape: Shape) -> dict[str, object]:
    given = layer(shape)
    forward = min(min(seconds(forward_nchw(given))), min(seconds(forward_channels_last(given))))
    found = seconds(native(given))
    best = min(found)
    weighted = min(seconds(native_weighted(given)))
    part = min(NAIVE_CHANNELS, shape.inputs)
    naive = min(seconds(naive_loop(given, part), 0.3, 2)) * shape.inputs / part
    materialised = min(seconds(grouped(given, 1), 0.3, 2)) * shape.images
    dense = min(seconds(native(layer(shape, rectified=False)))) if shape.kernel == 1 else None
    return {
        "shape": shape.name,
        "images": shape.images,
        "forward_ms": forward * 1e3,
        "path_effects_ms": best * 1e3,
        "spread": (statistics.median(found) - best) / best,
        "times_forward": best / forward,
        "weighted_times_forward": weighted / forward,
        "times_forward_dense_input": None if dense is None else dense / forward,
        "naive_loop_over_path_effects": naive / best,
        "grouped_over_path_effects": materialised / best,
    }


def markdown(rows: list[dict[str, object]]) -> str:
    head = (
        "| layer (images) | best forward, ms | path_effects, ms (spread) | x forward "
        "| x forward, grad-weighted sum alone | x forward, no zeros in x | naive loop / ours "
        "| grouped / ours |\n"
        "|---|---|---|---|---|---|---|---|\n"
    )
    lines = []
    for r in rows:
        dense = r["times_forward_dense_input"]
        lines.append(
            f"| {r['shape']} ({r['images']}) | {r['forward_ms']:.2f} "
            f"| {r['path_effects_ms']:.2f} ({r['spread']:.0%}) | {r['times_forward']:.2f} "
            f"| {r['weighted_times_forward']:.2f} "
            f"| {'' if dense is None else f'{dense:.2f}'} "
            f"| {r['naive_loop_over_path_effects']:.1f} | {r['grouped_over_path_effects']:.1f} |"
        )
    return head + "\n".join(lines) + "\n"


def main() -> None:
    torch.set_num_threads(1)
    torch.set_grad_enabled(False)
    rows = [row(shape) for shape in SHAPES]
    commit = subprocess.run(
        ["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=False
    ).stdout.strip()
    facts = cp.info()
    table = markdown(rows)
    print(table)
    if len(sys.argv) > 1:
        out = Path(sys.argv[1])
        record = {"commit": commit, "info": facts, "clock": "thread CPU time", "rows": rows}
        out.write_text(json.dumps(record, indent=2) + "\n")
        out.with_suffix(".md").write_text(
            "path_effects: ReLU, with gradient, all four statistics but where said; one thread, "
            "CPU time.\n"
            f"Commit {commit[:12]}, {facts['machine']['name']}, {facts['isa']}, "
            f"{facts['build']['compiler']}, torch {facts['versions']['torch']}.\n\n{table}"
        )


if __name__ == "__main__":
    main()
