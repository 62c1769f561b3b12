"""The queue of trials: steps on the tables, each inside the caller's transaction."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from causalprune.errors import ClaimLostError, RecordError
from causalprune.experiments.records import Column
from causalprune.experiments.store_artefacts import Artefact
from causalprune.experiments.store_definition import cell_row
from causalprune.experiments.store_rows import typed_row
from causalprune.experiments.store_workers import Leases, Worker, held_trials

__all__ = [
    "ClaimedTrial",
    "StudyStatus",
    "check_claim",
    "claim_next",
    "count_trials",
    "end_trial",
    "enter_artefact",
    "held_by",
    "register",
    "requeue",
    "requeue_failed",
    "take_back",
]


@dataclass(frozen=True)
class ClaimedTrial:
    """A trial that a worker has taken.

    Attributes
    ----------
    trial : int
        Its number in the design.
    order : int
        Its position in the randomised order.
    cell : dict
        All that the design says about it.
    attempt : int
        1 for the first time that a worker took it.
    last_error : str or None
        Why the attempt before came to nothing.
    """

    trial: int
    order: int
    cell: dict[str, Any]
    attempt: int
    last_error: str | None


@dataclass(frozen=True)
class StudyStatus:
    """How far a study is.

    Attributes
    ----------
    queued, running, ok, failed : int
        Trials by status.
    seconds_per_trial : float or None
        Mean over finished and failed trials: ``seconds`` of their rows, or else the time from claim
        to record by the workers' monotonic clocks; ``None`` before the first.

    Examples
    --------
    >>> StudyStatus(queued=6, running=2, ok=3, failed=1, seconds_per_trial=10.0).seconds_left(2)
    40.0
    """

    queued: int
    running: int
    ok: int
    failed: int
    seconds_per_trial: float | None

    @property
    def total(self) -> int:
        """Number of trials of the study."""
        return self.queued + self.running + self.ok + self.failed

    @property
    def finished(self) -> int:
        """Number of trials that have a row."""
        return self.ok + self.failed

    def seconds_left(self, workers: int = 1) -> float | None:
        """Return how long so many workers will take for the rest, ``None`` where unknown."""
        if self.seconds_per_trial is None:
            return None
        return self.seconds_per_trial * (self.queued + self.running) / max(1, workers)


def count_trials(connection: sqlite3.Connection) -> StudyStatus:
    """Count a study's trials by status."""
    row = connection.execute(
        "SELECT count(*) FILTER (WHERE status = 'queued'), "
        "count(*) FILTER (WHERE status = 'running'), count(*) FILTER (WHERE status = 'ok'), "
        "count(*) FILTER (WHERE status = 'failed'), avg(seconds) FROM trials"
    ).fetchone()
    return StudyStatus(*row)


def register(connection: sqlite3.Connection, worker: Worker) -> None:
    """Enter a worker where it is not known yet."""
    connection.execute(
        "INSERT INTO workers (host, boot, namespace, pid, started, token) "
        "VALUES (?, ?, ?, ?, ?, ?) ON CONFLICT DO NOTHING",
        (worker.host, worker.boot, worker.namespace, worker.pid, worker.started, worker.token),
    )


def take_back(
    connection: sqlite3.Connection, columns: Sequence[Column], leases: Leases, max_attempts: int
) -> None:
    """Queue the trials of workers that have ended; too many ends in one trial are its failure."""
    for trial, attempts, worker, heartbeat in held_trials(connection):
        if not leases.is_gone(worker, heartbeat):
            continue
        if attempts < max_attempts:
            requeue(connection, trial, attempts=attempts)
            connection.execute(
                "UPDATE trials SET last_error = ? WHERE trial = ?",
                (f"its worker ended: {worker}", trial),
            )
            continue
        error = f"its worker ended {attempts} times without a result, last {worker}"
        end_trial(
            connection, columns, trial, worker, {"status": "failed", "error": error}, seconds=None
        )


