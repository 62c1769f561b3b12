"""For which images, and when how much else is gone, a layer's units matter: causal forests."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd

from causalprune.analysis.known_design import import_econml
from causalprune.analysis.mask_effects import (
    MaskDesign,
    clustered_error,
    read_masks,
    residual_slope,
    without_treatment,
)
from causalprune.analysis.results import Finding
from causalprune.analysis.unit_samples import Array
from causalprune.errors import InvalidArgumentError, UnknownNameError

GROUPS = ("least", "middle", "most")

# A forest on fewer images in a half would split nothing.
FEWEST_IMAGES = 20

# Of the trees, which split on one half of their rows and estimate on the other.
LEAF_ROWS = 20


@dataclass(frozen=True)
class GroupEffect:
    """Effect of one more unit of the layer removed, in one group of rows.

    Attributes
    ----------
    name : str
        ``"all"``, or the rows for which the forest predicts the ``"least"`` (most negative), the
        ``"middle"`` or the ``"most"``.
    effect, low, high : float
    modifiers : Mapping of str to float
        Mean of every modifier over the group.
    """

    name: str
    effect: float
    low: float
    high: float
    modifiers: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class LayerForest:
    """What a causal forest found about one layer.

    Attributes
    ----------
    layer : str
    n_units, n_images : int
    outcome : str
    whole : GroupEffect
    groups : tuple of GroupEffect
        By what forests on *other* images predict; estimated anew, not the forest's own word.
    calibration, calibration_low, calibration_high : float
        By how much effects really differ for a difference of one that the forest predicts: 1 for
        a true forest, 0 for one that found nothing.
    """

    layer: str
    n_units: int
    n_images: int
    outcome: str
    whole: GroupEffect
    groups: tuple[GroupEffect, ...]
    calibration: float
    calibration_low: float
    calibration_high: float

    @property
    def differs(self) -> bool:
        """Whether the predicted differences are borne out on other images."""
        return self.calibration_low > 0

    @property
    def sentence(self) -> str:
        """What was found, in words."""
        text = (
            f"removing one more unit of {self.layer} changes {self.outcome} by "
            f"{self.whole.effect:.4g} ({self.whole.low:.4g} to {self.whole.high:.4g}) on average"
        )
        if not self.differs:
            return text + "; no difference between images or masks was borne out on other images"
        first, last = self.groups[0], self.groups[-1]
        return text + (
            f", by {first.effect:.4g} where a forest predicts least and {last.effect:.4g} where it "
            f"predicts most (calibration {self.calibration:.2g}, {self.calibration_low:.2g} to "
            f"{self.calibration_high:.2g})"
        )

    def findings(self) -> tuple[Finding, ...]:
        """Return the layer's effect, whole and by group, for a report."""
        return tuple(
            Finding(
                "by layer, others removed too",
                f"one more unit of {self.layer} removed, {group.name} affected rows"
                if group is not self.whole
                else f"one more unit of {self.layer} removed",
                "causal forest on random masks, known propensities",
                group.effect,
                group.low,
                group.high,
                outcome=self.outcome,
                n_clusters=1,
                sentence=self.sentence,
            )
            for group in (self.whole, *self.groups)
        )


