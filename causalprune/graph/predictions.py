"""What the other units of its group tell about a unit: linear predictions from calibration."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from causalprune.graph.units import Consumer, UnitGroup

__all__ = ["RIDGE", "Prediction", "PredictionFit", "in_systems", "predicted", "systems_of"]

RIDGE = 1e-3
"""Ridge of a regression, as a fraction of every regressor's own variance, so that the scale of a
unit does not matter."""

_ROWS = 2**15
"""Positions that are turned to float64 at once."""


@dataclass(frozen=True)
class Prediction:
    """The best linear prediction of units from the other units of their group, at one consumer.

    Every one of S regressions has the same u units, each with d places along the consumer's
    axis: S = 1, d = 1 for channels and features; S = the width of a flattened map, d = 1, so that
    a place is predicted from the same place of the other maps; S = 1, d = the width of a head.

    Attributes
    ----------
    units : Tensor [u], int64
    places : Tensor [S, u, d], int64
        Along the consumer's axis.
    weights : Tensor [S, u, d, u * d], float64
        0 where a unit would predict itself.
    constants : Tensor [S, u, d], float64
    """

    units: Tensor
    places: Tensor
    weights: Tensor
    constants: Tensor

    def of(self, value: Tensor, axis: int, index: int) -> Tensor:
        """Return what stands in the places of unit ``units[index]`` when it is predicted.

        Parameters
        ----------
        value : Tensor
            What the consumer reads; the unit's own places are not looked at.
        axis : int
            Dimension of the units in `value`.
        index : int

        Returns
        -------
        Tensor
            The shape of `value` with ``S * d`` at `axis`.
        """
        known = self._regressors(value.movedim(axis, -1))
        weights = self.weights[:, index].to(value)
        # A removed unit must not leave a NaN behind, which 0 * NaN would.
        known = self._without(known, index)
        new = torch.einsum("...sk,sek->...se", known, weights) + self.constants[:, index].to(value)
        return new.flatten(-2).movedim(-1, axis)

    def of_all(self, value: Tensor, axis: int, *, into: Tensor) -> Tensor:
        """Return `into` with every unit's places as predicted from the others' in `value`."""
        weights, constants = self.weights.flatten(1, 2).to(value), self.constants.to(value)
        known = self._regressors(value.movedim(axis, -1))
        new = torch.einsum("...sk,sek->...se", known, weights) + constants.flatten(1)
        places = self.places.flatten().to(value.device)
        return into.movedim(axis, -1).index_copy(-1, places, new.flatten(-2)).movedim(-1, axis)

    def _regressors(self, value: Tensor) -> Tensor:
        """Every regression's values [..., S, u * d] out of [..., C]."""
        places = self.places.flatten()
        if not torch.equal(places, torch.arange(value.shape[-1])):
            value = value.index_select(-1, places.to(value.device))
        return value.reshape(*value.shape[:-1], len(self.places), -1)

    def _without(self, known: Tensor, index: int) -> Tensor:
        width = self.places.shape[2]
        own = torch.arange(index * width, (index + 1) * width, device=known.device)
        return known.index_fill(-1, own, 0.0)


def predicted(
    predictions: Sequence[Prediction], value: Tensor, axis: int, unit: int
) -> Tensor | None:
    """Return what stands in the places of `unit`; ``None`` where it has none."""
    for prediction in predictions:
        found = (prediction.units == unit).nonzero()
        if len(found):
            return prediction.of(value, axis, int(found[0]))
    return None


def systems_of(group: UnitGroup, consumer: Consumer) -> list[tuple[Tensor, Tensor]]:
    """Regressions at a consumer: units [u] that have as many places, and their places [S, u, d].

    Examples
    --------
    >>> from causalprune.graph.units import Span
    >>> flattened = Consumer("fc", "linear", 2, (Span(0, 3, 0, stride=2, width=2),))
    >>> group = UnitGroup("conv", "filter", 3, (), (flattened,))
    >>> ((units, places),) = systems_of(group, flattened)
    >>> places.tolist()  # the first pixel of every map, then the second one
    [[[0], [2], [4]], [[1], [3], [5]]]
    """
    n_units, found = group.n_units, []
    columns = [consumer.columns([unit]) for unit in range(n_units)]
    for width in sorted({len(places) for places in columns} - {0}):
        units = [unit for unit in range(n_units) if len(columns[unit]) == width]
        places = torch.stack([columns[unit] for unit in units])
        found.append((torch.tensor(units), in_systems(group, places)))
    return found


def in_systems(group: UnitGroup, places: Tensor) -> Tensor:
    """Return places [u, m] as [S, u, d]: a head's columns mean something together, pixels alone."""
    return places[None] if group.kind == "head" else places.T[:, :, None]


class PredictionFit:
    """Adds up what the regressions of one :class:`Prediction` need.

    Parameters
    ----------
    units : Tensor [u], int64
    places : Tensor [S, u, d], int64
    """

    def __init__(self, units: Tensor, places: Tensor) -> None:
        self._units, self._places = units, places
        size = places[0].numel() + 1
        self._gram = torch.zeros(len(places), size, size, dtype=torch.float64)

    def add(self, value: Tensor, axis: int) -> None:
        """Add what the consumer reads, all images and positions of it."""
        columns = value.movedim(axis, -1).flatten(0, -2)
        for part in torch.split(columns, _ROWS):
            chosen = part.index_select(-1, self._places.flatten().to(part.device)).double()
            systems = chosen.reshape(len(part), len(self._places), -1).transpose(0, 1)
            ones = torch.ones_like(systems[..., :1])
            rows = torch.cat([systems, ones], -1)
            self._gram += (rows.transpose(1, 2) @ rows).cpu()

    def solve(self) -> Prediction:
        """Return the ridge regressions of every unit on the others, with a free constant.

        The inverse P of the others' and the unit's regularised covariance holds them all: the
        coefficients of unit i are ``-P_ii^-1 P_ij``, as if it had been left out and solved for.
        """
        n_systems, n_units, width = self._places.shape
        count, size = self._gram[:, -1:, -1], n_units * width
        mean = self._gram[:, :-1, -1] / count
        covariance = self._gram[:, :-1, :-1] / count[..., None] - mean[..., None] * mean[:, None]
        variance = covariance.diagonal(dim1=1, dim2=2)
        # A unit that never changes tells nothing, and is its mean.
        ridge = torch.where(variance > 0, RIDGE * variance, 1.0)
        inverse = torch.linalg.inv(covariance + torch.diag_embed(ridge))
        rows = inverse.reshape(n_systems, n_units, width, size)
        index = torch.arange(n_units)
        blocks = rows.reshape(n_systems, n_units, width, n_units, width)
        own = blocks[:, index, :, index].movedim(0, 1)
        weights = -torch.linalg.solve(own, rows)
        weights.view_as(blocks)[:, index, :, index] = 0.0
        constants = (mean - (weights.flatten(1, 2) @ mean[..., None])[..., 0]).view(
            n_systems, n_units, width
        )
        return Prediction(self._units, self._places, weights, constants)
