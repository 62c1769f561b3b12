"""A pruned network back in the shape of the original: masks instead of removal."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from causalprune.errors import UnsupportedModelError
from causalprune.graph import Consumer, UnitGraph
from causalprune.scoring.keep_budgets import weight_layers

__all__ = ["expanded"]


def expanded(
    model: nn.Module,
    small: nn.Module,
    graph: UnitGraph,
    remove: Mapping[str, Sequence[int]],
) -> tuple[nn.Module, dict[str, Tensor]]:
    """Return what a pruned network computes as a network of the original's shape, with zeros.

    Parameters
    ----------
    model : nn.Module
        The original; untouched.
    small : nn.Module
        It without the units `remove`, trained on or not.
    graph : UnitGraph
        Of the original.
    remove : Mapping of str to sequence of int
        Group name to the units that went (``Plan.remove``).

    Returns
    -------
    nn.Module
        A copy of `model` with the parameters and buffers of `small`; whatever belongs to removed
        units is zero.
    dict of str to Tensor
        Masks of the layers that lost weights, for :func:`causalprune.pruning.masks.holding`. They
        hold the weights; a removed unit's bias and norm reach nobody, whatever they become.

    Raises
    ------
    UnsupportedModelError
        If surgery replaced modules by others (attention), or cut grouped convolutions anew.

    Examples
    --------
    >>> from causalprune.graph import capture
    >>> from causalprune.pruning import prune
    >>> model = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))
    >>> with torch.no_grad():
    ...     _ = model[0].weight[1].fill_(0.01)
    >>> images = torch.randn(5, 4)
    >>> small = prune(model, images, "l1", 0.3, "units")
    >>> wide, masks = expanded(model, small, capture(model, images), {"0": [1]})
    >>> bool(torch.allclose(wide(images), small(images), atol=1e-6)), masks["2"].int().tolist()
    (True, [[1, 0, 1], [1, 0, 1]])
    """
    wide, state = copy.deepcopy(model), small.state_dict()
    rows, columns = _places(graph, remove)
    kept: dict[str, Tensor] = {}
    with torch.no_grad():
        for name, tensor in wide.state_dict().items():
            part, layer = state.get(name), name.rpartition(".")[0]
            if part is None or part.ndim != tensor.ndim:
                raise UnsupportedModelError(f"model: pruning replaced {layer!r} by another module")
            if part.shape == tensor.shape:
                tensor.copy_(part)
                continue
            stays = torch.zeros(tensor.shape, dtype=torch.bool, device=tensor.device)
            index = [_left(rows.get(layer), tensor.shape[0])]
            if tensor.ndim > 1:
                index = [index[0][:, None], _left(columns.get(layer), tensor.shape[1])[None]]
            stays[tuple(index)] = True
            if int(stays.sum()) != part.numel():
                raise UnsupportedModelError(
                    f"model: {name!r} of shape {tuple(part.shape)} has no place in one of shape "
                    f"{tuple(tensor.shape)}"
                )
            tensor.zero_()
            tensor[stays] = part.to(tensor).flatten()
            kept[name] = stays.cpu()
    names = {f"{layer}.weight" if layer else "weight": layer for layer in weight_layers(wide)}
    return wide, {names[name]: mask for name, mask in kept.items() if name in names}


def _places(
    graph: UnitGraph, remove: Mapping[str, Sequence[int]]
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Return the outputs and the inputs of every layer that belong to removed units, by layer."""
    rows: dict[str, list[Tensor]] = {}
    columns: dict[str, list[Tensor]] = {}
    for name, units in remove.items():
        group = graph.group(name)
        for place in (*group.owned, *group.consumers, *group.training):
            found = columns if isinstance(place, Consumer) else rows
            found.setdefault(place.layer, []).append(place.columns(units))
    return (
        {layer: torch.cat(places) for layer, places in rows.items()},
        {layer: torch.cat(places) for layer, places in columns.items()},
    )


def _left(gone: Tensor | None, size: int) -> Tensor:
    """Places [m] of `size` that are not in `gone`, ascending."""
    stays = torch.ones(size, dtype=torch.bool)
    if gone is not None:
        stays[gone[gone < size]] = False
    return stays.nonzero().flatten()
