"""Information between layers beside other packages, and beside the machine's own limit."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import torch

from causalprune import _native
from causalprune.measures.information_peers import (
    HISTOGRAM_PEERS,
    HISTOGRAMS,
    TARGET,
    TREE_PEERS,
    TREES,
    Pairs,
    Peer,
    activations,
    histogram_native,
    trees_native,
)
from causalprune.measures.kernel_timing import fastest_seconds
from causalprune.measures.latency import torch_threads
from causalprune.ops import spanning_tree_information

__all__ = ["InformationTiming", "histogram_timings", "target_timing", "tree_timings"]


@dataclass(frozen=True)
class InformationTiming:
    """One operator on all pairs of two layers' units.

    Attributes
    ----------
    operator : str
    case : str
        Units and samples.
    samples, pairs, threads : int
    seconds : float
        All pairs, with all that the operator does to get there.
    peers_us : dict of str to float
        Microseconds a pair, by peer.
    skipped : dict of str to str
        Peers that could not be timed, and why.
    machine_increments_per_second : float, optional
        Of a histogram: what one thread reaches with increments alone, times threads.
    cpu_seconds : float, optional
        Of all threads together, where `seconds` is the wall time of one run: on a busy machine the
        two drift apart.
    """

    operator: str
    case: str
    samples: int
    pairs: int
    threads: int
    seconds: float
    peers_us: dict[str, float] = field(default_factory=dict)
    skipped: dict[str, str] = field(default_factory=dict)
    machine_increments_per_second: float | None = None
    cpu_seconds: float | None = None

    @property
    def native_us(self) -> float:
        """Microseconds a pair."""
        return 1e6 * self.seconds / self.pairs

    @property
    def increments_per_second(self) -> float | None:
        """Samples times pairs; None where nothing is counted up."""
        if self.machine_increments_per_second is None:
            return None
        return self.samples * self.pairs / self.seconds

    @property
    def share_of_machine(self) -> float | None:
        """Of the machine's increments, how many ours makes."""
        if self.machine_increments_per_second is None or self.increments_per_second is None:
            return None
        return self.increments_per_second / self.machine_increments_per_second

    def as_dict(self) -> dict[str, Any]:
        """Return everything as JSON values."""
        return {
            **asdict(self),
            "native_us": self.native_us,
            "increments_per_second": self.increments_per_second,
            "share_of_machine": self.share_of_machine,
        }


def histogram_timings(
    cases: Sequence[Pairs] = HISTOGRAMS, *, threads: int = 1, seconds: float = 0.3
) -> Iterator[InformationTiming]:
    """Time ``causalprune.ops.histogram_information`` with 64 bins and its peers.

    Parameters
    ----------
    cases : sequence of Pairs
    threads : int
        One: CPU time. More: wall time.
    seconds : float
        For ours, and again for the peers of a case.

    Yields
    ------
    InformationTiming
    """
    rate = _native.increments_per_second() * threads
    for case in cases:
        yield _timing(
            "histogram_information", case, histogram_native, HISTOGRAM_PEERS, threads, seconds, rate
        )


def tree_timings(
    cases: Sequence[Pairs] = TREES, *, threads: int = 1, seconds: float = 0.3
) -> Iterator[InformationTiming]:
    """Time ``causalprune.ops.spanning_tree_crossings`` and its peers.

    Parameters
    ----------
    cases, threads, seconds
        See :func:`histogram_timings`.

    Yields
    ------
    InformationTiming
    """
    for case in cases:
        yield _timing("spanning_tree_crossings", case, trees_native, TREE_PEERS, threads, seconds)


def target_timing(case: Pairs = TARGET, *, threads: int = 2) -> InformationTiming:
    """Run ``causalprune.ops.spanning_tree_information`` on a whole pair of layers once.

    Parameters
    ----------
    case : Pairs
    threads : int
        Wall time counts, whatever their number.

    Returns
    -------
    InformationTiming
        Without peers.

    Examples
    --------
    >>> target_timing(Pairs("small", 30, 2, 2, 1)).pairs
    4
    """
    parents, children = activations(case)
    parents, children = parents / parents.std(0), children / children.std(0)
    with torch_threads(threads):
        begin, cpu_begin = time.perf_counter(), time.process_time()
        spanning_tree_information(children, parents)
        took, cpu = time.perf_counter() - begin, time.process_time() - cpu_begin
    return InformationTiming(
        "spanning_tree_information",
        case.name,
        case.samples,
        case.n_pairs,
        threads,
        took,
        cpu_seconds=cpu,
    )


def _timing(
    operator: str,
    case: Pairs,
    native: Peer,
    peers: Mapping[str, Peer],
    threads: int,
    seconds: float,
    rate: float | None = None,
) -> InformationTiming:
    with torch_threads(threads), torch.no_grad():
        ours = fastest_seconds(
            {"native": native(case)}, threads=threads, seconds=seconds, least_rounds=2
        )
        runs, skipped = {}, {}
        for name, prepare in peers.items():
            try:
                runs[name] = prepare(case)
            except ImportError as error:
                skipped[name] = str(error)
        slow = {}
        if runs:
            slow = fastest_seconds(runs, threads=threads, seconds=seconds, least_rounds=1)
    return InformationTiming(
        operator,
        case.name,
        case.samples,
        case.n_pairs,
        threads,
        ours["native"],
        {name: 1e6 * value / case.peer_pairs for name, value in slow.items()},
        skipped,
        rate,
    )
