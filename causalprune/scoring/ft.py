"""Filter thresholding: the l1 norm of filters, the same fraction of every layer."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from causalprune.graph import UnitGraph
from causalprune.scoring.methods import Job, UnitScores, register_method
from causalprune.scoring.unit_budgets import UnitBudget, network_size, search_units
from causalprune.scoring.wt import filter_norms

__all__ = ["filter_budget", "ft", "quantiles"]


@register_method("ft", needs_data=False, needs_labels=False, outcomes=())
def ft(job: Job) -> Mapping[str, UnitScores]:
    """Rank of a unit's l1 norm within its layer, in (0, 1).

    Of n units the one with k of smaller norm has the importance ``(k + 1/2) / n``, so that a
    threshold over the whole network takes the same fraction of every layer. In a coupled group the
    norms of all producers are added. Source: Li et al. 2017; FT in Liebenwein et al. 2021, "Lost
    in Pruning"; :func:`filter_budget` solves for the fraction that a keep ratio leaves.

    Raises
    ------
    InvalidArgumentError
        If a weight is not finite.
    """
    return {name: UnitScores(quantiles(norms)) for name, norms in filter_norms(job).items()}


def quantiles(values: Tensor) -> Tensor:
    """Quantile (k + 1/2) / n of every value among its n, float64; equals in their order.

    Examples
    --------
    >>> quantiles(torch.tensor([3.0, 1.0]))
    tensor([0.7500, 0.2500], dtype=torch.float64)
    """
    # Of equals the first one ranks highest, as it does where budgets choose.
    order = torch.sort(values, descending=True, stable=True).indices
    ranks = torch.empty(len(values), dtype=torch.float64)
    ranks[order] = torch.arange(len(values) - 1, -1, -1, dtype=torch.float64)
    return (ranks + 0.5) / len(values)


def filter_budget(
    model: nn.Module,
    graph: UnitGraph,
    scores: Mapping[str, Tensor],
    keep_ratio: float,
    *,
    original_size: int | None = None,
) -> UnitBudget:
    """Keep the same fraction r of the units of every group.

    r is solved for so that ``sum of in * out * kappa`` over all layers meets the budget
    of the keep ratio. The outputs of the last layer, and units that surgery cannot remove, stay. A
    group of n units keeps ``max(1, floor(r n + 1/2))``.

    Parameters
    ----------
    model : nn.Module
    graph : UnitGraph
    scores : Mapping of str to Tensor
        Group name to scores [n_units], highest stay: ``ft``'s importance, or norms.
    keep_ratio : float
        Parameters left by the original size, in (0, 1].
    original_size : int, optional
        Parameters of the original network. Default: those of `model`.

    Returns
    -------
    UnitBudget
        With ``setting`` r.

    Raises
    ------
    InvalidArgumentError
        If the keep ratio is out of range or too small for a unit per group, or scores do not fit.

    Examples
    --------
    >>> from causalprune.graph import capture
    >>> model = nn.Sequential(nn.Linear(4, 10), nn.ReLU(), nn.Linear(10, 2))
    >>> graph = capture(model, torch.zeros(1, 4))
    >>> filter_budget(model, graph, {"0": torch.arange(10.0)}, 0.5).kept
    {'0': (5, 6, 7, 8, 9)}
    """
    size = network_size(model, graph, scores)

    def kept_at(fraction: float) -> dict[str, int]:
        return {
            name: max(1, math.floor(fraction * len(units) + 0.5))
            for name, units in size.order.items()
        }

    return search_units(size, keep_ratio, kept_at, (0.0, 1.0), original_size=original_size)
