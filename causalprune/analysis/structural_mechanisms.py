"""Mechanisms of the structural model: how a column of the trial table follows from its causes.

Both follow dowhy.gcm's protocol of an invertible functional causal model (`fit`, `evaluate`,
`estimate_noise`, `draw_noise_samples`, `draw_samples`, `clone`) and are registered as such by
`structural_model`, so that this module needs no DoWhy. Categories come as whole-number codes.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from causalprune.analysis.splines import MAX_KNOTS
from causalprune.analysis.structural_networks import estimated_parts

__all__: list[str] = []

Array = NDArray[np.float64]

# Ridge penalties tried, in rows; the least leave-one-out error wins.
PENALTIES = tuple(10.0**k for k in range(-5, 3))
# A trial so near to a knot (0 at it, 1 at the next one) is at it, where outcomes are noisy: else
# what little it weighs at the next knot would decide there about a cell that no trial is in.
NEAR = 0.05
# Deviations of a category, or of a pair of categories, from the common curve are penalised fully,
# the common curve itself hardly.
COMMON_PENALTY = 1e-3
# The spread may differ that much between corners of the design before it is an accident of few
# residuals.
SPREAD_LIMITS = (0.05, 20.0)
SMALLEST = 1e-9


@dataclass(frozen=True)
class Causes:
    """How the columns of a parent matrix enter a mechanism.

    Attributes
    ----------
    names : tuple of str
        Columns of the matrix, in order.
    curve : str
        The cause whose curve is free (a knot at each of up to 8 levels).
    categories : tuple of str
        Causes that shift and bend the curve, each on its own.
    pair : tuple of str
        Two categories whose combinations have a curve each; or empty.
    linear : tuple of str
        Causes with a straight line each.
    logarithmic : tuple of str
        Causes that enter as their logarithm.
    """

    names: tuple[str, ...]
    curve: str
    categories: tuple[str, ...] = ()
    pair: tuple[str, ...] = ()
    linear: tuple[str, ...] = ()
    logarithmic: tuple[str, ...] = ()


@dataclass
class LocationScale:
    """``T(Y) = f(causes) + s(causes) N``: a penalised curve with a spread that varies.

    T is the identity or the logarithm. Location-scale noise keeps the noise invertible (Immer et
    al., On the Identifiability and Estimation of Causal Location-Scale Noise Models, ICML 2023)
    and lets heavily pruned networks differ by more than lightly pruned ones do.
    """

    causes: Causes
    log: bool = False
    # Which network each row of `fit` is of: what is a network's own is neither curve nor spread.
    networks: NDArray[np.int64] | None = None
    knots: Array = field(default_factory=lambda: np.zeros(1))
    levels: dict[str, Array] = field(default_factory=dict)
    centre: Array = field(default_factory=lambda: np.zeros(0))
    coefficients: Array = field(default_factory=lambda: np.zeros(0))
    spread: Array = field(default_factory=lambda: np.zeros(0))
    typical: float = 1.0
    penalty: float = 0.0
    noise: Array = field(default_factory=lambda: np.zeros(0))

    def fit(self, X: Any, Y: Any) -> None:
        """Fit curve, spread and the networks' own noise in turn, each given the others."""
        parents, target = _matrix(X), self.transformed(_matrix(Y)[:, 0])
        self._learn_basis(parents)
        design = self._design(parents)
        weights, own = np.ones(len(target)), np.zeros(len(target))
        for _ in range(3):
            self.coefficients, self.penalty, held_out = _ridge(
                design, target - own, weights, self._penalties(design, weights)
            )
            self._fit_spread(parents, held_out)
            scale = self.scale(parents)
            weights = 1 / scale**2
            if self.networks is not None:
                told = (target - design @ self.coefficients, scale, self.own_columns(parents))
                parts = estimated_parts(*told, self.networks)
                effects = parts.effects(*told, self.networks)
                own = np.sum(told[2] * effects[self.networks], axis=1)
        self.noise = self.estimate_noise(Y, X)[:, 0]

    def refitted(self, X: Any, Y: Any, weights: Array) -> LocationScale:
        """Return a copy whose curve is fitted anew with row weights; spread and penalty stay."""
        parents, target = _matrix(X), self.transformed(_matrix(Y)[:, 0])
        combined = weights / self.scale(parents) ** 2
        again = self.clone()
        again.__dict__.update({**self.__dict__})
        design = self._design(parents)
        penalties = self.penalty * self._penalties(design, combined)
        again.coefficients = _solve(design, target, combined, penalties)
        return again

    def location(self, X: Any) -> Array:
        """Return f: what T(Y) would be without noise."""
        return np.asarray(self._design(_matrix(X)) @ self.coefficients)

    def scale(self, X: Any) -> Array:
        """Return s, in units of T(Y)."""
        logarithm = self._spread_design(_matrix(X)) @ self.spread
        return np.asarray(
            np.maximum(self.typical * np.clip(np.exp(logarithm), *SPREAD_LIMITS), SMALLEST)
        )

    def own_columns(self, X: Any) -> Array:
        """Return what a network's effects are multiplied by: 1 for its level, s for the other.

        A network may lose so much more than others at any ratio, or more where networks differ
        more. By the second alone a level would be told too small or too large.
        """
        scale = self.scale(X)
        return np.column_stack([np.ones_like(scale), scale])

    def own_noise(self, X: Any, effects: Array) -> Array:
        """Return the noise that networks with these effects (one row each) add to the causes."""
        return np.asarray(np.sum(self.own_columns(X) * effects, axis=1) / self.scale(X))

    def transformed(self, values: Array) -> Array:
        """Return T of the values."""
        return np.log(values) if self.log else np.asarray(values, dtype=float)

    def restored(self, values: Array) -> Array:
        """Return the values that T takes to these."""
        return np.exp(values) if self.log else np.asarray(values, dtype=float)

    def evaluate(self, parent_samples: Any, noise_samples: Any) -> Array:
        """Return Y for causes and noise, as a column."""
        noise = _matrix(noise_samples)[:, 0]
        value = self.location(parent_samples) + self.scale(parent_samples) * noise
        return self.restored(value)[:, None]

    def estimate_noise(self, target_samples: Any, parent_samples: Any) -> Array:
        """Return the noise that makes the causes give Y, as a column."""
        residual = self.transformed(_matrix(target_samples)[:, 0]) - self.location(parent_samples)
        return np.asarray(residual / self.scale(parent_samples))[:, None]

    def draw_noise_samples(self, num_samples: int) -> Array:
        """Draw from the noises of the trials, by numpy's global generator as dowhy.gcm does."""
        return np.random.choice(self.noise, num_samples)[:, None]

    def draw_samples(self, parent_samples: Any) -> Array:
        """Return Y for causes and drawn noise."""
        return self.evaluate(parent_samples, self.draw_noise_samples(len(parent_samples)))

    def clone(self) -> LocationScale:
        """Return the same mechanism, not fitted."""
        return LocationScale(self.causes, self.log, self.networks)

    def _column(self, parents: Array, name: str) -> Array:
        values = parents[:, self.causes.names.index(name)]
        return np.log(values) if name in self.causes.logarithmic else values

    def _learn_basis(self, parents: Array) -> None:
        curve = self._column(parents, self.causes.curve)
        distinct = np.unique(curve)
        if len(distinct) > MAX_KNOTS:
            # Equally many trials between knots: near the levels of a design.
            shares = np.linspace(0, 1, MAX_KNOTS)
            distinct = np.unique(np.quantile(curve, shares, method="nearest"))
        self.knots = distinct
        self.levels = {
            name: np.unique(self._column(parents, name)) for name in self.causes.categories
        }
        self.centre = np.array([self._column(parents, n).mean() for n in self.causes.linear])

    def _hats(self, parents: Array) -> Array:
        hats = _hats(self._column(parents, self.causes.curve), self.knots)
        if not self.log:  # sizes of log outcomes tell more than their noise hides
            hats[hats < NEAR] = 0
            hats /= hats.sum(axis=1, keepdims=True)
        return hats

    def _blocks(self, parents: Array) -> list[Array]:
        """Return 0/1 columns for each category and for each pair of them."""
        shown = {
            name: (self._column(parents, name)[:, None] == levels).astype(float)
            for name, levels in self.levels.items()
        }
        blocks = list(shown.values())
        if self.causes.pair:
            first, second = (shown[name] for name in self.causes.pair)
            blocks.append((first[:, :, None] * second[:, None, :]).reshape(len(parents), -1))
        return blocks

    def _design(self, parents: Array) -> Array:
        hats = self._hats(parents)
        parts = [hats]
        for block in self._blocks(parents):
            parts.append((block[:, :, None] * hats[:, None, :]).reshape(len(parents), -1))
        for name, centre in zip(self.causes.linear, self.centre, strict=True):
            parts.append(self._column(parents, name)[:, None] - centre)
        return np.hstack(parts)

    def _penalties(self, design: Array, weights: Array) -> Array:
        """Return the penalty of each coefficient, in rows of the weight that its own rows have.

        So deviations may be as much larger at a knot as trials scatter more there. In rows of one
        weight for all, none would be right for both ends of a curve, and a cell that no trial is
        in would follow the last digits of its neighbours.
        """
        factors = np.ones(design.shape[1])
        factors[: len(self.knots)] = COMMON_PENALTY
        linear = len(self.causes.linear)
        factors[design.shape[1] - linear :] = 1e-3
        shares = np.abs(design)
        total = shares.sum(axis=0)
        typical = np.divide(
            (weights / weights.mean()) @ shares, total, out=np.ones_like(total), where=total > 0
        )
        return np.asarray(factors * typical)

    def _spread_design(self, parents: Array) -> Array:
        hats = self._hats(parents)
        mains = self._blocks(parents)[: len(self.levels)]
        return np.hstack([np.ones((len(parents), 1)), hats, *mains])

    def _fit_spread(self, parents: Array, residual: Array) -> None:
        design = self._spread_design(parents)
        size = np.abs(residual)
        self.typical = max(float(np.sqrt(np.mean(size**2))), SMALLEST)
        # A residual of zero by rounding says nothing about the spread around it.
        logarithm = np.log(np.maximum(size / self.typical, 1e-3))
        penalties = np.ones(design.shape[1])
        penalties[0] = 1e-6
        # Two pseudo-trials of the average spread for each column: |N| of a single trial is a
        # poor estimate.
        self.spread = _solve(design, logarithm, np.ones(len(size)), 2.0 * penalties)
        scaled = size / np.clip(np.exp(design @ self.spread), *SPREAD_LIMITS)
        self.typical = max(float(np.sqrt(np.mean(scaled**2))), SMALLEST)


