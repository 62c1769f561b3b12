"""Errors of networks on several distributions at several prune ratios, as a checked table."""

from __future__ import annotations

from collections.abc import Hashable, Iterable
from typing import Any

import numpy as np
import pandas as pd

from causalprune.errors import DataError, InvalidArgumentError

__all__ = ["UNPRUNED", "error_table", "fractions", "of_all_distributions"]

UNPRUNED = 0.0
"""Prune ratio of the row that every other row of a network is compared with."""

KEYS = ["network", "distribution", "prune_ratio"]


def error_table(table: pd.DataFrame, network: str | None = None) -> pd.DataFrame:
    """Check a table of errors and bring it into one form.

    Parameters
    ----------
    table : DataFrame
        One row for each network, distribution and prune ratio: the network (see `network`),
        ``distribution``, ``prune_ratio`` in [0, 1], ``error`` in [0, 1] (a fraction of the
        images). Other columns are left out.
    network : str, optional
        Name of the column that tells trained networks apart. Default: ``"network"``, or
        ``"checkpoint"`` where there is none of that name.

    Returns
    -------
    DataFrame
        Columns network, distribution, prune_ratio and error, sorted by the first three. Every
        network has a row with prune ratio 0 for every one of its distributions.

    Raises
    ------
    InvalidArgumentError
        If `table` is no DataFrame, lacks a column or a name, or a number is out of range.
    DataError
        If it is empty, a network has two errors on the same distribution at the same prune
        ratio, or no error at prune ratio 0.

    Examples
    --------
    >>> rows = pd.DataFrame(
    ...     {"checkpoint": ["a", "a"], "distribution": "nominal", "prune_ratio": [0.5, 0],
    ...      "error": [0.1, 0.08], "seconds": [3, 4]}
    ... )
    >>> error_table(rows)["error"].tolist()
    [0.08, 0.1]
    """
    if not isinstance(table, pd.DataFrame):
        raise InvalidArgumentError(f"table: expected a DataFrame, got {type(table).__name__}")
    if network is None:
        network = "network" if "network" in table else "checkpoint"
    missing = [name for name in (network, *KEYS[1:], "error") if name not in table]
    if missing:
        raise InvalidArgumentError(
            f"table: expected columns {network}, distribution, prune_ratio and error; "
            f"{', '.join(missing)} not among {', '.join(map(str, table))}"
        )
    own = pd.DataFrame(
        {
            "network": table[network].to_numpy(),
            "distribution": table["distribution"].to_numpy(),
            "prune_ratio": fractions(table["prune_ratio"], "table: column prune_ratio"),
            "error": fractions(table["error"], "table: column error"),
        }
    )
    for name in KEYS[:2]:
        if own[name].isna().any():
            raise InvalidArgumentError(f"table: expected a {name} in every row, got a missing one")
    return _comparable(own)


def _comparable(own: pd.DataFrame) -> pd.DataFrame:
    """Sort, and refuse what cannot be compared; see :func:`error_table`."""
    if own.empty:
        raise DataError("table: expected at least one row, got none")
    doubled = own.duplicated(KEYS)
    if doubled.any():
        raise DataError(
            "table: expected one error for each network, distribution and prune ratio (choose one "
            f"method and trial first), got two for {_told(own.loc[doubled, KEYS].iloc[0])}"
        )
    for key, rows in own.groupby(KEYS[:2], sort=True):
        if not (rows["prune_ratio"] == UNPRUNED).any():
            raise DataError(
                f"table: expected an error at prune ratio 0 of network {key[0]} on "
                f"{key[1]}, got {_listed(rows['prune_ratio'])}"
            )
    return own.sort_values(KEYS, ignore_index=True)


def fractions(values: object, name: str) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    """Return numbers in [0, 1] as an array [n], float64.

    Raises
    ------
    InvalidArgumentError
        If they are not that; `name` says which.
    """
    try:
        found = np.asarray(values, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise InvalidArgumentError(f"{name}: expected numbers, got {error}") from error
    if found.ndim != 1:
        raise InvalidArgumentError(f"{name}: expected shape [n], got {list(found.shape)}")
    wrong = ~((found >= 0) & (found <= 1))
    if wrong.any():
        raise InvalidArgumentError(f"{name}: expected numbers in [0, 1], got {found[wrong][0]}")
    return found


def of_all_distributions(errors: pd.DataFrame) -> tuple[Hashable, ...]:
    """Return the distributions, after checking that every network has been tried on each.

    Raises
    ------
    DataError
        If a network lacks one: a mean or a minimum over others would not compare.
    """
    every = tuple(sorted(errors["distribution"].unique()))
    for network, rows in errors.groupby("network", sort=True):
        lacking = set(every) - set(rows["distribution"])
        if lacking:
            raise DataError(
                f"table: expected errors of every network on {_listed(every)}, "
                f"network {network} has none on {_listed(sorted(lacking))}"
            )
    return every


def _told(row: Any) -> str:
    return f"{row['network']}, {row['distribution']}, {row['prune_ratio']:g}"


def _listed(values: Iterable[object]) -> str:
    return ", ".join(str(value) for value in values)
