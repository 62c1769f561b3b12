"""What `path` costs for a whole network: time beside forward and backward, memory on a big one.

Run from anywhere: ``CAUSALPRUNE_DATA=... python benchmarks/end_to_end/path_cost.py [MACHINE]``
writes benchmarks/results/path_cost_MACHINE.md (path_cost.md without). CPU time of one thread.
ResNet-20 for CIFAR: all ways in one process, one after the other, several rounds. ResNet-50 at 224:
a process of its own, whose writable memory the system limits to 8 GiB, so that asking for more
would end it; its peak resident memory is what is told.
"""

from __future__ import annotations

import json
import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from resnet20_cifar import RESULTS, images, networks, provenance, resnet20
from torch import Tensor, nn

import causalprune as cp
from causalprune.graph import capture
from causalprune.scoring.data import Batch
from causalprune.scoring.outcomes import resolve_outcome
from causalprune.scoring.path import UnitPaths

IMAGES, ROUNDS = 512, 3
BIG_IMAGES, PEER_IMAGES, MEMORY = 64, 16, 8 * 2**30


def forward_backward(model: nn.Module, batch: Batch, size: int) -> None:
    assert batch.targets is not None
    for start in range(0, len(batch.inputs), size):
        part = slice(start, start + size)
        model.zero_grad()
        F.cross_entropy(model(batch.inputs[part]), batch.targets[part]).backward()


def forward(model: nn.Module, batch: Batch, size: int) -> None:
    with torch.no_grad():
        for start in range(0, len(batch.inputs), size):
            model(batch.inputs[start : start + size])


def paths(model: nn.Module, batch: Batch, units: str, edges: bool) -> Tensor:
    """All of it: capture, preparation, effects."""
    graph = capture(model, batch.inputs[:1], units=units)
    found = UnitPaths(model, graph, resolve_outcome("loss"), edges=edges).effects(batch)
    return torch.cat(list(found.values()), 1)


def seconds(run: Callable[[], object]) -> float:
    begin = time.process_time()
    run()
    return time.process_time() - begin


def time_table() -> list[str]:
    model, batch = resnet20(), Batch(*images(IMAGES))
    ways: dict[str, Callable[[], object]] = {
        f"forward and backward, batches of {size}": lambda s=size: forward_backward(model, batch, s)
        for size in (64, 256)
    }
    ways["forward"] = lambda: forward(model, batch, 128)
    n_units = 0
    for units in ("groups", "filters"):
        graph = capture(model, batch.inputs[:1], units=units)
        n_units = sum(group.n_units for group in graph.groups)
        for edges in (False, True) if units == "filters" else (False,):
            name = f"path, {n_units} {units}" + (", edges" if edges else "")
            ways[name] = lambda u=units, e=edges: paths(model, batch, u, e)
    for run in ways.values():
        run()
    times: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(ROUNDS):
        for name, run in ways.items():
            times[name].append(seconds(run))
    unit = min(min(times[name]) for name in times if "backward" in name)
    rows = [
        f"ResNet-20 (trained weights), {IMAGES} CIFAR-10 images, one thread; best of {ROUNDS}, "
        "the spread is (median - best) / best. Capture and preparation are part of `path`.",
        "",
        "| | CPU time, s (spread) | x best forward and backward |",
        "|---|---|---|",
    ]
    for name, found in times.items():
        best = min(found)
        spread = (statistics.median(found) - best) / best
        rows.append(f"| {name} | {best:.2f} ({spread:.0%}) | {best / unit:.2f} |")
    return rows


def big() -> None:
    """Child process: scores ResNet-50 and prints what it took, as JSON."""
    resource.setrlimit(resource.RLIMIT_DATA, (MEMORY, MEMORY))
    torch.set_num_threads(1)
    import torchvision

    model = networks.settle(torchvision.models.resnet50())
    batch = Batch(torch.randn(BIG_IMAGES, 3, 224, 224), torch.randint(1000, (BIG_IMAGES,)))
    units, cache = sys.argv[2], int(sys.argv[3])
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    begin = time.process_time()
    scores = cp.score(model, (batch.inputs, batch.targets), units=units, max_cache_bytes=cache)
    spent = time.process_time() - begin
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    part = Batch(batch.inputs[:PEER_IMAGES], batch.targets[:PEER_IMAGES])
    peer = seconds(lambda: forward_backward(model, part, 8)) * BIG_IMAGES / PEER_IMAGES
    facts = {"units": len(scores.frame), "before": before, "peak": peak, "s": spent, "peer": peer}
    print(json.dumps(facts))


def memory_table() -> list[str]:
    rows = [
        f"ResNet-50 at 224, {BIG_IMAGES} images, one thread, `cp.score(model, data)` in a process "
        f"limited to {MEMORY / 2**30:.0f} GiB (RLIMIT_DATA). Forward and backward: of "
        f"{PEER_IMAGES} images, in batches of 8, scaled.",
        "",
        "| units | max_cache_bytes | peak resident, GiB | before scoring, GiB | CPU time, s | "
        "x forward and backward |",
        "|---|---|---|---|---|---|",
    ]
    for units, cache in (("filters", 2**30), ("groups", 2**28)):
        child = subprocess.run(
            [sys.executable, __file__, "--big", units, str(cache)],
            check=True,
            capture_output=True,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
        found = json.loads(child.stdout.splitlines()[-1])
        print(found, flush=True)
        rows.append(
            f"| {found['units']} {units} | {cache / 2**20:.0f} MiB | {found['peak'] / 2**30:.2f} | "
            f"{found['before'] / 2**30:.2f} | {found['s']:.1f} | {found['s'] / found['peer']:.2f} |"
        )
    return rows


def main() -> None:
    if sys.argv[1:2] == ["--big"]:
        big()
        return
    torch.set_num_threads(1)
    lines = [
        "`path`: what scoring a whole network costs (benchmarks/end_to_end/path_cost.py).",
        provenance(),
        "",
        *time_table(),
        "",
        *memory_table(),
    ]
    name = "_".join(["path_cost", *sys.argv[1:]])
    (RESULTS / f"{name}.md").write_text("\n".join(lines) + "\n")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
