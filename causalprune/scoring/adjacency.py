"""Layers and the units they read: parents and children of methods that compare adjacent layers."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx, nn

from causalprune.errors import InvalidArgumentError, UnsupportedModelError
from causalprune.graph import Consumer, ConsumerSite, UnitGraph
from causalprune.graph.recording import Recorder
from causalprune.scoring.consumption import layer_of

__all__ = ["Adjacency", "adjacencies", "adjacent_activations", "by_unit"]


@dataclass(frozen=True)
class Adjacency:
    """One layer that reads units.

    Attributes
    ----------
    site : ConsumerSite
    module : nn.Conv2d or nn.Linear
        The layer, or the output projection of an attention layer.
    parent_of : Tensor [I], int64
        Which parent each input channel or feature belongs to. The places of one unit (a flattened
        map, a head) are one parent, every place that belongs to no unit is a parent of its own;
        parents are numbered by their first place.
    n_parents : int
    members : Mapping of str to (Tensor [u], Tensor [u]), int64
        Group name to units and the parents that they are.
    """

    site: ConsumerSite
    module: nn.Conv2d | nn.Linear
    parent_of: Tensor
    n_parents: int
    members: Mapping[str, tuple[Tensor, Tensor]]

    @property
    def axis(self) -> int:
        """Dimension of channels or features, from the end, before and behind the layer."""
        return -3 if isinstance(self.module, nn.Conv2d) else -1

    @property
    def n_children(self) -> int:
        """Outputs of the layer."""
        return int(self.module.weight.shape[0])

    def parents(self, columns: Tensor) -> Tensor:
        """Sum the last dimension's places [..., I] over each parent: [..., n_parents]."""
        shape = (*columns.shape[:-1], self.n_parents)
        index = self.parent_of.to(columns.device)
        return columns.new_zeros(shape).index_add_(-1, index, columns)

    def connected(self) -> Tensor:
        """Whether the layer's weight ties a parent to a child: [n_children, n_parents], bool."""
        groups = self.module.groups if isinstance(self.module, nn.Conv2d) else 1
        width = len(self.parent_of) // groups
        own = torch.arange(self.n_children) // (self.n_children // groups)
        read = torch.arange(len(self.parent_of)) // width
        return self.parents((own[:, None] == read[None]).double()) > 0


def adjacencies(model: nn.Module, graph: UnitGraph, method: str) -> list[Adjacency]:
    """Every layer of `graph` that reads units, each once, in the order of the groups.

    Raises
    ------
    InvalidArgumentError
        If the units are cut on their own branch, so that the graph tells of no consumers.
    UnsupportedModelError
        If the network could not be traced, or a consumer is no layer with a weight.
    """
    if not graph.traced:
        raise UnsupportedModelError(
            f"model: method {method!r} needs the graph of the network ({graph.untraced})"
        )
    read: dict[str, list[tuple[str, int, Consumer]]] = {}
    for group in graph.groups:
        for consumer in group.consumers:
            if consumer.at_output:
                raise InvalidArgumentError(
                    f"units: method {method!r} compares units with the layers that read them, "
                    f"expected units='groups'; {group.name!r} is cut on its own branch"
                )
            read.setdefault(consumer.layer, []).append((group.name, group.n_units, consumer))
    return [_adjacency(model, graph.sites[layer], parts) for layer, parts in read.items()]


def _adjacency(
    model: nn.Module, site: ConsumerSite, parts: list[tuple[str, int, Consumer]]
) -> Adjacency:
    module = layer_of(model.get_submodule(site.layer))
    width = module.in_channels if isinstance(module, nn.Conv2d) else module.in_features
    first = np.arange(width)  # of every place the first place of its unit
    starts = {}
    for group, n_units, consumer in parts:
        units, places = _places(consumer)
        start = np.full(n_units, width)
        np.minimum.at(start, units, places)
        first[places] = start[units]
        starts[group] = start
    parents, parent_of = np.unique(first, return_inverse=True)
    members = {}
    for group, start in starts.items():
        read = np.flatnonzero(start < width)
        members[group] = (torch.from_numpy(read), torch.from_numpy(parent_of[start[read]]))
    return Adjacency(site, module, torch.from_numpy(parent_of), len(parents), members)


