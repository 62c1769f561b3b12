"""What cheap features say about units that were not ablated, each predicted by others."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
from numpy.typing import NDArray

from causalprune.analysis.unit_samples import Array, UnitSample
from causalprune.errors import MissingDependencyError, UnknownNameError

REGRESSIONS = ("ridge", "boosting", "none")

# With fewer ablated units a regression would fit noise: the ratio to the size alone is used.
FEWEST_UNITS = 20


def cross_fitted(sample: UnitSample, regression: str, folds: int, seed: int) -> Array:
    """Predicted effects [U]: each unit's from a regression that did not see its fold.

    What is regressed is the effect relative to the unit's scale, with weights
    ``(1 - p) (scale / p)^2``, so that the design variance of a total is what is minimised;
    units that were certain keep a little weight, because they tell how large ones behave.
    """
    if regression not in REGRESSIONS:
        raise UnknownNameError("regression", regression, REGRESSIONS)
    if regression == "none":
        return np.zeros(len(sample.scale))
    ratio = sample.effect / sample.scale
    weight = np.maximum(1 - sample.probability, 0.05) * (sample.scale / sample.probability) ** 2
    codes = fold_codes(sample.ablated, folds, seed)
    predicted = np.zeros(len(ratio))
    for code in np.unique(codes):
        mine = codes == code
        train = sample.ablated & ~mine
        predicted[mine] = _predict(
            regression,
            sample.features[train],
            ratio[train],
            weight[train] / weight[train].mean() if train.any() else weight[train],
            sample.features[mine],
            seed,
        )
    return predicted * sample.scale


def fold_codes(ablated: NDArray[np.bool_], folds: int, seed: int) -> NDArray[np.int64]:
    """Random folds [U] that share out the ablated units, and the others, evenly."""
    rng = np.random.default_rng(seed)
    n_folds = max(2, min(folds, int(ablated.sum())))
    codes = np.zeros(len(ablated), dtype=np.int64)
    for part in (ablated, ~ablated):
        codes[part] = rng.permutation(int(part.sum())) % n_folds
    return codes


def _predict(
    regression: str, features: Array, ratio: Array, weight: Array, wanted: Array, seed: int
) -> Array:
    if not len(ratio):
        return np.zeros(len(wanted))
    if len(ratio) < FEWEST_UNITS or not features.shape[1]:
        return np.full(len(wanted), np.average(ratio, weights=weight))
    model = _model(regression, seed)
    with warnings.catch_warnings():
        # The ridge that generalised cross-validation picks may be nearly singular; it is the best.
        warnings.filterwarnings("ignore", message=".*[Ii]ll-conditioned.*")
        model.fit(features, ratio, **{f"{model.steps[-1][0]}__sample_weight": weight})
        found = np.asarray(model.predict(wanted), dtype=np.float64)
    # No extrapolation: what lies beyond everything seen is an invention.
    return np.clip(found, ratio.min(), ratio.max())


def _model(regression: str, seed: int) -> Any:
    try:
        from sklearn.ensemble import GradientBoostingRegressor
        from sklearn.linear_model import RidgeCV
        from sklearn.pipeline import make_pipeline
        from sklearn.preprocessing import StandardScaler
    except ImportError as error:
        raise MissingDependencyError(
            f"regression={regression!r} needs scikit-learn: pip install 'causalprune[analysis]'"
        ) from error
    if regression == "ridge":
        return make_pipeline(StandardScaler(), RidgeCV(np.logspace(-2, 4, 13)))
    boosting = GradientBoostingRegressor(
        n_estimators=100, learning_rate=0.05, max_depth=2, subsample=0.7, random_state=seed
    )
    return make_pipeline(StandardScaler(), boosting)
