"""Write the table of count_contingencies: ``python compare_contingencies.py OUT.md``.

CPU time of one thread for all images, best of several runs, all peers of a size in the same process
right after each other; the spread is (median - best) / best of ours. Python's tuples are timed on
few of the images: they take them one by one.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import torch
from compare_information import seconds
from contingencies_cases import CASES, Searched, native, tuples, vectorised

import causalprune as cp
from causalprune import _native


def of_instruction_set(case: Searched, isa: str) -> list[float]:
    """Milliseconds of our runs."""
    os.environ["CAUSALPRUNE_ISA"] = isa
    return [t * 1e3 for t in seconds(native(case), 0.5, 9)]


def row(case: Searched, isas: list[str]) -> str:
    own = {isa: of_instruction_set(case, isa) for isa in isas}
    best = min(own[isas[0]])
    cells = [
        f"{min(times):,.2f} ({(statistics.median(times) - min(times)) / min(times):.0%})"
        for times in own.values()
    ]
    whole = replace(case, peer_images=case.n_images)
    peers = [
        min(seconds(vectorised(whole), 0.3, 3)) * 1e3,
        min(seconds(tuples(case), 0.3, 3)) / case.peer_images * case.n_images * 1e3,
    ]
    cells += [f"{each:,.0f} ({each / best:,.0f}x)" for each in peers]
    return f"| {case.name} | {' | '.join(cells)} |"


def agree(case: Searched) -> None:
    """Refuse to compare what does not give the same."""
    counts, first = vectorised(replace(case, peer_images=case.n_images))()
    own_counts, own_first = native(case)()
    assert torch.equal(counts, own_counts) and torch.equal(first, own_first)


def main() -> None:
    torch.set_num_threads(1)
    torch.set_grad_enabled(False)
    facts = cp.info()
    commit = subprocess.run(
        ["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=False
    ).stdout.strip()
    isas = _native.available_isas()[::-1]
    for case in CASES[:2]:
        agree(case)
    names = [*(f"ours, {isa}, ms (spread)" for isa in isas), "torch, ms (ratio)"]
    text = (
        "count_contingencies: one thread, CPU time for all images, a size's peers in one run.\n"
        f"Commit {commit[:12]}, {facts['machine']['name']}, {facts['build']['compiler']}, "
        f"torch {facts['versions']['torch']}.\n\n"
        "Ours and torch's (binary search for rows, then unit by unit) give counts by size and the "
        "first smallest set, Python's tuples the first set alone.\n\n"
        f"| size | {' | '.join(names)} | Python tuples, ms (ratio) |\n"
        f"|---|{'---|' * (len(names) + 1)}\n" + "\n".join(row(case, isas) for case in CASES) + "\n"
    )
    print(text)
    if len(sys.argv) > 1:
        Path(sys.argv[1]).write_text(text)


if __name__ == "__main__":
    main()
