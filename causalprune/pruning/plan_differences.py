"""What two plans for one network do differently."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from causalprune.errors import InvalidArgumentError
from causalprune.pruning.plan_tables import aligned

if TYPE_CHECKING:
    from causalprune.pruning.footprint import Footprint
    from causalprune.pruning.plans import Plan

__all__ = ["GroupDifference", "PlanDifference", "difference"]

SETTINGS = ("ratio", "of", "scope", "method", "round_to", "protected", "achieved_ratio", "reached")
_SHOWN_UNITS = 12


@dataclass(frozen=True)
class GroupDifference:
    """A group from which two plans remove different units.

    Attributes
    ----------
    group : str
    kept, other_kept : int
        Units that stay by the one plan, and by the other.
    only, other_only : tuple of int
        Units that only the one plan removes, and only the other.
    """

    group: str
    kept: int
    other_kept: int
    only: tuple[int, ...]
    other_only: tuple[int, ...]


@dataclass(frozen=True)
class PlanDifference:
    """What two plans for one network do differently; empty tuples and mappings where nothing.

    Attributes
    ----------
    settings : Mapping of str to tuple
        Attribute of the plans to its two values, where these differ.
    groups : tuple of GroupDifference
        In the order of the network.
    after, other_after : Footprint
        What is left by the one plan, and by the other.
    """

    settings: Mapping[str, tuple[Any, Any]]
    groups: tuple[GroupDifference, ...]
    after: Footprint
    other_after: Footprint

    def __bool__(self) -> bool:
        """Return whether the plans remove different units."""
        return bool(self.groups)

    def __str__(self) -> str:
        """Return the settings, groups and totals that differ, as text."""
        lines = [f"{name}: {one} / {other}" for name, (one, other) in self.settings.items()]
        if not self.groups:
            return "\n".join([*lines, "the same units go"])
        rows = [["group", "kept", "other", "only here", "only there"]]
        rows += [
            [each.group, f"{each.kept:,}", f"{each.other_kept:,}", _units(each.only),
             _units(each.other_only)]
            for each in self.groups
        ]  # fmt: skip
        totals = [["left", "here", "there", "difference"]]
        for name in ("parameters", "macs", "bytes", "memory", "units"):
            one, other = getattr(self.after, name), getattr(self.other_after, name)
            if one is not None and other is not None:
                totals.append([name, f"{one:,}", f"{other:,}", f"{other - one:+,}"])
        return "\n".join([*lines, *aligned(rows), "", *aligned(totals)])


def difference(one: Plan, other: Plan) -> PlanDifference:
    """Compare two plans; see :meth:`Plan.diff`."""
    if type(other) is not type(one):
        raise InvalidArgumentError(f"other: expected a Plan, got {type(other).__name__}")
    if other.fingerprint != one.fingerprint:
        raise InvalidArgumentError(
            "other: expected a plan for the same network, got one for a network with other "
            "parameters"
        )
    groups = []
    for row in one.table:
        here, there = (set(plan.remove.get(row.group, ())) for plan in (one, other))
        if here != there:
            groups.append(
                GroupDifference(
                    row.group,
                    row.units - len(here),
                    row.units - len(there),
                    tuple(sorted(here - there)),
                    tuple(sorted(there - here)),
                )
            )
    settings = {
        name: (getattr(one, name), getattr(other, name))
        for name in SETTINGS
        if getattr(one, name) != getattr(other, name)
    }
    return PlanDifference(settings, tuple(groups), one.after, other.after)


def _units(units: tuple[int, ...]) -> str:
    if not units:
        return "-"
    shown = " ".join(map(str, units[:_SHOWN_UNITS]))
    more = len(units) - _SHOWN_UNITS
    return f"{shown} and {more} more" if more > 0 else shown
