"""From atoms to groups: connected atoms are units, connected layers are groups."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from causalprune.graph.flow import Labels, Producer, Reading, Walk
from causalprune.graph.heads import tells_heads, why_sizes_stay
from causalprune.graph.units import Consumer, Owned, Span, UnitGroup, widths_in

__all__ = ["Partition", "groups_of", "partition", "spans_of"]

CONSUMING = ("conv", "linear", "attention")
WHOLE = "all its channels can only go together"
OWN_BRANCH = (
    "cut on its own branch; to remove it for good, all that it is coupled to would have to go"
)


def spans_of(places: Labels) -> tuple[Span, ...]:
    """Compress the unit at every place (-1: none) into spans.

    Examples
    --------
    >>> spans_of(np.array([-1, 0, 0, 1, 1, 2, 2]))
    (Span(unit=0, n_units=3, start=1, stride=2, width=2),)
    """
    held = np.flatnonzero(places >= 0)
    if not len(held):
        return ()
    inside = places[held[0] : held[-1] + 1]
    if bool((np.diff(inside) == 1).all()):  # one place after the other: almost always
        return (Span(int(inside[0]), len(inside), int(held[0])),)
    edges = np.flatnonzero(np.diff(places)) + 1
    starts = np.concatenate([[0], edges]).astype(np.int64)
    widths = np.diff(np.concatenate([starts, [len(places)]]))
    units = places[starts]
    starts, widths, units = (x[units >= 0] for x in (starts, widths, units))
    # The runs of every unit are numbered; the k-th runs of successive units form a span while
    # their distance stays the same.
    order = np.lexsort((starts, units))
    first = np.concatenate([[True], np.diff(units[order]) > 0])
    begin = np.maximum.accumulate(np.where(first, np.arange(len(order)), 0))
    order = order[np.lexsort((units[order], np.arange(len(order)) - begin))]
    return _spans(units[order], starts[order], widths[order])


def _spans(units: Labels, starts: Labels, widths: Labels) -> tuple[Span, ...]:
    """Cut a list of runs into spans, each as long as it can be."""
    follows = np.concatenate([[False], (np.diff(units) == 1) & (np.diff(widths) == 0)])
    distance = np.diff(starts, prepend=starts[0])
    turns = np.flatnonzero(~follows | (distance != np.concatenate([distance[:1], distance[:-1]])))
    turns = np.append(turns, len(units))
    spans: list[Span] = []
    begin = 0
    while begin < len(units):
        end, stride = begin + 1, int(widths[begin])
        if end < len(units) and follows[end]:
            end = int(turns[np.searchsorted(turns, end + 1)])
            stride = int(distance[begin + 1])
        spans.append(
            Span(int(units[begin]), end - begin, int(starts[begin]), stride, int(widths[begin]))
        )
        begin = end
    return tuple(spans)


@dataclass(frozen=True)
class Partition:
    """Group and unit of every atom (-1 where it belongs to no layer), and the producers by group.

    The units of a group are in the order of the channels of its first producer, then of those of
    the next that the first has not.
    """

    group: Labels
    unit: Labels
    n_units: tuple[int, ...]
    producers: tuple[tuple[Producer, ...], ...]


def _components(n: int, pairs: list[tuple[Labels, Labels]]) -> Labels:
    """Give every one of `n` atoms the number of its component, by first appearance."""
    a = np.concatenate([np.zeros(0, np.int64), *(first for first, _ in pairs)])
    b = np.concatenate([np.zeros(0, np.int64), *(second for _, second in pairs)])
    matrix = coo_array((np.ones(len(a), np.int8), (a, b)), shape=(n, n))
    _, component = connected_components(matrix, directed=False)
    return _by_first_appearance(component.astype(np.int64))


def _by_first_appearance(names: Labels) -> Labels:
    _, first, inverse = np.unique(names, return_index=True, return_inverse=True)
    rank = np.empty(len(first), np.int64)
    rank[np.argsort(first)] = np.arange(len(first))
    return rank[inverse]


def partition(walk: Walk) -> Partition:
    """Connect the atoms of a walk to units, and its producers to groups."""
    unit = _components(walk.n_atoms, walk.pairs)
    chains = [(p.atoms[:-1], p.atoms[1:]) for p in walk.producers]
    group = _components(walk.n_atoms, [*walk.pairs, *chains])
    group[walk.producer_of(np.arange(walk.n_atoms)) < 0] = -1
    if len(group):
        owned = group >= 0
        group[owned] = _by_first_appearance(group[owned])
    n_groups = int(group.max(initial=-1)) + 1
    producers = [tuple(p for p in walk.producers if group[p.first] == g) for g in range(n_groups)]
    n_units = []
    for g in range(n_groups):
        mine = group == g
        unit[mine] = _by_first_appearance(unit[mine])
        n_units.append(int(unit[mine].max()) + 1)
    return Partition(group, unit, tuple(n_units), tuple(producers))


def first_reasons(parts: Partition, found: list[tuple[Labels, str]]) -> dict[int, str]:
    """Return the first reason that was given for a unit of each group."""
    reasons: dict[int, str] = {}
    for atoms, reason in found:
        for g in np.unique(parts.group[atoms]).tolist():
            reasons.setdefault(g, reason)
    return reasons


def groups_of(
    walk: Walk, cuts: Mapping[int, Consumer] | None = None
) -> tuple[tuple[UnitGroup, ...], dict[str, str]]:
    """Return the groups of a walk, and the layers it refuses with the reason.

    Parameters
    ----------
    walk : Walk
    cuts : Mapping of int to Consumer, optional
        First atom of a producer to the place where its own branch is cut, instead of at its
        consumers.
    """
    parts = partition(walk)
    refusals = first_reasons(parts, [*_mixed(walk, parts), *walk.refusals])
    surgeries = first_reasons(parts, [*_unmet(walk, parts), *walk.surgeries])
    owned, consumers = _readings_by_group(walk.readings, parts)
    owned_in_training, consumers_in_training = _readings_by_group(walk.in_training, parts)
    groups: list[UnitGroup] = []
    refused: dict[str, str] = {}
    for g, producers in enumerate(parts.producers):
        cut = (cuts or {}).get(producers[0].first)
        read = consumers.get(g, []) if cut is None else [cut]
        reason = refusals.get(g, "") or ("" if read else "no layer reads these units")
        if reason:
            depthwise = [item.layer for _, item in owned.get(g, []) if item.role == "depthwise"]
            refused.update(dict.fromkeys([*(p.layer for p in producers), *depthwise], reason))
            continue
        attention = [item.layer for _, item in owned.get(g, []) if item.role == "heads"]
        surgery = surgeries.get(g, "") if cut is None else OWN_BRANCH
        made = [
            (p.order, Owned(p.layer, "producer", spans_of(parts.unit[p.atoms]))) for p in producers
        ]
        belongs = sorted([*made, *owned.get(g, [])], key=lambda item: item[0])
        training: list[Owned | Consumer] = [
            *(item for _, item in owned_in_training.get(g, [])),
            *consumers_in_training.get(g, []),
        ]
        if attention and not surgery:
            items = [item for _, item in belongs]
            surgery = why_sizes_stay(walk, attention[0], parts.n_units[g], items, read)
        if not surgery and not (attention and parts.n_units[g] == 1):
            surgery = _bound_together([item for _, item in belongs], parts.n_units[g])
        groups.append(
            UnitGroup(
                name=attention[0] if attention else producers[0].layer,
                kind="head" if attention else _kind(producers),
                n_units=parts.n_units[g],
                owned=tuple(item for _, item in belongs),
                consumers=tuple(read),
                surgery=surgery,
                training=tuple(training),
            )
        )
    return tuple(groups), refused


def _numbers(parts: Partition) -> Labels:
    """Return the number of every atom's unit among the units of all groups."""
    numbers: Labels = np.concatenate([[0], np.cumsum(parts.n_units)])[parts.group] + parts.unit
    return numbers


