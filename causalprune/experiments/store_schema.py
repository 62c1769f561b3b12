"""The tables of a store of studies, its version, and how it is opened and written.

Writing is safe against a process killed, a power cut and a full disk because every step is one
transaction of SQLite, flushed to disk before it counts (write-ahead log, ``synchronous=FULL``).
"""

from __future__ import annotations

import secrets
import sqlite3
import time
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from importlib.metadata import version
from pathlib import Path

from causalprune.errors import RecordError
from causalprune.experiments.records import Column
from causalprune.files import file_blocks, flush_folder, replace_file

__all__ = [
    "BUSY_SECONDS",
    "SCHEMA_VERSION",
    "STORE_FILE",
    "add_columns",
    "connect",
    "create_tables",
    "explained",
    "schema_version",
    "transaction",
    "upgrade",
]

STORE_FILE = "study.db"
SCHEMA_VERSION = 2
BUSY_SECONDS = 60.0
"""How long a step waits for another process's step; those take milliseconds."""

_TABLES = (
    "CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL)",
    "CREATE TABLE machines (digest TEXT PRIMARY KEY, description TEXT NOT NULL)",
    """CREATE TABLE workers (
        token TEXT PRIMARY KEY,
        host TEXT NOT NULL,
        boot TEXT NOT NULL,
        namespace TEXT NOT NULL,
        pid INTEGER NOT NULL,
        started TEXT NOT NULL,
        heartbeat INTEGER NOT NULL DEFAULT 0,
        machine TEXT REFERENCES machines (digest)
    )""",
    # started counts claims: the order in which trials ran, whatever the clock does.
    """CREATE TABLE trials (
        trial INTEGER PRIMARY KEY,
        position INTEGER NOT NULL UNIQUE,
        cell TEXT NOT NULL,
        status TEXT NOT NULL DEFAULT 'queued'
            CHECK (status IN ('queued', 'running', 'ok', 'failed')),
        attempts INTEGER NOT NULL DEFAULT 0,
        worker TEXT REFERENCES workers (token),
        started INTEGER UNIQUE,
        seconds REAL,
        last_error TEXT,
        CHECK ((status = 'queued') = (worker IS NULL))
    )""",
    "CREATE INDEX trials_by_status ON trials (status, position)",
    """CREATE TABLE artefacts (
        digest TEXT NOT NULL,
        kind TEXT NOT NULL,
        bytes INTEGER NOT NULL,
        trial INTEGER REFERENCES trials (trial)
    )""",
    "CREATE UNIQUE INDEX artefacts_once ON artefacts (digest, kind, coalesce(trial, -1))",
)
# What leads from a version to the next, by the version it starts from.
_MIGRATIONS: dict[int, tuple[str, ...]] = {1: ("ALTER TABLE trials ADD COLUMN last_error TEXT",)}
_TYPES = {"int": "INTEGER", "float": "REAL", "text": "TEXT"}


def connect(file: Path, *, create: bool = False) -> sqlite3.Connection:
    """Open the database of a store: write-ahead log, every commit flushed, foreign keys kept.

    Raises
    ------
    RecordError
        It cannot be opened, is no database, or lies where no write-ahead log can be kept.
    """
    mode = "rwc" if create else "rw"
    with explained(file, "open"):
        connection = sqlite3.connect(
            f"{file.absolute().as_uri()}?mode={mode}",
            uri=True,
            timeout=BUSY_SECONDS,
            isolation_level=None,
        )
        try:
            connection.execute("PRAGMA synchronous = FULL")
            # Apple's fsync leaves the content in the drive's cache; no effect elsewhere.
            connection.execute("PRAGMA fullfsync = ON")
            connection.execute("PRAGMA foreign_keys = ON")
            journal = _write_ahead(connection)
        except BaseException:
            connection.close()
            raise
    if journal != "wal":
        connection.close()
        raise RecordError(
            f"{file}: this file system keeps no write-ahead log (SQLite's journal is {journal!r}); "
            "put the study on a local disk"
        )
    return connection


def _write_ahead(connection: sqlite3.Connection) -> str:
    # SQLite does not wait for a lock while it changes the journal, so two processes that open a
    # new store at once meet here.
    deadline = time.monotonic() + BUSY_SECONDS
    while True:
        try:
            return str(connection.execute("PRAGMA journal_mode = WAL").fetchone()[0])
        except sqlite3.OperationalError as error:
            if "locked" not in str(error) or time.monotonic() > deadline:
                raise
            time.sleep(0.01)


@contextmanager
def transaction(connection: sqlite3.Connection, file: Path, step: str) -> Iterator[None]:
    """Do several statements as one: all of them are on disk afterwards, or none.

    Raises
    ------
    RecordError
        SQLite or the system refused; the store is as it was.
    """
    with explained(file, step):
        connection.execute("BEGIN IMMEDIATE")
        try:
            yield
            connection.execute("COMMIT")
        except BaseException:
            if connection.in_transaction:
                connection.execute("ROLLBACK")
            raise


