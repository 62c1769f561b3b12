"""Two threads of path_effects beside one: ``python path_effects_threads.py OUT.md``.

Wall time, so on a machine that does nothing else; rounds of one and of two threads in turn. The
ratio is that of a round; least, median and largest over the rounds.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from path_effects_cases import SHAPES, layer, native, native_weighted

import causalprune as cp

ROUNDS = 9


def seconds(run: Callable[[], object], threads: int) -> float:
    torch.set_num_threads(threads)
    run()
    begin = time.perf_counter()
    run()
    return time.perf_counter() - begin


def ratio(run: Callable[[], object]) -> str:
    found = sorted(seconds(run, 1) / seconds(run, 2) for _ in range(ROUNDS))
    return f"{statistics.median(found):.2f} ({found[0]:.2f} to {found[-1]:.2f})"


def main() -> None:
    torch.set_grad_enabled(False)
    commit = subprocess.run(
        ["git", "rev-parse", "--short=12", "HEAD"], capture_output=True, text=True, check=False
    ).stdout.strip()
    facts = cp.info()
    lines = [
        "path_effects on two threads over one: wall time, median (least to largest) of "
        f"{ROUNDS} rounds.",
        f"Commit {commit}, {facts['machine']['name']}, {facts['isa']}, "
        f"{facts['build']['compiler']}, torch {facts['versions']['torch']}.",
        "",
        "| layer (images) | grad-weighted sum alone | all statistics |",
        "|---|---|---|",
    ]
    for shape in SHAPES:
        given = layer(shape)
        cells = [ratio(make(given)) for make in (native_weighted, native)]
        lines.append(f"| {shape.name} ({shape.images}) | {cells[0]} | {cells[1]} |")
    text = "\n".join(lines) + "\n"
    print(text)
    if len(sys.argv) > 1:
        Path(sys.argv[1]).write_text(text)


if __name__ == "__main__":
    main()
