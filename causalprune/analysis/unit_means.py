"""Mean effects of a layer's units when some were ablated, and how far they may be off."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from causalprune.analysis.unit_samples import Array, UnitSample

__all__ = ["LayerMean", "Means"]

Truth = NDArray[np.bool_]

# What a layer's spread has in degrees of freedom from the other layers' residuals.
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
    hidden : float
        By how much one more unit would move the mean that was not ablated and is as far from what
        is predicted of its size as the most unusual of the network's ablated units. 0 where all
        units were ablated, NaN where it is not asked.
    least_chance : float
        The smallest probability with which one of its units was to be ablated.

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
    hidden: float = math.nan
    least_chance: float = math.nan

    @property
    def total(self) -> float:
        """Sum of the units' effects: what removing each *alone* comes to, not all together."""
        return self.mean * self.n_units

    @property
    def heavy_tailed(self) -> bool:
        """Whether one more unit like the most unusual one would move the mean out of the interval.

        Units of the network stand out so much then that an interval can only say what holds
        unless one of them is hidden in this layer.
        """
        return self.hidden > self.high - self.mean


class Means:
    """Means of any set of units, with intervals that share what residuals say of size.

    Parameters
    ----------
    sample : UnitSample
    predicted : array [U]
        Cross-fitted, zeros for weighting alone.
    ratio : bool
        Hajek's mean instead of the difference estimator.
    confidence : float
    """

    def __init__(self, sample: UnitSample, predicted: Array, ratio: bool, confidence: float):
        self._sample, self._predicted, self._ratio = sample, predicted, ratio
        self._confidence = confidence
        self._residual = np.where(sample.ablated, sample.effect - predicted, 0.0)
        self._relative = np.abs(self._residual) / sample.scale
        drawn = sample.drawn
        odds = (1 - sample.probability) / sample.probability
        weight = np.where(drawn, odds, 0.0)
        known = bool(drawn.any())
        # In units of size, of the units that were not ablated.
        self._square = np.average(self._relative**2, weights=weight) if known else math.nan
        self._absolute = np.average(self._relative, weights=weight) if known else math.nan
        self._lever = sample.scale**2 * odds
        spread = np.array(
            [self._spread(sample.layers == code) for code in range(len(sample.layer_names))]
        )
        # How unusual the most unusual unit is for its layer, which may be unusual as a whole.
        usual = spread[sample.layers]
        self._unusual = float(
            np.max(np.divide(self._relative, usual, where=usual > 0, out=np.zeros(len(usual))))
        )

    def of(self, inside: Truth, layer: str) -> LayerMean:
        """Return the mean over the units `inside` [U], with its interval."""
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
        else:
            mean = (float(self._predicted[inside].sum()) + correction) / n_units
        chance = float(sample.probability[inside].min())
        if (ablated == inside).all():
            return LayerMean(layer, n_units, n_units, mean, mean, mean, 0.0, chance)
        half, hidden = self._half_width(inside, drawn, residual) / n_units, math.nan
        if not self._ratio:
            one = float(sample.scale[inside & ~sample.ablated].max()) / n_units
            hidden = float(self._relative.max()) * one
            half = max(half, self._unusual * self._spread(inside) * one)
        return LayerMean(
            layer, n_units, int(ablated.sum()), mean, mean - half, mean + half, hidden, chance
        )

    def _half_width(self, inside: Truth, drawn: Truth, residual: Array) -> float:
        """Half width of the interval of the units' total: the widest that any evidence asks for."""
        from scipy.stats import t

        return max(
            (
                float(t.ppf((1 + self._confidence) / 2, degrees)) * math.sqrt(variance)
                for variance, degrees in self._variances(inside, drawn, residual)
            )
        )

    def _variances(self, inside: Truth, drawn: Truth, residual: Array) -> list[tuple[float, float]]:
        """Variances of the total's error, each with its degrees of freedom."""
        n, everyone = int(drawn.sum()), int(self._sample.drawn.sum())
        most, lever = max(1.0, everyone - 1.0), float(self._lever[inside].sum())
        modelled, found = float(self._square) * lever, []
        if n >= 2:
            chance = self._sample.probability[drawn]
            share = (1 - chance) * n / (n - 1)
            expanded = residual[drawn] / chance
            terms = share * (expanded - np.average(expanded, weights=share)) ** 2
            own, degrees = float(terms.sum()), _degrees(terms, n - 1)
            if n == everyone or self._ratio:
                return [(own, degrees)]
            # A layer's few residuals often miss its large ones: what all layers say is the least.
            found.append((max(own, modelled), min(degrees + PRIOR_DEGREES, most)))
        else:
            found.append((modelled, most))
        if not self._ratio:
            # Units that were certain say nothing of the others' mean, but how unusual the layer's
            # are for their size. Of a normal variable, the square of which this is the mean.
            square = math.pi / 2 * self._spread(inside) ** 2
            known = float((inside & self._sample.ablated).sum())
            found.append((square * lever, min(known + PRIOR_DEGREES, most)))
        return found

    def _spread(self, inside: Truth) -> float:
        """Mean absolute residual in units of size: no unit decides alone, few borrow of all."""
        known = inside & self._sample.ablated
        absolute = float(self._relative[known].sum()) + PRIOR_DEGREES * float(self._absolute)
        return absolute / (float(known.sum()) + PRIOR_DEGREES)


def _degrees(terms: Array, most: int) -> float:
    """Satterthwaite's degrees of freedom of a sum of squares: fewer where the tail is heavy."""
    if not terms.any():
        return float(most)
    kurtosis = len(terms) * float((terms**2).sum()) / float(terms.sum()) ** 2
    return float(np.clip(2 * len(terms) / max(kurtosis - 1, 1e-12), 1, most))
