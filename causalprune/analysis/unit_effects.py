"""Effects of all units from the exact effects of some: layer means and single units."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from causalprune.analysis.results import Finding
from causalprune.analysis.unit_conformal import conformal_half_widths, size_strata
from causalprune.analysis.unit_regression import FEWEST_UNITS, cross_fitted
from causalprune.analysis.unit_samples import Array, UnitSample, read_units
from causalprune.errors import InvalidArgumentError, UnknownNameError

Truth = NDArray[np.bool_]

ESTIMATORS = ("aipw", "weighted")

# What a layer's variance has in degrees of freedom from the other layers' residuals.
PRIOR_DEGREES = 3.0


@dataclass(frozen=True)
class LayerMean:
    """Mean effect of removing one unit of a layer, each alone.

    Attributes
    ----------
    layer : str
        Empty for the whole network.
    n_units, n_ablated : int
    mean, low, high : float
        Over the layer's units, on the images of the table; the interval is for the units that
        were not ablated.

    Examples
    --------
    >>> LayerMean("conv1", 10, 4, 0.02, 0.01, 0.03).total
    0.2
    """

    layer: str
    n_units: int
    n_ablated: int
    mean: float
    low: float
    high: float

    @property
    def total(self) -> float:
        """Sum of the units' effects: what removing each *alone* comes to, not all together."""
        return self.mean * self.n_units


@dataclass(frozen=True, eq=False)
class UnitEffects:
    """What :func:`unit_effects` found.

    Attributes
    ----------
    outcome : str
        Column that was analysed.
    estimator, regression : str
    confidence, unit_confidence : float
        Levels of the layers' intervals and of the single units'.
    units : DataFrame
        One row a unit: ``layer``, ``unit``, ``effect`` (exact, or predicted), ``low``, ``high``,
        ``source`` ("exact" or "predicted"), ``stratum``. Intervals of exact effects have no
        width; those of predicted ones hold for a share `unit_confidence` of the units of a
        stratum, and are infinite where it has too few calibrators.
    layers : tuple of LayerMean
    whole : LayerMean
    cost, cost_exact : float
        Forward-equivalents that the table took, and that ablating all units takes; NaN where the
        table does not tell.
    notes : tuple of str
    """

    outcome: str
    estimator: str
    regression: str
    confidence: float
    unit_confidence: float
    units: pd.DataFrame
    layers: tuple[LayerMean, ...]
    whole: LayerMean
    cost: float
    cost_exact: float
    notes: tuple[str, ...] = ()

    def __repr__(self) -> str:
        """Return the sentence."""
        return f"UnitEffects({self.sentence})"

    @property
    def sentence(self) -> str:
        """What was found, in words."""
        found = self.whole
        text = (
            f"removing one unit changes {self.outcome} by {found.mean:.4g} on average "
            f"({self.confidence:.0%} interval {found.low:.4g} to {found.high:.4g}), from "
            f"{found.n_ablated} of {found.n_units} units ablated"
        )
        if math.isfinite(self.cost) and self.cost_exact > 0:
            text += f", at {self.cost / self.cost_exact:.0%} of the cost of ablating all"
        return text

    def findings(self) -> tuple[Finding, ...]:
        """Return the layers' means as findings, for a report."""
        how = "AIPW" if self.estimator == "aipw" else "weighted mean"
        return tuple(
            Finding(
                "by layer",
                f"one unit of {row.layer} removed",
                f"{how} over {row.n_ablated} of {row.n_units} units",
                row.mean,
                row.low,
                row.high,
                outcome=self.outcome,
                n_clusters=1,
                sentence=f"Removing one unit of {row.layer} alone changes {self.outcome} by "
                f"{row.mean:.4g} on average over its {row.n_units} units, on these images; "
                "removing several together is another question.",
            )
            for row in self.layers
        )


