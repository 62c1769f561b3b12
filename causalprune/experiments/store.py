"""The store of a study: its queue of trials, and the log of what they gave.

Any number of processes may work one study. Each takes a trial, runs it and records it in one
step; whatever ends a process (a kill, a power cut, a full disk) costs at most the trial that it
was running, which the next process takes again. No row is lost and none is there twice.

No torch here: analysis and reports read stores without it.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from causalprune.errors import RecordError
from causalprune.experiments import store_queue, store_rows
from causalprune.experiments.records import TRIAL_COLUMNS, Column
from causalprune.experiments.store_artefacts import Artefact, keep_artefact
from causalprune.experiments.store_definition import (
    Definition,
    fit_study,
    make_study,
)
from causalprune.experiments.store_keeper import StudyKeeper
from causalprune.experiments.store_queue import ClaimedTrial, StudyStatus
from causalprune.experiments.store_reader import LEASE_SECONDS, MAX_ATTEMPTS
from causalprune.experiments.store_schema import STORE_FILE, explained
from causalprune.experiments.store_workers import Worker
from causalprune.files import flush_folder

__all__ = [
    "OUTCOMES",
    "STORE_FILE",
    "Artefact",
    "ClaimedTrial",
    "StudyStatus",
    "StudyStore",
    "Worker",
]

OUTCOMES = ("accuracy", "accuracy_loss")
"""What must be finite in the row of a trial that went well, unless told otherwise."""


class StudyStore(StudyKeeper):
    """The queue and the log of one study, in a folder: ``study.db`` and ``artefacts/``.

    Made by `create` or `open`. An object belongs to the thread and the process that made it;
    every other one opens the folder for itself.

    Attributes
    ----------
    folder : Path
        Where the study lies.
    study_id : str
        Drawn at random when the study was made.
    study : dict
        The study's description.
    columns : tuple of Column
        The run table's columns.
    outcomes : tuple of str
        Columns that must be finite in the row of a trial that went well.

    Examples
    --------
    >>> import tempfile
    >>> cells = [{"method": "l1", "ratio": ratio} for ratio in (0.3, 0.6)]
    >>> with StudyStore.create(tempfile.mkdtemp(), {"network": "lenet5"}, cells) as store:
    ...     worker = Worker.here()
    ...     while claimed := store.claim(worker):
    ...         row = {"accuracy": 0.9, "accuracy_loss": claimed.cell["ratio"] / 10}
    ...         _ = store.finish(claimed.trial, worker, row)
    ...     print(store.read()[["order", "method", "ratio", "accuracy_loss", "status"]])
       order method  ratio  accuracy_loss status
    0      0     l1    0.3           0.03     ok
    1      1     l1    0.6           0.06     ok
    """

    def __init__(self, *opened: Any) -> None:
        super().__init__(*opened)
        self._claimed_at: dict[tuple[int, str], float] = {}

    @classmethod
    def create(
        cls,
        folder: str | os.PathLike[str],
        study: Mapping[str, Any],
        trials: Sequence[Mapping[str, Any]],
        *,
        columns: Sequence[Column] = TRIAL_COLUMNS,
        outcomes: Sequence[str] | None = None,
        lease_seconds: float = LEASE_SECONDS,
        max_attempts: int = MAX_ATTEMPTS,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> StudyStore:
        """Make a study, or go on with it where the folder holds the same one.

        Parameters
        ----------
        folder : path-like
            On a local disk; made when it is not there.
        study : mapping
            Its description, of what JSON can hold.
        trials : sequence of mappings
            One cell a trial, of what JSON can hold, in the randomised order. ``trial`` (number)
            and ``order`` (position) are the index where a cell does not have them; values under
            the name of a column go into the trial's row.
        columns : sequence of Column
            Of the run table; ``trial``, ``order``, ``status`` and ``error`` must be among them. A
            study that is there gets those that it does not have yet.
        outcomes : sequence of str, optional
            Columns that must be finite in the row of a trial that went well; ``OUTCOMES``, as far
            as they are columns, by default.
        lease_seconds, max_attempts, monotonic
            As for `open`.

        Raises
        ------
        InvalidArgumentError
            The description or a trial is no JSON, a number or position is there twice, a value
            does not fit its column, or a column cannot be one.
        RecordError
            The folder holds another study (the message says which keys differ), or cannot be
            written.

        Examples
        --------
        >>> import tempfile
        >>> folder = tempfile.mkdtemp()
        >>> StudyStore.create(folder, {"ratios": [0.3]}, [{"ratio": 0.3}]).close()
        >>> StudyStore.create(folder, {"ratios": [0.5]}, [{"ratio": 0.3}])
        Traceback (most recent call last):
        ...
        causalprune.errors.RecordError: ... another study: ratios ([0.3], not [0.5]); ...
        """
        names = {column.name for column in columns}
        if outcomes is None:
            outcomes = [name for name in OUTCOMES if name in names]
        store_rows.check_columns(columns, outcomes)
        definition = Definition.of(study, trials, columns, outcomes)
        file = Path(folder) / STORE_FILE
        with explained(file, "make the folder"):
            if not file.parent.is_dir():
                file.parent.mkdir(parents=True, exist_ok=True)
                flush_folder(file.parent.parent)
        make_study(file, definition, columns)
        store = cls.open(
            folder, lease_seconds=lease_seconds, max_attempts=max_attempts, monotonic=monotonic
        )
        try:
            with store._writing("compare the study"):
                store.columns = fit_study(store._connection, file, definition, columns)
        except BaseException:
            store.close()
            raise
        return store

    def claim(self, worker: Worker) -> ClaimedTrial | None:
        """Take the next trial in the randomised order.

        Trials of workers that have ended are taken back first, at once where the process can be
        looked up, after the lease where only its heartbeats are seen.

        Parameters
        ----------
        worker : Worker
            Who takes it; see `beating` for workers in several containers or machines.

        Returns
        -------
        ClaimedTrial or None
            ``None``: none is queued. Others may still be running (see `status`), and come back
            into the queue if their workers end; whoever wants those asks again.

        Raises
        ------
        RecordError
            The store cannot be written.
        """
        with self._writing("claim a trial"):
            store_queue.register(self._connection, worker)
            store_queue.take_back(self._connection, self.columns, self._leases, self._max_attempts)
            claimed = store_queue.claim_next(self._connection, worker)
        if claimed is not None:
            self._claimed_at[claimed.trial, worker.token] = self._leases.monotonic()
        return claimed

    def finish(
        self,
        trial: int,
        worker: Worker,
        row: Mapping[str, Any],
        artefacts: Mapping[str, bytes] | None = None,
    ) -> str:
        """Record a trial and its artefacts, in one step with the end of its claim.

        Parameters
        ----------
        trial : int
            Its number.
        worker : Worker
            Who holds it.
        row : mapping
            Values by column; those of the trial's cell need not be repeated. With ``status``
            ``"failed"`` and ``error`` it is recorded as failed.
        artefacts : mapping of str to bytes, optional
            Content by kind, also of a failed trial; see `put_artefact`.

        Returns
        -------
        str
            ``"ok"``, or ``"failed"`` where the row says so or an outcome is missing, NaN or
            infinite (a trial that diverged); ``error`` then says which.

        Raises
        ------
        ClaimLostError
            Another worker has the trial, or it is recorded already: this row counts for nothing.
        RecordError
            A column is unknown, a value does not fit its column or contradicts the trial's cell,
            or the store cannot be written. The trial is still held: it can be recorded again.
        """
        status, error = row.get("status") or "ok", row.get("error")
        if status not in ("ok", "failed"):
            raise RecordError(f"row of trial {trial}: status is {status!r}, expected ok or failed")
        problems = store_rows.outcome_problems(self.outcomes, row) if status == "ok" else []
        if problems:
            status, error = "failed", f"no finite outcome: {', '.join(problems)}"
        elif status == "failed":
            error = store_rows.one_line(str(error or ""))
        seconds = self._seconds(trial, worker, row)
        with explained(self._file, f"keep the artefacts of trial {trial}"):
            kept = [
                keep_artefact(self.folder, content, kind, trial)
                for kind, content in (artefacts or {}).items()
            ]
        with self._writing(f"record trial {trial}"):
            ended = {**row, "status": status, "error": error}
            for artefact in kept:
                store_queue.enter_artefact(self._connection, artefact)
            store_queue.end_trial(
                self._connection, self.columns, trial, worker, ended, seconds=seconds
            )
        self._claimed_at.pop((trial, worker.token), None)
        return str(status)

    def _seconds(self, trial: int, worker: Worker, row: Mapping[str, Any]) -> float | None:
        # What the trial itself says leaves out what came between the claim and its beginning.
        own = row.get("seconds")
        if isinstance(own, int | float) and not isinstance(own, bool):
            return float(own)
        since = self._claimed_at.get((trial, worker.token))
        return None if since is None else self._leases.monotonic() - since

    def fail(
        self,
        trial: int,
        worker: Worker,
        error: BaseException | str,
        row: Mapping[str, Any] | None = None,
    ) -> None:
        """Record a trial as failed, with its error and what is known of its row.

        Raises
        ------
        ClaimLostError, RecordError
            As for `finish`.

        Examples
        --------
        >>> import tempfile
        >>> with StudyStore.create(tempfile.mkdtemp(), {}, [{"method": "l1"}]) as store:
        ...     worker = Worker.here()
        ...     claimed = store.claim(worker)
        ...     store.fail(claimed.trial, worker, MemoryError("out of memory"))
        ...     print(store.read()["error"][0])
        MemoryError: out of memory
        """
        text = store_rows.one_line(error)
        self.finish(trial, worker, {**(row or {}), "status": "failed", "error": text})

    def release(self, trial: int | None, worker: Worker) -> None:
        """Give a trial back to the queue, as if it had not been claimed; ``None``: all it holds.

        Raises
        ------
        ClaimLostError, RecordError
            As for `finish`.
        """
        with self._writing("release trials" if trial is None else f"release trial {trial}"):
            every = store_queue.held_by(self._connection, worker)
            trials = every if trial is None else [trial]
            for held in trials:
                _, attempts = store_queue.check_claim(self._connection, held, worker)
                store_queue.requeue(self._connection, held, attempts=attempts - 1)
        for held in trials:
            self._claimed_at.pop((held, worker.token), None)

    def retry_failed(self) -> int:
        """Put failed trials back into the queue, without their rows; return how many.

        Raises
        ------
        RecordError
            The store cannot be written.
        """
        with self._writing("queue failed trials again"):
            return store_queue.requeue_failed(self._connection)

    def heartbeat(self, worker: Worker) -> None:
        """Tell workers that cannot see this process that it runs; see `beating`.

        Raises
        ------
        RecordError
            The store cannot be written.
        """
        with self._writing("beat"):
            store_queue.register(self._connection, worker)
            self._connection.execute(
                "UPDATE workers SET heartbeat = heartbeat + 1 WHERE token = ?", (worker.token,)
            )

    @contextmanager
    def beating(self, worker: Worker, every_seconds: float | None = None) -> Iterator[None]:
        """Beat from a thread while a block runs, an eighth of the lease apart by default.

        Examples
        --------
        >>> import tempfile
        >>> with StudyStore.create(tempfile.mkdtemp(), {}, [{"method": "l1"}]) as store:
        ...     worker = Worker.here()
        ...     with store.beating(worker):
        ...         claimed = store.claim(worker)
        """
        pause = every_seconds or self._leases.lease_seconds / 8
        over = threading.Event()

        def beat() -> None:
            while not over.wait(pause):
                # A beat that is missed is made up by the next; what keeps a disk from taking it
                # also keeps the trial from being recorded, and is raised there.
                with suppress(RecordError), StudyStore.open(self.folder) as store:
                    store.heartbeat(worker)

        thread = threading.Thread(target=beat, name=f"heartbeat of {worker}", daemon=True)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()
