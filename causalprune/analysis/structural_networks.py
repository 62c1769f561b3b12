"""What is a network's own in an outcome: a level, and a part that grows with the spread.

Empirical Bayes: how much networks differ in either is estimated from all of them, and tells how far
the trials of one are to be believed. A response in proportion to the common curve, as the second
part, told planted ones better (root mean square error 0.3 to 0.6 points instead of 0.7 to 2.4),
and trials of LeNet-5 that had collapsed, as some do at 95 % and others do not, far worse (mean
absolute error 2.6 points instead of 1.6).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__: list[str] = []

Array = NDArray[np.float64]

ROUNDS = 100


@dataclass(frozen=True)
class NetworkParts:
    """Variances of what networks have of their own, by column of effects.

    Attributes
    ----------
    variances : Array
        Before any of its trials, a network's effects are normal around 0 with these variances;
        that of the level in units of the spread of its trials, squared.
    """

    variances: Array

    def effects(
        self, residual: Array, scale: Array, columns: Array, networks: NDArray[np.int64]
    ) -> Array:
        """Return each network's effects, shrunk by how little its trials tell: networks x effects.

        Parameters
        ----------
        residual : Array
            Trials less the common curve.
        scale : Array
            Spread of each trial around its network's own curve.
        columns : Array
            What each effect is multiplied by in a trial; the first is the level's.
        networks : Array
            Which network each trial is of, from 0.
        """
        gram, told, unit = _sums(residual, scale, columns, networks)
        mean, _ = _posterior(gram, told, unit * self.variances)
        return mean


def estimated_parts(
    residual: Array, scale: Array, columns: Array, networks: NDArray[np.int64]
) -> NetworkParts:
    """Estimate the variances by maximum likelihood (EM for random effects).

    Laird and Ware, Random-Effects Models for Longitudinal Data, Biometrics 38 (1982). Parameters
    as for `NetworkParts.effects`. A single network has nothing of its own.
    """
    gram, told, unit = _sums(residual, scale, columns, networks)
    variances = np.ones(columns.shape[1])
    if len(gram) < 2:
        return NetworkParts(0 * variances)
    for _ in range(ROUNDS):
        mean, covariance = _posterior(gram, told, unit * variances)
        second = mean**2 + np.diagonal(covariance, axis1=1, axis2=2)
        variances = np.mean(second / unit, axis=0)
    return NetworkParts(variances)


def _sums(
    residual: Array, scale: Array, columns: Array, networks: NDArray[np.int64]
) -> tuple[Array, Array, Array]:
    """Return by network what its trials tell of its effects, and the units of the variances."""
    count, width = int(networks.max()) + 1, columns.shape[1]
    scaled = columns / scale[:, None]
    gram, told = np.zeros((count, width, width)), np.zeros((count, width))
    np.add.at(gram, networks, scaled[:, :, None] * scaled[:, None, :])
    np.add.at(told, networks, scaled * (residual / scale)[:, None])
    trials = np.bincount(networks, minlength=count)
    # Geometric: where heavy pruning scatters a hundred times as far, it alone would decide.
    typical = np.exp(np.bincount(networks, weights=np.log(scale), minlength=count) / trials)
    unit = np.ones((count, width))
    unit[:, 0] = typical**2
    return gram, told, unit


def _posterior(gram: Array, told: Array, prior: Array) -> tuple[Array, Array]:
    """Return mean and covariance of each network's effects."""
    # In units of the prior: (I + D G D)^-1, which is well conditioned and takes variances of 0.
    root = np.sqrt(prior)
    inner = np.eye(gram.shape[1]) + root[:, :, None] * gram * root[:, None, :]
    covariance = root[:, :, None] * np.linalg.inv(inner) * root[:, None, :]
    return np.einsum("kij,kj->ki", covariance, told), covariance
