"""Who works on a study, and whether a worker is still there.

No clock of the wall is asked anywhere: it may jump. A process of this machine is looked up among
those that run; of a process elsewhere only its heartbeats are seen, and the reader measures with
its own monotonic clock for how long their number has stood still.
"""

from __future__ import annotations

import os
import platform
import secrets
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

__all__ = ["Leases", "Worker", "ending", "held_trials", "life_of"]

_PROC = Path("/proc")

# Tokens of workers that ended before their process did.
_RETIRED: set[str] = set()


@dataclass(frozen=True)
class Worker:
    """Something that runs trials: a process, or one of its threads.

    Attributes
    ----------
    host : str
        Name of the machine.
    boot : str
        Which start of its system; empty where the system has no name for it.
    namespace : str
        Which table of processes ``pid`` is a number of; empty where there is but one.
    pid : int
        The process.
    started : str
        When the process started, in the system's own count; empty where it does not tell. With
        it a process that got the number of an earlier one is not taken for it.
    token : str
        Drawn at random, so that no two workers are equal.

    Examples
    --------
    >>> worker = Worker.here()
    >>> worker.pid == os.getpid(), worker == Worker.here()
    (True, False)
    """

    host: str
    boot: str
    namespace: str
    pid: int
    started: str
    token: str

    @classmethod
    def here(cls) -> Worker:
        """Return a new worker of this process."""
        pid = os.getpid()
        return cls(
            host=platform.node(),
            boot=_boot(),
            namespace=_namespace(),
            pid=pid,
            started=_started(pid) or "",
            token=secrets.token_hex(16),
        )

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host or 'this machine'}"


@dataclass
class Leases:
    """For how long the heartbeats of workers elsewhere have stood still.

    Attributes
    ----------
    lease_seconds : float
        How long they may.
    monotonic : callable
        The reader's clock, in seconds.
    """

    lease_seconds: float
    monotonic: Callable[[], float]
    _seen: dict[str, tuple[int, float]] = field(default_factory=dict)

    def is_gone(self, worker: Worker, heartbeat: int) -> bool:
        """Whether a worker has died, or has not been heard of for the whole lease."""
        state = life_of(worker)
        if state != "unknown":
            return state == "dead"
        now = self.monotonic()
        last, since = self._seen.get(worker.token, (None, now))
        if last != heartbeat:
            self._seen[worker.token] = (heartbeat, now)
            return False
        return now - since >= self.lease_seconds


@contextmanager
def ending(worker: Worker) -> Iterator[None]:
    """Count a worker of this process as ended after a block, though the process goes on.

    What it still holds then, because a full disk let it neither record nor release it, is free for
    the next worker of this process; those of others wait for the end of the process.
    """
    try:
        yield
    finally:
        _RETIRED.add(worker.token)


def life_of(worker: Worker) -> Literal["alive", "dead", "unknown"]:
    """Say whether a worker's process runs; unknown where it cannot be seen from here."""
    if worker.token in _RETIRED:
        return "dead"
    if worker.host != platform.node():
        return "unknown"
    if worker.boot != _boot():
        return "dead"  # the machine was started anew since
    if worker.namespace != _namespace():
        return "unknown"
    try:
        os.kill(worker.pid, 0)
    except ProcessLookupError:
        return "dead"
    except PermissionError:
        pass  # another user's process: there, but it takes no signals from this one
    try:
        started = _started(worker.pid)
    except OSError:
        # Hidden from this user, or gone just now; then the next look finds it dead.
        return "unknown"
    if started is None:
        return "dead"
    return "alive" if started == worker.started else "dead"


def held_trials(connection: sqlite3.Connection) -> list[tuple[int, int, Worker, int]]:
    """List the running trials: number, attempts so far, by whom, and that worker's heartbeat."""
    found = connection.execute(
        "SELECT trial, attempts, host, boot, namespace, pid, workers.started, token, heartbeat "
        "FROM trials JOIN workers ON worker = token WHERE status = 'running' ORDER BY position"
    )
    return [(int(row[0]), int(row[1]), Worker(*row[2:8]), int(row[8])) for row in found]


def _boot() -> str:
    try:
        return (_PROC / "sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except OSError:
        return ""


def _namespace() -> str:
    try:
        return os.readlink(_PROC / "self/ns/pid")
    except OSError:
        return ""


def _started(pid: int) -> str | None:
    """When a process started, empty where nothing tells, ``None`` where it has ended."""
    if not (_PROC / "self/stat").exists():
        return _started_by_psutil(pid)
    text = (_PROC / str(pid) / "stat").read_text(encoding="utf-8", errors="replace")
    # The name in parentheses may hold anything, parentheses too.
    fields = text.rpartition(")")[2].split()
    # A killed process stays in the table, as Z, until its parent has asked for its end.
    return None if fields[0] in "ZX" else fields[19]


def _started_by_psutil(pid: int) -> str | None:
    try:
        import psutil
    except ImportError:
        return ""
    try:
        process = psutil.Process(pid)
        if process.status() == psutil.STATUS_ZOMBIE:
            return None
        return str(process.create_time())
    except psutil.NoSuchProcess:
        return None
    except psutil.AccessDenied as error:
        raise PermissionError(str(error)) from error
