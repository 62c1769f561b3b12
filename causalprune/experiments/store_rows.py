"""Rows of a store: typed on their way in, a table on their way out."""

from __future__ import annotations

import io
import json
import math
import os
import re
import sqlite3
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from numbers import Integral, Real
from pathlib import Path
from typing import Any

import pandas as pd

from causalprune.errors import InvalidArgumentError, MissingDependencyError, RecordError
from causalprune.experiments.records import Column
from causalprune.files import replace_file

__all__ = [
    "check_columns",
    "columns_as_json",
    "columns_from_json",
    "export_rows",
    "one_line",
    "outcome_problems",
    "read_rows",
    "table_of",
    "typed_row",
]

_NEEDED = {"trial": "int", "order": "int", "status": "text", "error": "text"}
_KINDS = ("int", "float", "text")
_SUFFIXES = (".csv", ".parquet")
_LARGEST = 2**63


def check_columns(columns: Sequence[Column], outcomes: Sequence[str]) -> None:
    """Raise InvalidArgumentError unless the columns can be those of a run table."""
    kinds = {column.name: column.kind for column in columns}
    if len({name.casefold() for name in kinds}) != len(columns):
        raise InvalidArgumentError("columns: expected every name once, whatever its case")
    for column in columns:
        if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", column.name) or column.kind not in _KINDS:
            raise InvalidArgumentError(
                f"columns: expected names of letters, digits and _, and kinds {_KINDS}, got "
                f"{column.name!r} of kind {column.kind!r}"
            )
    for name, kind in _NEEDED.items():
        if kinds.get(name) != kind:
            raise InvalidArgumentError(
                f"columns: expected {name!r} of kind {kind!r}, got {kinds.get(name)!r}"
            )
    for name in outcomes:
        if kinds.get(name) not in ("int", "float"):
            raise InvalidArgumentError(f"outcomes: expected numeric columns, got {name!r}")


def columns_as_json(columns: Sequence[Column]) -> str:
    """Describe columns as text that `columns_from_json` reads."""
    described = [asdict(column) for column in columns]
    for entry in described:
        del entry["since"]  # of the table, not of the store, and unknown to earlier releases
    return json.dumps(described)


def columns_from_json(text: str) -> tuple[Column, ...]:
    """Read what `columns_as_json` wrote."""
    return tuple(Column(**entry) for entry in json.loads(text))


def typed_row(
    columns: Sequence[Column], values: Mapping[str, Any], of: str
) -> dict[str, int | float | str | None]:
    """Return a row's values as the database keeps them; NaN becomes a missing value.

    Raises
    ------
    RecordError
        A column is unknown, or a value is not of its column's kind.
    """
    kinds = {column.name: column.kind for column in columns}
    unknown = sorted(set(values) - set(kinds))
    if unknown:
        raise RecordError(f"row of {of}: unknown columns {unknown}")
    return {name: _typed(value, name, kinds[name], of) for name, value in values.items()}


def _typed(value: Any, name: str, kind: str, of: str) -> int | float | str | None:
    if value is None or (isinstance(value, Real) and math.isnan(value)):
        return None
    if kind == "text" and isinstance(value, str):
        # Neither SQLite nor CSV carries halves of characters, nor zeros.
        return value.encode("utf-8", "backslashreplace").decode().replace("\0", "\\0")
    if kind == "float" and isinstance(value, Real):
        return float(value)
    if kind == "int" and (isinstance(value, Integral) or _is_whole(value)):
        whole = int(value)
        if -_LARGEST <= whole < _LARGEST:
            return whole
    expected = {"int": "a whole number below 2**63", "float": "a number", "text": "text"}[kind]
    raise RecordError(f"row of {of}: {name} is {value!r}, expected {expected}")


def _is_whole(value: Any) -> bool:
    return isinstance(value, Real) and float(value).is_integer()


def outcome_problems(outcomes: Sequence[str], values: Mapping[str, Any]) -> list[str]:
    """Say which outcomes are missing, not a number or infinite, as ``accuracy is nan``."""
    problems = []
    for name in outcomes:
        value = values.get(name)
        if value is None:
            problems.append(f"{name} is missing")
        elif isinstance(value, Real) and not math.isfinite(value):
            problems.append(f"{name} is {float(value)}")
    return problems


def one_line(error: BaseException | str) -> str:
    """Write an error on one line, its type in front."""
    if isinstance(error, str):
        return " ".join(error.split()) or "no reason given"
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def read_rows(connection: sqlite3.Connection, columns: Sequence[Column]) -> list[tuple[Any, ...]]:
    """Return the rows of finished and failed trials in the order in which they ran."""
    names = ", ".join(f'rows."{column.name}"' for column in columns)
    return connection.execute(
        f"SELECT {names} FROM rows JOIN trials USING (trial) ORDER BY trials.started"
    ).fetchall()


def table_of(rows: Sequence[tuple[Any, ...]], columns: Sequence[Column]) -> pd.DataFrame:
    """Return rows as a table with the types that ``records.read_trials`` gives."""
    values = zip(*rows, strict=True) if rows else [()] * len(columns)
    return pd.DataFrame(
        {
            column.name: pd.Series(_cells(cells), dtype=_dtype(cells, column))
            for column, cells in zip(columns, values, strict=True)
        }
    )


def _cells(cells: Sequence[Any]) -> list[Any]:
    return [math.nan if cell is None else cell for cell in cells]


def _dtype(cells: Sequence[Any], column: Column) -> str:
    if column.kind == "text":
        return "object"
    return "float64" if column.kind == "float" or None in cells else "int64"


def export_rows(
    rows: Sequence[tuple[Any, ...]], columns: Sequence[Column], path: str | os.PathLike[str]
) -> Path:
    """Write rows as CSV or Parquet, by the path's suffix, in one step.

    Raises
    ------
    InvalidArgumentError
        The suffix is another.
    MissingDependencyError
        Parquet, and pyarrow is not installed.
    OSError
        The file cannot be written; what was there is as it was.
    """
    target = Path(path)
    suffix = target.suffix.lower()
    if suffix not in _SUFFIXES:
        raise InvalidArgumentError(
            f"path: expected a name that ends in {' or '.join(_SUFFIXES)}, got {str(target)!r}"
        )
    # Of objects, so that whole numbers stay whole beside missing ones.
    frame = pd.DataFrame(rows, columns=[column.name for column in columns], dtype=object)
    if suffix == ".csv":
        return replace_file(target, frame.to_csv(index=False, lineterminator="\n"))
    types = {"int": "Int64", "float": "Float64", "text": "string"}
    typed = frame.astype({column.name: types[column.kind] for column in columns})
    content = io.BytesIO()
    try:
        typed.to_parquet(content, engine="pyarrow", index=False)
    except ImportError as error:
        raise MissingDependencyError(
            "a Parquet file needs pyarrow: pip install 'causalprune[parquet]', or export to .csv"
        ) from error
    return replace_file(target, content.getvalue())
