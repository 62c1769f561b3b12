"""A plan as text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from causalprune.pruning.search import meets

if TYPE_CHECKING:
    from causalprune.measures import Latency
    from causalprune.pruning.plans import Plan

__all__ = ["aligned", "plan_table"]

SELF = "(the network itself)"


def plan_table(plan: Plan) -> str:
    """Return the groups, the layers that change, the totals and the target of a plan."""
    lines = aligned(_groups(plan)) + _layers(plan) + ["", *aligned(_totals(plan))]
    return "\n".join([*lines, *_latencies(plan), _target(plan)])


def aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Return rows of cells as lines: the first column to the left, the others to the right.

    Examples
    --------
    >>> aligned([["layer", "kept"], ["conv", "7"]])
    ['layer  kept', 'conv      7']
    """
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(
            cell.ljust(width) if place == 0 else cell.rjust(width)
            for place, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]


def _groups(plan: Plan) -> list[list[str]]:
    rows = [["group", "kind", "units", "kept", "removed", ""]]
    for row in plan.table:
        held = f"held by {row.held}" if row.held else ""
        sizes = [f"{row.units:,}", f"{row.kept:,}", _gone(row.units, row.kept)]
        rows.append([row.group, row.kind, *sizes, held])
    return rows


def _layers(plan: Plan) -> list[str]:
    """Return the layers that change; the others have what they had."""
    rows = [["layer", "parameters", "after", "MACs", "after", "bytes", "after"]]
    for row in plan.layers:
        sizes = [
            (row.parameters, row.parameters_after),
            (row.macs, row.macs_after),
            (row.bytes, row.bytes_after),
        ]
        if any(before != after for before, after in sizes):
            cells = [f"{number:,}" for pair in sizes for number in pair]
            rows.append([row.layer or SELF, *cells])
    return ["", *aligned(rows)] if len(rows) > 1 else []


def _totals(plan: Plan) -> list[list[str]]:
    rows = [["", "before", "after", "removed"]]
    for name in ("parameters", "macs", "bytes", "memory", "units"):
        before, after = getattr(plan.before, name), getattr(plan.after, name)
        if before is not None and after is not None:
            rows.append([name, f"{before:,}", f"{after:,}", _gone(before, after)])
    return rows


def _latencies(plan: Plan) -> list[str]:
    before, after = plan.latency_before, plan.latency_after
    if before is None or after is None:
        return []
    passes = f"{after.repeats} passes each in alternation, batch {after.batch}"
    return [
        f"latency: {_quartiles(before)} before, {_quartiles(after)} after "
        f"(median and quartiles of {passes}, {after.threads} threads)"
    ]


def _quartiles(latency: Latency) -> str:
    return f"{latency.median_ms:.3f} ms [{latency.q25_ms:.3f}, {latency.q75_ms:.3f}]"


def _target(plan: Plan) -> str:
    if plan.ratio is None:
        assert not isinstance(plan.scope, str)
        told = ", ".join(f"{name}: {share:.1%}" for name, share in plan.scope.items())
        target = f"target: {told} of the units by {plan.method}"
        missed = "" if plan.reached else "; NOT REACHED: a layer keeps at least one unit"
        return f"{target}; achieved {plan.achieved_ratio:.1%} of {plan.of}{missed}"
    target = f"target: {plan.ratio:.1%} of {plan.of} by {plan.method} ({plan.scope})"
    return f"{target}; achieved {plan.achieved_ratio:.1%}{_missed(plan, plan.ratio)}"


def _missed(plan: Plan, ratio: float) -> str:
    if not plan.reached:
        return "; NOT REACHED: nothing more may be removed"
    if meets(plan.achieved_ratio, ratio):
        return ""
    points = 100 * plan.deviation
    if plan.of == "latency":
        return f"; {points:+.1f} points off, the closest that was measured"
    steps = "whole units" if plan.round_to == 1 else f"steps of {plan.round_to} channels"
    return f"; {points:+.1f} points off, the closest that {steps} allow"


def _gone(before: int, after: int) -> str:
    return f"{1 - after / before:.1%}" if before else "0.0%"
