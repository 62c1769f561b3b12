"""Intervals of the structural model: a bootstrap over networks, scaled by held-out trials."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from causalprune.analysis.structural_mechanisms import Array
from causalprune.analysis.structural_model import (
    CATEGORIES,
    COMPUTED,
    SIZES,
    Structure,
    fit_structure,
    propagate,
    reweighted,
)
from causalprune.analysis.structural_support import deviation_of, sizes_of

__all__: list[str] = []

CONFIDENCE = 0.95
DRAWS = 60
FOLDS = 10
# Trials held out in turn for the conformal scores; more only sharpen a known quantile.
MAX_HELD_OUT = 1000
# With more ratios than these, held-out trials are at ratios of their own already.
MAX_LEVELS = 12
GAP_SQUARED = 4.0


@dataclass(frozen=True)
class Calibrated:
    """A fitted model with what its intervals need.

    Attributes
    ----------
    structure : Structure
    draws : tuple of Structure
        Bayesian bootstrap over networks.
    scores : Mapping[str, Array]
        By outcome: how far held-out trials of a known network lie from their predictions, in
        predicted standard deviations.
    scores_any : Mapping[str, Array]
        The same for predictions that keep the mean of the architecture's networks instead.
    between, between_any : Mapping[str, Array]
        The same for cells at a ratio that was not tried there.
    tried : frozenset
        Categories and ratio of the cells that were.
    """

    structure: Structure
    draws: tuple[Structure, ...]
    scores: Mapping[str, Array]
    scores_any: Mapping[str, Array]
    between: Mapping[str, Array]
    between_any: Mapping[str, Array]
    tried: frozenset[tuple[str, ...]]


@dataclass(frozen=True)
class Band:
    """Predictions of an outcome with 95 % intervals, one entry a row."""

    value: Array
    low: Array
    high: Array


def calibrate(frame: pd.DataFrame, seed: int) -> Calibrated:
    """Fit the model, draw its bootstrap and hold trials out in turn.

    Parameters
    ----------
    frame : DataFrame
        Completed trials, categories as text.
    seed : int
    """
    levels = {
        name: tuple(sorted(frame[name].astype(str).unique()))
        for name in CATEGORIES
        if name in frame
    }
    structure = fit_structure(frame, levels)
    rng = np.random.default_rng(seed)
    draws = tuple(reweighted(structure, rng) for _ in range(DRAWS))
    tried = frozenset(_keys(frame))
    bare = Calibrated(structure, draws, {}, {}, {}, {}, tried)
    named, anyone = _held_out_scores(bare, frame, _folds(frame, rng))
    by_level = _held_out_scores(bare, frame, _level_folds(frame))
    found = replace(bare, scores=named, scores_any=anyone, between=named, between_any=anyone)
    if not all(len(score) for score in by_level[0].values()):
        return found
    return replace(
        found,
        between=_with_levels(named, by_level[0]),
        between_any=_with_levels(anyone, by_level[1]),
    )


def predict(
    calibrated: Calibrated,
    cells: pd.DataFrame,
    checkpoints: Sequence[Sequence[str]],
    *,
    named: bool,
) -> dict[str, Band]:
    """Predict each outcome of design cells (categories as text, exact sizes), with intervals."""
    middle, deviation = _moments(calibrated, cells, checkpoints)
    at, between = (
        (calibrated.scores, calibrated.between)
        if named
        else (calibrated.scores_any, calibrated.between_any)
    )
    known = np.array([key in calibrated.tried for key in _keys(cells)])
    found = {}
    for outcome in calibrated.structure.outcomes:
        mechanism = calibrated.structure.mechanism(outcome)
        factors = conformal_factor(at[outcome]), conformal_factor(between[outcome])
        if outcome == COMPUTED:  # where all trials agree it is still known but to rounding
            factors = max(factors[0], 1.0), max(factors[1], 1.0)
        margin = np.where(known, *factors) * deviation[outcome]
        found[outcome] = Band(
            mechanism.restored(middle[outcome]),
            mechanism.restored(middle[outcome] - margin),
            mechanism.restored(middle[outcome] + margin),
        )
    return found


def distance(
    calibrated: Calibrated, rows: pd.DataFrame, checkpoints: Sequence[Sequence[str]], outcome: str
) -> Array:
    """Return how far trials lie from their predictions, in predicted standard deviations."""
    middle, deviation = _moments(calibrated, rows, checkpoints)
    actual = rows[outcome].to_numpy(dtype=float)
    transformed = calibrated.structure.mechanism(outcome).transformed(actual)
    return np.asarray(np.abs(transformed - middle[outcome]) / deviation[outcome])


def conformal_factor(scores: Array) -> float:
    """Return the score that 95 % of exchangeable new trials stay under; NaN below 19 scores."""
    rank = math.ceil((len(scores) + 1) * CONFIDENCE - 1e-9)
    return float(np.sort(scores)[rank - 1]) if rank <= len(scores) else math.nan


def _moments(
    calibrated: Calibrated,
    cells: pd.DataFrame,
    checkpoints: Sequence[Sequence[str]],
) -> tuple[dict[str, Array], dict[str, Array]]:
    """Return prediction and standard deviation of one trial, on the mechanisms' scales."""
    middle, spread = _at_cells(calibrated.structure, cells, checkpoints)
    doubt = _variance_of_draws(calibrated, cells, checkpoints)
    return middle, {name: np.hypot(spread[name], np.sqrt(doubt[name])) for name in middle}