@dataclass
class SizeTable:
    """Sizes by shape: the mean over networks of one design cell, linear between target ratios.

    For parameters, MACs and the achieved ratio, which follow from what was removed. Each group
    (architecture, data set, method) has its own table; nothing is learnt across groups.
    """

    names: tuple[str, ...]
    groups: dict[tuple[float, ...], tuple[Array, Array]] = field(default_factory=dict)

    def fit(self, X: Any, Y: Any) -> None:
        """Take the means of the trials at each target ratio of each group."""
        parents, target = _matrix(X), _matrix(Y)[:, 0]
        ratio, keys = self._split(parents)
        self.groups = {}
        for key in np.unique(keys, axis=0):
            own = np.all(keys == key, axis=1)
            levels, position = np.unique(ratio[own], return_inverse=True)
            sums = np.bincount(position, weights=target[own])
            self.groups[tuple(key)] = (levels, sums / np.bincount(position))

    def evaluate(self, parent_samples: Any, noise_samples: Any) -> Array:
        """Return the size: the table's, plus how much this network's differs."""
        return self.expected(parent_samples)[:, None] + _matrix(noise_samples)

    def expected(self, X: Any) -> Array:
        """Return the table's size; NaN for a group without trials."""
        ratio, keys = self._split(_matrix(X))
        found = np.full(len(ratio), np.nan)
        for key in np.unique(keys, axis=0):
            own = np.all(keys == key, axis=1)
            if tuple(key) in self.groups:
                found[own] = np.interp(ratio[own], *self.groups[tuple(key)])
        return found

    def estimate_noise(self, target_samples: Any, parent_samples: Any) -> Array:
        """Return by how much these sizes differ from the table's."""
        return _matrix(target_samples) - self.expected(parent_samples)[:, None]

    def draw_noise_samples(self, num_samples: int) -> Array:
        """Return zeros: a size is the table's unless the trial says otherwise."""
        return np.zeros((num_samples, 1))

    def draw_samples(self, parent_samples: Any) -> Array:
        """Return the table's sizes."""
        return self.expected(parent_samples)[:, None]

    def clone(self) -> SizeTable:
        """Return the same mechanism, not fitted."""
        return SizeTable(self.names)

    def _split(self, parents: Array) -> tuple[Array, Array]:
        column = self.names.index("ratio")
        return parents[:, column], np.delete(parents, column, axis=1)


