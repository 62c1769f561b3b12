"""What pruning preserved and lost, from a study's rows: the measures of Lost in Pruning."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

import numpy as np
import pandas as pd
from scipy.special import stdtrit

from causalprune.errors import DataError, InvalidArgumentError
from causalprune.measures import excess_error_trend, excess_errors, prune_potentials
from causalprune.measures.prune_potential import DELTA
from causalprune.measures.removal_kinds import WEIGHT_METHODS

__all__ = [
    "ALL_METHODS",
    "LEAST",
    "MEAN",
    "NOMINAL",
    "StudyPotentials",
    "errors_of_trials",
    "excess_errors_of_trials",
    "excess_trends_of_trials",
    "potentials_of_trials",
]

NOMINAL = "none"
"""The shift of the plain test images."""
MEAN, LEAST = "mean of shifts", "least of shifts"
ALL_METHODS = "all methods"

_Found = TypeVar("_Found")
_PLACE = ["architecture", "dataset"]
_METHOD = [*_PLACE, "method"]


def errors_of_trials(trials: pd.DataFrame) -> pd.DataFrame:
    """Turn a study's rows into errors by network, method, distribution and prune ratio.

    Parameters
    ----------
    trials : DataFrame
        One row for each trial and shift (:meth:`~causalprune.Study.by_shift`). Failed trials are
        left out.

    Returns
    -------
    DataFrame
        architecture, dataset, method, checkpoint, distribution (the shift; ``"none"`` for plain
        images), prune_ratio (the fraction of the parameters that is gone; 0 where nothing was to
        go: the whole network, retrained as long as the others), error (after retraining, a
        fraction of the test images). Trials in which the same network lost the same fraction by
        the same method are one row, with their mean error.

    Raises
    ------
    DataError
        No trial went well.

    Examples
    --------
    >>> trials = pd.DataFrame({
    ...     "architecture": "lenet5", "dataset": "digits", "method": "l1", "checkpoint": 0,
    ...     "shift": "none", "ratio": [0.0, 0.5], "achieved_ratio": [0.0, 0.48],
    ...     "accuracy": [0.9, 0.8], "status": "ok",
    ... })
    >>> errors_of_trials(trials)[["prune_ratio", "error"]].round(2).values.tolist()
    [[0.0, 0.1], [0.48, 0.2]]
    """
    ok = trials[trials["status"] == "ok"]
    if ok.empty:
        raise DataError(f"trials: expected some that went well, got none of {len(trials)}")
    frame = ok[[*_METHOD, "checkpoint"]].copy()
    frame["distribution"] = ok["shift"]
    frame["prune_ratio"] = ok["achieved_ratio"].where(ok["ratio"] > 0, 0.0).clip(0.0, 1.0)
    frame["error"] = 1.0 - ok["accuracy"]
    keys = [name for name in frame.columns if name != "error"]
    return frame.groupby(keys, sort=False).agg({"error": "mean"}).reset_index()


@dataclass(frozen=True)
class StudyPotentials:
    """Prune potentials of a study's networks, and what they say over networks.

    Intervals are Student's t over independently trained networks, for each row by itself, not
    for all rows together; NaN of a single network. Potentials come from a grid of ratios, so
    networks may agree exactly: an interval of no width is no certainty. Of n networks, no test
    by signs has a p-value below ``2 ** (1 - n)``.

    Attributes
    ----------
    potentials : DataFrame
        One row for each network, method and shift: architecture, dataset, method, checkpoint,
        shift, potential, unpruned_error, largest_ratio (the largest that was tried).
    summary : DataFrame
        One row for each architecture, dataset, method and shift (``"none"`` first, then the
        shifts, their mean and their least): mean, sd, low, high of the potential; fall, fall_sd,
        fall_low, fall_high: nominal minus shifted potential of the same network; n (networks).
        ``"all methods"``: mean over methods, network by network. The least of several potentials
        is small by chance alone, so it has no fall.
    weights_minus_filters : DataFrame
        One row for each architecture, dataset and shift: mean, sd, low, high of the difference,
        within a network, of the mean potential of methods that remove single weights and of those
        that remove units; n. Empty where the study has but one kind.
    delta, level : float
        Absolute rise of the error that was allowed; level of the intervals.
    """

    potentials: pd.DataFrame
    summary: pd.DataFrame
    weights_minus_filters: pd.DataFrame
    delta: float
    level: float

    def __str__(self) -> str:
        return self.summary.to_string(index=False, float_format="{:.3f}".format)


def potentials_of_trials(
    trials: pd.DataFrame, delta: float = DELTA, level: float = 0.95
) -> StudyPotentials:
    """Compute prune potentials and compare them within networks.

    Parameters
    ----------
    trials : DataFrame
        As for :func:`errors_of_trials`, ratio 0 among the ratios.
    delta : float
        Absolute rise of the error, over that of the whole network retrained as long, that is
        allowed.
    level : float
        Of the intervals, in (0, 1).

    Raises
    ------
    InvalidArgumentError
        A number is out of range.
    DataError
        No trial went well, or a network has no row at ratio 0 for one of its methods.

    References
    ----------
    Liebenwein, Baykal, Carter, Gifford and Rus (2021), "Lost in Pruning".

    Examples
    --------
    >>> rows = [
    ...     ("wt", 0, 0.0, 0.1), ("wt", 0, 0.8, 0.1), ("l1", 0, 0.0, 0.1), ("l1", 0, 0.5, 0.1),
    ...     ("wt", 1, 0.0, 0.1), ("wt", 1, 0.8, 0.1), ("l1", 1, 0.0, 0.1), ("l1", 1, 0.6, 0.1),
    ... ]
    >>> trials = pd.DataFrame(rows, columns=["method", "checkpoint", "ratio", "error"]).assign(
    ...     architecture="lenet5", dataset="digits", shift="none", status="ok",
    ...     achieved_ratio=lambda t: t["ratio"], accuracy=lambda t: 1 - t["error"],
    ... )
    >>> found = potentials_of_trials(trials)
    >>> found.summary[["method", "mean"]].values.tolist()
    [['wt', 0.8], ['l1', 0.55], ['all methods', 0.675]]
    >>> found.weights_minus_filters[["mean", "low", "high"]].round(2).values.tolist()
    [[0.25, -0.39, 0.89]]
    """
    if not 0 < level < 1:
        raise InvalidArgumentError(f"level: expected 0 < level < 1, got {level}")
    errors = errors_of_trials(trials)
    parts = []
    for key, own in errors.groupby(_METHOD, sort=False):
        found = _named(key, partial(prune_potentials, own, delta))
        frame = found.frame.rename(columns={"network": "checkpoint", "distribution": "shift"})
        parts.append(_labelled(frame, _METHOD, key))
    potentials = pd.concat(parts, ignore_index=True)
    shifts = [name for name in dict.fromkeys(errors["distribution"]) if name != NOMINAL]
    summary, kinds = [], []
    for place, own in potentials.groupby(_PLACE, sort=False):
        # Rows: method and network; columns: shifts.
        wide = own.pivot(index=["method", "checkpoint"], columns="shift", values="potential")
        wide = wide.reindex(columns=[NOMINAL, *shifts])
        methods = {name: wide.loc[name] for name in dict.fromkeys(own["method"])}
        if len(methods) > 1:
            methods[ALL_METHODS] = _mean_of(methods.values())
        for name, networks in methods.items():
            frame = _over_networks(networks, shifts, level)
            summary.append(_labelled(frame, _METHOD, (*place, name)))
        kinds.append(_labelled(_weights_minus_filters(methods, shifts, level), _PLACE, place))
    return StudyPotentials(
        potentials,
        pd.concat(summary, ignore_index=True),
        pd.concat(kinds, ignore_index=True),
        float(delta),
        float(level),
    )


def excess_errors_of_trials(trials: pd.DataFrame) -> pd.DataFrame:
    """Compute what shifts cost each network beyond its error on plain images.

    Parameters
    ----------
    trials : DataFrame
        As for :func:`errors_of_trials`, with at least one shift.

    Returns
    -------
    DataFrame
        architecture, dataset, method, checkpoint, and the columns of
        :func:`causalprune.measures.excess_errors`: prune_ratio, nominal_error, shifted_error,
        excess_error, difference (from the whole network, retrained as long).

    Raises
    ------
    InvalidArgumentError, DataError
        There is no shift, or a network has no row at ratio 0 for one of its methods.
    """
    parts = []
    for key, own in errors_of_trials(trials).groupby(_METHOD, sort=False):
        found = _named(key, partial(excess_errors, own, NOMINAL))
        found = found.rename(columns={"network": "checkpoint"})
        parts.append(_labelled(found, _METHOD, key))
    return pd.concat(parts, ignore_index=True)


def excess_trends_of_trials(trials: pd.DataFrame, level: float = 0.95) -> pd.DataFrame:
    """Regress the difference in excess error on the prune ratio, through the origin.

    Parameters
    ----------
    trials : DataFrame
        As for :func:`excess_errors_of_trials`.
    level : float
        Of the bootstrap interval over networks, in (0, 1).

    Returns
    -------
    DataFrame
        One row for each architecture, dataset and method: slope, low, high (fractions of the
        images that pruning everything would add; see
        :func:`causalprune.measures.excess_error_trend`), n, n_networks.

    Raises
    ------
    InvalidArgumentError, DataError
        As :func:`excess_errors_of_trials`; also where nothing was pruned.
    """
    rows = []
    for key, own in excess_errors_of_trials(trials).groupby(_METHOD, sort=False):
        found = excess_error_trend(
            own["prune_ratio"].tolist(),
            own["difference"].tolist(),
            own["checkpoint"].tolist(),
            level=level,
        )
        rows.append((*key, found.slope, found.low, found.high, found.n, found.n_clusters))
    return pd.DataFrame(rows, columns=[*_METHOD, "slope", "low", "high", "n", "n_networks"])


def _named(key: Iterable[Hashable], compute: Callable[[], _Found]) -> _Found:
    """Say whose rows could not be compared."""
    try:
        return compute()
    except DataError as error:
        raise DataError(
            f"{', '.join(map(str, key))}: {error} (a trial failed, has not run, or is not of the "
            "design)"
        ) from error


def _labelled(frame: pd.DataFrame, names: list[str], values: Iterable[Hashable]) -> pd.DataFrame:
    labels = pd.DataFrame(dict(zip(names, values, strict=True)), index=frame.index)
    return pd.concat([labels, frame], axis=1)


def _mean_of(tables: Iterable[pd.DataFrame]) -> pd.DataFrame:
    """Mean over tables of networks by shifts; a network that one of them lacks is left out."""
    stacked = pd.concat(dict(enumerate(tables)), names=["table"])
    groups = stacked.groupby(level="checkpoint")
    return groups.mean()[groups.size() == stacked.index.get_level_values("table").nunique()]


def _over_networks(networks: pd.DataFrame, shifts: list[str], level: float) -> pd.DataFrame:
    shown = networks.copy()
    if shifts:
        shown[MEAN], shown[LEAST] = networks[shifts].mean(axis=1), networks[shifts].min(axis=1)
    rows = []
    for shift in shown.columns:
        compared = shift not in (NOMINAL, LEAST)
        falls = shown[NOMINAL] - shown[shift] if compared else shown[shift][:0]
        mean, sd, low, high = _interval(shown[shift], level)
        bounded = max(low, 0.0), min(high, 1.0)  # NaN, its first argument, passes through
        rows.append((shift, mean, sd, *bounded, *_interval(falls, level), len(shown)))
    of_fall = ["fall", "fall_sd", "fall_low", "fall_high"]
    return pd.DataFrame(rows, columns=["shift", "mean", "sd", "low", "high", *of_fall, "n"])


def _weights_minus_filters(
    methods: dict[str, pd.DataFrame], shifts: list[str], level: float
) -> pd.DataFrame:
    rows = []
    weights = [table for name, table in methods.items() if name in WEIGHT_METHODS]
    units = [table for name, table in methods.items() if name not in (ALL_METHODS, *WEIGHT_METHODS)]
    if weights and units:
        differences = (_mean_of(weights) - _mean_of(units)).dropna(how="all")
        if shifts:
            differences[MEAN] = differences[shifts].mean(axis=1)
        for shift in differences.columns:
            rows.append((shift, *_interval(differences[shift], level), len(differences)))
    return pd.DataFrame(rows, columns=["shift", "mean", "sd", "low", "high", "n"])


def _interval(values: pd.Series[float], level: float) -> tuple[float, float, float, float]:
    """Mean, sd, and Student's interval of the mean over independent values."""
    found = values.to_numpy(dtype=np.float64)
    mean = float(found.mean()) if len(found) else np.nan
    if len(found) < 2:
        return mean, np.nan, np.nan, np.nan
    sd = float(found.std(ddof=1))
    half = float(stdtrit(len(found) - 1, (1 + level) / 2)) * sd / np.sqrt(len(found))
    return mean, sd, float(mean - half), float(mean + half)