def _at_cells(
    structure: Structure, cells: pd.DataFrame, checkpoints: Sequence[Sequence[str]]
) -> tuple[dict[str, Array], dict[str, Array]]:
    """Return predictions, and the spread of a trial around them from noise and unsure sizes."""
    (samples,) = propagate([structure], cells, checkpoints)
    (other,) = propagate([structure], _one_deviation_off(cells), checkpoints)
    middle, spread = {}, {}
    for outcome in structure.outcomes:
        mechanism = structure.mechanism(outcome)
        middle[outcome] = mechanism.transformed(samples[outcome].to_numpy())
        by_sizes = mechanism.transformed(other[outcome].to_numpy()) - middle[outcome]
        by_noise = mechanism.scale(samples[structure.parents(outcome)].to_numpy())
        spread[outcome] = np.hypot(by_noise, by_sizes)
    if _is_computed(cells) and COMPUTED in middle:
        mechanism = structure.mechanism(COMPUTED)
        value, deviation = (
            cells[name].to_numpy(dtype=float) for name in (COMPUTED, deviation_of(COMPUTED))
        )
        middle[COMPUTED] = mechanism.transformed(value)
        spread[COMPUTED] = mechanism.transformed(value + deviation) - middle[COMPUTED]
    return middle, spread


def _is_computed(cells: pd.DataFrame) -> bool:
    return deviation_of(COMPUTED) in cells and bool(cells[deviation_of(COMPUTED)].notna().all())


def _one_deviation_off(cells: pd.DataFrame) -> pd.DataFrame:
    """Return the cells with all sizes one standard deviation larger, and so less pruned."""
    changed = cells.copy()
    for name in (n for n in SIZES if deviation_of(n) in cells):
        sign = -1 if name == "achieved_ratio" else 1
        changed[name] = cells[name] + sign * cells[deviation_of(name)]
    return changed


def _variance_of_draws(
    calibrated: Calibrated, cells: pd.DataFrame, checkpoints: Sequence[Sequence[str]]
) -> dict[str, Array]:
    drawn = propagate(calibrated.draws, cells, checkpoints)
    found = {}
    for outcome in calibrated.structure.outcomes:
        transformed = calibrated.structure.mechanism(outcome).transformed
        found[outcome] = np.var([transformed(each[outcome].to_numpy()) for each in drawn], axis=0)
    if COMPUTED in found and _is_computed(cells):
        found[COMPUTED] = np.zeros(len(cells))
    return found


def _keys(rows: pd.DataFrame) -> list[tuple[str, ...]]:
    """Name the place and the ratio of each row."""
    names = [name for name in ("architecture", "dataset", "method") if name in rows]
    places = rows[names].astype(str).to_numpy()
    ratios = rows["ratio"].astype(float)
    return [(*place, f"{ratio:.9g}") for place, ratio in zip(places.tolist(), ratios, strict=True)]


def _folds(frame: pd.DataFrame, rng: np.random.Generator) -> list[NDArray[np.bool_]]:
    """Return which rows are held out together: rows of one trial under several shifts are."""
    trials = frame["trial"].to_numpy() if "trial" in frame else np.arange(len(frame))
    order = rng.permutation(np.unique(trials))[:MAX_HELD_OUT]
    return [np.isin(trials, fold) for fold in np.array_split(order, min(FOLDS, len(order)))]