def layer_forests(
    table: pd.DataFrame,
    treatments: pd.DataFrame,
    layers: Sequence[str] | None = None,
    *,
    modifiers: Sequence[str] | None = None,
    outcome: str = "outcome",
    n_trees: int = 100,
    confidence: float = 0.95,
    seed: int = 0,
) -> tuple[LayerForest, ...]:
    """Summarise by layer what removing units does, and for which images and masks it does most.

    For each layer the treatment is the fraction of its units that a mask removes, whose mean is
    known. EconML's ``CausalForestDML``, its treatment model that mean and its outcome model what
    is known without the layer's masks, is fitted on one half of the images and predicts the
    effects in the other half, and the other way round. The forest's predictions only *sort* the
    rows: the effects of the three groups are estimated anew from rows that it has not seen, with
    errors clustered by image, and `calibration` is the slope of the true on the predicted
    differences (best linear predictor).

    Parameters
    ----------
    table, treatments : DataFrame
        ``frame`` and ``treatments`` of :class:`causalprune.scoring.MaskTable`.
    layers : sequence of str, optional
        Default: all.
    modifiers : sequence of str, optional
        Columns by which effects may differ; they must not depend on the masks of the layer.
        Default: ``outcome_whole`` (how well the whole network does on the image) and
        ``removed_elsewhere`` (how many units of other layers the mask removes, computed here).
    outcome : str
        What ``table["outcome"]`` is, in words.
    n_trees : int
        A multiple of 4.
    confidence : float
    seed : int

    Returns
    -------
    tuple of LayerForest
        Effects are of one more unit of the layer (the slope over its fraction, divided by its
        number of units).

    Raises
    ------
    RecordError
        As :func:`causalprune.analysis.mask_effects` does.
    InvalidArgumentError
        If there are fewer than 40 images, or an argument is out of range.
    UnknownNameError
        If a layer or a modifier is not in the tables.
    MissingDependencyError
        If EconML is not installed.

    References
    ----------
    Athey, Tibshirani and Wager (2019), "Generalized random forests"; Chernozhukov, Demirer, Duflo
    and Fernandez-Val (2018), for sorted groups and the best linear predictor.

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> off, image = rng.random((400, 5)) < 0.2, np.arange(400) // 8
    >>> table = pd.DataFrame({"image": image, "outcome_whole": image / 50, "n_removed": off.sum(1),
    ...     "removed_a": off.mean(1), "outcome": image / 50 + 0.3 * off.sum(1)})
    >>> treatments = pd.DataFrame({"column": ["removed_a"], "layer": ["a"], "unit": [-1],
    ...     "n_units": [5], "mean": [0.2], "variance": [0.032]})
    >>> found = layer_forests(table, treatments, modifiers=["outcome_whole"], n_trees=8)
    >>> round(found[0].whole.effect, 2)
    0.3
    """
    design = read_masks(table, treatments)
    if design.n_images < 2 * FEWEST_IMAGES:
        raise InvalidArgumentError(
            f"table: expected at least {2 * FEWEST_IMAGES} images for forests on halves of them, "
            f"got {design.n_images}"
        )
    if isinstance(n_trees, bool) or not isinstance(n_trees, int) or n_trees < 4 or n_trees % 4:
        raise InvalidArgumentError(f"n_trees: expected a multiple of 4, got {n_trees!r}")
    if not 0 < confidence < 1:
        raise InvalidArgumentError(f"confidence: expected a number in (0, 1), got {confidence!r}")
    whole_layers = design.treatments[design.treatments["unit"] == -1].set_index("layer")
    names = list(whole_layers.index) if layers is None else list(layers)
    found = []
    for name in names:
        if name not in whole_layers.index:
            raise UnknownNameError("layer", name, list(whole_layers.index))
        row: Any = whole_layers.loc[name]
        own = _modifiers(design, str(row["column"]), int(row["n_units"]), modifiers)
        found.append(
            _forest(
                design, name, row, own, outcome=outcome, trees=n_trees, level=confidence, seed=seed
            )
        )
    return tuple(found)


def _modifiers(
    design: MaskDesign, column: str, n_units: int, wanted: Sequence[str] | None
) -> pd.DataFrame:
    frame = design.frame
    known = frame.copy()
    if "n_removed" in frame:
        known["removed_elsewhere"] = frame["n_removed"] - (frame[column] * n_units).round()
    names = list(wanted) if wanted is not None else ["outcome_whole", "removed_elsewhere"]
    for name in names:
        if name not in known:
            raise UnknownNameError("modifier", name, list(map(str, known)))
    return known[names].astype(float)


