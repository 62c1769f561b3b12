"""Reading a study's store: how far it is, its rows, its artefacts, and whether it is sound."""

from __future__ import annotations

import json
import os
import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

import pandas as pd

from causalprune.errors import RecordError
from causalprune.experiments import store_rows
from causalprune.experiments.store_artefacts import Artefact, artefact_file
from causalprune.experiments.store_checks import findings
from causalprune.experiments.store_progress import StudyProgress, study_progress
from causalprune.experiments.store_queue import StudyStatus, count_trials
from causalprune.experiments.store_schema import (
    SCHEMA_VERSION,
    STORE_FILE,
    connect,
    explained,
    schema_version,
    transaction,
    upgrade,
)
from causalprune.experiments.store_workers import Leases

__all__ = ["LEASE_SECONDS", "MAX_ATTEMPTS", "StudyReader"]

LEASE_SECONDS = 120.0
MAX_ATTEMPTS = 5

Store = TypeVar("Store", bound="StudyReader")


class StudyReader:
    """What a store tells; see `StudyStore`, which also writes."""

    def __init__(
        self,
        folder: Path,
        connection: sqlite3.Connection,
        leases: Leases,
        max_attempts: int,
    ) -> None:
        self.folder = folder
        self._file = folder / STORE_FILE
        self._connection = connection
        self._leases = leases
        self._max_attempts = max_attempts
        self._process = os.getpid()
        with explained(self._file, "read"):
            meta = dict(connection.execute("SELECT key, value FROM meta").fetchall())
        self.study_id = str(meta["study_id"])
        self.study: dict[str, Any] = json.loads(meta["study"])
        self.columns = store_rows.columns_from_json(meta["columns"])
        self.outcomes: tuple[str, ...] = tuple(json.loads(meta["outcomes"]))

    @classmethod
    def open(
        cls: type[Store],
        folder: str | os.PathLike[str],
        *,
        lease_seconds: float = LEASE_SECONDS,
        max_attempts: int = MAX_ATTEMPTS,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> Store:
        """Open the study in a folder.

        Parameters
        ----------
        folder : path-like
            What `StudyStore.create` was given.
        lease_seconds : float
            How long the heartbeats of a worker that cannot be seen from here (in another
            container, on another machine) may stand still before `StudyStore.claim` takes its
            trial back.
        max_attempts : int
            How many workers may end during a trial before it counts as failed: a trial that
            exhausts the memory must not take every worker with it.
        monotonic : callable
            Clock for the lease and for the time that trials take, in seconds.

        Raises
        ------
        RecordError
            There is no study, it is damaged, or a newer version wrote it.
        """
        file = Path(folder) / STORE_FILE
        if not file.is_file():
            raise RecordError(f"{file}: no such store; expected the folder of a study")
        connection = connect(file)
        try:
            upgrade(connection, file)
            return cls(Path(folder), connection, Leases(lease_seconds, monotonic), max_attempts)
        except BaseException:
            connection.close()
            raise

    def close(self) -> None:
        """Close the database; what was claimed stays claimed."""
        self._connection.close()

    def __enter__(self: Store) -> Store:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def status(self) -> StudyStatus:
        """Count the trials by status, and say how long one takes."""
        with self._reading():
            return count_trials(self._connection)

    def progress(self) -> StudyProgress:
        """Count the trials by block, method, ratio and status, and those who work on them."""
        with self._reading():
            return study_progress(self._connection)

    def read(self) -> pd.DataFrame:
        """Return the rows of finished and failed trials.

        Returns
        -------
        DataFrame
            One row a trial, in the order in which they ran. Integer columns are ``int64`` where
            no value is missing and ``float64`` where one is; missing text is NaN.
        """
        with self._reading():
            rows = store_rows.read_rows(self._connection, self.columns)
        return store_rows.table_of(rows, self.columns)

    def export(self, path: str | os.PathLike[str]) -> Path:
        """Write the rows of finished and failed trials for others to read, in one step.

        Parameters
        ----------
        path : path-like
            A name that ends in ``.csv`` (what ``records.read_trials`` reads) or ``.parquet``.

        Returns
        -------
        Path
            The file.

        Raises
        ------
        InvalidArgumentError
            The name ends otherwise.
        MissingDependencyError
            Parquet, and pyarrow is not installed.
        RecordError
            The file cannot be written; what was there is as it was.
        """
        with self._reading():
            rows = store_rows.read_rows(self._connection, self.columns)
        with explained(Path(path), "export the study"):
            return store_rows.export_rows(rows, self.columns, path)

    def artefact_path(self, digest: str) -> Path:
        """Return where the content with a digest lies, to be read only.

        Raises
        ------
        RecordError
            The store has no such content, or the file is missing.
        """
        if all(artefact.digest != digest for artefact in self.artefacts()):
            raise RecordError(f"{self._file}: no artefact {digest!r}")
        path = artefact_file(self.folder, digest)
        if not path.is_file():
            raise RecordError(f"{path}: missing, though {STORE_FILE} lists it")
        return path

    def artefacts(self, trial: int | None = None) -> tuple[Artefact, ...]:
        """List the artefacts of a trial, or all of them."""
        with self._reading():
            found = self._connection.execute(
                "SELECT digest, kind, bytes, trial FROM artefacts ORDER BY trial, kind, digest"
            ).fetchall()
        return tuple(Artefact(*row) for row in found if trial is None or row[3] == trial)

    def machines(self) -> dict[str, dict[str, Any]]:
        """Return the descriptions of the machines that worked here, by digest."""
        with self._reading():
            found = self._connection.execute("SELECT digest, description FROM machines").fetchall()
        return {str(digest): json.loads(text) for digest, text in found}

    def doctor(self) -> list[str]:
        """Look the whole store over and say what is wrong.

        Returns
        -------
        list of str
            One finding each, none where all is well: a damaged database, rows that contradict
            their trials, trials of workers that have ended, artefacts that are missing or do not
            have the content they had, files that belong to no trial. Nothing is changed.
        """
        with self._reading():
            return findings(self.folder, self._connection)

    @contextmanager
    def _reading(self) -> Iterator[None]:
        self._check_process()
        with explained(self._file, "read"):
            yield

    @contextmanager
    def _writing(self, step: str) -> Iterator[None]:
        self._check_process()
        with transaction(self._connection, self._file, step):
            # A newer program may have taken the store over since it was opened.
            found = schema_version(self._connection, self._file)
            if found != SCHEMA_VERSION:
                raise RecordError(
                    f"{self._file}: is of schema {found} by now, this program writes "
                    f"{SCHEMA_VERSION}; start it again in the newer version"
                )
            yield

    def _check_process(self) -> None:
        # SQLite's locks do not survive a fork.
        if os.getpid() != self._process:
            raise RecordError(
                f"{self._file}: opened by process {self._process}; open it in this one "
                f"({os.getpid()}) for itself"
            )
