"""How well a cheap score agrees with exact ablation."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pandas as pd

__all__ = ["compare_scores"]


def compare_scores(
    scores: pd.DataFrame, reference: pd.DataFrame, *, checkpoint: int, method: str
) -> list[dict[str, Any]]:
    """Correlate a method's scores with those of the reference, over all units and by layer.

    Parameters
    ----------
    scores, reference : DataFrame
        Columns ``layer``, ``unit``, ``importance`` and ``effect``, one row a unit.
    checkpoint : int
        Which network, for the record.
    method : str
        Which method, for the record.

    Returns
    -------
    list of dict
        First over all layers (``layer`` is ``"all"``), then one a layer: ``n_units`` and
        Spearman's and Pearson's correlation of importances and of signed effects; None where a
        correlation is not defined (a method without effects, equal values, under three units).

    Examples
    --------
    >>> import pandas as pd
    >>> frame = pd.DataFrame(
    ...     {"layer": "a", "unit": range(4), "importance": [1.0, 2, 4, 8], "effect": 0.0}
    ... )
    >>> rows = compare_scores(frame, frame, checkpoint=0, method="path")
    >>> rows[0]["spearman_importance"], rows[0]["pearson_effect"]
    (1.0, None)
    """
    both = scores.merge(reference, on=["layer", "unit"], suffixes=("", "_reference"))
    parts = [("all", both), *((str(layer), part) for layer, part in both.groupby("layer"))]
    return [
        {"checkpoint": checkpoint, "method": method, "layer": layer, "n_units": len(part)}
        | _correlations(part, "importance")
        | _correlations(part, "effect")
        for layer, part in parts
    ]


def _correlations(part: pd.DataFrame, column: str) -> dict[str, float | None]:
    pair = part[[column, f"{column}_reference"]].dropna()
    ranks = pair.rank()
    return {
        f"spearman_{column}": _pearson(ranks.to_numpy(dtype=float)),
        f"pearson_{column}": _pearson(pair.to_numpy(dtype=float)),
    }


def _pearson(pair: np.ndarray[Any, np.dtype[np.float64]]) -> float | None:
    if len(pair) < 3 or np.any(np.ptp(pair, axis=0) == 0):
        return None
    value = float(np.corrcoef(pair, rowvar=False)[0, 1])
    return round(value, 12) if math.isfinite(value) else None
