"""Effects of all units from the exact effects of some: layer means and single units."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from causalprune.analysis.results import Finding
from causalprune.analysis.unit_conformal import conformal_half_widths, size_strata
from causalprune.analysis.unit_means import LayerMean, Means
from causalprune.analysis.unit_regression import FEWEST_UNITS, cross_fitted
from causalprune.analysis.unit_samples import Array, UnitSample, read_units
from causalprune.errors import InvalidArgumentError, UnknownNameError

ESTIMATORS = ("aipw", "weighted")

_STANDS_OUT = (
    " One more unit that stands out as much as the network's most unusual one did, and was not "
    "ablated, would move this by {:.4g}, out of the interval."
)


@dataclass(frozen=True, eq=False)
class UnitEffects:
    """What :func:`unit_effects` found.

    Attributes
    ----------
    outcome : str
        Column that was analysed.
    measured : str
        What its numbers are changes of, in words.
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
    measured: str
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
            f"removing one unit changes {self.measured} by {found.mean:.4g} on average "
            f"({self.confidence:.0%} interval {found.low:.4g} to {found.high:.4g}), from "
            f"{found.n_ablated} of {found.n_units} units ablated"
        )
        if math.isfinite(self.cost) and self.cost_exact > 0:
            text += f", at {self.cost / self.cost_exact:.0%} of the cost of ablating all"
            if self.cost > self.cost_exact:
                text += ": method 'ablation' for all of them would be cheaper, and exact"
        return text

    @property
    def coverage(self) -> str:
        """What the intervals of single units promise, in words."""
        guessed = self.units[self.units["source"] == "predicted"]
        if guessed.empty:
            return "every unit was ablated: nothing is predicted"
        endless = int((~np.isfinite(guessed["high"])).sum())
        text = (
            f"of {len(self.units)} units {len(self.units) - len(guessed)} are exact and "
            f"{len(guessed)} are predicted; the conformal intervals of these hold for "
            f"{self.unit_confidence:.0%} of the units in each of {guessed['stratum'].nunique()} "
            "strata, not for each unit by itself"
        )
        return text + (f"; {endless} have no finite interval" if endless else "")

    def findings(self) -> tuple[Finding, ...]:
        """Return the layers' means as findings, for a report."""
        # Of one name for all layers, so that a report draws them below each other.
        how = "AIPW of ablated units" if self.estimator == "aipw" else "weighted mean"
        return tuple(
            Finding(
                "by layer",
                f"one unit of {row.layer} removed",
                how,
                row.mean,
                row.low,
                row.high,
                outcome=self.measured,
                n_clusters=1,
                sentence=f"Removing one unit of {row.layer} alone changes {self.measured} by "
                f"{row.mean:.4g} ({row.low:.4g} to {row.high:.4g}) on average over its "
                f"{row.n_units} units, of which "
                f"{row.n_ablated} were ablated, on these images; "
                "removing several together is another question."
                + (_STANDS_OUT.format(row.hidden) if row.heavy_tailed else ""),
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
    residuals (Hajek's approximation for unequal probabilities). A layer has few ablated units, so
    its variance is at least what the residuals of all layers say, taken in proportion to size,
    and what all its own say, those of units that were certain included. Effects have heavy tails:
    an interval also reaches at least as far as one more unit would move the mean that was not
    ablated and is as unusual in its layer as the most unusual one that was is in its own. It
    cannot know of one that is more unusual still and was not drawn: ``hidden`` says what such a
    unit would do, ``least_chance`` how easily it escapes.

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
    means = Means(sample, own, estimator == "weighted", confidence)
    layers = tuple(
        means.of(sample.layers == code, name) for code, name in enumerate(sample.layer_names)
    )
    return UnitEffects(
        outcome,
        _measured(sample.frame, outcome),
        estimator,
        regression,
        confidence,
        unit_confidence,
        _units(sample, predicted, strata, unit_confidence),
        layers,
        means.of(np.ones(len(own), dtype=bool), ""),
        _sum(sample.frame, "cost"),
        _exact_cost(sample.frame),
        _notes(sample, regression, layers),
    )


def _check(estimator: str, confidence: float, unit_confidence: float, folds: int) -> None:
    if estimator not in ESTIMATORS:
        raise UnknownNameError("estimator", estimator, ESTIMATORS)
    for name, value in (("confidence", confidence), ("unit_confidence", unit_confidence)):
        if not 0 < value < 1:
            raise InvalidArgumentError(f"{name}: expected a number in (0, 1), got {value!r}")
    if isinstance(folds, bool) or not isinstance(folds, int) or folds < 2:
        raise InvalidArgumentError(f"folds: expected an integer of at least 2, got {folds!r}")


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


def _measured(frame: pd.DataFrame, outcome: str) -> str:
    """Say what a column holds changes of: the table knows what was measured."""
    name = str(frame["measured"].iloc[0]) if "measured" in frame else ""
    if outcome == "importance":
        return f"{name or 'the outcome'} (absolute change)"
    return name if name and outcome == "effect" else outcome


def _sum(frame: pd.DataFrame, name: str) -> float:
    return float(frame[name].sum()) if name in frame else math.nan


def _exact_cost(frame: pd.DataFrame) -> float:
    images = float(frame["n"].max()) if "n" in frame else 0.0
    return _sum(frame, "cost_ablation") + images


def _notes(sample: UnitSample, regression: str, layers: Sequence[LayerMean]) -> tuple[str, ...]:
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
    heavy = [row for row in layers if row.heavy_tailed]
    if heavy:
        chance = min(row.least_chance for row in heavy)
        notes.append(
            "a few units stand out from what is predicted of their size: one more like the most "
            f"unusual of them, not ablated, would move the means of {len(heavy)} of {len(layers)} "
            "layers out of their intervals; the smallest chance to be ablated there was "
            f"{chance:.1%}"
        )
    return tuple(notes)
