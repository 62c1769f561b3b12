"""From a per-unit table to checked arrays: features of all units, effects of those ablated."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from causalprune.errors import InvalidArgumentError, RecordError

Array = NDArray[np.float64]

REQUIRED = {
    "layer": "the unit's layer",
    "unit": "its index there",
    "probability": "the chance with which it was ablated, in (0, 1]",
    "ablated": "whether it was",
}

# Share of the mean size below which a unit's size is not taken for its scale.
LEAST_SCALE = 0.05


@dataclass(frozen=True)
class UnitSample:
    """The arrays of a per-unit table; U units, F features.

    Attributes
    ----------
    frame : DataFrame
        Own copy, fresh index.
    layers : array [U] of int64
        Codes into `layer_names`.
    probability : array [U]
    ablated : array [U] of bool
    effect : array [U]
        NaN where not ablated.
    scale : array [U]
        What a unit's effect is expected to be in proportion to; positive.
    features : array [U, F]
    """

    frame: pd.DataFrame
    layer_names: tuple[str, ...]
    layers: NDArray[np.int64]
    probability: Array
    ablated: NDArray[np.bool_]
    effect: Array
    scale: Array
    features: Array

    @property
    def drawn(self) -> NDArray[np.bool_]:
        """Units [U] that were ablated by chance: they speak for those that were not."""
        return self.ablated & (self.probability < 1)


def read_units(
    table: pd.DataFrame | str | Path, outcome: str, features: Sequence[str] | None
) -> UnitSample:
    """Check a per-unit table; errors name the column, what was expected and what came."""
    frame = _frame(table)
    missing = [name for name in (*REQUIRED, outcome) if name not in frame]
    if missing:
        meaning = {**REQUIRED, outcome: "the effect of ablating it"}
        raise RecordError(
            "table: missing columns "
            + ", ".join(f"{name} ({meaning[name]})" for name in missing)
            + f"; it has {', '.join(map(str, frame))}"
        )
    if frame.duplicated(["layer", "unit"]).any():
        row = frame.loc[frame.duplicated(["layer", "unit"])].iloc[0]
        raise RecordError(f"table: expected one row a unit, {row.layer} {row.unit} has several")
    probability = _numbers(frame, "probability")
    if not ((probability > 0) & (probability <= 1)).all():
        bad = probability[~((probability > 0) & (probability <= 1))]
        raise RecordError(
            f"probability: expected numbers in (0, 1], got {bad[0]:g} in {len(bad)} rows; a unit "
            "that had no chance of being ablated cannot be spoken for"
        )
    ablated = _truth(frame["ablated"])
    effect = pd.to_numeric(frame[outcome], errors="coerce").to_numpy(dtype=np.float64).copy()
    _check_ablated(frame, outcome, probability, ablated, effect)
    effect[~ablated] = np.nan
    names = _feature_names(frame, features)
    codes, layers = pd.factorize(frame["layer"].astype(str))
    scale = _scale(frame, names)
    return UnitSample(
        frame,
        tuple(map(str, layers)),
        np.asarray(codes, dtype=np.int64),
        probability,
        ablated,
        effect,
        scale,
        _design(frame, names, scale),
    )


def _frame(table: pd.DataFrame | str | Path) -> pd.DataFrame:
    if isinstance(table, (str, Path)):
        try:
            # As exact as it was written.
            table = pd.read_csv(table, float_precision="round_trip")
        except (OSError, ValueError) as error:
            raise RecordError(f"table: expected a CSV of units, got {error}") from error
    if not isinstance(table, pd.DataFrame):
        raise InvalidArgumentError(
            f"table: expected a DataFrame or the path of a CSV, got {type(table).__name__}"
        )
    if not len(table):
        raise RecordError("table: expected at least one unit, got none")
    return table.reset_index(drop=True).copy()


def _numbers(frame: pd.DataFrame, name: str) -> Array:
    values = pd.to_numeric(frame[name], errors="coerce").to_numpy(dtype=np.float64)
    if not np.isfinite(values).all():
        wrong = int((~np.isfinite(values)).sum())
        raise RecordError(f"{name}: expected finite numbers, {wrong} of {len(values)} are not")
    return np.asarray(values, dtype=np.float64)


def _truth(column: pd.Series[Any]) -> NDArray[np.bool_]:
    values = (
        column.astype(str).str.lower().map({"true": True, "false": False, "1": True, "0": False})
    )
    if values.isna().any():
        raise RecordError(f"ablated: expected true or false, got {column[values.isna()].iloc[0]!r}")
    return values.to_numpy(dtype=bool)


def _check_ablated(
    frame: pd.DataFrame,
    outcome: str,
    probability: Array,
    ablated: NDArray[np.bool_],
    effect: Array,
) -> None:
    if not ablated.any():
        raise RecordError("ablated: expected some units to have been ablated, none was")
    unknown = ablated & ~np.isfinite(effect)
    if unknown.any():
        row = frame.loc[unknown].iloc[0]
        raise RecordError(
            f"{outcome}: expected a finite number for every ablated unit, {int(unknown.sum())} "
            f"have none, first {row['layer']} {row['unit']}"
        )
    skipped = ~ablated & (probability == 1)
    if skipped.any():
        row = frame.loc[skipped].iloc[0]
        raise RecordError(
            f"probability: {int(skipped.sum())} units that were certain to be ablated were not, "
            f"first {row['layer']} {row['unit']}"
        )


def _feature_names(frame: pd.DataFrame, features: Sequence[str] | None) -> list[str]:
    if features is None:
        return [c for c in map(str, frame) if c.startswith(("score_", "effect_"))]
    names = [features] if isinstance(features, str) else list(features)
    missing = [name for name in names if name not in frame]
    if missing:
        raise RecordError(f"features: the table has no {', '.join(missing)}")
    return names


def _scale(frame: pd.DataFrame, names: Sequence[str]) -> Array:
    """Size [U] by which units were drawn, with a floor; else the first feature."""
    known = ["size"] if "size" in frame else list(names[:1])
    size = np.abs(_numbers(frame, known[0])) if known else np.ones(len(frame))
    mean = float(size.mean())
    return size + LEAST_SCALE * mean if mean > 0 else np.ones(len(frame))


def _design(frame: pd.DataFrame, names: Sequence[str], scale: Array) -> Array:
    """Features [U, F]: logarithms of scores, and signed effects relative to the unit's scale."""
    columns = []
    for name in names:
        values = _numbers(frame, name)
        if name.startswith("effect_"):
            columns.append(np.clip(values / scale, -5, 5))
        elif (values >= 0).all() and values.any():
            columns.append(np.log(values + LEAST_SCALE * values.mean()))
        else:
            columns.append(values)
    return np.column_stack(columns) if columns else np.zeros((len(frame), 0))
