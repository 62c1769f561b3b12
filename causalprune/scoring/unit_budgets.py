"""Keep ratios: which whole units a fraction of a network's parameters leaves."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from scipy.optimize import brentq
from torch import Tensor, nn

from causalprune.errors import InvalidArgumentError
from causalprune.graph import Owned, Span, UnitGraph
from causalprune.scoring.keep_budgets import (
    OUTER_STEPS,
    TOLERANCE,
    check_keep_ratio,
    count_parameters,
    original_or,
    weight_layers,
)

__all__ = ["NetworkSize", "UnitBudget", "network_size", "search_units"]

Counts = npt.NDArray[np.int64]


@dataclass(frozen=True)
class UnitBudget:
    """Which units stay.

    Attributes
    ----------
    kept : Mapping of str to tuple of int
        Group name to the units that stay, ascending.
    keep_ratio : float
        What is reached: parameters after surgery by the original size.
    weights : int
        Weights of convolutions and linear layers that stay, ``sum of in * out * kappa``.
    setting : float
        What was solved for: the fraction r of filters (ft), epsilon (pfp).
    reached : bool
        Whether `keep_ratio` is within 0.5 % of the one asked for; units are whole, so a small
        network may have no such choice.
    """

    kept: Mapping[str, tuple[int, ...]]
    keep_ratio: float
    weights: int
    setting: float
    reached: bool


@dataclass(frozen=True)
class _Places:
    """Places that the first k units of a group occupy: [parts, n_units + 1], by k."""

    group: str
    counts: Counts


@dataclass(frozen=True)
class _Layer:
    """A weight as parts (groups of a convolution) of in x out x kernel positions."""

    kernel: int
    fixed_outputs: Counts
    fixed_inputs: Counts
    outputs: tuple[_Places, ...]
    inputs: tuple[_Places, ...]

    def weights(self, kept: Mapping[str, int]) -> int:
        made, read = self.fixed_outputs.copy(), self.fixed_inputs.copy()
        for places in self.outputs:
            made += places.counts[:, kept[places.group]]
        for places in self.inputs:
            read += places.counts[:, kept[places.group]]
        return self.kernel * int((made * read).sum())


@dataclass(frozen=True)
class NetworkSize:
    """Size of a network as a function of how many units each group keeps, best ones first.

    Attributes
    ----------
    order : Mapping of str to tuple of int
        Group name to its units, those that stay longest first.
    whole : int
        Parameters when all stay.
    """

    order: Mapping[str, tuple[int, ...]]
    whole: int
    _layers: tuple[_Layer, ...]
    _others: tuple[_Places, ...]

    def weights(self, kept: Mapping[str, int]) -> int:
        """Weights of convolutions and linear layers, sum of in * out * kappa."""
        return sum(layer.weights(kept) for layer in self._layers)

    def parameters(self, kept: Mapping[str, int]) -> int:
        """Count all parameters that stay."""
        everything = {name: len(units) for name, units in self.order.items()}
        gone = self.weights(everything) - self.weights(kept)
        gone += sum(int((p.counts[:, -1] - p.counts[:, kept[p.group]]).sum()) for p in self._others)
        return self.whole - gone


def network_size(model: nn.Module, graph: UnitGraph, scores: Mapping[str, Tensor]) -> NetworkSize:
    """Prepare the size of a network whose groups lose their units of lowest score first.

    Parameters
    ----------
    model : nn.Module
    graph : UnitGraph
        Groups that cannot be removed for good keep all units and do not appear.
    scores : Mapping of str to Tensor
        Group name to scores [n_units]; among equal ones the first stays longest.

    Raises
    ------
    InvalidArgumentError
        If a group has no scores [n_units], or one is NaN.
    """
    order: dict[str, tuple[int, ...]] = {}
    for group in graph.groups:
        if group.surgery:
            continue
        found = scores.get(group.name)
        if found is None or found.shape != (group.n_units,) or bool(found.isnan().any()):
            raise InvalidArgumentError(
                f"scores: expected {group.n_units} numbers for the units of {group.name!r}, "
                f"got {None if found is None else found.tolist()}"
            )
        ranked = torch.sort(found.detach().cpu().double(), descending=True, stable=True).indices
        order[group.name] = tuple(ranked.tolist())
    layers = tuple(_layer(n, m, graph, order) for n, m in weight_layers(model).items())
    return NetworkSize(order, count_parameters(model), layers, tuple(_others(model, graph, order)))


def _layer(
    name: str,
    module: nn.Conv2d | nn.Linear,
    graph: UnitGraph,
    order: Mapping[str, Sequence[int]],
) -> _Layer:
    parts = module.groups if isinstance(module, nn.Conv2d) else 1
    n_outputs, n_inputs = module.weight.shape[0], module.weight.shape[1] * parts
    outputs, inputs = [], []
    for group in graph.groups:
        if group.name not in order:
            continue
        for owned in group.owned:
            if owned.layer == name and owned.role in ("producer", "depthwise"):
                outputs.append(_places(group.name, owned.spans, order, n_outputs, parts))
        for consumer in group.consumers:
            if consumer.layer == name and not consumer.at_output:
                inputs.append(_places(group.name, consumer.spans, order, n_inputs, parts))
    return _Layer(
        module.weight[0, 0].numel(),
        _fixed(n_outputs, parts, outputs),
        _fixed(n_inputs, parts, inputs),
        tuple(outputs),
        tuple(inputs),
    )


def _fixed(n: int, parts: int, places: Sequence[_Places]) -> Counts:
    fixed = np.full(parts, n // parts, dtype=np.int64)
    for p in places:
        fixed -= p.counts[:, -1]
    return fixed


def _places(
    group: str,
    spans: Sequence[Span],
    order: Mapping[str, Sequence[int]],
    n_places: int,
    parts: int,
) -> _Places:
    n_units = len(order[group])
    counts = np.zeros((parts, n_units), dtype=np.int64)
    for span in spans:
        run = np.arange(span.n_units)
        first = span.start + run * span.stride
        for k in range(span.width):
            np.add.at(counts, ((first + k) * parts // n_places, span.unit + run), 1)
    ranked = counts[:, list(order[group])]
    return _Places(group, np.concatenate([np.zeros((parts, 1), np.int64), ranked.cumsum(1)], 1))


def _others(
    model: nn.Module, graph: UnitGraph, order: Mapping[str, Sequence[int]]
) -> list[_Places]:
    """Biases, norms and the like that go with units, one entry for each tensor."""
    found = []
    for group in graph.groups:
        for owned in group.owned if group.name in order else ():
            module = model.get_submodule(owned.layer)
            for name, parameter in module.named_parameters(recurse=False):
                if name == "weight" and isinstance(module, (nn.Conv2d, nn.Linear)):
                    continue
                found.append(_vector(group.name, owned, parameter, order))
    return found


def _vector(
    group: str, owned: Owned, parameter: Tensor, order: Mapping[str, Sequence[int]]
) -> _Places:
    places = _places(group, owned.spans, order, len(parameter), 1)
    return _Places(group, places.counts * parameter[0].numel())


def search_units(
    size: NetworkSize,
    keep_ratio: float,
    kept_at: Callable[[float], Mapping[str, int]],
    bracket: tuple[float, float],
    *,
    original_size: int | None = None,
    setting: Callable[[float], float] = float,
) -> UnitBudget:
    """Find the setting of a method at which a network keeps a given fraction of its parameters.

    Inside, the setting is solved for by Brent's method so that the weights fill the budget B of
    a keep ratio; outside, that keep ratio is moved, in at most 20 steps of Brent's method, until
    the parameters that surgery would leave are within 0.5 % of the keep ratio asked for: norms
    and biases go with their units, which B takes for fixed.

    Parameters
    ----------
    size : NetworkSize
    keep_ratio : float
    kept_at : callable
        From the variable that is solved for to the units that every group keeps; none decreases.
    bracket : pair of float
        Where the fewest and where the most units stay.
    original_size : int, optional
    setting : callable
        From the variable to what is reported.

    Raises
    ------
    InvalidArgumentError
        If the keep ratio is out of range or below what the smallest choice leaves.
    """
    check_keep_ratio(keep_ratio)
    original = original_or(size.whole, original_size)
    everything = {name: len(units) for name, units in size.order.items()}
    outside = size.whole - size.weights(everything)
    tried: dict[float, tuple[float, float, dict[str, int]]] = {}

    def miss(asked: float) -> float:
        budget = math.floor(asked * original + 1e-9) - outside
        variable, kept = bracket[1], everything
        if budget < size.weights(everything):
            variable = _fill(lambda z: size.weights(kept_at(z)), budget, bracket)
            kept = dict(kept_at(variable))
        reached = size.parameters(kept) / original
        tried[asked] = (reached, variable, kept)
        # Brent's method stops at an exact zero.
        return 0.0 if abs(reached - keep_ratio) < TOLERANCE * keep_ratio else reached - keep_ratio

    if miss(0.0) > 0:
        raise InvalidArgumentError(
            f"keep_ratio: expected at least {tried[0.0][0]:.4g}, which every group's best unit "
            f"leaves, got {keep_ratio!r}"
        )
    if miss(0.0) < 0 < miss(1.0):
        brentq(miss, 0.0, 1.0, xtol=0.1 / original, maxiter=OUTER_STEPS, disp=False)
    reached, variable, kept = min(tried.values(), key=lambda each: abs(each[0] - keep_ratio))
    return UnitBudget(
        {name: tuple(sorted(size.order[name][:k])) for name, k in kept.items()},
        reached,
        size.weights(kept),
        setting(variable),
        abs(reached - keep_ratio) < TOLERANCE * keep_ratio,
    )


def _fill(weights: Callable[[float], int], budget: int, bracket: tuple[float, float]) -> float:
    """Largest variable at which there are at most `budget` weights, or the end of the bracket."""
    low, high = bracket
    if weights(low) > budget:
        return low
    if weights(high) <= budget:
        return high
    step = 1e-9 * (high - low)
    # The count jumps, so there is no exact zero to stop at; half a weight keeps it off.
    found = float(brentq(lambda z: weights(z) - budget - 0.5, low, high, xtol=step))
    while weights(found) > budget:
        found = max(low, found - step)
    return found