@contextmanager
def explained(file: Path, step: str) -> Iterator[None]:
    """Turn errors of SQLite and of the file system into a RecordError that says what to do."""
    try:
        yield
    except (sqlite3.Error, OSError) as error:
        text = " ".join(str(error).split())
        raise RecordError(f"{file}: cannot {step} ({text}); {_advice(text)}") from error


def _advice(text: str) -> str:
    known = (
        (("is full", "No space left", "disk I/O", "too large", "quota"), _FULL),
        (("locked",), f"another process held it for over {BUSY_SECONDS:.0f} s: is one stopped?"),
        (
            ("readonly", "unable to open", "Permission", "Read-only"),
            "make the folder writable for this user, or copy the study to where it is",
        ),
        (
            ("malformed", "not a database", "encrypted"),
            "the file is damaged or no store: put a copy of it in its place",
        ),
    )
    return next(
        (advice for words, advice in known if any(word in text for word in words)),
        "nothing was written",
    )


_FULL = (
    "the disk is full, over its quota or broken: nothing was written, the rows before this are "
    "safe; make room and start again"
)


def schema_version(connection: sqlite3.Connection, file: Path) -> int | None:
    """Return the version of the tables in a database, ``None`` where there are no tables yet.

    Raises
    ------
    RecordError
        The tables are something else's.
    """
    tables = {str(row[0]) for row in connection.execute("SELECT name FROM sqlite_master")}
    if not tables:
        return None
    if "meta" not in tables:
        raise RecordError(f"{file}: expected a study, got tables {', '.join(sorted(tables))}")
    row = connection.execute("SELECT value FROM meta WHERE key = 'schema_version'").fetchone()
    if row is None or not str(row[0]).isdecimal():
        raise RecordError(f"{file}: expected a study, got a database without schema_version")
    return int(row[0])


def create_tables(connection: sqlite3.Connection, columns: Sequence[Column]) -> None:
    """Make the tables of this version, inside the caller's transaction."""
    for statement in _TABLES:
        connection.execute(statement)
    names = ", ".join(_declared(column) for column in columns if column.name != "trial")
    connection.execute(
        f"CREATE TABLE rows (trial INTEGER PRIMARY KEY REFERENCES trials (trial), {names})"
    )
    connection.executemany(
        "INSERT INTO meta VALUES (?, ?)",
        [("schema_version", str(SCHEMA_VERSION)), ("created_with", version("causalprune"))],
    )


def add_columns(connection: sqlite3.Connection, columns: Sequence[Column]) -> None:
    """Give the run table more columns, empty in the rows that are there."""
    for column in columns:
        connection.execute(f"ALTER TABLE rows ADD COLUMN {_declared(column)}")


def upgrade(connection: sqlite3.Connection, file: Path) -> None:
    """Bring the tables of a store to this version, in one step, beside a copy of the file.

    The copy bears the version it is of, as ``study.v1.db``.

    Raises
    ------
    RecordError
        The tables are of a newer version, or there are none; or they, or the copy, cannot be
        written: the store is then as it was.
    """
    with explained(file, "read"):
        found = schema_version(connection, file)
    if found is None:
        raise RecordError(f"{file}: no study in it yet; StudyStore.create puts one there")
    if found > SCHEMA_VERSION:
        raise RecordError(
            f"{file}: of schema {found}, written by a newer causalprune; this one "
            f"({version('causalprune')}) knows schemas up to {SCHEMA_VERSION}: update it"
        )
    if found == SCHEMA_VERSION:
        return
    with transaction(connection, file, f"bring the study to schema {SCHEMA_VERSION}"):
        # Another process may have done it meanwhile.
        found = schema_version(connection, file) or SCHEMA_VERSION
        if found < SCHEMA_VERSION:
            _back_up(file, found)
        for each in range(found, SCHEMA_VERSION):
            for statement in _MIGRATIONS[each]:
                connection.execute(statement)
        connection.execute(
            "UPDATE meta SET value = ? WHERE key = 'schema_version'", (str(SCHEMA_VERSION),)
        )


def _back_up(file: Path, found: int) -> None:
    kept = file.with_name(f"{file.stem}.v{found}{file.suffix}")
    temporary = kept.with_name(f".{kept.name}.{secrets.token_hex(4)}")
    try:
        with closing(connect(file)) as source, closing(sqlite3.connect(temporary)) as copy:
            source.backup(copy)
            # One file, without a log beside it.
            copy.execute("PRAGMA journal_mode = DELETE")
        replace_file(kept, file_blocks(temporary))
        flush_folder(kept.parent)
    finally:
        temporary.unlink(missing_ok=True)


def _declared(column: Column) -> str:
    return f'"{column.name}" {_TYPES[column.kind]}'