def unit_effects(
    table: pd.DataFrame | str | Path,
    outcome: str = "effect",
    *,
    features: Sequence[str] | None = None,
    estimator: str = "aipw",
    regression: str = "ridge",
    strata: str = "size",
    confidence: float = 0.95,
    unit_confidence: float = 0.9,
    folds: int = 5,
    seed: int = 0,
) -> UnitEffects:
    r"""Estimate the effects of all units of a per-unit table in which some were ablated.

    The estimand is the mean over a layer's units (and over all) of a unit's effect on the images
    of the table. The effect of an ablated unit is observed, so nothing is confounded: effects are
    missing, under a known sampling. With predictions m from cheap features, fitted without the
    unit's own fold,

    .. math:: \hat\theta = \frac1U \Big(\sum_{\text{all}} m_i
        + \sum_{\text{ablated}} (y_i - m_i) / \pi_i\Big)

    is unbiased over the sampling whatever the regression is worth (augmented inverse probability
    weighting; in survey sampling, the difference estimator). Its variance is estimated from the
    residuals (Hajek's approximation for unequal probabilities); a layer's is at least what the
    residuals of all layers say, taken in proportion to size, because a layer has few ablated
    units. An interval cannot know of a unit that does far more than its features say and was not
    drawn: where a layer has one, it is too narrow.

    Single units get Mondrian conformal intervals
    (:func:`causalprune.analysis.unit_conformal.conformal_half_widths`); those that were ablated
    are exact. How this is put together is this package's own (reconstructed from the methods
    named below).

    Parameters
    ----------
    table : DataFrame or path of a CSV
        As :func:`causalprune.scoring.unit_table` makes it: ``layer``, ``unit``, ``probability``,
        ``ablated``, `outcome`, features ``score_*`` and ``effect_*``, and ``size``.
    outcome : str
        ``"effect"``, ``"importance"``, or another column with a number for each ablated unit.
    features : sequence of str, optional
        Columns to predict from. Default: all ``score_*`` and ``effect_*``.
    estimator : str
        ``"aipw"``, or ``"weighted"``: inverse probability weighting without predictions
        (Hajek's mean), for comparison.
    regression : str
        ``"ridge"``, ``"boosting"`` (scikit-learn's) or ``"none"`` (predict zero). With fewer than
        20 ablated units the effect is taken to be in proportion to the size.
    strata : str
        ``"size"``: conformal strata by the unit's size; or a column of the table to take them
        from (a group of layers, for example).
    confidence, unit_confidence : float
        Levels, in (0, 1), of the means' intervals and of the single units'.
    folds : int
        Parts for cross-fitting, at least 2.
    seed : int

    Returns
    -------
    UnitEffects

    Raises
    ------
    RecordError
        If columns are missing, a probability is not in (0, 1], no unit was ablated, an ablated
        unit has no finite effect, or a unit that was certain to be ablated was not.
    InvalidArgumentError
        If an argument is out of range or not known.
    MissingDependencyError
        If scikit-learn is needed and not installed.

    References
    ----------
    Robins, Rotnitzky and Zhao (1994); Sarndal, Swensson and Wretman (1992), chapter 6; Hajek
    (1964); Vovk (2013).

    Examples
    --------
    >>> table = pd.DataFrame({"layer": ["a", "a", "a", "a"], "unit": range(4), "size": 1.0,
    ...     "probability": [1.0, 0.5, 0.5, 0.5], "ablated": [True, True, False, True],
    ...     "effect": [4.0, 1.0, float("nan"), 3.0]})
    >>> found = unit_effects(table, features=[], regression="none")
    >>> found.whole.mean, found.units["source"].tolist()
    (3.0, ['exact', 'exact', 'predicted', 'exact'])
    """
    _check(estimator, confidence, unit_confidence, folds)
    sample = read_units(table, outcome, features)
    predicted = cross_fitted(sample, regression, folds, seed)
    own = predicted if estimator == "aipw" else np.zeros(len(predicted))
    means = _Means(sample, own, estimator == "weighted", confidence)
    codes = range(len(sample.layer_names))
    return UnitEffects(
        outcome,
        estimator,
        regression,
        confidence,
        unit_confidence,
        _units(sample, predicted, strata, unit_confidence),
        tuple(means.of(sample.layers == code, sample.layer_names[code]) for code in codes),
        means.of(np.ones(len(own), dtype=bool), ""),
        _sum(sample.frame, "cost"),
        _exact_cost(sample.frame),
        _notes(sample, regression),
    )


def _check(estimator: str, confidence: float, unit_confidence: float, folds: int) -> None:
    if estimator not in ESTIMATORS:
        raise UnknownNameError("estimator", estimator, ESTIMATORS)
    for name, value in (("confidence", confidence), ("unit_confidence", unit_confidence)):
        if not 0 < value < 1:
            raise InvalidArgumentError(f"{name}: expected a number in (0, 1), got {value!r}")
    if isinstance(folds, bool) or not isinstance(folds, int) or folds < 2:
        raise InvalidArgumentError(f"folds: expected an integer of at least 2, got {folds!r}")


