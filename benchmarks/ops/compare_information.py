"""Write the table of the information operators: ``python compare_information.py OUT.md``.

Every cell is the CPU time of one thread for one pair of units, best of several runs, all peers of
a size in the same process right after each other; the spread is (median - best) / best of ours. A
peer is timed on part of the pairs: its time for a pair does not depend on their number.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch

import causalprune as cp
from causalprune.measures.information_peers import (
    HISTOGRAM_PEERS,
    HISTOGRAMS,
    TREE_PEERS,
    TREES,
    Pairs,
    histogram_native,
    trees_native,
)

Peer = Callable[[Pairs], Callable[[], object]]


def seconds(run: Callable[[], object], least: float, repeats: int) -> list[float]:
    run()
    times: list[float] = []
    while len(times) < repeats or sum(times) < least:
        begin = time.thread_time()
        run()
        times.append(time.thread_time() - begin)
    return times


def table(sizes: Sequence[Pairs], native: Peer, peers: Mapping[str, Peer]) -> str:
    columns = [f"{name}, us a pair (ratio)" for name in peers]
    lines = [
        f"| size | ours, us a pair (spread) | {' | '.join(columns)} |",
        "|---|---|" + "---|" * len(peers),
    ]
    for pairs in sizes:
        own = [t / pairs.n_pairs * 1e6 for t in seconds(native(pairs), 0.6, 5)]
        best = min(own)
        cells = []
        for peer in peers.values():
            each = min(seconds(peer(pairs), 0.3, 3)) / pairs.peer_pairs * 1e6
            cells.append(f"{each:,.0f} ({each / best:,.0f}x)")
        spread = (statistics.median(own) - best) / best
        lines.append(f"| {pairs.name} | {best:,.1f} ({spread:.0%}) | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    torch.set_num_threads(1)
    torch.set_grad_enabled(False)
    facts = cp.info()
    commit = subprocess.run(
        ["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=False
    ).stdout.strip()
    text = (
        "Information between layers: one thread, CPU time, all peers of a size in one run.\n"
        f"Commit {commit[:12]}, {facts['machine']['name']}, {facts['isa']}, "
        f"{facts['build']['compiler']}, torch {facts['versions']['torch']}.\n\n"
        "histogram_information (64 bins), binning of the columns included in ours, not in torch's "
        "and sklearn's:\n\n"
        + table(HISTOGRAMS, histogram_native, HISTOGRAM_PEERS)
        + "\nspanning_tree_crossings, distances and nearest neighbours included in ours; the peer "
        "is scipy's tree alone, on given distances:\n\n" + table(TREES, trees_native, TREE_PEERS)
    )
    print(text)
    if len(sys.argv) > 1:
        Path(sys.argv[1]).write_text(text)


if __name__ == "__main__":
    main()
