"""Keep ratios: how many single weights a fraction of a network's parameters leaves.

The keep ratio is the number of parameters that are left, of the whole network with its biases and
norms, divided by the number that the original had (Liebenwein et al. 2021).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from causalprune.errors import InvalidArgumentError
from causalprune.graph import Span

__all__ = [
    "OUTER_STEPS",
    "TOLERANCE",
    "WeightBudget",
    "check_keep_ratio",
    "count_parameters",
    "original_or",
    "top_weights",
    "units_and_places",
    "weight_id",
    "weight_layers",
    "weights_to_keep",
]

TOLERANCE = 0.005
"""How far the keep ratio reached may be from the one asked for, as a fraction of the latter."""

OUTER_STEPS = 20
"""Steps of Brent's method in which the keep ratio is met."""


def weight_layers(model: nn.Module) -> dict[str, nn.Conv2d | nn.Linear]:
    """Convolutions and linear layers of a network by name; a shared weight counts once."""
    seen: set[int] = set()
    layers: dict[str, nn.Conv2d | nn.Linear] = {}
    for name, module in model.named_modules():
        if isinstance(module, (nn.Conv2d, nn.Linear)) and weight_id(module) not in seen:
            seen.add(weight_id(module))
            layers[name] = module
    return layers


def weight_id(module: nn.Module) -> int:
    """Identify a layer's weight; one that is computed on every access is the layer's own."""
    own = dict(module.named_parameters(recurse=False)).get("weight")
    return id(module if own is None else own)


def units_and_places(spans: Sequence[Span], values: Tensor) -> tuple[Tensor, Tensor]:
    """Return unit and value of every place along the only dimension of `values` that has a unit."""
    units, found = [torch.zeros(0, dtype=torch.int64)], [values[:0]]
    for span in spans:
        run = torch.arange(span.n_units)
        places = (span.start + run * span.stride)[:, None] + torch.arange(span.width)
        units.append((span.unit + run).repeat_interleave(span.width))
        found.append(values[places.flatten()])
    return torch.cat(units), torch.cat(found)


def count_parameters(model: nn.Module) -> int:
    """Count the scalars in a network's parameters, shared ones once."""
    return sum(parameter.numel() for parameter in model.parameters())


def weights_to_keep(
    model: nn.Module, keep_ratio: float, *, original_size: int | None = None
) -> int:
    """Return the budget B: ``floor(keep_ratio * size)`` less what is no weight of a layer.

    Parameters
    ----------
    model : nn.Module
    keep_ratio : float
        In (0, 1].
    original_size : int, optional
        Parameters of the original network. Default: those of `model`; entries that are zero count.

    Returns
    -------
    int
        Weights of convolutions and linear layers that may stay, in all.

    Raises
    ------
    InvalidArgumentError
        If the keep ratio is out of range, or leaves no weight at all beside biases and norms.

    Examples
    --------
    >>> weights_to_keep(nn.Linear(9, 10), 0.5)
    40
    """
    size, total = (
        count_parameters(model),
        sum(layer.weight.numel() for layer in weight_layers(model).values()),
    )
    original = original_or(size, original_size)
    check_keep_ratio(keep_ratio)
    budget = math.floor(keep_ratio * original + 1e-9) - (size - total)
    if budget < 1:
        least = (size - total + 1) / original
        raise InvalidArgumentError(
            f"keep_ratio: expected at least {least:.4g}, because biases and norms alone are "
            f"{size - total} of {original} parameters, got {keep_ratio!r}"
        )
    return min(budget, total)


def check_keep_ratio(keep_ratio: float) -> None:
    """Refuse what is no fraction in (0, 1]."""
    if isinstance(keep_ratio, bool) or not isinstance(keep_ratio, (int, float)):
        raise InvalidArgumentError(f"keep_ratio: expected a number, got {keep_ratio!r}")
    if not 0 < keep_ratio <= 1:
        raise InvalidArgumentError(f"keep_ratio: expected a number in (0, 1], got {keep_ratio!r}")


def original_or(size: int, original_size: int | None) -> int:
    """Return the size of the original network: `size`, where none is given."""
    if original_size is None:
        return size
    if not isinstance(original_size, int) or original_size < size:
        raise InvalidArgumentError(
            f"original_size: expected at least the network's own {size}, got {original_size!r}"
        )
    return original_size