class _Means:
    """Means of any set of units, with intervals that share what residuals say of size."""

    def __init__(self, sample: UnitSample, predicted: Array, ratio: bool, confidence: float):
        self._sample, self._predicted, self._ratio = sample, predicted, ratio
        self._confidence = confidence
        self._residual = np.where(sample.ablated, sample.effect - predicted, 0.0)
        relative = self._residual / sample.scale
        drawn = sample.drawn
        odds = (1 - sample.probability) / sample.probability
        # Mean squared residual in units of size, of the units that were not ablated.
        weight = np.where(drawn, odds, 0.0)
        self._spread = float(np.average(relative**2, weights=weight)) if drawn.any() else math.nan
        self._modelled = self._spread * sample.scale**2 * odds

    def of(self, inside: Truth, layer: str) -> LayerMean:
        sample, n_units = self._sample, int(inside.sum())
        ablated, drawn = inside & sample.ablated, inside & sample.drawn
        weight = np.where(ablated, 1 / sample.probability, 0.0)
        correction = float((weight * self._residual).sum())
        residual = self._residual
        if self._ratio:
            # Without predictions, the weights' own sum instead of the number of units.
            reached = float(weight.sum())
            mean = correction / reached if reached > 0 else math.nan
            residual = np.where(sample.ablated, residual - mean, 0.0)
            shift = 0.0
        else:
            shift = float(self._predicted[inside].sum())
            mean = (shift + correction) / n_units
        if (ablated == inside).all():
            return LayerMean(layer, n_units, n_units, mean, mean, mean)
        variance, degrees = self._variance(inside, drawn, residual)
        from scipy.stats import t

        half = float(t.ppf((1 + self._confidence) / 2, degrees)) * math.sqrt(variance) / n_units
        return LayerMean(layer, n_units, int(ablated.sum()), mean, mean - half, mean + half)

    def _variance(self, inside: Truth, drawn: Truth, residual: Array) -> tuple[float, float]:
        """Variance of the total's error, and its degrees of freedom."""
        n, everyone = int(drawn.sum()), int(self._sample.drawn.sum())
        modelled = float(self._modelled[inside].sum())
        if n < 2:
            return modelled, max(1.0, everyone - 1.0)
        chance = self._sample.probability[drawn]
        share = (1 - chance) * n / (n - 1)
        expanded = residual[drawn] / chance
        terms = share * (expanded - np.average(expanded, weights=share)) ** 2
        own, degrees = float(terms.sum()), _degrees(terms, n - 1)
        if n == everyone or self._ratio:
            return own, degrees
        # A layer's few residuals often miss its large ones: what all layers say is the least.
        return max(own, modelled), min(degrees + PRIOR_DEGREES, everyone - 1.0)


def _degrees(terms: Array, most: int) -> float:
    """Satterthwaite's degrees of freedom of a sum of squares: fewer where the tail is heavy."""
    if not terms.any():
        return float(most)
    kurtosis = len(terms) * float((terms**2).sum()) / float(terms.sum()) ** 2
    return float(np.clip(2 * len(terms) / max(kurtosis - 1, 1e-12), 1, most))


def _units(
    sample: UnitSample, predicted: Array, strata: str, unit_confidence: float
) -> pd.DataFrame:
    if strata == "size":
        codes = size_strata(sample.scale, sample.drawn, unit_confidence)
    elif strata in sample.frame:
        codes = np.asarray(pd.factorize(sample.frame[strata])[0], dtype=np.int64)
    else:
        raise UnknownNameError("stratum column", strata, ("size", *map(str, sample.frame)))
    half = conformal_half_widths(
        np.where(sample.ablated, sample.effect - predicted, 0.0),
        sample.scale,
        sample.probability,
        sample.drawn,
        codes,
        unit_confidence,
    )
    effect = np.where(sample.ablated, sample.effect, predicted)
    half = np.where(sample.ablated, 0.0, half)
    return pd.DataFrame(
        {
            "layer": sample.frame["layer"].astype(str),
            "unit": sample.frame["unit"],
            "effect": effect,
            "low": effect - half,
            "high": effect + half,
            "source": np.where(sample.ablated, "exact", "predicted"),
            "stratum": codes,
        }
    )


def _sum(frame: pd.DataFrame, name: str) -> float:
    return float(frame[name].sum()) if name in frame else math.nan


def _exact_cost(frame: pd.DataFrame) -> float:
    images = float(frame["n"].max()) if "n" in frame else 0.0
    return _sum(frame, "cost_ablation") + images


def _notes(sample: UnitSample, regression: str) -> tuple[str, ...]:
    n_drawn, n_ablated = int(sample.drawn.sum()), int(sample.ablated.sum())
    notes = []
    if n_drawn < 2 and n_ablated < len(sample.ablated):
        notes.append(
            f"only {n_drawn} units were ablated by chance: nothing tells how far the others may "
            "be from what is predicted of them"
        )
    if regression != "none" and n_ablated < FEWEST_UNITS:
        notes.append(
            f"{n_ablated} ablated units are too few for a regression: effects are taken to be in "
            "proportion to the size"
        )
    return tuple(notes)
