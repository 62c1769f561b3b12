"""MINT: masks of whole connections, and the units that they leave without any."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from causalprune.errors import InvalidArgumentError, UnknownNameError
from causalprune.graph import UnitGraph, UnitGroup, capture
from causalprune.pruning.examples import example_of
from causalprune.pruning.footprint import sizes_of
from causalprune.pruning.masks import WeightMasks, apply_masks
from causalprune.pruning.plans import Plan
from causalprune.pruning.run import extended
from causalprune.pruning.selection import plan
from causalprune.pruning.surgery import apply
from causalprune.pruning.trace import Removal
from causalprune.pruning.weights import spread_blocks
from causalprune.scoring import Scores, mint_masks, score
from causalprune.scoring.keep_budgets import WeightBudget, weight_budget, weight_layers

__all__ = ["prune_blocks", "remove_vanished", "vanished_units"]


def prune_blocks(
    model: nn.Module,
    scores: Scores,
    share: float = 0.9,
    *,
    gamma: float = 1.0,
    layers: Sequence[str] | None = None,
) -> tuple[nn.Module, WeightBudget]:
    """Return a copy of a network whose least informative connections are zero (MINT).

    A connection is all weights from one unit to one output of a layer: a kernel, or behind a
    flatten the columns of a map. Train the copy again with the masks held
    (:func:`causalprune.pruning.retraining.retrain`), then take out what is left without a
    connection (:func:`remove_vanished`).

    Parameters
    ----------
    model : nn.Module
        Untouched.
    scores : Scores
        Of method ``"mint"``, or of another that scores connections.
    share : float
        Part of the connections to mask, in [0, 1]: one threshold for all layers together.
    gamma : float
        Largest part of one layer's connections to mask, in [0, 1].
    layers : sequence of str, optional
        Layers to mask; the others stay whole. Default: all that have scores.

    Returns
    -------
    nn.Module
        Of the same classes and shapes as `model`.
    WeightBudget
        ``masks`` (layer name to what stays, bool in the shape of the weight; masked layers only)
        and ``keep_ratio``, the parameters that are not masked by all.

    Raises
    ------
    UnknownNameError
        If a layer has no scores.
    InvalidArgumentError
        If a share is out of range, or the scores are not of connections.

    Notes
    -----
    Source: Ganesh, Corso, Sekeh (2020), "MINT: Deep network compression via mutual
    information-based neuron trimming", section 3.

    Examples
    --------
    >>> _ = torch.manual_seed(0)
    >>> model = nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 2))
    >>> scores = score(model, (torch.randn(200, 4), torch.arange(200) % 2), "mint")
    >>> sparse, budget = prune_blocks(model, scores, 0.6)
    >>> int((sparse[2].weight != 0).sum()), round(budget.keep_ratio, 3)
    (4, 0.838)
    """
    if not scores.edges:
        raise InvalidArgumentError(
            f"scores: expected a method that scores connections, such as 'mint', got "
            f"{scores.method!r}"
        )
    for name in layers or ():
        if name not in scores.edges:
            raise UnknownNameError("layer to mask", name, scores.edges)
    chosen = {n: edge for n, edge in scores.edges.items() if layers is None or n in layers}
    masks = spread_blocks(model, scores, mint_masks(chosen, share, gamma))
    sparse = copy.deepcopy(model)
    apply_masks(sparse, masks)
    return sparse, weight_budget(model, masks, {}, None)


def vanished_units(
    model: nn.Module, graph: UnitGraph, masks: WeightMasks
) -> dict[str, tuple[int, ...]]:
    """Find the units whose whole column or row is masked.

    Parameters
    ----------
    model : nn.Module
    graph : UnitGraph
    masks : Mapping of str to Tensor
        Layer name to what stays, bool in the shape of the weight.

    Returns
    -------
    dict of str to tuple of int
        Group name to the units that no consumer reads (whole columns), or that no producer makes
        (whole rows: they are constant); ascending. Groups that cannot be removed for good, and
        those without such units, are missing. Of a group that would vanish whole the first unit
        stays.

    Examples
    --------
    >>> model = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 1))
    >>> graph = capture(model, torch.zeros(1, 2))
    >>> vanished_units(model, graph, {"2": torch.tensor([[True, False, True]])})
    {'0': (1,)}
    """
    found = {}
    for group in graph.removable:
        gone = _unread(model, group, masks) | _unmade(model, group, masks)
        units = gone.nonzero().flatten().tolist()
        if len(units) == group.n_units:
            units = units[1:]
        if units:
            found[group.name] = tuple(units)
    return found


def remove_vanished(
    model: nn.Module, masks: WeightMasks, example: Tensor
) -> tuple[nn.Module, Plan]:
    """Remove for good the units whose whole column or row is masked.

    A unit that nobody reads goes without a trace. One that no weight makes has the same value on
    every image, which its consumers' biases take over: exactly, but for the border that padding
    adds to a map.

    Parameters
    ----------
    model : nn.Module
        With zeros where `masks` has them; untouched.
    masks : Mapping of str to Tensor
        Layer name to what stays, bool in the shape of the weight.
    example : Tensor [N, ...]
        An input.

    Returns
    -------
    nn.Module
        Smaller where a unit vanished; zeros elsewhere stay.
    Plan
        What went.

    Raises
    ------
    InvalidArgumentError
        If a masked weight of the network is not zero.
    UnsupportedModelError
        As :func:`causalprune.pruning.apply`.

    Examples
    --------
    >>> model = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 1))
    >>> masks = {"2": torch.tensor([[True, False, True]])}
    >>> apply_masks(model, masks)
    >>> small, plan = remove_vanished(model, masks, torch.zeros(1, 2))
    >>> small[0].out_features, plan.remove
    (2, {'0': (1,)})
    """
    layers = weight_layers(model)
    for name, mask in masks.items():
        if bool((layers[name].weight.detach().cpu()[~mask] != 0).any()):
            raise InvalidArgumentError(f"model: expected zeros where {name!r} is masked")
    names = score(model, example, "random", max_images=1)
    image = example_of(model, names.example_shape, names.example_dtype, example)
    graph = capture(model, image)
    gone = vanished_units(model, graph, masks)
    removals = [Removal(group, unit, 0.0) for group, units in gone.items() for unit in units]
    nothing = replace(plan(model, names, 0.0, example=image), method="mint")
    decided = extended(nothing, removals, sizes_of(model, graph, image))
    constant = any(
        bool(_unmade(model, graph.group(group), masks)[list(units)].any())
        for group, units in gone.items()
    )
    folding: dict[str, Any] = {"compensation": "mean", "data": image} if constant else {}
    return apply(model, decided, example=image, **folding), decided


def _unread(model: nn.Module, group: UnitGroup, masks: WeightMasks) -> Tensor:
    """Whether the columns of a unit [n_units] are masked in everything that reads it."""
    readers = [(each.layer, each.columns, 1) for each in group.consumers]
    return _all_masked(model, group, masks, readers)


def _unmade(model: nn.Module, group: UnitGroup, masks: WeightMasks) -> Tensor:
    """Whether the rows of a unit [n_units] are masked in everything that makes it."""
    makers = [(e.layer, e.columns, 0) for e in group.owned if e.role in ("producer", "depthwise")]
    return _all_masked(model, group, masks, makers)


def _all_masked(
    model: nn.Module,
    group: UnitGroup,
    masks: WeightMasks,
    places: Sequence[tuple[str, Callable[[Sequence[int]], Tensor], int]],
) -> Tensor:
    gone = torch.full((group.n_units,), bool(places))
    for layer, columns, dim in places:
        mask = masks.get(layer)
        whole = model.get_submodule(layer)
        if mask is None or (dim == 1 and getattr(whole, "groups", 1) != 1):
            return torch.zeros(group.n_units, dtype=torch.bool)
        stays = mask.movedim(dim, 0).flatten(1).any(1)
        gone &= torch.tensor(
            [not bool(stays[columns([unit])].any()) for unit in range(group.n_units)]
        )
    return gone
