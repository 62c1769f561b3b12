"""The next chunk of a progressive run: which units of the network as it stands go together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from causalprune.errors import UnsupportedModelError
from causalprune.graph import UnitGraph, capture
from causalprune.pruning.examples import example_of
from causalprune.pruning.footprint import Sizes, sizes_of
from causalprune.pruning.ordering import removal_order
from causalprune.pruning.ranking import Course, course_of
from causalprune.pruning.run import Run, in_original, kept_units
from causalprune.pruning.schedules import Progressive
from causalprune.pruning.search import Measure, choose, meets
from causalprune.pruning.targets import counted, memory_saved, saved_by_units, weighed
from causalprune.pruning.trace import Removal
from causalprune.scoring import Scores

__all__ = [
    "ALL_HELD",
    "CRITICAL_LEFT",
    "NEAREST",
    "REACHED",
    "at_target",
    "next_chunk",
    "step_size",
]

REACHED = "target reached"
NEAREST = "target reached as closely as the units that may go allow"
ALL_HELD = "every layer is frozen, protected or down to its last units"
CRITICAL_LEFT = "only critical units are left"

Counts = NDArray[np.int64]


@dataclass(frozen=True)
class _Standing:
    """The network as it stands, and what of it counts."""

    network: nn.Module
    graph: UnitGraph
    sizes: Sizes
    image: Tensor
    of: str

    def saved(self) -> dict[str, list[float]]:
        if self.of == "memory":
            return memory_saved(self.network, self.graph, self.sizes, self.image)
        return saved_by_units(self.sizes, self.of)

    def measure(self, course: Course) -> Measure:
        if self.of == "memory":
            return weighed(course, self.network, self.graph, self.image)
        return counted(course, self.of)


def next_chunk(run: Run, schedule: Progressive, scores: Scores) -> tuple[tuple[Removal, ...], str]:
    """Return the units of the next step, as the original network numbers them.

    Parameters
    ----------
    run : Run
    schedule : Progressive
    scores : Scores
        Of the network as it stands.

    Returns
    -------
    tuple of Removal
        Empty where the run ends.
    str
        Why it ends, or empty.

    Raises
    ------
    UnsupportedModelError
        If the pruned network has other groups of units than the original one.
    """
    gone, ratio = run.trace.plan.achieved_ratio, run.request.ratio
    assert ratio is not None
    standing, kept = _standing(run), kept_units(run.trace.plan)
    held = {*run.trace.frozen, *run.protected}
    order = _order(run, schedule, scores, standing.saved(), held)
    course = _course(standing, order, held, run.trace.plan.round_to)
    if not course.order:
        held_all = all(name in held or len(units) < 2 for name, units in kept.items())
        return (), CRITICAL_LEFT if not held_all and len(order) == 0 else _all_held(run)
    scale = 0.5 ** halved(run)
    wanted = min(scale * step_size(run, schedule), ratio - gone)
    last = gone + wanted >= ratio - 1e-9
    # The course is about the network as it stands: its target is a fraction of what is left.
    choice = _choice(
        course, standing.measure(course), wanted / (1 - gone), last, _most(run, schedule, scale)
    )
    if not choice.any():
        return (), NEAREST
    taken = {(group, unit) for group, units in course.remove(choice).items() for unit in units}
    return in_original([unit for unit in order if (unit.group, unit.unit) in taken], kept), ""


def _all_held(run: Run) -> str:
    trace = run.trace
    if not trace.frozen or trace.accuracy is None or trace.tolerance is None:
        return ALL_HELD
    return (
        f"{ALL_HELD}; {len(trace.frozen)} frozen because with more of their units gone "
        f"held-out accuracy falls by more than the guard's tolerance of {trace.tolerance:g} "
        f"from {trace.accuracy:.3f}"
    )


def at_target(run: Run) -> bool:
    """Tell whether as much is gone as was asked for."""
    gone, ratio = run.trace.plan.achieved_ratio, run.request.ratio
    assert ratio is not None
    return bool(run.trace.plan.remove) and (meets(gone, ratio) or gone > ratio)


def step_size(run: Run, schedule: Progressive) -> float:
    """Fraction of the original network that one step takes."""
    assert run.request.ratio is not None
    if schedule.rounds is None:
        return schedule.chunk
    return run.request.ratio / schedule.rounds


def halved(run: Run) -> int:
    """Count how often in a row a chunk has been reverted without anything being frozen."""
    count = 0
    for step in reversed(run.trace.steps):
        if step.verdict != "reverted" or step.frozen:
            break
        count += 1
    return count


def _most(run: Run, schedule: Progressive, scale: float) -> int | None:
    """Bound the units of a step: where they cost next to nothing, a layer would go at once."""
    if schedule.rounds is not None:
        return None
    return max(1, round(scale * schedule.chunk * run.sizes.whole.units))


def _standing(run: Run) -> _Standing:
    decided = run.trace.plan
    image = example_of(run.network, decided.example_shape, decided.example_dtype)
    graph = capture(run.network, image)
    found = {group.name: group.n_units for group in graph.removable}
    expected = {row.group: row.kept for row in decided.table}
    if found != expected:
        differing = sorted(dict(found.items() ^ expected.items()))
        raise UnsupportedModelError(
            "model: expected the pruned network to have the units of the original one that are "
            f"left, got others in {', '.join(map(repr, differing[:3]))}; use schedule='one_shot'"
        )
    return _Standing(run.network, graph, sizes_of(run.network, graph, image), image, run.request.of)


def _order(
    run: Run,
    schedule: Progressive,
    scores: Scores,
    saved: Mapping[str, Sequence[float]],
    held: set[str],
) -> list[Removal]:
    by_category, per_cost = schedule.by_category, schedule.per_cost
    if by_category is None:
        by_category = scores.method == "cswap"
    if per_cost is None:
        per_cost = bool(scores.frame["effect"].notna().any())
    return removal_order(
        scores,
        saved,
        by_category=by_category,
        per_cost=per_cost,
        held=held,
        allow_critical=schedule.allow_critical,
        within_layers=run.trace.plan.scope == "layer",
    )


def _course(standing: _Standing, order: Sequence[Removal], held: set[str], round_to: int) -> Course:
    """Blocks of units that may go, by their place in the order."""
    places = {(unit.group, unit.unit): float(place) for place, unit in enumerate(order)}
    ranks = {
        group.name: [places.get((group.name, unit), float("inf")) for unit in range(group.n_units)]
        for group in standing.graph.removable
    }
    course = course_of(standing.graph, standing.sizes, ranks, held, round_to)
    return replace(course, order=tuple(block for block in course.order if np.isfinite(block.rank)))


def _choice(
    course: Course, measure: Measure, wanted: float, last: bool, most: int | None
) -> Counts:
    """Take blocks in their order, up to a fraction of the network and a number of units."""
    limit = len(course.order)
    if most is not None:
        ends = accumulate(len(block.units) for block in course.order)
        limit = max(1, sum(end <= most for end in ends))
    low, high = 0, limit  # the longest run that stays below the target lies in between
    while low < high:
        middle = (low + high + 1) // 2
        if measure(course.first(middle)[None])[0] < wanted - 1e-12:
            low = middle
        else:
            high = middle - 1
    if low == limit or not last:
        return course.first(min(low + 1, limit))
    runs = [course.first(low), course.first(low + 1)]
    nearest = min(runs, key=lambda taken: abs(float(measure(taken[None])[0]) - wanted))
    found = choose(course, measure, wanted).taken
    # Meeting the target to the last percent is not worth a layer of cheap units out of order.
    enough = max(2 * _n_units(course, nearest), 2)
    return found if _n_units(course, found) <= enough else nearest


def _n_units(course: Course, taken: Counts) -> int:
    return sum(len(units) for units in course.remove(taken).values())
