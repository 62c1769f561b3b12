"""Provable filter pruning: how much of any one output a channel ever carries."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from causalprune.graph import UnitGraph, UnitGroup
from causalprune.scoring.methods import Job, MethodResult, UnitScores, register_method
from causalprune.scoring.sensitivities import (
    CONSTANT,
    DELTA,
    FORWARDS_PER_IMAGE,
    check_bound,
    relative_sensitivities,
    sample_note,
    unit_values,
    unwatched,
)
from causalprune.scoring.unit_budgets import UnitBudget, network_size, search_units

__all__ = ["channel_budget", "pfp"]

LOG_EPSILON = 30.0
"""epsilon is sought between exp(-30), where all that matters stays, and exp(30)."""


@register_method("pfp", needs_labels=False, outcomes=())
def pfp(job: Job) -> MethodResult:
    """Channel sensitivity: a unit's largest share in any sum of its consumers.

    The importance is the maximum over the consumers, their filters and kernel positions (for a
    flattened unit: its columns), all output positions, and all points of the relative sensitivity
    (:func:`causalprune.ops.relative_sensitivity`), in [0, 1]; an image with negative values is two
    points. Units read by something that cannot be watched (heads) get the largest value, 1, and a
    note. Source: Liebenwein, Baykal, Lang, Feldman, Rus 2020, "Provable filter
    pruning for efficient neural networks"; :func:`channel_budget` allocates by it.

    Raises
    ------
    DataError
        If a layer's input is not finite.
    InvalidArgumentError
        If a weight is not finite, or units are cut on their own branches (``units="filters"``).
    """
    edges, n_images = relative_sensitivities(job, "max")
    units: dict[str, UnitScores] = {}
    notes = list(sample_note(job.model, n_images))
    share = FORWARDS_PER_IMAGE * n_images / job.n_units
    for group in job.graph.groups:
        values, missing = unit_values(group, job.model, edges, "amax", "pfp")
        if missing:
            values.fill_(1.0)
            notes.append(unwatched(group.name, missing, "1"))
        units[group.name] = UnitScores(values, n=n_images, cost=share)
    return MethodResult(units, edges, tuple(notes))


def channel_budget(
    model: nn.Module,
    graph: UnitGraph,
    sensitivities: Mapping[str, Tensor],
    keep_ratio: float,
    *,
    original_size: int | None = None,
    constant: float = CONSTANT,
    delta: float = DELTA,
) -> UnitBudget:
    """Keep in every group what one error bound epsilon asks for.

    With s_j the channel sensitivities of a group, ``p_j = s_j / sum(s)``, P output positions and
    kappa kernel positions of its consumer:
    ``S~ = 2 C ln(8 (P + 1) kappa / delta) sum(s)``, ``M = ceil(3 (6 + 2 epsilon) S~ / epsilon^2)``
    and ``kept = clip(ceil(sum_j(1 - (1 - p_j)^M)), 1, n)``; the units of highest sensitivity stay,
    and the producers shrink alike. epsilon is solved for so that ``sum of in * out * kappa``
    meets the budget of the keep ratio. Where several consumers read a group, the largest
    (P + 1) kappa counts (reconstructed: the source has chains of layers only).

    Parameters
    ----------
    model : nn.Module
    graph : UnitGraph
    sensitivities : Mapping of str to Tensor
        Group name to ``pfp``'s importance [n_units].
    keep_ratio : float
        Parameters left by the original size, in (0, 1].
    original_size : int, optional
        Parameters of the original network. Default: those of `model`.
    constant, delta : float
        C and delta.

    Returns
    -------
    UnitBudget
        With ``setting`` epsilon.

    Raises
    ------
    InvalidArgumentError
        If the keep ratio is out of range or too small for a unit per group, or sensitivities do
        not fit.

    Examples
    --------
    >>> from causalprune.graph import capture
    >>> model = nn.Sequential(nn.Linear(4, 10), nn.ReLU(), nn.Linear(10, 2))
    >>> graph = capture(model, torch.zeros(1, 4))
    >>> channel_budget(model, graph, {"0": torch.arange(1.0, 11.0)}, 0.5).kept
    {'0': (5, 6, 7, 8, 9)}
    """
    check_bound(constant, delta)
    size = network_size(model, graph, sensitivities)
    values = {name: sensitivities[name].detach().cpu().double() for name in size.order}
    factors = {
        name: 2 * constant * math.log(8 * _reach(model, graph, graph.group(name)) / delta)
        for name in size.order
    }

    def kept_at(minus_log_epsilon: float) -> dict[str, int]:
        epsilon = math.exp(-minus_log_epsilon)
        return {name: _kept(s, factors[name], epsilon) for name, s in values.items()}

    return search_units(
        size,
        keep_ratio,
        kept_at,
        (-LOG_EPSILON, LOG_EPSILON),
        original_size=original_size,
        setting=lambda minus_log_epsilon: math.exp(-minus_log_epsilon),
    )


def _reach(model: nn.Module, graph: UnitGraph, group: UnitGroup) -> int:
    """(P + 1) kappa of the consumer for which it is largest."""
    found = [1]
    for consumer in group.consumers:
        weight = getattr(model.get_submodule(consumer.layer), "weight", None)
        taps = weight[0, 0].numel() if isinstance(weight, Tensor) else 1
        kernel = taps * consumer.features_per_unit
        found.append((graph.positions.get(consumer.layer, 1) + 1) * kernel)
    return max(found)


def _kept(sensitivities: Tensor, factor: float, epsilon: float) -> int:
    total = float(sensitivities.sum())
    if total <= 0:
        return 1
    draws = float(math.ceil(3 * (6 + 2 * epsilon) * factor * total / epsilon**2))
    stays = -torch.expm1(draws * torch.log1p(-sensitivities / total))
    # A whole number of units must not become one more by rounding.
    return min(max(math.ceil(float(stays.sum()) - 1e-9), 1), len(sensitivities))