def _matrix(values: Any) -> Array:
    array = np.asarray(values, dtype=float)
    return array[:, None] if array.ndim == 1 else array


def _hats(values: Array, knots: Array) -> Array:
    """Return the piecewise linear basis: 1 at a knot, 0 at the others, flat outside."""
    identity = np.eye(len(knots))
    return np.column_stack([np.interp(values, knots, column) for column in identity])


def _ridge(
    design: Array, target: Array, weights: Array, penalties: Array
) -> tuple[Array, float, Array]:
    """Return coefficients, the chosen penalty and the leave-one-out residuals."""
    root = np.sqrt(weights / weights.mean())
    scaled = design * root[:, None]
    gram = scaled.T @ scaled
    found = []
    for penalty in PENALTIES:
        inverse_design = np.linalg.solve(gram + np.diag(penalty * penalties), scaled.T)
        coefficients = inverse_design @ (target * root)
        leverage = np.einsum("ij,ji->i", scaled, inverse_design)
        # A row that alone decides its own prediction tells nothing by leaving it out.
        held_out = (target - design @ coefficients) / np.maximum(1 - leverage, 1e-3)
        found.append((float(np.mean((root * held_out) ** 2)), penalty, coefficients, held_out))
    _, penalty, coefficients, held_out = min(found, key=lambda each: each[0])
    return coefficients, penalty, held_out


def _solve(design: Array, target: Array, weights: Array, penalties: Array) -> Array:
    scaled = weights / weights.mean()
    gram = (design.T * scaled) @ design + np.diag(penalties)
    return np.asarray(np.linalg.solve(gram, design.T @ (scaled * target)))