def claim_next(connection: sqlite3.Connection, worker: Worker) -> ClaimedTrial | None:
    """Give the first queued trial to a worker."""
    found = connection.execute(
        "SELECT trial, position, cell, attempts, last_error FROM trials "
        "WHERE status = 'queued' ORDER BY position LIMIT 1"
    ).fetchone()
    if found is None:
        return None
    trial, position, cell, attempts, last_error = found
    connection.execute(
        "UPDATE trials SET status = 'running', worker = ?, attempts = attempts + 1, "
        "started = (SELECT coalesce(max(started), 0) + 1 FROM trials) WHERE trial = ?",
        (worker.token, trial),
    )
    # What an attempt that was cut short left behind is not of this one.
    connection.execute("DELETE FROM artefacts WHERE trial = ?", (trial,))
    return ClaimedTrial(trial, position, json.loads(cell), attempts + 1, last_error)


def end_trial(
    connection: sqlite3.Connection,
    columns: Sequence[Column],
    trial: int,
    worker: Worker,
    row: Mapping[str, Any],
    *,
    seconds: float | None,
) -> None:
    """Record a trial's row, its ``status`` among the values, and end the claim.

    Raises
    ------
    ClaimLostError
        The worker does not hold the trial.
    RecordError
        The row does not fit the columns or the trial's cell.
    """
    cell, _ = check_claim(connection, trial, worker)
    set_before = cell_row(cell, columns)
    values = set_before | typed_row(columns, row, f"trial {trial}")
    for name, value in set_before.items():
        if values[name] != value:
            raise RecordError(
                f"row of trial {trial}: {name} is {values[name]!r}, the design has {value!r}"
            )
    connection.execute(
        "UPDATE trials SET status = ?, seconds = ?, last_error = coalesce(?, last_error) "
        "WHERE trial = ?",
        (values["status"], seconds, values.get("error"), trial),
    )
    names = ", ".join(f'"{name}"' for name in values)
    marks = ", ".join("?" * len(values))
    connection.execute(f"INSERT INTO rows ({names}) VALUES ({marks})", tuple(values.values()))


def enter_artefact(connection: sqlite3.Connection, artefact: Artefact) -> None:
    """List an artefact whose content is on disk."""
    connection.execute(
        "INSERT INTO artefacts VALUES (?, ?, ?, ?) ON CONFLICT DO NOTHING",
        (artefact.digest, artefact.kind, artefact.n_bytes, artefact.trial),
    )


def check_claim(
    connection: sqlite3.Connection, trial: int, worker: Worker
) -> tuple[dict[str, Any], int]:
    """Return a trial's cell and attempts, if the worker holds it.

    Raises
    ------
    ClaimLostError
        Another one holds it, it is queued, or it is recorded already.
    RecordError
        There is no such trial.
    """
    found = connection.execute(
        "SELECT cell, attempts, status, worker FROM trials WHERE trial = ?", (trial,)
    ).fetchone()
    if found is None:
        raise RecordError(f"trial: {trial!r} is not of this study")
    cell, attempts, status, holder = found
    if status == "running" and holder == worker.token:
        return json.loads(cell), int(attempts)
    now = {"running": "held by another worker", "queued": "queued"}.get(
        status, f"recorded {status}"
    )
    raise ClaimLostError(
        f"trial {trial} is not held by {worker}: it is {now}; what this worker has of it counts "
        "for nothing"
    )


def held_by(connection: sqlite3.Connection, worker: Worker) -> list[int]:
    """List the trials that a worker holds."""
    found = connection.execute(
        "SELECT trial FROM trials WHERE status = 'running' AND worker = ?", (worker.token,)
    )
    return [int(trial) for (trial,) in found]


def requeue(connection: sqlite3.Connection, trial: int, *, attempts: int) -> None:
    """Put a trial back into the queue, with so many attempts behind it."""
    connection.execute(
        "UPDATE trials SET status = 'queued', worker = NULL, started = NULL, seconds = NULL, "
        "attempts = ? WHERE trial = ?",
        (attempts, trial),
    )


def requeue_failed(connection: sqlite3.Connection) -> int:
    """Put failed trials back into the queue, without their rows; return how many."""
    failed = connection.execute("SELECT trial FROM trials WHERE status = 'failed'").fetchall()
    for (trial,) in failed:
        connection.execute("DELETE FROM rows WHERE trial = ?", (trial,))
        requeue(connection, trial, attempts=0)
    return len(failed)
