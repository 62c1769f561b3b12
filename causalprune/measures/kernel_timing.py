"""How long alternatives take when they run in turns, in CPU time of one thread or wall time."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

__all__ = ["RoundTimes", "fastest_seconds", "round_times"]


@dataclass(frozen=True)
class RoundTimes:
    """What one alternative took over all rounds.

    Attributes
    ----------
    seconds : float
        Of the fastest round.
    spread : float
        How much longer the median round took, as a fraction of the fastest.
    """

    seconds: float
    spread: float


def fastest_seconds(
    alternatives: Mapping[str, Callable[[], object]],
    *,
    threads: int = 1,
    seconds: float = 0.3,
    least_rounds: int = 5,
) -> dict[str, float]:
    """Return the shortest time of each alternative over many short rounds.

    In every round each runs twice and the second time counts: all see the same machine, and each
    finds in the caches what it would find there inside a network, where its input has just been
    written. The shortest is what it takes when nothing else comes between.

    Parameters
    ----------
    alternatives : mapping of str to callable
        The name of each, and a function that runs it.
    threads : int
        With one, the CPU time of the calling thread counts, which leaves out what other processes
        take; with more, wall time.
    seconds : float
        For all rounds together, on the clock that counts.
    least_rounds : int
        At least so many, whatever they take.

    Returns
    -------
    dict of str to float
        Seconds.

    Examples
    --------
    >>> found = fastest_seconds({"sum": lambda: sum(range(1000))}, seconds=0.001)
    >>> 0 < found["sum"] < 0.1
    True
    """
    found = round_times(alternatives, threads=threads, seconds=seconds, least_rounds=least_rounds)
    return {name: times.seconds for name, times in found.items()}


def round_times(
    alternatives: Mapping[str, Callable[[], object]],
    *,
    threads: int = 1,
    seconds: float = 0.3,
    least_rounds: int = 5,
) -> dict[str, RoundTimes]:
    """Return the shortest time of each alternative, and how far the median is above it.

    Parameters
    ----------
    alternatives, threads, seconds, least_rounds
        See :func:`fastest_seconds`.

    Returns
    -------
    dict of str to RoundTimes

    Examples
    --------
    >>> found = round_times({"sum": lambda: sum(range(1000))}, seconds=0.001)
    >>> found["sum"].seconds > 0 and found["sum"].spread >= 0
    True
    """
    clock = time.thread_time if threads == 1 else time.perf_counter
    times: dict[str, list[float]] = {name: [] for name in alternatives}
    begin, rounds = clock(), 0
    while rounds < least_rounds or clock() - begin < seconds:
        for name, run in alternatives.items():
            run()
            start = clock()
            run()
            times[name].append(clock() - start)
        rounds += 1
    found = {}
    for name, each in times.items():
        fastest = min(each)
        found[name] = RoundTimes(fastest, statistics.median(each) / fastest - 1 if fastest else 0.0)
    return found
