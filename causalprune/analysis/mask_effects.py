"""Effects from a table of random masks, whose propensities are known."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from causalprune.analysis.identification import import_dowhy
from causalprune.analysis.results import Finding
from causalprune.analysis.unit_samples import Array
from causalprune.errors import (
    InvalidArgumentError,
    RecordError,
    UnknownNameError,
)

ESTIMATORS = ("dml", "ipw", "dowhy")

TREATMENT_COLUMNS = ("column", "layer", "unit", "n_units", "mean", "variance")

# Fewer images give no standard error over images worth the name.
FEWEST_IMAGES = 5


@dataclass(frozen=True)
class MaskDesign:
    """The checked arrays of a random-mask design; R rows.

    Attributes
    ----------
    frame, treatments : DataFrame
    outcome : array [R]
    image : array [R] of int64
        Codes of the images, 0 to N - 1.
    n_images : int
    """

    frame: pd.DataFrame
    treatments: pd.DataFrame
    outcome: Array
    image: np.ndarray
    n_images: int

    def deviations(self, column: str) -> Array:
        """Treatment [R] minus its known mean."""
        mean = self.treatments.set_index("column")["mean"]
        return self.frame[column].to_numpy(dtype=np.float64) - float(mean[column])


def mask_effects(
    table: pd.DataFrame,
    treatments: pd.DataFrame,
    columns: Sequence[str] | None = None,
    *,
    estimator: str = "dml",
    confidence: float = 0.95,
    seed: int = 0,
) -> pd.DataFrame:
    r"""Estimate the effect of every treatment of a random-mask design.

    The estimand for a unit's 0/1 column is its weighted Banzhaf value
    ``E[Y(S + u) - Y(S)]``: over images, and over the sets S of other units that the design
    removes. For the fraction of a layer's units that is removed it is the slope of the outcome,
    which is the sum of its units' values where they are removed with one probability (else their
    mean weighted by ``q (1 - q)``, times their number). Masks were drawn with known probabilities
    and independently of everything, so with the treatment's deviation ``d`` from its known mean
    and known variance v the estimate

    - ``"ipw"``: ``mean(d Y / v)``, inverse probability weighting, is unbiased as it stands;
    - ``"dml"``: ``sum(d (Y - m)) / sum(d^2)`` takes what is known without the treatment out of
      the outcome first: m is a ridge regression, fitted on other images, on the outcome of the
      whole network, the image's mean outcome under its other masks, and the fractions removed in
      other layers (the partially linear model of double machine learning, its treatment model
      known);
    - ``"dowhy"``: DoWhy's propensity score weighting with the known propensities, untrimmed, for
      0/1 columns (its weights are normalised within each arm).

    Standard errors are clustered by image.

    Parameters
    ----------
    table, treatments : DataFrame
        ``frame`` and ``treatments`` of :class:`causalprune.scoring.MaskTable`.
    columns : sequence of str, optional
        Treatments to estimate. Default: all (for ``"dowhy"`` all 0/1 ones).
    estimator : str
    confidence : float
        In (0, 1).
    seed : int
        Of the folds.

    Returns
    -------
    DataFrame
        One row a treatment: ``column``, ``layer``, ``unit``, ``n_units``, ``effect``, ``se``,
        ``low``, ``high``, and ``per_unit`` (``effect / n_units``).

    Raises
    ------
    RecordError
        If columns are missing, numbers are not finite, means or variances are not those of a
        random treatment, or there are fewer than 5 images.
    UnknownNameError
        If a treatment or the estimator is not known.
    InvalidArgumentError
        If `confidence` is out of range, or DoWhy is asked for a fraction.
    MissingDependencyError
        If DoWhy is asked for and not installed.

    References
    ----------
    Horvitz and Thompson (1952); Chernozhukov et al. (2018), "Double/debiased machine learning";
    Banzhaf (1965).

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> removed = rng.random(4000) < 0.5
    >>> table = pd.DataFrame({"image": np.arange(4000) // 4, "outcome_whole": 1.0,
    ...     "removed_a_unit0": removed * 1, "outcome": 1 + 2 * removed})
    >>> treatments = pd.DataFrame({"column": ["removed_a_unit0"], "layer": ["a"], "unit": [0],
    ...     "n_units": [1], "mean": [0.5], "variance": [0.25]})
    >>> float(mask_effects(table, treatments)["effect"][0].round(2))
    2.0
    """
    if estimator not in ESTIMATORS:
        raise UnknownNameError("estimator", estimator, ESTIMATORS)
    if not 0 < confidence < 1:
        raise InvalidArgumentError(f"confidence: expected a number in (0, 1), got {confidence!r}")
    design = read_masks(table, treatments)
    rows = _chosen(design.treatments, columns, estimator)
    plain: dict[str, Array] = {}
    found = []
    for row in rows.to_dict("records"):
        deviation = design.deviations(row["column"])
        if estimator == "dml":
            if row["layer"] not in plain:
                plain[row["layer"]] = without_treatment(design, row["layer"], seed)
            effect, score = residual_slope(design.outcome - plain[row["layer"]], deviation)
        elif estimator == "ipw":
            score = deviation / row["variance"] * design.outcome
            effect = float(score.mean())
            score = score - effect
        else:
            # Known propensities are constant, so that weights within each arm are even.
            centred = design.outcome - design.outcome.mean()
            _, score = residual_slope(centred, deviation - deviation.mean())
            effect = _by_dowhy(design, row["column"], row["mean"])
        found.append((effect, clustered_error(score, design)))
    return _with_intervals(rows, np.array(found).reshape(-1, 2), design.n_images, confidence)


def read_masks(table: pd.DataFrame, treatments: pd.DataFrame) -> MaskDesign:
    """Check the tables of a random-mask design; errors name the column."""
    for name, frame, needed in (
        ("table", table, ("image", "outcome", "outcome_whole")),
        ("treatments", treatments, TREATMENT_COLUMNS),
    ):
        if not isinstance(frame, pd.DataFrame):
            raise InvalidArgumentError(f"{name}: expected a DataFrame, got {type(frame).__name__}")
        missing = [column for column in needed if column not in frame]
        if missing:
            raise RecordError(f"{name}: missing columns {', '.join(missing)}")
    absent = [column for column in treatments["column"] if column not in table]
    if absent:
        raise RecordError(f"table: missing treatments {', '.join(map(str, absent))}")
    for column in ("outcome", "outcome_whole", *treatments["column"]):
        values = pd.to_numeric(table[column], errors="coerce").to_numpy(dtype=np.float64)
        if not np.isfinite(values).all():
            wrong = int((~np.isfinite(values)).sum())
            raise RecordError(
                f"{column}: expected finite numbers, {wrong} of {len(values)} are not"
            )
    for row in treatments.to_dict("records"):
        mean, variance = float(row["mean"]), float(row["variance"])
        if not (0 < mean < 1 and 0 < variance <= mean * (1 - mean) + 1e-12):
            raise RecordError(
                f"treatments: expected a mean in (0, 1) and the variance of a random treatment "
                f"for {row['column']}, got {mean:g} and {variance:g}"
            )
    image, names = pd.factorize(table["image"])
    if len(names) < FEWEST_IMAGES:
        raise RecordError(f"image: expected at least {FEWEST_IMAGES} images, got {len(names)}")
    return MaskDesign(
        table.reset_index(drop=True),
        treatments.reset_index(drop=True),
        table["outcome"].to_numpy(dtype=np.float64),
        np.asarray(image, dtype=np.int64),
        len(names),
    )


def one_more_unit(
    table: pd.DataFrame, treatments: pd.DataFrame, *, confidence: float = 0.95, seed: int = 0
) -> tuple[float, float, float]:
    """Effect of removing one more unit of any layer, while others are missing, with its interval.

    The slope of the outcome on the number of units removed, by the estimator ``"dml"`` of
    :func:`mask_effects`: the mean of the units' values, weighted by ``q (1 - q)``.
    """
    from scipy.stats import t

    design = read_masks(table, treatments)
    layers = design.treatments[design.treatments["unit"] == -1]
    deviation = np.zeros(len(design.outcome))
    for column, n_units in zip(layers["column"], layers["n_units"], strict=True):
        deviation += n_units * design.deviations(column)
    residual = design.outcome - without_treatment(design, None, seed)
    slope, score = residual_slope(residual, deviation)
    quantile = float(t.ppf((1 + confidence) / 2, design.n_images - 1))
    half = quantile * clustered_error(score, design)
    return slope, slope - half, slope + half


def without_treatment(design: MaskDesign, layer: str | None, seed: int, folds: int = 5) -> Array:
    """Outcome [R] predicted without the masks of a layer (None: any), from other images' rows."""
    features = covariates(design, layer)
    fold = np.random.default_rng(seed).permutation(design.n_images)[design.image] % folds
    predicted = np.zeros(len(features))
    for code in np.unique(fold):
        mine = fold == code
        predicted[mine] = _ridge(features[~mine], design.outcome[~mine], features[mine])
    return predicted


