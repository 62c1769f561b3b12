"""Estimators on the trial table: least squares with clustered errors, and a randomisation test.

Everything here is plain numpy and statsmodels; DoWhy lives in `identification`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from causalprune.analysis.evidence import Contrast
from causalprune.analysis.splines import curve_grid, natural_spline
from causalprune.analysis.tables import DESIGN_COLUMNS

Array = NDArray[np.float64]

CONFIDENCE = 0.95

# A design covariate is dropped when it explains more than this share of the treatment.
MAX_EXPLAINED = 0.95


@dataclass(frozen=True)
class Design:
    """Columns to adjust for, as numbers.

    Attributes
    ----------
    columns : DataFrame
        Linearly independent covariates without the constant, float64.
    adjustment, covariates : tuple of str
        Table columns behind them: needed by the graph, and added for precision.
    dropped : tuple of str
        Design columns left out because they all but fix the treatment.
    """

    columns: pd.DataFrame
    adjustment: tuple[str, ...]
    covariates: tuple[str, ...]
    dropped: tuple[str, ...]


@dataclass(frozen=True)
class LinearEffect:
    """Slope of the outcome per `step` of the treatment with its interval."""

    effect: float
    low: float
    high: float
    n_clusters: int


def design_blocks(frame: pd.DataFrame, treatment: str) -> tuple[str, ...]:
    """Return the varying design columns other than the treatment: together they are a block."""
    # The achieved ratio is what became of the target ratio: conditioning on it leaves no effect.
    own = {treatment, "ratio"} if treatment == "achieved_ratio" else {treatment}
    return tuple(
        name
        for name in DESIGN_COLUMNS
        if name in frame and name not in own and frame[name].nunique(dropna=False) > 1
    )


def block_codes(frame: pd.DataFrame, columns: Sequence[str]) -> NDArray[np.int64]:
    """Return one code per row for each combination of `columns`; all zero without columns."""
    codes = np.zeros(len(frame), dtype=np.int64)
    for name in columns:
        own = pd.factorize(frame[name].astype(str))[0]
        # Numbered anew for each column, so that the numbers stay below the rows.
        codes = np.asarray(pd.factorize(codes * (own.max() + 1) + own)[0], dtype=np.int64)
    return codes


def build_design(
    frame: pd.DataFrame, treatment: str, adjustment: Sequence[str], covariates: Sequence[str]
) -> Design:
    """Expand table columns into independent numeric covariates.

    Text becomes one 0/1 column per level but the first; `covariates` that leave the
    treatment (nearly) no variation of its own are dropped and named.
    """
    values = frame[treatment].to_numpy(dtype=float)
    base = np.ones((len(frame), 1))
    parts: list[pd.DataFrame] = []
    kept: list[str] = []
    dropped: list[str] = []
    for name in (*adjustment, *(c for c in covariates if c not in adjustment)):
        block = _independent(base, _encode(frame[name]))
        wider = np.hstack([base, block.to_numpy(dtype=float)])
        if name not in adjustment and left_over(values, wider) < 1 - MAX_EXPLAINED:
            dropped.append(name)
            continue
        base = wider
        parts.append(block)
        if name not in adjustment:
            kept.append(name)
    columns = pd.concat(parts, axis=1) if parts else pd.DataFrame(index=frame.index)
    return Design(columns, tuple(adjustment), tuple(kept), tuple(dropped))


def linear_effect(
    frame: pd.DataFrame, treatment: str, outcome: str, design: Design, *, step: float = 0.1
) -> LinearEffect | str:
    """Least-squares slope per `step` with a checkpoint-clustered interval.

    Errors are clustered by checkpoint (CR1, t with clusters - 1 degrees of freedom);
    with a single checkpoint they are heteroscedasticity-robust (HC1) instead.

    Returns
    -------
    LinearEffect or str
        A sentence instead of a number where the table cannot tell.
    """
    values = frame[treatment].to_numpy(dtype=float)
    target = frame[outcome].to_numpy(dtype=float)
    problem = why_not_estimable(frame, treatment, outcome, design)
    if problem:
        return problem
    matrix = np.column_stack([np.ones(len(frame)), values, design.columns.to_numpy(dtype=float)])
    fit = _fit(target, matrix, _clusters(frame))
    margin = _quantile(fit) * float(fit.bse[1]) * step
    effect = float(fit.params[1]) * step
    return LinearEffect(effect, effect - margin, effect + margin, _count(frame))


def why_not_estimable(frame: pd.DataFrame, treatment: str, outcome: str, design: Design) -> str:
    """Say why a slope cannot be estimated; empty where it can."""
    target = frame[outcome].to_numpy(dtype=float)
    if np.ptp(target) == 0:
        return (
            f"{outcome} is {target[0]:g} in all {len(frame)} completed trials: an outcome "
            "that never varies carries no evidence for or against an effect."
        )
    base = np.column_stack([np.ones(len(frame)), design.columns.to_numpy(dtype=float)])
    if left_over(frame[treatment].to_numpy(dtype=float), base) < 1e-9:
        return (
            f"{treatment} is a linear function of {', '.join(design.adjustment)} in this "
            "table: their effects cannot be told apart."
        )
    if len(frame) - base.shape[1] - 1 < 1:
        return (
            f"{len(frame)} completed trials are too few for {base.shape[1] + 1} coefficients: "
            "no degree of freedom is left for an interval."
        )
    return ""


def dose_response(
    frame: pd.DataFrame, treatment: str, outcome: str, design: Design
) -> tuple[tuple[Contrast, ...], str]:
    """Contrasts of every treatment level with the smallest, from a natural cubic spline.

    Up to eight levels get a knot each, so that the curve runs through the adjusted
    mean of each level; beyond, six knots lie at quantiles and the grid has ten points.
    Intervals are clustered as in `linear_effect`. A level that not every checkpoint
    has seen is refused: its contrast would compare networks, not ratios.

    Returns
    -------
    contrasts : tuple of Contrast
        Empty where the table is too small; then the sentence says why.
    sentence : str
    """
    values = frame[treatment].to_numpy(dtype=float)
    knots, grid, by_level = curve_grid(values)
    spline = natural_spline(values, knots)
    covariates = design.columns.to_numpy(dtype=float)
    matrix = np.column_stack([np.ones(len(frame)), spline, covariates])
    if len(frame) - matrix.shape[1] < 1 or np.linalg.matrix_rank(matrix) < matrix.shape[1]:
        return (), "There are too few completed trials for a dose-response curve."
    fit = _fit(frame[outcome].to_numpy(dtype=float), matrix, _clusters(frame))
    weights = natural_spline(grid, knots) - natural_spline(grid[:1], knots)
    size = spline.shape[1]
    covariance = np.asarray(fit.cov_params())[1 : size + 1, 1 : size + 1]
    slopes = np.asarray(fit.params)[1 : size + 1]
    quantile = _quantile(fit)
    contrasts = []
    for end, weight in zip(grid[1:], weights[1:], strict=True):
        reason = overlap_problem(frame, treatment, float(end), float(grid[0])) if by_level else ""
        effect = float(weight @ slopes)
        margin = quantile * float(np.sqrt(max(0.0, weight @ covariance @ weight)))
        if reason:
            effect = margin = float("nan")
        low, high = effect - margin, effect + margin
        contrasts.append(
            Contrast(float(grid[0]), float(end), effect, low, high, _count(frame), reason)
        )
    return tuple(contrasts), ""


@dataclass(frozen=True)
class Assignment:
    """How a treatment may be reshuffled without changing the experiment's design.

    Attributes
    ----------
    units : array [n] of int64
        Rows with the same code received their treatment together.
    blocks : array [n] of int64
        Treatments may change places only between units of the same block.
    """

    units: NDArray[np.int64]
    blocks: NDArray[np.int64]

    @property
    def where(self) -> str:
        """Where treatments change places, in words."""
        if len(np.unique(self.units)) < len(self.units):
            return "between whole checkpoints"
        return "inside each block" if len(np.unique(self.blocks)) > 1 else "over all trials"


def assignment_of(frame: pd.DataFrame, treatment: str, covariates: Sequence[str]) -> Assignment:
    """Find what was assigned: trials within blocks, or whole checkpoints at once."""
    by_checkpoint = frame.groupby("checkpoint", sort=False)
    if by_checkpoint[treatment].nunique().max() > 1:
        return Assignment(np.arange(len(frame)), block_codes(frame, covariates))
    # One treatment per checkpoint: shuffling rows would take each for an independent draw.
    fixed = [
        name
        for name in covariates
        if name != "checkpoint" and by_checkpoint[name].nunique(dropna=False).max() == 1
    ]
    return Assignment(_clusters(frame), block_codes(frame, fixed))


def shuffled_slopes(
    frame: pd.DataFrame,
    treatment: str,
    outcome: str,
    columns: pd.DataFrame,
    assignment: Assignment,
    *,
    seed: int,
    draws: int,
) -> Array:
    """Slopes [1 + draws] per unit of treatment: the real one first, then shuffled ones.

    Each is the least-squares coefficient of the treatment beside the constant and
    `columns`, by the theorem of Frisch, Waugh and Lovell; 0 where a shuffle leaves
    the treatment no variation of its own.
    """
    values = frame[treatment].to_numpy(dtype=float)
    target = frame[outcome].to_numpy(dtype=float)
    base = np.column_stack([np.ones(len(frame)), columns.to_numpy(dtype=float)])
    basis = np.linalg.qr(base)[0]
    residual = target - basis @ (basis.T @ target)
    rng = np.random.default_rng(seed)
    stack = np.vstack([values, *(shuffle(values, assignment, rng) for _ in range(draws))])
    stack = stack - (stack @ basis) @ basis.T
    spread = np.einsum("ij,ij->i", stack, stack)
    slopes = np.zeros(draws + 1)
    np.divide(stack @ residual, spread, out=slopes, where=spread > 1e-12)
    return slopes


def randomisation_p_value(
    frame: pd.DataFrame,
    treatment: str,
    outcome: str,
    design: Design,
    assignment: Assignment,
    *,
    seed: int = 0,
    draws: int = 1999,
) -> float | None:
    """Two-sided p-value of the slope when the treatment is reshuffled as it was assigned.

    Exact under the sharp null of no effect on any trial, whatever the number of
    checkpoints. None where no block holds two different treatments.
    """
    values = frame[treatment].to_numpy(dtype=float)
    blocks = assignment.blocks
    if not any(np.ptp(values[blocks == code]) > 0 for code in np.unique(blocks)):
        return None
    slopes = shuffled_slopes(
        frame, treatment, outcome, design.columns, assignment, seed=seed, draws=draws
    )
    return two_sided(slopes)


def two_sided(slopes: Array) -> float:
    """Share of shuffled slopes at least as large as the real one (the first), itself included."""
    # A relative allowance: equal slopes must count as ties despite rounding.
    ties = np.abs(slopes[1:]) >= abs(slopes[0]) * (1 - 1e-9)
    return float((1 + ties.sum()) / len(slopes))


def shuffle(values: Array, assignment: Assignment, rng: np.random.Generator) -> Array:
    """Exchange the treatments [n] of whole units within each block."""
    _, first, inverse = np.unique(assignment.units, return_index=True, return_inverse=True)
    per_unit, blocks = values[first], assignment.blocks[first]
    order = np.argsort(blocks, kind="stable")
    # Sorting random keys within each block is one shuffle per block, without a loop.
    shuffled = np.lexsort((rng.random(len(per_unit)), blocks))
    result = np.empty_like(per_unit)
    result[order] = per_unit[shuffled]
    return result[inverse]


def _encode(column: pd.Series[Any]) -> pd.DataFrame:
    name = str(column.name)
    if name not in {"checkpoint", "seed"} and pd.api.types.is_numeric_dtype(column):
        return pd.DataFrame({name: column.astype(float)})
    coded = pd.get_dummies(column.astype(str), drop_first=True, dtype=float)
    return coded.rename(columns=lambda level: f"{name}={level}")


def _independent(base: Array, block: pd.DataFrame) -> pd.DataFrame:
    kept: list[str] = []
    for name in block.columns:
        if left_over(block[name].to_numpy(dtype=float), base) > 1e-9:
            base = np.column_stack([base, block[name].to_numpy(dtype=float)])
            kept.append(name)
    return block[kept]


def left_over(values: Array, base: Array) -> float:
    """Share of the centred sum of squares of `values` outside the span of `base`."""
    total = float(np.sum((values - values.mean()) ** 2))
    if total == 0:
        return 0.0
    fitted = base @ np.linalg.lstsq(base, values, rcond=None)[0]
    return float(np.sum((values - fitted) ** 2)) / total


def overlap_problem(frame: pd.DataFrame, treatment: str, end: float, start: float) -> str:
    """Say which of two levels not every checkpoint has seen; empty where all have."""
    everyone = set(frame["checkpoint"])
    for level in (start, end):
        seen = set(frame.loc[frame[treatment] == level, "checkpoint"])
        if seen != everyone:
            return (
                f"refused: only {len(seen)} of {len(everyone)} checkpoints have a completed "
                f"trial at {level:g}"
            )
    return ""


def _clusters(frame: pd.DataFrame) -> NDArray[np.int64]:
    return block_codes(frame, ["checkpoint"])


def _count(frame: pd.DataFrame) -> int:
    return int(frame["checkpoint"].nunique())


def _fit(target: Array, matrix: Array, clusters: NDArray[np.int64]) -> Any:
    from statsmodels.regression.linear_model import OLS

    if len(np.unique(clusters)) < 2:
        return OLS(target, matrix).fit(cov_type="HC1", use_t=True)
    options = {"groups": clusters, "use_correction": True, "df_correction": True}
    return OLS(target, matrix).fit(cov_type="cluster", cov_kwds=options, use_t=True)


def _quantile(fit: Any) -> float:
    from scipy.stats import t

    freedom = getattr(fit, "df_resid_inference", None) or fit.df_resid
    return float(t.ppf(0.5 + CONFIDENCE / 2, freedom))