def _mixed(walk: Walk, parts: Partition) -> list[tuple[Labels, str]]:
    """Reasons against a cut that hold for the units, not only for the atoms they consist of."""
    first = _numbers(parts)
    return [
        (np.unique(labels[labels >= 0]), reason)
        for labels, reason, unless in walk.mixing
        if not unless(np.where(labels >= 0, first[labels], -1))
    ]


def _unmet(walk: Walk, parts: Partition) -> list[tuple[Labels, str]]:
    """Reasons against surgery that hold for the units, not only for the atoms they consist of."""
    first = _numbers(parts)
    heads = {r.layer: first[r.places] for r in walk.readings if r.role == "heads"}
    found = []
    for labels, reason, unless, told in walk.conditions:
        units = np.where(labels >= 0, first[labels], -1)
        attends = told is not None and bool(np.isin(units, heads.get(told[0], [])).all())
        follows = told is not None and attends and tells_heads(walk.modules[told[0]], told[1])
        if not follows and not unless(units):
            found.append((np.unique(labels[labels >= 0]), reason))
    return found


def _bound_together(owned: list[Owned], n_units: int) -> str:
    """Why single units cannot go for good, or ``""``."""
    widths = [widths_in(item.spans, n_units) for item in owned]
    return WHOLE if n_units == 1 and any(width[0] > 1 for width in widths) else ""


def _kind(producers: tuple[Producer, ...]) -> str:
    kinds = {producer.kind for producer in producers}
    return next((kind for kind in ("head", "filter") if kind in kinds), "hidden")


def _readings_by_group(
    readings: Sequence[Reading], parts: Partition
) -> tuple[dict[int, list[tuple[int, Owned]]], dict[int, list[Consumer]]]:
    owned: dict[int, list[tuple[int, Owned]]] = {}
    consumers: dict[int, list[Consumer]] = {}
    for reading in readings:
        groups = np.where(reading.places >= 0, parts.group[reading.places], -1)
        for g in np.unique(groups[groups >= 0]).tolist():
            units = np.where(groups == g, parts.unit[reading.places], -1)
            if reading.role in CONSUMING:
                per_unit = int(np.bincount(units[units >= 0]).max())
                consumer = Consumer(reading.layer, reading.role, per_unit, spans_of(units))
                consumers.setdefault(g, []).append(consumer)
            else:
                item = Owned(reading.layer, reading.role, spans_of(units))
                owned.setdefault(g, []).append((reading.order, item))
    return owned, consumers
