"""Estimators on the trial table: least squares with clustered errors.

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
    fit = _fit(target, matrix, clusters_of(frame))
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
    frame: pd.DataFrame,
    treatment: str,
    outcome: str,
    design: Design,
    pairs: Sequence[tuple[float, float]] | None = None,
) -> tuple[tuple[Contrast, ...], str]:
    """Contrasts of treatment levels, from a natural cubic spline: by default with the smallest.

    Up to eight levels get a knot each, so that the curve runs through the adjusted
    mean of each level; beyond, six knots lie at quantiles and the grid has ten points.
    Intervals are clustered as in `linear_effect`. Nothing is extrapolated. Where the design
    compares each network with itself, a level needs two networks that have another level, too,
    and t has one degree of freedom less than the networks that have the rarer level; where it
    does not, a level that not every network has seen is refused: its contrast would compare
    networks, not ratios.

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
    fit = _fit(frame[outcome].to_numpy(dtype=float), matrix, clusters_of(frame))
    size = spline.shape[1]
    covariance = np.asarray(fit.cov_params())[1 : size + 1, 1 : size + 1]
    slopes = np.asarray(fit.params)[1 : size + 1]
    within = "checkpoint" in (*design.adjustment, *design.covariates)
    contrasts = []
    for levels in pairs if pairs is not None else [(grid[0], end) for end in grid[1:]]:
        start, end = map(float, levels)
        count = _support(frame, treatment, (start, end), by_level, within)
        if isinstance(count, str):
            nothing = float("nan")
            contrasts.append(Contrast(start, end, nothing, nothing, nothing, reason=count))
            continue
        weight = np.diff(natural_spline(np.array([start, end]), knots), axis=0)[0]
        effect = float(weight @ slopes)
        error = float(np.sqrt(max(0.0, weight @ covariance @ weight)))
        margin = _quantile(fit, count) * error
        contrasts.append(Contrast(start, end, effect, effect - margin, effect + margin, count))
    return tuple(contrasts), ""


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


def _support(
    frame: pd.DataFrame, treatment: str, levels: tuple[float, float], by_level: bool, within: bool
) -> int | str:
    """Count the networks behind a contrast, or say why the table does not support it."""
    values = frame[treatment]
    for level in levels:
        if not values.min() <= level <= values.max():
            return (
                f"refused: {level:g} lies outside the {values.min():g} to {values.max():g} of "
                f"{treatment} that was tried"
            )
    tried = all(values.eq(level).any() for level in levels)
    return (
        networks_between(frame, treatment, levels, within) if by_level and tried else _count(frame)
    )


def networks_between(
    frame: pd.DataFrame, treatment: str, levels: tuple[float, float], within: bool
) -> int | str:
    """Count the networks that a contrast of two levels rests on; a sentence where too few do.

    Parameters
    ----------
    frame : DataFrame
    treatment : str
    levels : pair of float
    within : bool
        Networks have a level of the outcome of their own, so that each is compared with itself:
        two are then enough (one, where there is but one), if they have another level to be
        compared with.
    """
    networks = frame.groupby("checkpoint")[treatment]
    everyone = networks.ngroups
    varied = set(networks.nunique().loc[lambda found: found > 1].index)
    fewest = everyone
    for level in levels:
        seen = set(frame.loc[frame[treatment] == level, "checkpoint"])
        if within and len(seen & varied) < min(2, everyone):
            return (
                f"refused: {len(seen & varied)} of {everyone} checkpoints have completed trials at "
                f"{level:g} and at another level; two are needed"
            )
        if not within and len(seen) < everyone:
            return (
                f"refused: only {len(seen)} of {everyone} checkpoints have a completed "
                f"trial at {level:g}"
            )
        fewest = min(fewest, len(seen & varied) if within else len(seen))
    return fewest


def clusters_of(frame: pd.DataFrame) -> NDArray[np.int64]:
    """Return one code per row for each independently trained network."""
    return block_codes(frame, ["checkpoint"])


def _count(frame: pd.DataFrame) -> int:
    return int(frame["checkpoint"].nunique())


def _fit(target: Array, matrix: Array, clusters: NDArray[np.int64]) -> Any:
    from statsmodels.regression.linear_model import OLS

    if len(np.unique(clusters)) < 2:
        return OLS(target, matrix).fit(cov_type="HC1", use_t=True)
    options = {"groups": clusters, "use_correction": True, "df_correction": True}
    return OLS(target, matrix).fit(cov_type="cluster", cov_kwds=options, use_t=True)


def _quantile(fit: Any, networks: int | None = None) -> float:
    from scipy.stats import t

    freedom = getattr(fit, "df_resid_inference", None) or fit.df_resid
    if networks is not None and networks > 1:
        freedom = min(freedom, networks - 1)
    return float(t.ppf(0.5 + CONFIDENCE / 2, freedom))
