"""How long alternatives take when they run in turns, in CPU time of one thread or wall time."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

__all__ = ["fastest_seconds"]


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
    clock = time.thread_time if threads == 1 else time.perf_counter
    found = dict.fromkeys(alternatives, float("inf"))
    begin, rounds = clock(), 0
    while rounds < least_rounds or clock() - begin < seconds:
        for name, run in alternatives.items():
            run()
            start = clock()
            run()
            found[name] = min(found[name], clock() - start)
        rounds += 1
    return found