def _places(consumer: Consumer) -> tuple[Any, Any]:
    """Units [m] and the places [m] that they occupy in what the consumer reads."""
    units, places = [np.zeros(0, np.int64)], [np.zeros(0, np.int64)]
    for span in consumer.spans:
        start = span.start + np.arange(span.n_units)[:, None] * span.stride
        places.append((start + np.arange(span.width)).ravel())
        units.append(np.repeat(span.unit + np.arange(span.n_units), span.width))
    return np.concatenate(units), np.concatenate(places)


def by_unit(graph: UnitGraph, found: Iterable[tuple[Adjacency, Tensor]]) -> dict[str, Tensor]:
    """Add the scores [n_parents] of every layer's parents up by unit: group to [n_units]."""
    totals = {g.name: torch.zeros(g.n_units, dtype=torch.float64) for g in graph.groups}
    for adjacency, scores in found:
        for group, (units, parents) in adjacency.members.items():
            totals[group][units] += scores.cpu()[parents]
    return totals


def adjacent_activations(
    traced: fx.GraphModule,
    layers: Iterable[Adjacency],
    child_node: Callable[[ConsumerSite], str],
    images: Iterable[Tensor],
) -> dict[str, tuple[Tensor, Tensor]]:
    """Run images through a network and keep what every layer reads and gives.

    Parameters
    ----------
    traced : fx.GraphModule
        From :func:`causalprune.graph.trace`.
    layers : iterable of Adjacency
    child_node : callable
        Names the node whose value holds a layer's children.
    images : iterable of Tensor [n, ...]
        Batches, N images in all.

    Returns
    -------
    dict of str to (Tensor [N, n_children], Tensor [N, n_parents]), float64, CPU
        Layer name to its children and parents, one row per image: maps and tokens averaged over
        positions, a parent of several places over these too.
    """
    layers = list(layers)
    kept: dict[str, tuple[list[Tensor], list[Tensor]]] = {a.site.layer: ([], []) for a in layers}
    n_images = 0

    def keep(adjacency: Adjacency, side: int) -> Callable[[Any], Any]:
        def watch(value: Any) -> Any:
            tensor = value[0] if isinstance(value, tuple) else value
            columns = _averaged(tensor, adjacency.axis, n_images)
            if side == 1:
                sizes = torch.bincount(adjacency.parent_of, minlength=adjacency.n_parents)
                columns = adjacency.parents(columns) / sizes
            kept[adjacency.site.layer][side].append(columns)
            return value

        return watch

    # Several layers may share a node (one activation behind two branches): watch it for all.
    watching: dict[str, list[Callable[[Any], Any]]] = {}
    for a in layers:
        watching.setdefault(child_node(a.site), []).append(keep(a, 0))
    recorder = Recorder(
        traced,
        {node: _each(watchers) for node, watchers in watching.items()},
        {a.site.node: keep(a, 1) for a in layers},
        fold=False,
    )
    with torch.no_grad():
        for batch in images:
            n_images = len(batch)
            recorder.run(batch)
    return {layer: (torch.cat(below), torch.cat(above)) for layer, (below, above) in kept.items()}


def _each(watchers: list[Callable[[Any], Any]]) -> Callable[[Any], Any]:
    def watch(value: Any) -> Any:
        for each in watchers:
            each(value)
        return value

    return watch


def _averaged(value: Tensor, axis: int, n_images: int) -> Tensor:
    """Mean over everything but images and channels: [n_images, C], float64, on the CPU."""
    rows = value.movedim(axis, -1).reshape(n_images, -1, value.shape[axis])
    return rows.mean(1, dtype=torch.float64).cpu()
