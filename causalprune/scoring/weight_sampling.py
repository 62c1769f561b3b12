"""Drawing the weights of a filter by their sensitivity, and how many draws each filter gets."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from causalprune.errors import InvalidArgumentError

__all__ = ["SignedRows", "sample_counts", "sampling_errors", "signed_rows"]


@dataclass(frozen=True)
class SignedRows:
    """The weights of a layer by filter and sign, most sensitive first.

    Attributes
    ----------
    order : Tensor [n], int64
        Places in the flattened weight.
    row : Tensor [n], int64
        Filter and sign of each, ``2 * filter + (1 if negative else 0)``, ascending.
    values : Tensor [n], float64
        Their sensitivities.
    n_rows : int
        Twice the number of filters.
    """

    order: Tensor
    row: Tensor
    values: Tensor
    n_rows: int

    @property
    def sums(self) -> Tensor:
        """Sum of the sensitivities of every row [n_rows]."""
        return self._by_row(self.values)

    def _by_row(self, values: Tensor) -> Tensor:
        return torch.zeros(self.n_rows, dtype=torch.float64).index_add_(0, self.row, values)

    def drawn(self, counts: Tensor, generator: torch.Generator) -> Tensor:
        """Draw ``counts[i]`` weights of row i with replacement, by their sensitivity.

        Returns
        -------
        Tensor [n], float64
            In the order of `values`: ``c / (m q)`` of a weight drawn c times of m with
            probability q.
        """
        ends = self.values.cumsum(0)
        sums = self.sums
        starts = torch.cat([ends.new_zeros(1), ends])[self._first()]
        row = torch.repeat_interleave(torch.arange(self.n_rows), counts)
        uniform = torch.rand(len(row), generator=generator, dtype=torch.float64)
        found = torch.searchsorted(ends, starts[row] + uniform * sums[row], right=True)
        # At the seams rounding may lead into the next row.
        last = self._first() + torch.bincount(self.row, minlength=self.n_rows) - 1
        found = torch.minimum(torch.maximum(found, self._first()[row]), last[row])
        times = torch.bincount(found, minlength=len(self.values)).double()
        expected = (counts / sums)[self.row] * self.values
        return torch.where((times > 0) & (self.values > 0), times / expected, 0.0)

    def mixed(self, counts: Tensor, errors: Tensor, drawn: Tensor) -> Tensor:
        """Replace the draws of rows whose ``counts[i]`` most sensitive weights drop less.

        Parameters
        ----------
        counts : Tensor [n_rows], int64
        errors : Tensor [n_rows]
            Of the draws; of the others it is the sum of the sensitivities that go.
        drawn : Tensor [n]
            From :meth:`drawn`.
        """
        rank = torch.arange(len(self.values)) - self._first()[self.row]
        top = (rank < counts[self.row]) & (self.values > 0)
        dropped = self._by_row(torch.where(top, 0.0, self.values))
        return torch.where((dropped <= errors)[self.row], top.double(), drawn)

    def unsorted(self, values: Tensor) -> Tensor:
        """Bring values [n] into the order of the flattened weight."""
        return torch.empty_like(values).index_copy_(0, self.order, values)

    def _first(self) -> Tensor:
        """Where every row begins [n_rows]."""
        return torch.searchsorted(self.row, torch.arange(self.n_rows))


def signed_rows(weight: Tensor, sensitivities: Tensor) -> SignedRows:
    """Sort the weights [O, ...] of a layer into rows of one filter and sign.

    Examples
    --------
    >>> rows = signed_rows(torch.tensor([[1.0, -2.0, 3.0]]), torch.tensor([[0.25, 1.0, 0.75]]))
    >>> rows.order.tolist(), rows.row.tolist()
    ([2, 0, 1], [0, 0, 1])
    """
    values = sensitivities.detach().cpu().double().flatten()
    filters = torch.arange(len(weight)).repeat_interleave(weight[0].numel())
    row = 2 * filters + (weight.detach().cpu().flatten() < 0)
    order = torch.sort(values, descending=True, stable=True).indices
    order = order[torch.sort(row[order], stable=True).indices]
    return SignedRows(order, row[order], values[order], 2 * len(weight))


def sampling_errors(alpha: Tensor, counts: Tensor) -> Tensor:
    """Bound on a row's relative error [n] after `counts` draws: ``(t + sqrt(t^2 + 6 t)) / 2``.

    ``t = alpha / (3 counts)``; infinite without a draw.

    Examples
    --------
    >>> sampling_errors(torch.tensor([6.0, 6.0]), torch.tensor([1, 100])).tolist()[0]
    3.0
    """
    t = alpha / (3 * counts)
    return (t + (t * t + 6 * t).sqrt()) / 2


def sample_counts(alpha: Tensor, importance: Tensor, budget: int) -> Tensor:
    """Return the numbers of draws that minimise the sum of errors within a budget, exactly.

    Minimises ``sum_i importance_i err(alpha_i, m_i)`` subject to ``sum m_i <= budget``; the errors
    are convex in m, so draws go where one more lowers the sum most, until the budget is spent.

    Parameters
    ----------
    alpha : Tensor [n], float64
        Where it is zero the error is zero without a draw; elsewhere there is at least one.
    importance : Tensor [n], float64
    budget : int

    Returns
    -------
    Tensor [n], int64

    Raises
    ------
    InvalidArgumentError
        If the budget is smaller than the number of positive alphas.

    Examples
    --------
    >>> sample_counts(torch.tensor([6.0, 0.0, 6.0]).double(), torch.ones(3).double(), 7)
    tensor([4, 0, 3])
    """
    counts = torch.zeros(len(alpha), dtype=torch.int64)
    active = (alpha > 0).nonzero()[:, 0]
    if budget < len(active):
        raise InvalidArgumentError(
            f"keep_ratio: expected one that leaves at least {len(active)} weights, one for each "
            f"sign of every filter, got one that leaves {budget}"
        )
    if not len(active):
        return counts
    a, w = alpha[active], importance[active]
    # The gain of the last draw at which everybody stops; counts fall as it rises.
    low, high = -700.0, float(_gain(a, w, torch.ones_like(active)).log().max()) + 1.0
    found = torch.ones_like(active)
    while int(found.sum()) < budget and high - low > 1e-12:
        middle = (low + high) / 2
        more = _draws_above(a, w, math.exp(middle), budget)
        if int(more.sum()) > budget:
            low = middle
        else:
            high, found = middle, more
    for _ in range(budget - int(found.sum())):  # ties at the last gain
        found[int(_gain(a, w, found).argmax())] += 1
    counts[active] = found
    return counts


def _gain(alpha: Tensor, importance: Tensor, counts: Tensor) -> Tensor:
    """Compute what one more draw takes off the weighted error."""
    return importance * (sampling_errors(alpha, counts) - sampling_errors(alpha, counts + 1))


def _draws_above(alpha: Tensor, importance: Tensor, gain: float, most: int) -> Tensor:
    """Count everybody's draws up to the last one that gains at least `gain`, int64."""
    low = torch.ones(len(alpha), dtype=torch.int64)
    high = torch.full_like(low, most)
    while bool((low < high).any()):
        middle = (low + high + 1) // 2
        # The first draw is given: without it the error is infinite.
        worth = (middle == 1) | (_gain(alpha, importance, middle - 1) >= gain)
        low, high = torch.where(worth, middle, low), torch.where(worth, high, middle - 1)
    return low
