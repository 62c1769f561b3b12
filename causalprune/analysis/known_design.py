"""What the experiment itself fixes: the chances of its draws, as models that learn nothing."""

from __future__ import annotations

import importlib
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from causalprune.analysis import effects
from causalprune.analysis.identification import kept_display
from causalprune.analysis.tables import DESIGN_COLUMNS, Trials
from causalprune.errors import MissingDependencyError

__all__ = [
    "expected_features",
    "import_econml",
    "is_known_design",
    "known_propensity",
    "last_columns",
    "propensities",
]

Array = NDArray[np.float64]

PROBABILITY = "assignment_probability"


def import_econml(module: str) -> Any:
    """Import a module of EconML where it is needed: it takes seconds."""
    try:
        with kept_display():
            return importlib.import_module(module)
    except ImportError as error:
        raise MissingDependencyError(
            "this estimator needs EconML; install the extra: "
            f"pip install 'causalprune[analysis]' ({error})"
        ) from error


def is_known_design(trials: Trials, treatment: str) -> bool:
    """Whether the experiment drew the treatment, so that its distribution is known."""
    return trials.designed and treatment in DESIGN_COLUMNS


def expected_features(frame: pd.DataFrame, treatment: str, features: Array) -> Array:
    """Mean [n, k] of features [n, k] of the treatment over what the design could have drawn.

    Each level counts by its recorded ``assignment_probability``, or all alike where none is
    recorded: levels, and not trials, so that a trial that failed changes nothing.
    """
    codes, chance = _strata(frame, "method"), _chances(frame)
    doses = frame[treatment].to_numpy(dtype=float)
    expected = np.empty_like(features)
    for code in np.unique(codes):
        rows = np.flatnonzero(codes == code)
        _, first, level = np.unique(doses[rows], return_index=True, return_inverse=True)
        weights = np.bincount(level, chance[rows]) / np.bincount(level)
        expected[rows] = np.average(features[rows[first]], axis=0, weights=weights)
    return expected


def propensities(frame: pd.DataFrame, methods: list[str]) -> Array:
    """Chance [n, methods] that the design gives each method in the place of each trial."""
    codes, chance = _strata(frame, "ratio"), _chances(frame)
    drawn = frame["method"].astype(str).to_numpy()
    table = np.zeros((int(codes.max()) + 1, len(methods)))
    for position, method in enumerate(methods):
        for code in np.unique(codes[drawn == method]):
            table[code, position] = chance[(drawn == method) & (codes == code)].mean()
    return np.asarray(table[codes] / table[codes].sum(axis=1, keepdims=True))


def _strata(frame: pd.DataFrame, other: str) -> NDArray[np.int64]:
    """Code [n] of what a draw's chances depend on: the network's kind, and the `other` draw.

    The other draw is left out where the recorded probabilities of the cells in the table do not
    add up to 1: then some cells were never drawn, and one draw says nothing about another.
    """
    kinds = [name for name in ("architecture", "dataset") if name in frame]
    base = effects.block_codes(frame, kinds)
    if other not in frame:
        return base
    cells = pd.DataFrame({"kind": base, "chance": _chances(frame)})
    drawn = [name for name in ("method", "ratio") if name in frame]
    once = cells.loc[~frame[drawn].assign(kind=base).duplicated().to_numpy()]
    whole = once.groupby("kind")["chance"].sum() > 1 - 1e-6
    named = frame[other].astype(str).where(cells["kind"].map(whole), "any")
    return effects.block_codes(frame.assign(kind=base, other=named), ["kind", "other"])


def _chances(frame: pd.DataFrame) -> Array:
    if PROBABILITY not in frame or frame[PROBABILITY].isna().any():
        return np.ones(len(frame))
    return frame[PROBABILITY].to_numpy(dtype=float)


def last_columns(count: int) -> Any:
    """Return a scikit-learn regressor that predicts its last `count` inputs: nothing is learnt."""
    from sklearn.base import BaseEstimator, RegressorMixin

    class LastColumns(RegressorMixin, BaseEstimator):  # type: ignore[misc]
        def __init__(self, count: int) -> None:
            self.count = count

        def fit(self, inputs: Array, _: Array) -> Any:
            return self

        def predict(self, inputs: Array) -> Array:
            return np.asarray(inputs[:, inputs.shape[1] - self.count :])

    return LastColumns(count)


def known_propensity(count: int) -> Any:
    """Return a scikit-learn classifier whose chances are its last `count` inputs."""
    from sklearn.base import BaseEstimator, ClassifierMixin

    class KnownPropensity(ClassifierMixin, BaseEstimator):  # type: ignore[misc]
        def __init__(self, count: int) -> None:
            self.count = count

        def fit(self, _: Array, levels: NDArray[Any]) -> Any:
            self.classes_ = np.unique(levels)
            return self

        def predict_proba(self, inputs: Array) -> Array:
            return np.asarray(inputs[:, inputs.shape[1] - self.count :])

        def predict(self, inputs: Array) -> NDArray[Any]:
            return np.asarray(self.classes_[np.argmax(self.predict_proba(inputs), axis=1)])

    return KnownPropensity(count)
