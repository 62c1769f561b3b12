"""``pytest benchmarks --benchmark-only``: path_effects beside the forward it is measured against.

One thread, CPU time of that thread: shared machines make wall time meaningless.
"""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest
import torch
from path_effects_cases import PEERS, SHAPES, Shape, layer
from pytest_benchmark.fixture import BenchmarkFixture


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    with torch.no_grad():
        yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("peer", PEERS)
@pytest.mark.parametrize("shape", SHAPES[:8], ids=lambda shape: shape.name.replace(" ", "_"))
def test_path_effects(benchmark: BenchmarkFixture, shape: Shape, peer: str) -> None:
    benchmark.group = shape.name
    benchmark._timer = time.thread_time
    benchmark.extra_info["multiply_adds"] = shape.multiply_adds
    run = PEERS[peer](layer(shape))
    run()
    benchmark(run)
