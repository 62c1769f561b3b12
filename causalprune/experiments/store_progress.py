"""How far a study is, part by part, and about how long the rest of it takes."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from causalprune.experiments.store_workers import held_trials, life_of

__all__ = ["Part", "StudyProgress", "study_progress"]

# How far along a trial is that one finds running, on average.
_HALF = 0.5


@dataclass(frozen=True)
class Part:
    """The trials of one block, method and ratio.

    Attributes
    ----------
    block : int or None
        Number of the block; ``None`` where the study's trials have none, as for what follows.
    network, method : str or None
    ratio : float or None
    queued, running, ok, failed : int
        Trials by status.
    seconds : float or None
        Mean time of one, over finished and failed trials; ``None`` before the first.
    """

    block: int | None
    network: str | None
    method: str | None
    ratio: float | None
    queued: int
    running: int
    ok: int
    failed: int
    seconds: float | None

    @property
    def left(self) -> float:
        """Trials left, those that run at one half."""
        return self.queued + _HALF * self.running


@dataclass(frozen=True)
class StudyProgress:
    """How far a study is, by all processes that work on it.

    Attributes
    ----------
    parts : tuple of Part
        By block, method and ratio.
    workers : int
        Processes that hold a trial and have not ended, as far as can be seen from here.
    interrupted : int
        Running trials whose process has ended; the next process takes them up again.
    errors : tuple of (str, int)
        What failed trials died of, and how many; most frequent first.
    last_error : str or None
        Of the failed trial that was begun last.

    Examples
    --------
    >>> whole = Part(0, "lenet5", "l1", 0.0, queued=2, running=0, ok=1, failed=0, seconds=6.0)
    >>> small = Part(0, "lenet5", "l1", 0.9, queued=4, running=0, ok=2, failed=0, seconds=1.0)
    >>> other = Part(0, "lenet5", "l1", 0.8, queued=1, running=0, ok=0, failed=0, seconds=None)
    >>> StudyProgress((whole, small, other), 1, 0, (), None).seconds_left()
    17.0
    """

    parts: tuple[Part, ...]
    workers: int
    interrupted: int
    errors: tuple[tuple[str, int], ...]
    last_error: str | None

    def count(self, status: str) -> int:
        """Return the number of trials that are ``queued``, ``running``, ``ok`` or ``failed``."""
        return sum(int(getattr(part, status)) for part in self.parts)

    @property
    def total(self) -> int:
        """Number of trials of the study."""
        return sum(part.queued + part.running + part.ok + part.failed for part in self.parts)

    def seconds_left(self, workers: int | None = None) -> float | None:
        """Estimate how long the rest takes, preparation of blocks not counted.

        A trial that is left is taken to last as long as the mean of those of its block, method
        and ratio; where there is none yet, of the nearest ratio, of any method if need be, since
        what is left of a network decides how long it retrains.

        Parameters
        ----------
        workers : int, optional
            Processes that share what is left; by default those that are at it, at least one.

        Returns
        -------
        float or None
            Seconds. ``None`` where no trial of any block that has trials left has ended; blocks
            without an ended trial are left out, see `without_estimate`.
        """
        left = [(part.left, _expected(part, self.parts)) for part in self.parts if part.left]
        known = [(count, seconds) for count, seconds in left if seconds is not None]
        if not known:
            return None if left else 0.0
        shared = sum(count * seconds for count, seconds in known)
        shared /= max(1, self.workers if workers is None else workers)
        # A trial that has not begun runs in one process, however many there are.
        unshared = (min(count, 1.0) * seconds for count, seconds in known)
        return max(shared, *unshared)

    def without_estimate(self) -> int:
        """Return how many trials are left of which `seconds_left` knows nothing."""
        unknown = (part for part in self.parts if part.left and _expected(part, self.parts) is None)
        return sum(part.queued + part.running for part in unknown)


def _expected(part: Part, parts: Sequence[Part]) -> float | None:
    """Seconds of a trial, by its nearest relatives in its block."""
    timed = [other for other in parts if other.block == part.block and other.seconds is not None]
    same = [other for other in timed if other.method == part.method] or timed
    if not same:
        return None
    distances = [abs((other.ratio or 0.0) - (part.ratio or 0.0)) for other in same]
    found = [
        (other.ok + other.failed, other.seconds or 0.0)
        for other, distance in zip(same, distances, strict=True)
        if distance == min(distances)
    ]
    return sum(count * seconds for count, seconds in found) / sum(count for count, _ in found)


def study_progress(connection: sqlite3.Connection) -> StudyProgress:
    """Count a study's trials by block, method, ratio and status."""
    names = ("block", "architecture", "method", "ratio")
    place = ", ".join(f"json_extract(cell, '$.{name}')" for name in names)
    counts = ", ".join(
        f"count(*) FILTER (WHERE status = '{status}')"
        for status in ("queued", "running", "ok", "failed")
    )
    parts: list[tuple[Any, ...]] = connection.execute(
        f"SELECT {place}, {counts}, avg(seconds) FROM trials GROUP BY 1, 2, 3, 4 ORDER BY 1, 3, 4"
    ).fetchall()
    errors: list[tuple[str, int]] = connection.execute(
        "SELECT coalesce(last_error, 'unknown'), count(*) FROM trials WHERE status = 'failed' "
        "GROUP BY 1 ORDER BY 2 DESC, 1"
    ).fetchall()
    last = connection.execute(
        "SELECT last_error FROM trials WHERE status = 'failed' ORDER BY started DESC LIMIT 1"
    ).fetchone()
    ended = [life_of(worker) == "dead" for _, _, worker, _ in held_trials(connection)]
    return StudyProgress(
        tuple(Part(*part) for part in parts),
        workers=len(ended) - sum(ended),
        interrupted=sum(ended),
        errors=tuple((str(error), int(count)) for error, count in errors),
        last_error=None if last is None else last[0],
    )