def _ridge(features: Array, outcome: Array, wanted: Array) -> Array:
    """Prediction by a regression shrunk by one observation's worth for each feature."""
    centre, spread = features.mean(0), features.std(0)
    spread = np.where(spread > 0, spread, 1.0)
    z = (features - centre) / spread
    gram = z.T @ z + np.eye(z.shape[1])
    slopes = np.linalg.solve(gram, z.T @ (outcome - outcome.mean()))
    return np.asarray(outcome.mean() + (wanted - centre) / spread @ slopes)


def covariates(design: MaskDesign, layer: str | None) -> Array:
    """Return [R, F] what a layer's masks (None: any) do not change: image, other layers."""
    totals = np.bincount(design.image, design.outcome)
    counts = np.bincount(design.image)
    whole = design.frame["outcome_whole"].to_numpy(dtype=np.float64)
    # The other masks of the image were drawn independently of this row's.
    rest = counts[design.image] - 1
    others = np.where(
        rest > 0, (totals[design.image] - design.outcome) / np.maximum(rest, 1), whole
    )
    others_of = design.treatments.query("unit == -1 and layer != @layer")["column"]
    layers = [] if layer is None else list(others_of)
    return np.column_stack([whole, others, design.frame[layers].to_numpy(dtype=np.float64)])


