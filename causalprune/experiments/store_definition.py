"""What a study is: its description and its trials, and how two of them differ."""

from __future__ import annotations

import hashlib
import json
import secrets
import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from causalprune.errors import InvalidArgumentError, RecordError
from causalprune.experiments.records import Column
from causalprune.experiments.store_rows import columns_as_json, columns_from_json, typed_row
from causalprune.experiments.store_schema import (
    add_columns,
    connect,
    create_tables,
    schema_version,
    transaction,
)

__all__ = ["Definition", "canonical", "cell_row", "fit_study", "make_study"]

_SHOWN = 60


@dataclass(frozen=True)
class Definition:
    """A study as it was asked for.

    Attributes
    ----------
    study : dict
        Its description.
    cells : tuple of dict
        Its trials, each with ``trial`` and ``order``, in the order in which they are to run.
    outcomes : tuple of str
        What must be finite in the row of a trial that went well.
    """

    study: dict[str, Any]
    cells: tuple[dict[str, Any], ...]
    outcomes: tuple[str, ...]

    @classmethod
    def of(
        cls,
        study: Mapping[str, Any],
        trials: Sequence[Mapping[str, Any]],
        columns: Sequence[Column],
        outcomes: Sequence[str],
    ) -> Definition:
        """Check what a study consists of.

        Raises
        ------
        InvalidArgumentError
            It is no JSON, has no trials, numbers or positions twice, or a value that does not
            fit the column of its name.
        """
        cells = []
        for position, trial in enumerate(trials):
            cell = _plain({"trial": position, "order": position, **trial}, f"trials[{position}]")
            try:
                typed_row(columns, _as_row(cell, columns), f"trials[{position}]")
            except RecordError as error:
                raise InvalidArgumentError(f"trials: {error}") from error
            cells.append(cell)
        if not cells:
            raise InvalidArgumentError("trials: expected at least one, got none")
        for key in ("trial", "order"):
            values = [cell[key] for cell in cells]
            if not all(type(value) is int for value in values) or len(set(values)) < len(values):
                raise InvalidArgumentError(
                    f"trials: expected a whole number {key!r} in each, none of them twice"
                )
        cells.sort(key=lambda cell: int(cell["order"]))
        return cls(_plain(study, "study"), tuple(cells), tuple(outcomes))

    @classmethod
    def read(cls, connection: sqlite3.Connection) -> Definition:
        """Read the definition that a store holds."""
        meta = dict(connection.execute("SELECT key, value FROM meta").fetchall())
        cells = connection.execute("SELECT cell FROM trials ORDER BY position").fetchall()
        return cls(
            json.loads(meta["study"]),
            tuple(json.loads(cell) for (cell,) in cells),
            tuple(json.loads(meta["outcomes"])),
        )

    def write(self, connection: sqlite3.Connection) -> None:
        """Put the definition into an empty store, inside the caller's transaction."""
        connection.executemany(
            "INSERT INTO meta VALUES (?, ?)",
            [
                ("study", canonical(self.study)),
                ("outcomes", canonical(self.outcomes)),
                ("definition", self.digest),
            ],
        )
        connection.executemany(
            "INSERT INTO trials (trial, position, cell) VALUES (?, ?, ?)",
            [(cell["trial"], cell["order"], canonical(cell)) for cell in self.cells],
        )

    @property
    def digest(self) -> str:
        """SHA-256 of all of it, in hexadecimal."""
        whole = canonical({"study": self.study, "trials": self.cells, "outcomes": self.outcomes})
        return hashlib.sha256(whole.encode()).hexdigest()

    def differences(self, other: Definition) -> list[str]:
        """Name what the other one has differently, as ``ratios ([0.3], not [0.5])``."""
        mine, others = dict(_leaves(self.study)), dict(_leaves(other.study))
        found = [
            f"{key} ({_shown(mine, key)}, not {_shown(others, key)})"
            for key in sorted(mine.keys() | others.keys())
            if key not in mine or key not in others or mine[key] != others[key]
        ]
        if self.outcomes != other.outcomes:
            found.append(f"outcomes ({list(self.outcomes)}, not {list(other.outcomes)})")
        if len(self.cells) != len(other.cells):
            found.append(f"trials ({len(self.cells)}, not {len(other.cells)})")
        elif self.cells != other.cells:
            pairs = zip(self.cells, other.cells, strict=True)
            one, two = next((one, two) for one, two in pairs if one != two)
            keys = [key for key in sorted(one | two) if one.get(key) != two.get(key)]
            changed = ", ".join(f"{key} {one.get(key)!r}, not {two.get(key)!r}" for key in keys)
            found.append(f"trials (the first that differs is {one['trial']}: {changed})")
        return found


