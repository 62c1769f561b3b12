"""Prune potential: how much can go before a network errs more than it did."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd

from causalprune.errors import InvalidArgumentError
from causalprune.measures.error_tables import (
    UNPRUNED,
    error_table,
    fractions,
    of_all_distributions,
)

__all__ = ["DELTA", "PrunePotentials", "prune_potential", "prune_potentials"]

DELTA = 0.005
"""By how much the error may rise, absolute: half a percentage point."""

# An error is a count of images: rounding must not make one more of them.
_ROUNDING = 1e-9


def prune_potential(
    prune_ratios: Sequence[float],
    errors: Sequence[float],
    unpruned_error: float,
    delta: float = DELTA,
) -> float:
    """Largest prune ratio whose error is within `delta` of the unpruned network's.

    ``P(theta, D) = max {ratio : error(D) <= unpruned error(D) + delta}``, over the ratios that
    were tried. A network that fails at a small ratio and passes at a larger one has the larger
    one as its potential.

    Parameters
    ----------
    prune_ratios : sequence of float [n]
        In [0, 1]: the fraction of the network that is gone. The published figures count the zero
        weights of the whole network, batch norms and biases included; whatever the caller counts
        (parameters, MACs) the potential is a fraction of.
    errors : sequence of float [n]
        Of the network pruned so far, on one distribution; fractions of the images, in [0, 1].
    unpruned_error : float
        In [0, 1], on the same images.
    delta : float
        Absolute rise that is allowed, in [0, 1].

    Returns
    -------
    float
        In [0, 1]; 0 where no ratio qualifies.

    Raises
    ------
    InvalidArgumentError
        If an argument is out of range, or the two sequences differ in length.

    References
    ----------
    Liebenwein, Baykal, Carter, Gifford and Rus (2021), "Lost in Pruning".

    Examples
    --------
    >>> prune_potential([0.3, 0.6, 0.9], [0.08, 0.085, 0.2], unpruned_error=0.08)
    0.6
    """
    ratios, found = fractions(prune_ratios, "prune_ratios"), fractions(errors, "errors")
    if len(ratios) != len(found):
        raise InvalidArgumentError(
            f"errors: expected one for each of {len(ratios)} prune ratios, got {len(found)}"
        )
    (before,) = fractions([unpruned_error], "unpruned_error")
    (allowed,) = fractions([delta], "delta")
    return float(ratios[found <= before + allowed + _ROUNDING].max(initial=UNPRUNED))


@dataclass(frozen=True)
class PrunePotentials:
    """Prune potentials of several networks on several distributions.

    Attributes
    ----------
    frame : DataFrame
        One row for each network and distribution: network, distribution, potential,
        unpruned_error, largest_ratio (the largest that was tried: a potential that equals it
        might be larger).
    networks : DataFrame
        One row for each network: network, mean and minimum of the potential over distributions.
    summary : DataFrame
        One row for each distribution, then ``"mean"`` and ``"minimum"`` over distributions, as
        index: mean and sd over networks (sd with n - 1; NaN of a single network), n.
    delta : float
        Absolute rise of the error that was allowed.
    """

    frame: pd.DataFrame
    networks: pd.DataFrame
    summary: pd.DataFrame
    delta: float

    def __str__(self) -> str:
        return self.summary.to_string(float_format="{:.3f}".format)


def prune_potentials(
    table: pd.DataFrame, delta: float = DELTA, *, network: str | None = None
) -> PrunePotentials:
    """Compute the prune potential of every network on every distribution.

    Parameters
    ----------
    table : DataFrame
        One row for each network, distribution (nominal, a noise level, a corruption, ...) and
        prune ratio, ratio 0 among them; columns as in
        :func:`causalprune.measures.error_tables.error_table`. Leave rows out to leave a
        distribution or a method out.
    delta : float
        See :func:`prune_potential`.
    network : str, optional
        The column that tells trained networks apart. Default: ``"network"`` or ``"checkpoint"``.

    Returns
    -------
    PrunePotentials

    Raises
    ------
    InvalidArgumentError, DataError
        If the table is not that, or the networks were tried on different distributions.

    References
    ----------
    Liebenwein et al. (2021), "Lost in Pruning": mean and minimum over distributions, then mean
    and standard deviation over networks.

    Examples
    --------
    >>> table = pd.DataFrame({
    ...     "network": "a", "distribution": ["nominal"] * 3 + ["snow"] * 3,
    ...     "prune_ratio": [0, 0.5, 0.8] * 2, "error": [0.08, 0.08, 0.08, 0.2, 0.2, 0.3],
    ... })
    >>> prune_potentials(table).summary["mean"].to_dict()
    {'nominal': 0.8, 'snow': 0.5, 'mean': 0.65, 'minimum': 0.5}
    """
    errors = error_table(table, network)
    every = of_all_distributions(errors)
    rows = []
    for (name, distribution), own in errors.groupby(["network", "distribution"], sort=True):
        before = float(own.loc[own["prune_ratio"] == UNPRUNED, "error"].iloc[0])
        ratios, found = own["prune_ratio"].tolist(), own["error"].tolist()
        potential = prune_potential(ratios, found, before, delta)
        rows.append((name, distribution, potential, before, max(ratios)))
    columns = ["network", "distribution", "potential", "unpruned_error", "largest_ratio"]
    frame = pd.DataFrame(rows, columns=columns)
    wide = frame.pivot(index="network", columns="distribution", values="potential")[list(every)]
    over = pd.DataFrame({"mean": wide.mean(axis=1), "minimum": wide.min(axis=1)})
    together = pd.concat([wide, over], axis=1)
    summary = pd.DataFrame(
        {"mean": together.mean(), "sd": together.std(), "n": len(together)},
        index=pd.Index([*every, "mean", "minimum"], name="distribution"),
    )
    return PrunePotentials(frame, over.reset_index(), summary, float(delta))
