"""Timing in turns, the machine's own rates, and that the peers of the kernels compute the same."""

from __future__ import annotations

import pytest
import torch

from causalprune import _native, reference
from causalprune.measures.information_peers import (
    HISTOGRAM_PEERS,
    Pairs,
    activations,
    histogram_native,
)
from causalprune.measures.kernel_timing import fastest_seconds, round_times
from causalprune.measures.sensitivity_peers import loop_sensitivity, product_sensitivity


def test_every_alternative_runs_twice_a_round() -> None:
    runs = {"a": 0, "b": 0}

    def run(name: str) -> None:
        runs[name] += 1
        sum(range(10_000 if name == "a" else 1_000_000))

    alternatives = {name: lambda name=name: run(name) for name in runs}
    found = round_times(alternatives, seconds=0.0, least_rounds=3)
    assert runs == {"a": 6, "b": 6}
    assert found["b"].seconds > found["a"].seconds > 0
    assert all(each.spread >= 0 for each in found.values())
    assert fastest_seconds(alternatives, seconds=0.0, least_rounds=1)["b"] > 0


@pytest.mark.parametrize("isa", _native.available_isas())
def test_rates_of_the_machine(isa: str) -> None:
    assert 0.01 < _native.peak_gflops(isa) < 1e4
    assert 0.01 < _native.read_gigabytes_per_second(20_001, isa) < 1e5


def test_increments_are_counted() -> None:
    # Slower than one in a hundred cycles, or faster than sixteen a cycle, is a wrong count.
    assert 1e7 < _native.increments_per_second() < 1e11


def test_too_little_to_read_is_refused() -> None:
    with pytest.raises(ValueError, match="bytes: expected at least 1024, got 1000"):
        _native.read_gigabytes_per_second(1000)


@pytest.mark.parametrize("peer", [loop_sensitivity, product_sensitivity])
@pytest.mark.parametrize("aggregate", ["mean", "max"])
@pytest.mark.parametrize(("kernel", "stride", "padding"), [(3, 2, 1), (1, 1, 0)])
def test_peers_of_sensitivity(peer, aggregate: str, kernel: int, stride: int, padding: int) -> None:
    x, weight = torch.randn(3, 5, 7, 9), torch.randn(11, 5, kernel, kernel)
    how = {"aggregate": aggregate, "stride": stride, "padding": padding}
    wanted = reference.relative_sensitivity(x, weight, **how)
    torch.testing.assert_close(peer(x, weight, **how).double(), wanted, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("peer", HISTOGRAM_PEERS)
def test_peers_of_histograms(peer: str) -> None:
    pairs = Pairs("", 997, 3, 2, 3)
    wanted = histogram_native(pairs)()[0]  # the first child with every parent
    reference_too = reference.histogram_information(*activations(pairs), bins=64)[0]
    torch.testing.assert_close(wanted, reference_too)
    found = HISTOGRAM_PEERS[peer](pairs)()
    # Sums of single precision, and a value on the border of two bins.
    torch.testing.assert_close(torch.tensor(found).double(), wanted, rtol=0.01, atol=0.01)