def residual_slope(residual: Array, deviation: Array) -> tuple[float, Array]:
    """Slope of the residual on the deviation through the origin, and each row's influence."""
    spread = float((deviation**2).mean())
    if spread == 0:
        return math.nan, np.full(len(residual), math.nan)
    slope = float((deviation * residual).mean()) / spread
    return slope, deviation * (residual - slope * deviation) / spread


def clustered_error(score: Array, design: MaskDesign) -> float:
    """Return the standard error of the mean of scores [R] of mean zero, clustered by image."""
    totals = np.bincount(design.image, score)
    n = design.n_images
    return math.sqrt(float((totals**2).sum()) * n / (n - 1)) / len(score)


def _chosen(
    treatments: pd.DataFrame, columns: Sequence[str] | None, estimator: str
) -> pd.DataFrame:
    if columns is None:
        return treatments[treatments["unit"] >= 0] if estimator == "dowhy" else treatments
    names = [columns] if isinstance(columns, str) else list(columns)
    for name in names:
        if name not in set(treatments["column"]):
            raise UnknownNameError("treatment", name, list(treatments["column"]))
    chosen = treatments.set_index("column", drop=False).loc[names]
    if estimator == "dowhy" and (chosen["unit"] < 0).any():
        raise InvalidArgumentError(
            "columns: expected 0/1 columns of single units for DoWhy's weighting, got the fraction "
            f"{chosen.loc[chosen['unit'] < 0, 'column'].iloc[0]!r}"
        )
    return chosen


def _by_dowhy(design: MaskDesign, column: str, propensity: float) -> float:
    dowhy = import_dowhy()
    import networkx as nx

    # DoWhy writes into the frame that it is given.
    frame = design.frame[[column, "outcome", "outcome_whole"]].copy()
    frame["propensity_score"] = propensity
    # Its weighting refuses a treatment without causes, though this one has none.
    edges = [(column, "outcome"), ("outcome_whole", "outcome"), ("outcome_whole", column)]
    model = dowhy.CausalModel(frame, column, "outcome", graph=nx.DiGraph(edges))
    estimand = model.identify_effect(proceed_when_unidentifiable=True)
    options = {"propensity_score_column": "propensity_score", "min_ps_score": 0, "max_ps_score": 1}
    estimate = model.estimate_effect(
        estimand,
        method_name="backdoor.propensity_score_weighting",
        method_params={"init_params": {**options, "weighting_scheme": "ips_weight"}},
    )
    return float(estimate.value)


def _with_intervals(
    rows: pd.DataFrame, found: Array, n_images: int, confidence: float
) -> pd.DataFrame:
    from scipy.stats import t

    half = float(t.ppf((1 + confidence) / 2, n_images - 1)) * found[:, 1]
    result = rows[["column", "layer", "unit", "n_units"]].reset_index(drop=True)
    result["effect"], result["se"] = found[:, 0], found[:, 1]
    result["low"], result["high"] = found[:, 0] - half, found[:, 0] + half
    result["per_unit"] = result["effect"] / result["n_units"]
    return result


def layer_findings(effects: pd.DataFrame, outcome: str, n_images: int) -> tuple[Finding, ...]:
    """Return the rows of :func:`mask_effects` for whole layers as findings, per unit removed."""
    found = []
    for row in effects[effects["unit"] == -1].to_dict("records"):
        n_units = int(row["n_units"])
        found.append(
            Finding(
                "by layer, others removed too",
                f"one more unit of {row['layer']} removed",
                "random masks, known propensities",
                row["effect"] / n_units,
                row["low"] / n_units,
                row["high"] / n_units,
                outcome=outcome,
                n_clusters=1,
                sentence=f"With other units missing at random, removing one more unit of "
                f"{row['layer']} changes {outcome} by {row['per_unit']:.4g} "
                f"({row['low'] / n_units:.4g} to {row['high'] / n_units:.4g}) on average over its "
                f"{n_units} units and {n_images} images.",
            )
        )
    return tuple(found)
