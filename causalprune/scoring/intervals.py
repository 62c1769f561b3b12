"""Paired means per unit, accumulated over batches, and their Student-t intervals."""

from __future__ import annotations

import math

import torch
from scipy.special import stdtrit
from torch import Tensor

from causalprune.errors import InvalidArgumentError

__all__ = ["PairedMean", "student_t_quantile"]


class PairedMean:
    """Running mean, variance and mean absolute value of per-image effects, in float64.

    Batches are merged by the pairwise update of Chan, Golub and LeVeque (1983), so that a small
    spread around a large mean survives.

    Examples
    --------
    >>> total = PairedMean(1)
    >>> total.update(torch.tensor([[1.0], [3.0]]))
    >>> total.update(torch.tensor([[-1.0]]))
    >>> total.n, total.mean.item(), total.mean_absolute.item()
    (3, 1.0, 1.6666666666666667)
    >>> round(total.standard_error.item() ** 2, 3)
    1.333
    """

    def __init__(self, n_units: int) -> None:
        self.n = 0
        self.mean = torch.zeros(n_units, dtype=torch.float64)
        self._squares = torch.zeros(n_units, dtype=torch.float64)
        self._absolute = torch.zeros(n_units, dtype=torch.float64)

    def update(self, effects: Tensor) -> None:
        """Add the effects [N, n_units] of N more images."""
        effects = effects.detach().to("cpu", torch.float64)
        if not len(effects):
            return
        added = PairedMean(effects.shape[1])
        added.n, added.mean = len(effects), effects.mean(0)
        added._squares = (effects - added.mean).square().sum(0)
        added._absolute = effects.abs().sum(0)
        self.merge(added)

    def merge(self, other: PairedMean) -> None:
        """Add the images of `other`; the same parts in the same order give the same bits."""
        if not other.n:
            return
        n = self.n + other.n
        delta = other.mean - self.mean
        self._squares = self._squares + other._squares
        self._squares += delta.square() * (self.n * other.n / n)
        self._absolute = self._absolute + other._absolute
        self.mean = self.mean + delta * (other.n / n)
        self.n = n

    def state(self) -> Tensor:
        """Return the sufficient statistics [4, n_units], float64: n, mean, squares, absolute."""
        n = torch.full_like(self.mean, self.n)
        return torch.stack([n, self.mean, self._squares, self._absolute])

    @classmethod
    def of_state(cls, state: Tensor) -> PairedMean:
        """Rebuild what :meth:`state` described."""
        found = cls(state.shape[1])
        found.n = int(state[0, 0]) if state.shape[1] else 0
        found.mean, found._squares, found._absolute = (row.clone() for row in state[1:])
        return found

    @property
    def mean_absolute(self) -> Tensor:
        """Mean over images of the absolute effect [n_units]."""
        return self._absolute / self.n

    @property
    def variance(self) -> Tensor:
        """Mean squared deviation from the mean [n_units]."""
        return self._squares / self.n

    @property
    def standard_error(self) -> Tensor:
        """Standard error of the mean [n_units]; NaN for a single image."""
        if self.n < 2:
            return torch.full_like(self.mean, math.nan)
        return (self._squares / (self.n - 1) / self.n).sqrt()


def student_t_quantile(probability: float, degrees: float) -> float:
    """Quantile of Student's t distribution.

    Parameters
    ----------
    probability : float
        In (0, 1).
    degrees : float
        Degrees of freedom, at least 1.

    Raises
    ------
    InvalidArgumentError
        If an argument is out of range.

    Examples
    --------
    >>> round(student_t_quantile(0.975, 10), 6)
    2.228139
    """
    if not 0 < probability < 1 or degrees < 1:
        raise InvalidArgumentError(
            "probability, degrees: expected 0 < probability < 1 and degrees >= 1, "
            f"got {probability}, {degrees}"
        )
    return float(stdtrit(degrees, probability))
