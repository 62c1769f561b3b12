"""Pruning single weights and blocks of weights: zeros in a copy, and the masks that hold them."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from causalprune.errors import InvalidArgumentError, UnknownNameError, UnsupportedModelError
from causalprune.graph import UnitGraph, capture
from causalprune.graph.units import columns_in
from causalprune.measures.removal_kinds import WEIGHT_METHODS
from causalprune.pruning.masks import WeightMasks, apply_masks, n_of_m_masks
from causalprune.scoring import Scores, score
from causalprune.scoring.keep_budgets import (
    WeightBudget,
    top_weights,
    weight_budget,
    weight_layers,
)
from causalprune.scoring.outcomes import DEFAULT_OUTCOME
from causalprune.scoring.sensitivities import sample_size
from causalprune.scoring.sipp import FORMS, sipp_budget
from causalprune.scoring.wt import weight_magnitudes

__all__ = [
    "WEIGHT_METHODS",
    "check_weight_method",
    "choose_weights",
    "prune_n_of_m",
    "prune_weights",
    "spread_blocks",
]


def prune_weights(
    model: nn.Module,
    data: Any = None,
    method: str = "sipp",
    ratio: float = 0.8,
    *,
    form: str = "deterministic",
    outcome: str | Callable[..., Tensor] = DEFAULT_OUTCOME,
    max_images: int | None = None,
    batch_size: int = 256,
    seed: int = 0,
    progress: bool = False,
    **options: Any,
) -> tuple[nn.Module, WeightBudget]:
    """Return a copy of a network whose least important single weights are zero.

    One budget for the whole network: of its P parameters, biases and norms included,
    ``floor((1 - ratio) P)`` stay; those that are no weight of a convolution or linear layer stay
    all, and the weights of highest score fill the rest. The zeros are real, in dense tensors, so
    that sparse kernels and formats can take them; the network is neither smaller nor faster on
    dense ones. Unpruned weights, biases and norms are as they were.

    Parameters
    ----------
    model : nn.Module
        Takes one tensor [N, ...] and returns logits [N, K]; untouched.
    data : DataLoader, Dataset, iterable of (inputs, targets), pair of tensors, or Tensor
        See :func:`causalprune.scoring.score`; may be left out for ``"wt"``. The source takes the
        sample for ``"sipp"`` from the validation images.
    method : {"sipp", "wt", "snip"}
        Relative sensitivity, magnitude, or connection sensitivity.
    ratio : float
        Fraction of the network's parameters that becomes zero, in [0, 1).
    form : str
        Of ``"sipp"``: ``"deterministic"``, ``"randomised"`` (weights are drawn, and those that
        stay are scaled) or ``"hybrid"``; see :func:`causalprune.scoring.sipp.sipp_budget`.
    outcome : str or callable
        What ``"snip"`` takes the gradient of.
    max_images : int, optional
        Default: for ``"sipp"`` the published sample size
        (:func:`causalprune.scoring.sensitivities.sample_size`), else all.
    batch_size, seed, progress
        See :func:`causalprune.scoring.score`.
    **options
        Options of the method.

    Returns
    -------
    nn.Module
        Of the same classes and shapes as `model`.
    WeightBudget
        ``masks`` (layer name to what stays, bool in the shape of the weight), ``keep_ratio``
        (parameters left by P), ``scale``.

    Raises
    ------
    UnknownNameError
        If the method or form is unknown.
    InvalidArgumentError
        If the ratio cannot be had: biases and norms alone are more than it leaves.
    UnsupportedModelError
        If a weight is computed by a parametrization.
    CausalPruneError
        Whatever scoring raises.

    Notes
    -----
    Source: Liebenwein, Baykal, Carter, Gifford, Rus (2021), "Lost in Pruning", section 2; Lee,
    Ajanthan, Torr (2019), "SNIP".

    Examples
    --------
    >>> model = nn.Sequential(nn.Linear(4, 10), nn.ReLU(), nn.Linear(10, 2))
    >>> sparse, budget = prune_weights(model, method="wt", ratio=0.5)
    >>> sum(int((p != 0).sum()) for p in sparse.parameters()), budget.keep_ratio
    (36, 0.5)
    """
    _check_ratio(ratio)
    budget = choose_weights(
        model,
        data,
        method,
        1 - ratio,
        form=form,
        outcome=outcome,
        max_images=max_images,
        batch_size=batch_size,
        seed=seed,
        progress=progress,
        options=options,
    )
    return _masked_copy(model, budget), budget


def choose_weights(
    model: nn.Module,
    data: Any,
    method: str,
    keep_ratio: float,
    *,
    form: str = "deterministic",
    outcome: str | Callable[..., Tensor] = DEFAULT_OUTCOME,
    gone: WeightMasks | None = None,
    max_images: int | None = None,
    seed: int = 0,
    options: Mapping[str, Any] | None = None,
    **scoring: Any,
) -> WeightBudget:
    """Choose the weights that stay; see :func:`prune_weights`.

    Parameters
    ----------
    model, data, method, keep_ratio, form, outcome, max_images, seed, options
        As there.
    gone : Mapping of str to Tensor, optional
        Masks of earlier steps; what they took stays away.
    **scoring
        Further arguments of :func:`causalprune.scoring.score`.
    """
    check_weight_method(method, form, outcome)
    if method == "wt":
        for name in options or ():
            raise UnknownNameError("option of method 'wt'", name, ())
        values: dict[str, Tensor] = weight_magnitudes(model)
        positions: Mapping[str, int] = {}
    else:
        if data is None:
            raise InvalidArgumentError(f"data: method {method!r} needs images, got none")
        images = max_images or (sample_size(model) if method == "sipp" else None)
        scores = score(
            model,
            data,
            method,
            outcome,
            max_images=images,
            seed=seed,
            **scoring,
            **(options or {}),
        )
        values = {name: torch.from_numpy(edge) for name, edge in scores.edges.items()}
        positions = _positions(model, scores) if form != "deterministic" else {}
    before = gone or {}
    if form != "deterministic":
        budget = sipp_budget(model, values, positions, keep_ratio, form=form, seed=seed)
    else:
        values = {name: _without(each, before.get(name)) for name, each in values.items()}
        budget = top_weights(model, values, keep_ratio)
    if not before:
        return budget
    masks = {n: mask & before[n] if n in before else mask for n, mask in budget.masks.items()}
    return weight_budget(model, masks, budget.scale, None)


def prune_n_of_m(
    model: nn.Module,
    scores: Scores | None = None,
    *,
    n: int = 2,
    m: int = 4,
    layers: tuple[str, ...] | None = None,
) -> tuple[nn.Module, WeightBudget]:
    """Return a copy of a network of which n of every m weights stay, along the input channels.

    The pattern of sparse tensor cores (2:4); see
    :func:`causalprune.pruning.masks.n_of_m_masks` for the layout.

    Parameters
    ----------
    model : nn.Module
        Untouched.
    scores : Scores, optional
        Of any method that scores weights or connections (``scores.edges``): a connection's score
        [O, I] counts for every kernel position and, behind a flatten, for every place of its
        unit, so that the magnitude breaks ties within. Default: magnitudes.
    n, m : int
        ``1 <= n < m``.
    layers : tuple of str, optional
        Which layers to prune. Default: every convolution and linear layer that has scores and a
        multiple of m inputs (of a group of channels); the others stay whole.

    Returns
    -------
    nn.Module, WeightBudget
        As :func:`prune_weights`.

    Raises
    ------
    InvalidArgumentError
        If n, m, a layer or its number of inputs does not fit, or a score is NaN.
    UnsupportedModelError
        If a weight is computed by a parametrization.

    Examples
    --------
    >>> sparse, budget = prune_n_of_m(nn.Linear(8, 3, bias=False))
    >>> (sparse.weight.unflatten(1, (2, 4)) != 0).sum(-1).unique().tolist(), budget.keep_ratio
    ([2], 0.5)
    """
    known = weight_layers(model)
    magnitudes = weight_magnitudes(model)
    if scores is None:
        values = magnitudes
    else:
        edges = {name: edge for name, edge in scores.edges.items() if name in known}
        if not edges:
            raise InvalidArgumentError(
                "scores: expected a method that scores weights or connections, got "
                f"{scores.method!r}"
            )
        spread = spread_blocks(model, scores, edges)
        values = {name: _by_rank(edge, magnitudes[name]) for name, edge in spread.items()}
    for name in layers or ():
        if name not in known or name not in values:
            raise UnknownNameError("layer to prune", name, values)
        if known[name].weight.shape[1] % m:
            raise InvalidArgumentError(
                f"layers: expected a multiple of {m} inputs, got {known[name].weight.shape[1]} in "
                f"layer {name!r}"
            )
    chosen = values if layers is None else {name: values[name] for name in layers}
    found = n_of_m_masks(chosen, n, m)
    whole = {name: torch.ones_like(each, dtype=torch.bool) for name, each in magnitudes.items()}
    budget = weight_budget(model, {**whole, **found}, {}, None)
    return _masked_copy(model, budget), budget


def spread_blocks(model: nn.Module, scores: Scores, blocks: Mapping[str, Any]) -> dict[str, Tensor]:
    """Bring values of connections into the shapes of the weights that they stand for.

    Parameters
    ----------
    model : nn.Module
    scores : Scores
        Those that the values come from: they tell what the network takes.
    blocks : Mapping of str to Tensor or ndarray
        Layer name to values [O, I], one for every output and input, to values [O, P], P being
        units where one unit occupies several inputs (a flattened map), or to values in the shape
        of the weight, which stay. Scores of connections, or masks from them
        (:func:`causalprune.scoring.mint_masks`).

    Returns
    -------
    dict of str to Tensor
        Layer name to values in the shape of the weight.

    Raises
    ------
    InvalidArgumentError
        If a layer is unknown or its values fit in none of these ways.

    Examples
    --------
    >>> model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten(), nn.Linear(8, 3))
    >>> scores = score(model, torch.zeros(1, 1, 4, 4), "l1")
    >>> found = spread_blocks(model, scores, {"2": torch.tensor([[True, False]] * 3)})
    >>> found["2"][0].int().tolist()
    [1, 1, 1, 1, 0, 0, 0, 0]
    """
    layers, graph, found = weight_layers(model), None, {}
    for name, values in blocks.items():
        if name not in layers:
            raise UnknownNameError("layer of blocks", name, layers)
        block = torch.as_tensor(values)
        shape = layers[name].weight.shape
        if block.shape == shape:
            found[name] = block
            continue
        if block.ndim == 2 and block.shape != shape[:2] and len(block) == shape[0]:
            graph = graph or _graph(model, scores)
            places = _unit_of_place(graph, name, shape[1])
            if block.shape[1] == int(places.max()) + 1:
                block = block[:, places]
        if block.shape != shape[:2]:
            raise InvalidArgumentError(
                f"blocks[{name!r}]: expected values for the connections of a weight "
                f"{tuple(shape)}, got shape {tuple(block.shape)}"
            )
        found[name] = block.reshape(*block.shape, *[1] * (len(shape) - 2)).expand(shape)
    return found


def _check_ratio(ratio: object) -> None:
    if isinstance(ratio, bool) or not isinstance(ratio, (int, float)) or not 0 <= ratio < 1:
        raise InvalidArgumentError(f"ratio: expected a number in [0, 1), got {ratio!r}")


def check_weight_method(method: str, form: str, outcome: object = DEFAULT_OUTCOME) -> None:
    """Refuse a method that scores no single weights, or a form or outcome that it has not."""
    if method not in WEIGHT_METHODS:
        raise UnknownNameError("method that scores single weights", method, WEIGHT_METHODS)
    if form not in FORMS:
        raise UnknownNameError("form of sipp", form, FORMS)
    if form != "deterministic" and method != "sipp":
        raise InvalidArgumentError(f"form: expected 'deterministic' for {method!r}, got {form!r}")
    if method != "snip" and outcome != DEFAULT_OUTCOME:
        raise InvalidArgumentError(
            f"outcome: method {method!r} measures no outcome that could be chosen, leave out "
            f"`outcome`; got {outcome!r}"
        )


def _masked_copy(model: nn.Module, budget: WeightBudget) -> nn.Module:
    try:
        sparse = copy.deepcopy(model)
    except Exception as error:  # user modules may hold anything
        raise UnsupportedModelError(f"model: cannot be copied: {error}") from error
    apply_masks(sparse, budget.masks, budget.scale)
    return sparse


def _without(values: Tensor, mask: Tensor | None) -> Tensor:
    """Put what is gone below every score: it must not come back where a threshold is at zero."""
    return values if mask is None else values.masked_fill(~mask, -1.0)


def _graph(model: nn.Module, scores: Scores) -> UnitGraph:
    parameter = next(model.parameters())
    image = torch.randn(scores.example_shape, generator=torch.Generator().manual_seed(0))
    return capture(model, image.to(parameter.device, getattr(torch, scores.example_dtype)))


def _positions(model: nn.Module, scores: Scores) -> Mapping[str, int]:
    return _graph(model, scores).positions


def _unit_of_place(graph: UnitGraph, layer: str, n_places: int) -> Tensor:
    """Return which unit every input of a layer belongs to [n_places], numbered by first place.

    A place without a unit is one of its own.
    """
    first = np.arange(n_places)
    for group in graph.groups:
        for consumer in group.consumers:
            if consumer.layer == layer and not consumer.at_output:
                for unit in range(group.n_units):
                    places = columns_in(consumer.spans, [unit]).numpy()
                    first[places] = places.min(initial=n_places)
    return torch.from_numpy(np.unique(first, return_inverse=True)[1])


def _by_rank(edge: Tensor, magnitude: Tensor) -> Tensor:
    """Rank of every weight by its edge's score, equal ones by magnitude [shape of the weight]."""
    if bool(edge.isnan().any()):
        raise InvalidArgumentError("scores: expected numbers, got NaN")
    order = np.lexsort((magnitude.numpy().ravel(), edge.cpu().numpy().ravel()))
    ranks = torch.empty(len(order), dtype=torch.float64)
    ranks[torch.from_numpy(order)] = torch.arange(len(order), dtype=torch.float64)
    return ranks.reshape(edge.shape)