def _level_folds(frame: pd.DataFrame) -> list[NDArray[np.bool_]]:
    """Return the rows of each ratio between others; none where a ratio is hardly tried twice."""
    ratios = frame["ratio"].to_numpy(dtype=float)
    levels = np.unique(ratios)
    return [ratios == level for level in levels[1:-1]] if len(levels) <= MAX_LEVELS else []


def _with_levels(trials: Mapping[str, Array], levels: Mapping[str, Array]) -> dict[str, Array]:
    """Take whichever held-out scores say that errors are larger; for the memory those of levels.

    Without a ratio the gap around it is twice as wide, and what a smooth line misses in the
    middle of a gap grows with its square. Not so the memory, which falls in steps, a unit each.
    """
    found = {}
    for name, score in trials.items():
        if name == COMPUTED and math.isfinite(conformal_factor(levels[name])):
            found[name] = levels[name]
        else:
            nearer = levels[name] / GAP_SQUARED
            found[name] = max(score, nearer, key=lambda each: (conformal_factor(each), len(each)))
    return found


def _held_out_scores(
    calibrated: Calibrated, frame: pd.DataFrame, folds: Sequence[NDArray[np.bool_]]
) -> tuple[dict[str, Array], dict[str, Array]]:
    """Predict rows by models without them, sizes included, as counterfactuals of their network."""
    outcomes = calibrated.structure.outcomes
    parts: list[tuple[pd.DataFrame, list[Sequence[str]], pd.DataFrame]] = []
    for out in folds:
        rest = frame[~out].reset_index(drop=True)
        cells, rows = _cells(rest, frame[out])
        if len(rows):
            parts.append(_fold(calibrated, rest, cells, rows))
    if not parts:
        return dict.fromkeys(outcomes, np.zeros(0)), dict.fromkeys(outcomes, np.zeros(0))
    doubt = _variance_of_draws(
        calibrated,
        pd.concat([cells for cells, _, _ in parts], ignore_index=True),
        [each for _, groups, _ in parts for each in groups],
    )
    table = pd.concat([distances for _, _, distances in parts], ignore_index=True)
    named: dict[str, Array] = {}
    anyone: dict[str, Array] = {}
    for name in outcomes:
        spread = np.hypot(table[f"{name} spread"], np.sqrt(doubt[name]))
        score: Array = np.asarray(table[f"{name} distance"] / spread)
        own = table["named"].to_numpy(dtype=bool)
        named[name], anyone[name] = score[own], score[~own]
    return named, anyone


def _fold(
    calibrated: Calibrated, rest: pd.DataFrame, cells: pd.DataFrame, rows: pd.DataFrame
) -> tuple[pd.DataFrame, list[Sequence[str]], pd.DataFrame]:
    """Return each held-out cell twice, for its network and for any of its architecture's.

    With them go how far the trial lies from a prediction by the others, and the predicted spread.
    """
    structure = fit_structure(rest, calibrated.structure.levels)
    own: list[Sequence[str]] = [(name,) for name in rows["checkpoint"].astype(str)]
    family: list[Sequence[str]] = [_family(rest, row) for row in rows.to_dict("records")]
    both = pd.concat([cells, cells], ignore_index=True)
    middle, spread = _at_cells(structure, both, own + family)
    found: dict[str, Any] = {"named": np.arange(len(both)) < len(rows)}
    for name, values in middle.items():
        actual = structure.mechanism(name).transformed(rows[name].to_numpy(dtype=float))
        found[f"{name} distance"] = np.abs(np.tile(actual, 2) - values)
        found[f"{name} spread"] = spread[name]
    return both, own + family, pd.DataFrame(found)


def _cells(rest: pd.DataFrame, rows: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return held-out trials that the others support, with the sizes that those tell."""
    found, kept = [], []
    for position, row in enumerate(rows.to_dict("records")):
        cell = {str(name): value for name, value in row.items()}
        sizes = sizes_of(rest, cell, (str(row["checkpoint"]),))
        if not any(math.isnan(value) for value in sizes.values.values()):
            found.append({**cell, **sizes.columns()})
            kept.append(position)
    return pd.DataFrame(found), rows.iloc[kept]


def _family(rest: pd.DataFrame, row: Mapping[object, object]) -> tuple[str, ...]:
    same = rest
    for name in ("architecture", "dataset"):
        if name in rest:
            same = same[same[name] == row[name]]
    return tuple(same["checkpoint"].astype(str).unique())
