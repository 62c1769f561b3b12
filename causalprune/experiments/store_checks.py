"""What may be wrong with a store on disk, in words."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from pathlib import Path

from causalprune.experiments.store_artefacts import (
    ARTEFACTS,
    artefact_file,
    files_of_artefacts,
)
from causalprune.experiments.store_workers import held_trials, life_of
from causalprune.files import file_digest

__all__ = ["findings"]


def findings(folder: Path, connection: sqlite3.Connection) -> list[str]:
    """Look a store over; see `StudyStore.doctor`."""
    damage = _damage(connection)
    if damage:
        return damage  # what the tables say cannot be trusted
    return [
        *_rows_and_trials(connection),
        *_dead_workers(connection),
        *_artefacts(folder, connection),
    ]


def _damage(connection: sqlite3.Connection) -> list[str]:
    try:
        answers = [str(row[0]) for row in connection.execute("PRAGMA integrity_check")]
        keys = connection.execute("PRAGMA foreign_key_check").fetchall()
    except sqlite3.DatabaseError as error:
        answers, keys = [str(error)], []
    damage = [] if answers == ["ok"] else [f"the database is damaged: {text}" for text in answers]
    damage += [f"table {row[0]}, row {row[1]}: refers to a {row[2]} that is gone" for row in keys]
    return damage


def _rows_and_trials(connection: sqlite3.Connection) -> Iterator[str]:
    found = connection.execute(
        "SELECT trials.trial, trials.status, rows.status "
        "FROM trials LEFT JOIN rows USING (trial) ORDER BY trials.trial"
    )
    for trial, status, recorded in found:
        expected = status if status in ("ok", "failed") else None
        if recorded != expected:
            row = "has no row" if recorded is None else f"has a row that says {recorded}"
            yield f"trial {trial} is {status} but {row}"


def _dead_workers(connection: sqlite3.Connection) -> Iterator[str]:
    for trial, _, worker, _ in held_trials(connection):
        life = life_of(worker)
        if life == "dead":
            yield f"trial {trial} is held by {worker}, which has ended; the next claim frees it"
        elif life == "unknown":
            yield f"trial {trial} is held by {worker}, which cannot be seen from here"


def _artefacts(folder: Path, connection: sqlite3.Connection) -> Iterator[str]:
    known = {
        str(digest): (str(kind), int(size), trial)
        for digest, kind, size, trial in connection.execute(
            "SELECT digest, kind, bytes, trial FROM artefacts ORDER BY digest"
        )
    }
    there = files_of_artefacts(folder)
    for digest, (kind, size, trial) in known.items():
        of = "the study" if trial is None else f"trial {trial}"
        path = artefact_file(folder, digest)
        if digest not in there:
            yield f"{path}: missing, the {kind} of {of}"
        elif path.stat().st_size != size or file_digest(path) != digest:
            yield f"{path}: damaged, the {kind} of {of}: its content has another digest"
    for digest, path in there.items():
        if digest in known:
            continue
        if path.name.startswith("."):
            yield f"{path}: left over from a write that was cut short; delete it when none runs"
        else:
            yield f"{path}: belongs to no trial in {ARTEFACTS}; delete it when none runs"
