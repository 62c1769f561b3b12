"""Agreement of scores with the reference, on tables with a known answer."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from causalprune.experiments.checks import compare_scores


def _scores(importance: list[float], effect: list[float]) -> pd.DataFrame:
    half = len(importance) // 2
    layers = ["a"] * half + ["b"] * (len(importance) - half)
    units = [*range(half), *range(len(importance) - half)]
    return pd.DataFrame(
        {"layer": layers, "unit": units, "importance": importance, "effect": effect}
    )


def test_ranks_and_values_are_told_apart() -> None:
    reference = _scores([1, 2, 3, 4, 5, 6], [0.1, 0.2, 0.3, -0.1, -0.2, -0.3])
    cubed = _scores([1, 8, 27, 64, 125, 216], [-0.1, -0.2, -0.3, 0.1, 0.2, 0.3])
    rows = compare_scores(cubed, reference, checkpoint=2, method="path")
    assert [(row["layer"], row["n_units"]) for row in rows] == [("all", 6), ("a", 3), ("b", 3)]
    assert all(row["checkpoint"] == 2 and row["method"] == "path" for row in rows)
    assert rows[0]["spearman_importance"] == 1.0
    expected = np.corrcoef([1, 2, 3, 4, 5, 6], [1, 8, 27, 64, 125, 216])[0, 1]
    assert rows[0]["pearson_importance"] == pytest.approx(expected)
    assert rows[0]["spearman_effect"] == rows[0]["pearson_effect"] == -1.0


def test_rows_are_matched_by_unit_and_not_by_position() -> None:
    reference = _scores([3, 1, 2, 9, 8, 7], [0.0] * 6)
    shuffled = reference.sample(frac=1, random_state=0)
    assert compare_scores(shuffled, reference, checkpoint=0, method="l1")[0][
        "spearman_importance"
    ] == pytest.approx(1.0)


def test_what_is_not_defined_is_none() -> None:
    nothing = [float("nan")] * 6
    rows = compare_scores(
        _scores([1] * 6, nothing), _scores([1, 2, 3, 4, 5, 6], nothing), checkpoint=0, method="l1"
    )
    assert all(value is None for key, value in rows[0].items() if "_" in key and key != "n_units")