def make_study(file: Path, definition: Definition, columns: Sequence[Column]) -> None:
    """Make the database of a study in one step, where there is none.

    Raises
    ------
    RecordError
        It cannot be written, or is something else's.
    """
    connection = connect(file, create=True)
    try:
        with transaction(connection, file, "make the study"):
            if schema_version(connection, file) is None:
                create_tables(connection, columns)
                definition.write(connection)
                connection.executemany(
                    "INSERT INTO meta VALUES (?, ?)",
                    [("study_id", secrets.token_hex(16)), ("columns", columns_as_json(columns))],
                )
    finally:
        connection.close()


def fit_study(
    connection: sqlite3.Connection, file: Path, asked: Definition, columns: Sequence[Column]
) -> tuple[Column, ...]:
    """Check that a store holds the study that is asked for, and give it the columns it lacks.

    Returns
    -------
    tuple of Column
        Those of the store now.

    Raises
    ------
    RecordError
        It holds another one, or a column of another kind.
    """
    differences = Definition.read(connection).differences(asked)
    if differences:
        raise RecordError(
            f"{file}: another study: {'; '.join(differences)}; choose another folder or repeat "
            "its settings"
        )
    (text,) = connection.execute("SELECT value FROM meta WHERE key = 'columns'").fetchone()
    there = columns_from_json(text)
    kinds = {column.name.casefold(): column for column in there}
    for column in columns:
        known = kinds.get(column.name.casefold(), column)
        if (known.name, known.kind) != (column.name, column.kind):
            raise RecordError(
                f"{file}: column {known.name!r} is of kind {known.kind!r} there, "
                f"{column.name!r} of kind {column.kind!r} here"
            )
    added = [column for column in columns if column.name.casefold() not in kinds]
    if added:
        add_columns(connection, added)
        connection.execute(
            "UPDATE meta SET value = ? WHERE key = 'columns'", (columns_as_json([*there, *added]),)
        )
    return (*there, *added)


def cell_row(cell: Mapping[str, Any], columns: Sequence[Column]) -> dict[str, Any]:
    """Return what a trial's cell says about its row: the values whose names are columns."""
    return typed_row(columns, _as_row(cell, columns), f"trial {cell['trial']}")


def _as_row(cell: Mapping[str, Any], columns: Sequence[Column]) -> dict[str, Any]:
    names = {column.name for column in columns}
    return {key: value for key, value in cell.items() if key in names}


def canonical(value: Any) -> str:
    """Write a value as JSON, the same text for equal values."""
    return json.dumps(value, sort_keys=True, allow_nan=False, separators=(",", ":"))


def _plain(value: Mapping[str, Any], name: str) -> dict[str, Any]:
    try:
        plain = json.loads(canonical(dict(value)))
    except (TypeError, ValueError) as error:
        raise InvalidArgumentError(
            f"{name}: expected what JSON can hold, without NaN ({error})"
        ) from error
    return dict(plain)


def _leaves(value: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, Any]]:
    for key, entry in value.items():
        if isinstance(entry, dict) and entry:
            yield from _leaves(entry, f"{above}{key}.")
        else:
            yield f"{above}{key}", entry


def _shown(values: Mapping[str, Any], key: str) -> str:
    text = canonical(values[key]) if key in values else "nothing"
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."
