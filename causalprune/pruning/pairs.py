"""The layers between which units are made and read, where they can be fitted together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import nn

from causalprune.graph import UnitGraph, UnitGroup
from causalprune.graph.steps import Step
from causalprune.pruning.readers import Reader, Traced

__all__ = ["Pair", "pairs_of"]

MOST_LAYERS = 5
"""An inverted residual block with its gate; more would be a part of the network, not a pair."""
ADDITIONS = ("add", "add_", "iadd", "sub", "sub_", "isub")


@dataclass(frozen=True)
class Pair:
    """The layer that makes units, the one that reads them, and what lies between.

    Attributes
    ----------
    layers : tuple of Reader
        In the order of computation: the producer, weighted layers between the two (a depthwise
        convolution, a gate), and the consumer.
    start, end : int
        Places of the producer's step, and behind the consumer's pre-activation, among the steps
        of the pruned network.
    """

    layers: tuple[Reader, ...]
    start: int
    end: int

    @property
    def consumer(self) -> Reader:
        """The layer to whose pre-activation all of them are fitted."""
        return self.layers[-1]


def pairs_of(
    small: Traced,
    readers: Sequence[Reader],
    graph: UnitGraph,
    remove: Mapping[str, Sequence[int]],
) -> dict[str, Pair]:
    """Find the pairs of a pruned network, by the names of their producers.

    A group that lost units counts where everything that is computed from its first producer
    enters one consumer's pre-activation, with few layers and no addition of two such values on
    the way: what happens in between is then nobody else's business. Of two such stretches one
    within the other, the outer one counts.

    Parameters
    ----------
    small : Traced
    readers : sequence of Reader
        Of :func:`causalprune.pruning.readers.readers_of` with ``layers="pairs"``.
    graph : UnitGraph
        Of the original network.
    remove : Mapping of str to sequence of int
        What the pruned network lacks.
    """
    groups = [graph.group(name) for name, units in remove.items() if len(units)]
    found = [pair for group in groups if (pair := _pair(small, readers, group)) is not None]
    pairs: dict[str, Pair] = {}
    for pair in sorted(found, key=lambda pair: (pair.start, -pair.end)):
        names = {reader.layer for reader in pair.layers}
        if not any(names <= {r.layer for r in other.layers} for other in pairs.values()):
            pairs[pair.layers[0].layer] = pair
    return pairs


def _pair(small: Traced, readers: Sequence[Reader], group: UnitGroup) -> Pair | None:
    by_layer = {reader.layer: reader for reader in readers}
    consumers = [by_layer[c.layer] for c in group.consumers if c.layer in by_layer]
    if group.producers[0] not in by_layer or not consumers:
        return None
    start = small.places[by_layer[group.producers[0]].step.name]
    consumer = max(consumers, key=lambda reader: small.places[reader.step.name])
    end = small.places[consumer.pre] + 1
    reached = _reached(small.steps, start, end)
    layers = tuple(
        reader
        for reader in readers
        if reader.step.name in reached and isinstance(reader.step.module, (nn.Conv2d, nn.Linear))
    )
    if not 2 <= len(layers) <= MOST_LAYERS or layers[-1] is not consumer:
        return None
    if not {*group.producers} <= {reader.layer for reader in layers}:
        return None
    if not _closed(small, start, end, reached):
        return None
    return Pair(layers, start, end)


def _reached(steps: Sequence[Step], start: int, end: int) -> set[str]:
    """Return the steps in the stretch that are computed from its first one, with that."""
    reached = {steps[start].name}
    for step in steps[start + 1 : end]:
        if any(name in reached for name in step.inputs):
            reached.add(step.name)
    return reached


def _closed(small: Traced, start: int, end: int, reached: set[str]) -> bool:
    """Whether all that is reached ends in the last step, and can be differentiated on the way."""
    within = [step for step in small.steps[start:end] if step.name in reached]
    for step in within:
        joins = step.function in ADDITIONS and {*step.inputs} <= reached
        if joins or isinstance(step.module, nn.MultiheadAttention):
            return False
    inner = reached - {small.steps[end - 1].name}
    return small.steps[end - 1].name in reached and not any(
        name in inner for step in small.steps[end:] for name in step.inputs
    )