def _forest(
    design: MaskDesign,
    layer: str,
    row: Any,
    modifiers: pd.DataFrame,
    *,
    outcome: str,
    trees: int,
    level: float,
    seed: int,
) -> LayerForest:
    residual = design.outcome - without_treatment(design, layer, seed)
    deviation = design.deviations(str(row["column"]))
    n_units = int(row["n_units"])
    half = np.random.default_rng(seed).permutation(design.n_images)[design.image] % 2
    predicted = np.zeros(len(residual))
    for code in (0, 1):
        mine = half == code
        predicted[mine] = _predicted(
            residual[~mine], deviation[~mine], modifiers[~mine], modifiers[mine], trees, seed
        )
    everywhere = np.ones(len(residual), dtype=bool)
    # Sorted within each half: the two forests' levels differ by chance.
    place = np.zeros(len(residual))
    for code in (0, 1):
        mine = half == code
        place[mine] = pd.Series(predicted[mine]).rank(method="first", pct=True)
        predicted[mine] -= predicted[mine].mean()
    thirds = np.minimum((place * 3 - 1e-9).astype(int), 2)

    def effect(name: str, inside: np.ndarray) -> GroupEffect:
        return _effect(design, residual, deviation, inside, n_units, level, name, modifiers)

    calibration, error = _calibration(design, residual, deviation, predicted)
    margin = _quantile(level, design.n_images) * error
    return LayerForest(
        layer,
        n_units,
        design.n_images,
        outcome,
        effect("all", everywhere),
        tuple(effect(name, thirds == k) for k, name in enumerate(GROUPS)),
        calibration,
        calibration - margin,
        calibration + margin,
    )


def _predicted(
    residual: Array,
    deviation: Array,
    modifiers: pd.DataFrame,
    wanted: pd.DataFrame,
    trees: int,
    seed: int,
) -> Array:
    learn = import_econml("econml.dml")
    from sklearn.dummy import DummyRegressor

    # Both nuisances are known and already taken out: what is left of them is zero.
    zero = DummyRegressor(strategy="constant", constant=0.0)
    forest = learn.CausalForestDML(
        model_y=zero,
        model_t=zero,
        cv=2,
        n_estimators=trees,
        min_samples_leaf=LEAF_ROWS,
        max_samples=0.4,
        random_state=seed,
        n_jobs=1,
    )
    with warnings.catch_warnings():
        # scikit-learn renames its arguments faster than econml follows.
        warnings.simplefilter("ignore", FutureWarning)
        forest.fit(residual, deviation, X=modifiers.to_numpy())
        return np.asarray(forest.effect(wanted.to_numpy()), dtype=np.float64).ravel()


def _effect(
    design: MaskDesign,
    residual: Array,
    deviation: Array,
    inside: np.ndarray,
    n_units: int,
    level: float,
    name: str,
    modifiers: pd.DataFrame,
) -> GroupEffect:
    slope, influence = residual_slope(residual[inside], deviation[inside])
    score = np.zeros(len(residual))
    score[inside] = influence * len(residual) / inside.sum()
    error = clustered_error(score, design)
    margin = _quantile(level, len(np.unique(design.image[inside]))) * error / n_units
    effect = slope / n_units
    means = {str(key): float(value) for key, value in modifiers[inside].mean().items()}
    return GroupEffect(name, effect, effect - margin, effect + margin, means)


def _calibration(
    design: MaskDesign, residual: Array, deviation: Array, predicted: Array
) -> tuple[float, float]:
    """Slope of the true on the predicted differences of effects, and its clustered error."""
    regressors = np.column_stack([deviation, deviation * predicted])
    if np.ptp(predicted) == 0:
        return 0.0, 0.0
    inverse = np.linalg.inv(regressors.T @ regressors / len(residual))
    coefficient = inverse @ (regressors.T @ residual) / len(residual)
    score = (regressors @ inverse)[:, 1] * (residual - regressors @ coefficient)
    return float(coefficient[1]), clustered_error(score, design)


def _quantile(level: float, n_images: int) -> float:
    from scipy.stats import t

    return float(t.ppf((1 + level) / 2, n_images - 1)) if n_images > 1 else math.nan
