"""Accuracy by class in the rows of a run table: written from predictions, read without torch."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

from causalprune.measures.class_counts import COUNTS

__all__ = ["CLASS_COLUMNS", "class_columns", "class_counts"]

CLASS_COLUMNS = ("accuracy_by_class", "accuracy_before_by_class", "changes_by_class")


def class_columns(
    labels: ArrayLike, names: Sequence[str], before: ArrayLike, after: ArrayLike
) -> dict[str, str]:
    """Return the columns of a trial's row that say which classes it was right about.

    Parameters
    ----------
    labels : array_like [N], integer
        True classes of the test images.
    names : sequence of str
        Of the classes, by number. A class without a name has its number; names that several
        classes share have the number behind them.
    before, after : array_like [N], bool
        Which images the unpruned and the pruned network are right about.

    Returns
    -------
    dict
        By the names in ``CLASS_COLUMNS``, JSON objects over the classes that have images, however
        many: about 25 bytes a class and column. Accuracies are rounded to six digits.

    Examples
    --------
    >>> row = class_columns([0, 0, 1], ["cat", "dog"], [True, True, False], [True, False, True])
    >>> row["accuracy_by_class"], row["changes_by_class"]
    ('{"cat": 0.5, "dog": 1.0}', '{"cat": [2, 1, 0], "dog": [1, 0, 1]}')
    """
    classes, was, now = np.asarray(labels), np.asarray(before, bool), np.asarray(after, bool)
    size = int(classes.max()) + 1
    n, right, kept, lost, won = (
        np.bincount(classes, weights=of.astype(np.float64), minlength=size)
        for of in (np.ones(len(classes)), was, now, was & ~now, ~was & now)
    )
    present = np.flatnonzero(n).tolist()
    names = _labels(names, size)
    objects: tuple[dict[str, Any], ...] = (
        {names[each]: round(kept[each] / n[each], 6) for each in present},
        {names[each]: round(right[each] / n[each], 6) for each in present},
        {names[each]: [int(n[each]), int(lost[each]), int(won[each])] for each in present},
    )
    texts = (json.dumps(value, ensure_ascii=False) for value in objects)
    return dict(zip(CLASS_COLUMNS, texts, strict=True))


def _labels(names: Sequence[str], size: int) -> list[str]:
    known = [*names, *map(str, range(len(names), size))]
    several = {name for name, times in Counter(known).items() if times > 1}
    return [f"{name} ({k})" if name in several else name for k, name in enumerate(known)]


def class_counts(trials: pd.DataFrame) -> pd.DataFrame:
    """Read how many images of each class the networks of some trials were right about.

    Parameters
    ----------
    trials : DataFrame
        Rows of a run table.

    Returns
    -------
    DataFrame
        One row for each trial and class: row (the trial's index in `trials`), class, n, right,
        lost, won as :func:`causalprune.measures.class_losses_of_counts` takes them. Trials that do
        not say so (tables before version 3, failed trials) have no rows.

    Examples
    --------
    >>> row = class_columns([0, 0, 1], ["cat", "dog"], [True, True, False], [True, False, True])
    >>> class_counts(pd.DataFrame([row]))[["class", "n", "right", "lost", "won"]].values.tolist()
    [['cat', 2, 2, 1, 0], ['dog', 1, 0, 0, 1]]
    """
    rows: list[tuple[Any, ...]] = []
    if {"accuracy_before_by_class", "changes_by_class"} <= set(trials):
        columns = trials["accuracy_before_by_class"], trials["changes_by_class"]
        for index, before, changes in zip(trials.index, *columns, strict=True):
            rows += [(index, *counted) for counted in _read(before, changes)]
    return pd.DataFrame(rows, columns=["row", "class", *COUNTS])


def _read(before: Any, changes: Any) -> list[tuple[str, int, int, int, int]]:
    """Return the counts of one trial; none where its texts are missing or not what they were."""
    try:
        shares = json.loads(before)
        return [
            (str(name), int(n), round(float(shares[name]) * n), int(lost), int(won))
            for name, (n, lost, won) in json.loads(changes).items()
        ]
    except (TypeError, ValueError, KeyError, AttributeError):
        return []