@dataclass(frozen=True)
class WeightBudget:
    """Which single weights stay.

    Attributes
    ----------
    masks : Mapping of str to Tensor
        Layer name to what stays, bool in the shape of the layer's weight.
    keep_ratio : float
        What is reached: weights that stay and all other parameters, by the original size.
    scale : Mapping of str to Tensor
        What the weights that stay are multiplied by, in the shape of the weight, where the choice
        was drawn at random; empty: by nothing.
    """

    masks: Mapping[str, Tensor]
    keep_ratio: float
    scale: Mapping[str, Tensor] = field(default_factory=dict)

    @property
    def kept(self) -> int:
        """Number of weights that stay."""
        return sum(int(mask.sum()) for mask in self.masks.values())


def weight_budget(
    model: nn.Module,
    masks: Mapping[str, Tensor],
    scale: Mapping[str, Tensor],
    original_size: int | None,
) -> WeightBudget:
    """Put masks together with the keep ratio that they reach."""
    size, total = count_parameters(model), sum(mask.numel() for mask in masks.values())
    kept = sum(int(mask.sum()) for mask in masks.values())
    ratio = (size - total + kept) / original_or(size, original_size)
    return WeightBudget(masks, ratio, scale)


def top_weights(
    model: nn.Module,
    scores: Mapping[str, Tensor],
    keep_ratio: float,
    *,
    original_size: int | None = None,
) -> WeightBudget:
    """Keep the weights of highest score in the whole network, as many as a keep ratio leaves.

    Parameters
    ----------
    model : nn.Module
    scores : Mapping of str to Tensor
        Layer name to scores in the shape of the layer's weight (``Scores.edges`` as tensors).
        Layers without scores stay whole, at the cost of the others.
    keep_ratio : float
    original_size : int, optional
        As in :func:`weights_to_keep`.

    Returns
    -------
    WeightBudget
        Among equal scores the first ones in the order of the network stay.

    Raises
    ------
    InvalidArgumentError
        If the keep ratio cannot be had, or a score is missing its shape or is NaN.

    Examples
    --------
    >>> model = nn.Linear(3, 1, bias=False)
    >>> top_weights(model, {"": torch.tensor([[0.3, 0.1, 0.2]])}, 0.7).masks[""].tolist()
    [[True, False, True]]
    """
    budget = weights_to_keep(model, keep_ratio, original_size=original_size)
    layers = weight_layers(model)
    check_scores(model, scores)
    masks = {
        name: torch.ones(layer.weight.shape, dtype=torch.bool)
        for name, layer in layers.items()
        if name not in scores
    }
    budget -= sum(mask.numel() for mask in masks.values())
    named = [name for name in layers if name in scores]
    if budget < 0:
        raise InvalidArgumentError(
            f"keep_ratio: layers without scores ({', '.join(masks)}) hold {-budget} weights more "
            f"than {keep_ratio!r} leaves"
        )
    if named:
        flat = np.concatenate([scores[n].detach().cpu().double().numpy().ravel() for n in named])
        chosen = torch.from_numpy(_largest(flat, budget))
        parts = torch.split(chosen, [layers[n].weight.numel() for n in named])
        for name, part in zip(named, parts, strict=True):
            masks[name] = part.reshape(layers[name].weight.shape)
    return weight_budget(model, {name: masks[name] for name in layers}, {}, original_size)


def check_scores(model: nn.Module, scores: Mapping[str, Tensor]) -> None:
    """Refuse scores that do not fit the weights of the network."""
    layers = weight_layers(model)
    for name, values in scores.items():
        if name not in layers:
            raise InvalidArgumentError(f"scores: expected layers of the network, got {name!r}")
        if values.shape != layers[name].weight.shape or bool(values.isnan().any()):
            raise InvalidArgumentError(
                f"scores: expected numbers of shape {tuple(layers[name].weight.shape)} for layer "
                f"{name!r}, got shape {tuple(values.shape)} or NaN"
            )


def _largest(values: npt.NDArray[np.float64], n: int) -> npt.NDArray[np.bool_]:
    """Mark the n largest values, among equals the first ones."""
    if n >= len(values):
        return np.ones(len(values), dtype=np.bool_)
    if n == 0:
        return np.zeros(len(values), dtype=np.bool_)
    threshold = float(np.partition(values, len(values) - n)[len(values) - n])
    chosen: npt.NDArray[np.bool_] = values > threshold
    chosen[np.flatnonzero(values == threshold)[: n - int(chosen.sum())]] = True
    return chosen
