"""``pytest benchmarks --benchmark-only``: relative_sensitivity beside torch's own products.

One thread, CPU time of that thread: shared machines make wall time meaningless.
"""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest
import torch
from path_effects_cases import SHAPES, Shape, layer
from pytest_benchmark.fixture import BenchmarkFixture
from relative_sensitivity_cases import PEERS, native, straightforward, torch_products

SMALL = [shape for shape in SHAPES if shape.name.startswith("resnet20")]


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    with torch.no_grad():
        yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("peer", PEERS)
@pytest.mark.parametrize("shape", SMALL, ids=lambda shape: shape.name.replace(" ", "_"))
def test_relative_sensitivity(benchmark: BenchmarkFixture, shape: Shape, peer: str) -> None:
    benchmark.group = shape.name
    benchmark._timer = time.thread_time
    benchmark.extra_info["multiply_adds"] = shape.multiply_adds
    run = PEERS[peer](layer(shape))
    run()
    benchmark(run)


@pytest.mark.parametrize("aggregate", ["mean", "max"])
def test_peers_compute_the_same(aggregate: str, benchmark: BenchmarkFixture) -> None:
    given = layer(Shape("small", 2, 5, 7, 6, 3), rectified=False)
    wanted = straightforward(given, aggregate)()
    torch.testing.assert_close(torch_products(given, aggregate)(), wanted)
    torch.testing.assert_close(benchmark(native(given, aggregate)), wanted)
