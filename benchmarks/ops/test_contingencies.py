"""``pytest benchmarks --benchmark-only``: count_contingencies beside its peers.

One thread, CPU time of that thread; a peer is timed on part of the images (its name says so).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

import pytest
import torch
from contingencies_cases import CASES, PEERS, Searched, native
from pytest_benchmark.fixture import BenchmarkFixture


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.benchmark(timer=time.thread_time)
@pytest.mark.parametrize("case", CASES, ids=[case.name for case in CASES])
@pytest.mark.parametrize("name", ["native", *PEERS])
def test_speed(benchmark: BenchmarkFixture, case: Searched, name: str) -> None:
    run: Callable[[Searched], Callable[[], object]] = PEERS.get(name, native)
    benchmark.group = case.name
    benchmark.extra_info["images"] = case.n_images if name == "native" else case.peer_images
    benchmark(run(case))
