"""What the remaining weights of a pruned network do about the units that are gone."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from causalprune.errors import InvalidArgumentError, UnknownNameError
from causalprune.graph import Recorder, UnitGraph, evaluating
from causalprune.graph.intervene import check_units
from causalprune.pruning.readers import Traced, kept_outputs, traced_of
from causalprune.pruning.refit import check_request

__all__ = ["COMPENSATIONS", "check_compensation", "fold_means"]

COMPENSATIONS = ("none", "mean", "refit")
CHUNK = 64
"""Images in one run."""


def check_compensation(compensation: str, data: Any, ridge: float, layers: str) -> None:
    """Refuse a compensation that is not known, or has no data.

    Raises
    ------
    UnknownNameError, InvalidArgumentError
    """
    if compensation not in COMPENSATIONS:
        raise UnknownNameError("compensation", compensation, COMPENSATIONS)
    if compensation != "none" and data is None:
        raise InvalidArgumentError(
            f"data: expected calibration images for compensation={compensation!r}, got none"
        )
    check_request(layers, ridge)


def fold_means(
    original: nn.Module,
    small: nn.Module,
    graph: UnitGraph,
    images: Tensor,
    remove: Mapping[str, Sequence[int]],
) -> None:
    """Give the consumers of removed units what the units' means gave them; `small` is changed.

    To the output of a consumer with weight W goes, for every removed place c that it reads,
    ``sum over k of W[:, c, k] * mean_c``, mean_c over images and positions of the original
    network: exact but where padding takes part. It goes to the layer's bias, or else to the
    running means of the batch norms behind it; where there are neither it is left out.

    Parameters
    ----------
    original, small : nn.Module
    graph : UnitGraph
        Of `original`.
    images : Tensor [N, ...]
    remove : Mapping of str to sequence of int
        Group name to the units that `small` lacks.
    """
    cut, kept = _cut(graph, remove), kept_outputs(original, graph, remove)
    if not cut:
        return
    with evaluating(original), evaluating(small), torch.no_grad():
        before, after = traced_of(original, images[:1], graph), traced_of(small, images[:1])
        means = _means(before, {layer: node for layer, (node, _) in cut.items()}, images)
        for layer, (node, columns) in cut.items():
            name = before.projection(before.nodes[node])
            module = original.get_submodule(name)
            if isinstance(module, nn.Conv2d) and module.groups > 1:
                continue  # its outputs go with what it reads
            weight = module.get_parameter("weight").double()
            found = columns.to(weight.device)
            constant = weight[:, found].reshape(len(weight), len(found), -1).sum(2)
            constant = constant @ means[layer][found]
            if name in kept:
                constant = constant[kept[name].to(constant.device)]
            place = after.place_of_constant(name)
            if place is not None:
                place.add(constant)


def _cut(graph: UnitGraph, remove: Mapping[str, Sequence[int]]) -> dict[str, tuple[str, Tensor]]:
    """Node of every consumer of removed units, and the places where it reads them."""
    columns: dict[str, list[Tensor]] = {}
    for name, units in remove.items():
        group = graph.group(name)
        chosen = check_units(group, units, "remove")
        for consumer in group.consumers if chosen else ():
            columns.setdefault(consumer.layer, []).append(consumer.columns(chosen))
    return {layer: (graph.sites[layer].node, torch.cat(parts)) for layer, parts in columns.items()}


def _means(original: Traced, nodes: Mapping[str, str], images: Tensor) -> dict[str, Tensor]:
    """Mean over images and positions of what each consumer reads: layer to [I], float64."""
    sums: dict[str, list[Tensor]] = {layer: [] for layer in nodes}
    n_rows = dict.fromkeys(nodes, 0)

    def watcher(layer: str, axis: int) -> Callable[[Tensor], Tensor]:
        def watch(value: Tensor) -> Tensor:
            rows = value.movedim(axis, -1).flatten(0, -2)
            sums[layer].append(rows.sum(0, dtype=torch.float64))
            n_rows[layer] += len(rows)
            return value

        return watch

    watchers = {}
    for layer, node in nodes.items():
        module = original.modules.get(str(original.nodes[node].target))
        watchers[node] = watcher(layer, 1 if isinstance(module, nn.Conv2d) else -1)
    recorder = Recorder(original.traced, {}, watchers)
    for chunk in torch.split(images, CHUNK):
        recorder.run(chunk)
    return {layer: torch.stack(parts).sum(0) / n_rows[layer] for layer, parts in sums.items()}
