"""``pytest benchmarks --benchmark-only``: the information operators beside their peers.

One thread, CPU time of that thread; a peer is timed on part of the pairs (its name says so).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture

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
CASES: list[tuple[str, Pairs, str, Peer, int]] = [
    (family, pairs, name, run, pairs.n_pairs if name == "native" else pairs.peer_pairs)
    for family, sizes, peers in (
        ("histogram_information", HISTOGRAMS, {"native": histogram_native, **HISTOGRAM_PEERS}),
        ("spanning_tree_crossings", TREES, {"native": trees_native, **TREE_PEERS}),
    )
    for pairs in sizes
    for name, run in peers.items()
]


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.benchmark(timer=time.thread_time)
@pytest.mark.parametrize(
    ("family", "pairs", "name", "run", "timed"),
    CASES,
    ids=[f"{case[2]}, {case[1].name}" for case in CASES],
)
def test_speed(
    benchmark: BenchmarkFixture, family: str, pairs: Pairs, name: str, run: Peer, timed: int
) -> None:
    benchmark.group = f"{family}: {pairs.name}"
    benchmark.extra_info["pairs"] = timed
    benchmark(run(pairs))
