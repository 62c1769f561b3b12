"""Layers as a user names them: by name, by a module that holds them, or by a shell pattern."""

from __future__ import annotations

import fnmatch
from collections.abc import Iterable, Mapping

from causalprune.errors import InvalidArgumentError, UnknownNameError
from causalprune.graph import UnitGraph, UnitGroup

__all__ = ["held_groups", "shares_of_groups"]


def held_groups(graph: UnitGraph, protect: Iterable[str]) -> dict[str, tuple[str, ...]]:
    """Return for each protected name the groups that it holds.

    A group is held as a whole as soon as one of its layers is: the units of a coupled group exist
    in all of its layers, and go from all or from none.

    Parameters
    ----------
    graph : UnitGraph
    protect : iterable of str, or str
        Layers, modules that hold layers, or shell patterns such as ``"layer1.*"``. A layer whose
        units nothing could remove (the last one, say) may be named and holds no group.

    Raises
    ------
    InvalidArgumentError
        If something else than strings is given.
    UnknownNameError
        If a name matches no layer; the message lists the layers that have units.
    """
    if isinstance(protect, str):
        protect = (protect,)
    if not isinstance(protect, Iterable):
        raise InvalidArgumentError(f"protect: expected names of layers, got {protect!r}")
    held: dict[str, tuple[str, ...]] = {}
    for name in protect:
        if not isinstance(name, str):
            raise InvalidArgumentError(f"protect: expected names of layers, got {name!r}")
        found = _matching(graph, name)
        if not found and not any(_matches(layer, name) for layer in graph.refused):
            raise UnknownNameError("layer to protect", name, _layers(graph))
        held[name] = tuple(group.name for group in found)
    return held


def shares_of_groups(
    graph: UnitGraph, shares: Mapping[str, float], held: Mapping[str, tuple[str, ...]]
) -> dict[str, float]:
    """Return the fraction of its units that each named group shall lose.

    Parameters
    ----------
    graph : UnitGraph
    shares : Mapping of str to float
        Layer, module or shell pattern to a fraction in [0, 1). The name of a layer goes before a
        pattern that matches it.
    held : Mapping of str to tuple of str
        From :func:`held_groups`.

    Raises
    ------
    InvalidArgumentError
        If two names give one group different fractions, or a group is protected, or a layer is
        named whose units cannot be removed for good.
    UnknownNameError
        If a name matches no layer.
    """
    protected = {group: name for name, groups in held.items() for group in groups}
    given: dict[str, tuple[str, float]] = {}
    owners = {layer: group for group in graph.groups for layer in _layers_of(group)}
    # Layers last, because their names go before patterns.
    for name in sorted(shares, key=lambda name: name in owners):
        share, exact = float(shares[name]), name in owners
        found = [group for group in _matching(graph, name) if not group.surgery]
        if not found:
            raise _unremovable(graph, name)
        for group in found:
            other = given.get(group.name)
            overrides = exact and other is not None and other[0] not in owners
            if other is not None and other[1] != share and not overrides:
                raise InvalidArgumentError(
                    f"scope: {other[0]!r} and {name!r} give the units of {group.name!r} "
                    f"different fractions, {other[1]:g} and {share:g}"
                )
            if share > 0 and group.name in protected:
                raise InvalidArgumentError(
                    f"scope: {name!r} asks for units of {group.name!r}, which "
                    f"{protected[group.name]!r} protects"
                )
            given[group.name] = (name, share)
    return {group: share for group, (_, share) in given.items()}


def _unremovable(graph: UnitGraph, name: str) -> InvalidArgumentError:
    reasons = {
        layer: group.surgery for group in graph.groups for layer in _layers_of(group)
    } | dict(graph.refused)
    told = [f"{layer}: {why}" for layer, why in reasons.items() if _matches(layer, name)]
    if not told:
        return UnknownNameError("layer in scope", name, _layers(graph))
    return InvalidArgumentError(
        f"scope: expected a layer whose units can be removed for good, got {name!r} "
        f"({'; '.join(told)})"
    )


def _matching(graph: UnitGraph, name: str) -> list[UnitGroup]:
    return [
        group for group in graph.groups if any(_matches(layer, name) for layer in _layers_of(group))
    ]


def _matches(layer: str, name: str) -> bool:
    return layer == name or layer.startswith(f"{name}.") or fnmatch.fnmatchcase(layer, name)


def _layers_of(group: UnitGroup) -> tuple[str, ...]:
    return tuple(owned.layer for owned in group.owned)


def _layers(graph: UnitGraph) -> list[str]:
    return [name for group in graph.groups for name in group.producers]
