"""Where in the image the kept paths of an explanatory graph raise the class logit."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from causalprune.errors import DataError, InvalidArgumentError
from causalprune.graph import evaluating
from causalprune.graph.recording import frozen
from causalprune.scoring.consumption import Reading, layer_of
from causalprune.scoring.explanatory import Network, network_of
from causalprune.scoring.explanatory_graph import ExplanatoryGraph, ExplanatoryLayer
from causalprune.scoring.explanatory_maps import (
    Grid,
    check_images,
    grid_of,
    outputs_of,
    places_of,
)

__all__ = ["contribution_map", "contributions_on", "mapped_layer"]

FINE_ENOUGH = 7
"""Positions a side from which on a map says where in the image something is."""


def contribution_map(
    model: nn.Module, images: Tensor, graph: ExplanatoryGraph, layer: str
) -> Tensor:
    """Show where the kept paths of a layer raise the class logit and where they lower it.

    For the causes i and effects j of a layer, ``x_i(q) * dY_E/dx_i(q)`` over the positions q of
    what the layer reads, summed over i, where only what goes through the effects j counts: the
    first-order effect on the logit of these paths at q. Resized to the image (bilinear) and
    divided by the change of area, so that a map's sum stays that of the layer.

    Parameters
    ----------
    model : nn.Module
        The network that `graph` explains. It is evaluated in eval mode and not changed.
    images : Tensor [N, C, H, W]
    graph : ExplanatoryGraph
    layer : str
        A layer of ``graph.layers`` with positions; :func:`mapped_layer` names the usual one.

    Returns
    -------
    Tensor [N, H, W], dtype of the layer's input, on the device of `images`
        In logits.

    Raises
    ------
    DataError
        If the graph does not hold the layer, or nothing causes it.
    InvalidArgumentError
        If the layer has no positions, or `images` are none.

    Notes
    -----
    Not the published map (:func:`attribution_map`), which has no sign: the first-order path
    effects of methods of Ahmad, Béreux, Baret et al. 2023, summed over the graph's edges.

    Examples
    --------
    >>> from causalprune.scoring import explain
    >>> _ = torch.manual_seed(0)
    >>> model = nn.Sequential(
    ...     nn.Conv2d(1, 3, 3), nn.ReLU(), nn.Conv2d(3, 2, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten()
    ... )
    >>> x = torch.rand(30, 1, 8, 8)
    >>> k = int(model(x).argmax(1).mode().values)
    >>> graph = explain(model, (x, torch.full((30,), k)), k)
    >>> contribution_map(model, x[:2], graph, "2").shape
    torch.Size([2, 8, 8])
    """
    check_images(images)
    with torch.inference_mode(False), evaluating(model), torch.no_grad():
        network = network_of(model, images[:1])
        return contributions_on(network, model, images, graph, layer)


def mapped_layer(network: Network, graph: ExplanatoryGraph) -> str | None:
    """Return the layer that a picture of the class is drawn from; None where none has positions.

    The nearest to the logits that reads at least 7 x 7 positions; without one, the layer with the
    most positions.
    """
    grids = {}
    for found in graph.layers:
        if not found.causes:
            continue
        reading = next(r for r in network.readings if r.site.layer == found.layer)
        grid = grid_of(network.traced, reading)
        if grid is None or grid == (1, 1) or not _has_positions(reading, found, grid):
            continue
        if min(grid) >= FINE_ENOUGH:
            return found.layer
        grids[found.layer] = grid[0] * grid[1]
    return max(grids, key=lambda name: grids[name]) if grids else None


def _has_positions(reading: Reading, found: ExplanatoryLayer, grid: Grid) -> bool:
    if isinstance(layer_of(reading.module), nn.Conv2d):
        return True
    return all(len(places) == grid[0] * grid[1] for places in places_of(reading, found))


def contributions_on(
    network: Network, model: nn.Module, images: Tensor, graph: ExplanatoryGraph, layer: str
) -> Tensor:
    """:func:`contribution_map` of a network that is captured already, in eval mode."""
    found = graph.layer(layer)
    if not found.causes:
        raise DataError(f"layer: nothing causes what {layer!r} computes, so there is no map")
    reading = next(r for r in network.readings if r.site.layer == layer)
    grid = grid_of(network.traced, reading)
    if grid is None or grid == (1, 1) or not _has_positions(reading, found, grid):
        raise InvalidArgumentError(
            f"layer: expected one with positions, {layer!r} reads units without any"
        )
    outputs = outputs_of(model, network.graph, found, None)
    product = _through(model, reading, images, graph.target_class, outputs)
    places = torch.cat(places_of(reading, found)).to(product.device)
    chosen = product.index_select(1, places).reshape(len(images), -1, *grid)
    area = grid[0] * grid[1] / (images.shape[2] * images.shape[3])
    at_layer = chosen.sum(1, keepdim=True)
    sized = F.interpolate(at_layer, images.shape[2:], mode="bilinear", align_corners=False)
    return area * sized[:, 0]


def _through(
    model: nn.Module, reading: Reading, images: Tensor, target: int, outputs: Tensor
) -> Tensor:
    """``x * dY/dx`` of what a layer reads, through some of its outputs alone."""
    module = model.get_submodule(reading.site.layer)
    seen: list[tuple[Tensor, Tensor]] = []

    def note(_: nn.Module, read: tuple[Any, ...], output: Tensor) -> Tensor:
        leaf = output.detach().requires_grad_()
        seen.append((read[0].detach(), leaf))
        return leaf.clone()  # an activation in place must not change the leaf

    with torch.enable_grad(), frozen(model):
        handle = module.register_forward_hook(note)
        try:
            logits = model(images)[:, target]
        finally:
            handle.remove()
        if len(seen) != 1:
            raise InvalidArgumentError(
                f"layer: expected one that runs once an image, {reading.site.layer!r} runs "
                f"{len(seen)} times"
            )
        value, leaf = seen[0]
        (gradient,) = torch.autograd.grad(logits.sum(), leaf)
        only = torch.zeros_like(gradient)
        only[:, outputs] = gradient[:, outputs]
        value = value.requires_grad_()
        (through,) = torch.autograd.grad(module(value), value, only)
    return value.detach() * through
