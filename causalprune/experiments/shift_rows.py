"""A study's table with one row for each trial and shift; reads records only, without torch."""

from __future__ import annotations

import json
from typing import Any

import pandas as pd

from causalprune.experiments.class_rows import CLASS_COLUMNS
from causalprune.experiments.records import SHIFT_COLUMNS

__all__ = ["has_shift_rows", "rows_by_shift"]


def has_shift_rows(trials: pd.DataFrame) -> bool:
    """Whether some trial was evaluated under shifts.

    Examples
    --------
    >>> has_shift_rows(pd.DataFrame({"accuracy": [0.9]}))
    False
    """
    names = [column.name for column in SHIFT_COLUMNS]
    if not set(names) <= set(trials):
        return False
    return any(_read(value) for value in trials[names[0]])


def rows_by_shift(trials: pd.DataFrame) -> pd.DataFrame:
    """Return one row for each trial and shift.

    Parameters
    ----------
    trials : DataFrame
        A study's table.

    Returns
    -------
    DataFrame
        The columns of a run's table. The rows of the plain test images (shift ``none``) are as
        they were; those of a shift have ``accuracy``, ``accuracy_before`` and ``accuracy_loss``
        under it, and neither ``accuracy_pruned`` nor accuracies by class, which are measured on
        plain images alone.

    Examples
    --------
    >>> trials = pd.DataFrame({
    ...     "trial": [0], "shift": ["none"], "accuracy": [0.9], "accuracy_before": [0.95],
    ...     "accuracy_loss": [0.05], "accuracy_pruned": [0.8],
    ...     "accuracy_by_shift": ['{"fog:3": 0.5}'], "accuracy_before_by_shift": ['{"fog:3": 0.7}'],
    ... })
    >>> rows_by_shift(trials)[["shift", "accuracy", "accuracy_loss"]].round(3).values.tolist()
    [['none', 0.9, 0.05], ['fog:3', 0.5, 0.2]]
    """
    names = [column.name for column in SHIFT_COLUMNS]
    rows: list[dict[Any, Any]] = []
    for row in trials.to_dict("records"):
        after, before = (_read(row.pop(name)) for name in names)
        rows.append(row)
        for shift, accuracy in after.items():
            changed = {
                "shift": shift,
                "accuracy": accuracy,
                "accuracy_before": before[shift],
                "accuracy_loss": before[shift] - accuracy,
                "accuracy_pruned": None,
                **dict.fromkeys(CLASS_COLUMNS),
            }
            rows.append({**row, **changed})
    columns = [str(name) for name in trials.columns if name not in names]
    return pd.DataFrame(rows, columns=columns)


def _read(value: Any) -> dict[str, float]:
    return dict(json.loads(value)) if isinstance(value, str) else {}
