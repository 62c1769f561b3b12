"""What a store keeps beside its rows: artefacts of trials, descriptions of machines."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from typing import Any

from causalprune.errors import InvalidArgumentError
from causalprune.experiments import store_queue
from causalprune.experiments.store_artefacts import keep_artefact
from causalprune.experiments.store_definition import canonical
from causalprune.experiments.store_reader import StudyReader
from causalprune.experiments.store_schema import explained
from causalprune.experiments.store_workers import Worker

__all__ = ["StudyKeeper"]


class StudyKeeper(StudyReader):
    """What is written beside the rows; see `StudyStore`, which writes these, too."""

    def put_artefact(
        self,
        content: bytes | str | os.PathLike[str],
        kind: str,
        *,
        trial: int | None = None,
        worker: Worker | None = None,
    ) -> str:
        """Keep a file under the digest of its content; the same content is stored once.

        Parameters
        ----------
        content : bytes or path-like
            The content itself, or the file that holds it.
        kind : str
            ``"checkpoint"``, ``"plan"``, ``"trace"`` or another word.
        trial : int, optional
            Whose it is; ``worker`` must hold it. ``None``: of the whole study.
        worker : Worker, optional
            Needed with ``trial``.

        Returns
        -------
        str
            SHA-256 of the content, in hexadecimal.

        Raises
        ------
        InvalidArgumentError
            ``trial`` is given without ``worker``.
        ClaimLostError
            The worker does not hold the trial.
        RecordError
            It cannot be read or written; nothing half-written is left behind.

        Examples
        --------
        >>> import tempfile
        >>> from causalprune.experiments.store import StudyStore
        >>> with StudyStore.create(tempfile.mkdtemp(), {}, [{"method": "l1"}]) as store:
        ...     digest = store.put_artefact(b"weights", "checkpoint")
        ...     store.artefact_path(digest).read_bytes()
        b'weights'
        """
        if trial is not None and worker is None:
            raise InvalidArgumentError("worker: expected the one that holds the trial, got None")
        with explained(self._file, f"keep the {kind}"):
            kept = keep_artefact(self.folder, content, kind, trial)
        with self._writing(f"keep the {kind}"):
            if trial is not None and worker is not None:
                store_queue.check_claim(self._connection, trial, worker)
            store_queue.enter_artefact(self._connection, kept)
        return kept.digest

    def record_machine(self, worker: Worker, description: Mapping[str, Any]) -> str:
        """Record a worker's machine, once for each machine; return the description's digest.

        Raises
        ------
        RecordError
            The store cannot be written.
        """
        text = canonical(description)
        digest = hashlib.sha256(text.encode()).hexdigest()
        with self._writing("record the machine"):
            self._connection.execute(
                "INSERT INTO machines VALUES (?, ?) ON CONFLICT DO NOTHING", (digest, text)
            )
            store_queue.register(self._connection, worker)
            self._connection.execute(
                "UPDATE workers SET machine = ? WHERE token = ?", (digest, worker.token)
            )
        return digest
