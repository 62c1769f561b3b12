"""What an explanatory graph and its map are worth: the network run with and without them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from causalprune.errors import CausalPruneError
from causalprune.graph import removed
from causalprune.scoring.explanatory import Network
from causalprune.scoring.explanatory_contributions import contributions_on, mapped_layer
from causalprune.scoring.explanatory_graph import ExplanatoryGraph

__all__ = ["GraphCheck", "check_graph"]

RANDOM_DRAWS = 5
PLACES = 10
BLANKED = 0.1
"""Part of an image that is blanked to see whether a map points at what matters."""

NAN = float("nan")


@dataclass(frozen=True)
class GraphCheck:
    """What an explanatory graph and its map are worth: the network run with and without them.

    On the images that the graph rests on. Units are removed where their consumers read, only in
    groups that the graph reaches; an image is recognised when the class is predicted.

    Attributes
    ----------
    kept, units : int
        Units of the graph, and of all groups that it reaches.
    recognised_kept, recognised_random, recognised_without : float
        Part of the images that is recognised with the kept units alone; with as many of each
        group drawn at random (mean of 5 draws); and without the kept units.
    logit, logit_kept, logit_random, logit_without : float
        Mean class logit of the whole network, and of those three.
    map_layer : str
        Layer that the maps are of; empty where there is none.
    fall_mapped, fall_elsewhere : float
        Mean fall of the logit when the tenth of an image where its map is highest is set to the
        images' mean colour, and when the same shape is, moved to random places (mean of 10).
    reason : str
        Why something is missing.
    """

    kept: int
    units: int
    recognised_kept: float = NAN
    recognised_random: float = NAN
    recognised_without: float = NAN
    logit: float = NAN
    logit_kept: float = NAN
    logit_random: float = NAN
    logit_without: float = NAN
    map_layer: str = ""
    fall_mapped: float = NAN
    fall_elsewhere: float = NAN
    reason: str = ""


def check_graph(
    model: nn.Module, network: Network, images: Tensor, graph: ExplanatoryGraph, seed: int
) -> GraphCheck:
    """Run the network with and without what a graph kept, and the images without its maps' peaks.

    Parameters
    ----------
    model : nn.Module
        In eval mode.
    network : Network
        The same, captured.
    images : Tensor [n, ...]
        Those that `graph` rests on.
    graph : ExplanatoryGraph
    seed : int
        Of the random draws.
    """
    kept, target = graph.kept, graph.target_class
    sizes = {g.name: g.n_units for g in network.graph.groups if g.name in kept}
    found = GraphCheck(sum(map(len, kept.values())), sum(sizes.values()))
    if not kept:
        return replace(found, reason="no unit lowers the logit when it is cut")
    generator = torch.Generator().manual_seed(seed)

    def drawn() -> dict[str, list[int]]:
        return {
            name: torch.randperm(n, generator=generator)[: len(kept[name])].tolist()
            for name, n in sizes.items()
        }

    def of(units: Mapping[str, Sequence[int]]) -> tuple[float, float]:
        with removed(model, network.graph, units):
            logits = model(images)
        recognised = (logits.argmax(1) == target).double().mean()
        return float(recognised), float(logits[:, target].double().mean())

    def only(units: Mapping[str, Sequence[int]]) -> tuple[float, float]:
        return of({name: _rest(units[name], n) for name, n in sizes.items()})

    try:
        random = np.mean([only(drawn()) for _ in range(RANDOM_DRAWS)], 0)
        alone, without = only(kept), of(kept)
        found = replace(
            found,
            recognised_kept=alone[0],
            recognised_random=float(random[0]),
            recognised_without=without[0],
            logit=graph.mean,
            logit_kept=alone[1],
            logit_random=float(random[1]),
            logit_without=without[1],
        )
        return replace(found, **_check_of_maps(model, network, images, graph, generator))
    except CausalPruneError as error:
        return replace(found, reason=str(error))


def _check_of_maps(
    model: nn.Module,
    network: Network,
    images: Tensor,
    graph: ExplanatoryGraph,
    generator: torch.Generator,
) -> dict[str, Any]:
    """Blank the images where their maps are highest, and elsewhere."""
    if images.ndim != 4:
        return {"reason": "the network reads no images, so there is nothing to draw a map on"}
    layer = mapped_layer(network, graph)
    if layer is None:
        return {"reason": "no layer of the graph has positions, so there is no map"}
    maps = contributions_on(network, model, images, graph, layer)
    n, height, width = maps.shape
    order = maps.flatten(1).argsort(1, descending=True)
    most = torch.zeros(n, height * width, dtype=torch.bool, device=maps.device)
    most.scatter_(1, order[:, : max(1, round(BLANKED * height * width))], True)
    shape = most.reshape(maps.shape)
    colour = images.mean((0, 2, 3))[None, :, None, None]

    def fall(blank: Tensor) -> float:
        logits = model(torch.where(blank[:, None], colour, images))
        return graph.mean - float(logits[:, graph.target_class].double().mean())

    shifts = torch.randint(1, height * width, (PLACES,), generator=generator).tolist()
    moved = [shape.roll((k // width, k % width), (1, 2)) for k in shifts]
    return {
        "map_layer": layer,
        "fall_mapped": fall(shape),
        "fall_elsewhere": float(np.mean([fall(blank) for blank in moved])),
    }


def _rest(units: Sequence[int], total: int) -> list[int]:
    return sorted(set(range(total)) - set(units))
