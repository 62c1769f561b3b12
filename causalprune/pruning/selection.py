"""Choosing the units that go."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from torch import Tensor, nn

from causalprune.errors import InvalidArgumentError, UnsupportedModelError
from causalprune.graph import UnitGraph, capture
from causalprune.measures import Latency
from causalprune.pruning.examples import example_of
from causalprune.pruning.footprint import Sizes, sizes_of
from causalprune.pruning.naming import held_groups, shares_of_groups
from causalprune.pruning.ordering import removal_order
from causalprune.pruning.plans import Plan, PlanRow, with_removal
from causalprune.pruning.ranking import Course, course_of, importances, ranks_of
from causalprune.pruning.search import Choice, choose
from causalprune.pruning.surgery import shrunk_copy
from causalprune.pruning.targets import (
    check_request,
    check_round_to,
    counted,
    memory_of,
    memory_saved,
    saved_by_units,
    weighed,
)
from causalprune.pruning.timing import (
    FINAL_REPEATS,
    Timing,
    check_timing,
    compared,
    time_saved,
    timed,
)
from causalprune.scoring import METHODS, Scores, fingerprint

__all__ = ["check_request", "plan"]

Latencies = tuple[Latency, Latency]
"""Of the whole network, and of what is left."""

MEMORY_SLACK = 0.0025
MEMORY_PATIENCE = 120
"""Memory is measured by running the candidate, so that the search is spared the last digits."""


def plan(
    model: nn.Module,
    scores: Scores,
    ratio: float | None = 0.5,
    of: str = "parameters",
    *,
    example: Tensor | None = None,
    scope: str | Mapping[str, float] = "global",
    protect: Iterable[str] = (),
    round_to: int | None = None,
    latency_batch: int = 1,
    latency_repeats: int = 15,
    threads: int | None = None,
) -> Plan:
    """Decide which units to remove so that a fraction of the network goes.

    Units are taken in ascending order of their rank until the target is reached. The rank is, for
    ``scope="global"``, the importance divided by what the unit alone would save of `of`
    (importances on the scale of an outcome compare across layers), or the plain importance for
    norms and random; C-SWAP's categories come first, and within one abs(xi) is divided by what the
    unit saves. For ``scope="layer"`` it is the quantile of the importance within its group, so that
    every layer loses about the same fraction of its units.
    Where the next unit in this order would miss the target by more than 1 % of it, later ones that
    fit are taken instead, and units of different layers are exchanged, until the target is met, as
    long as that costs no more importance than the next unit would; where no such choice meets the
    target, the plan says how close it comes. A layer always keeps at least
    one unit. Units that can be intervened on but not removed for good stay. Nothing is changed.

    Parameters
    ----------
    model : nn.Module
        The network that was scored.
    scores : Scores
        From :func:`causalprune.scoring.score`, with ``units="groups"``.
    ratio : float or None
        Fraction of `of` to remove, in [0, 1). Not used where `scope` is a mapping.
    of : str
        ``"parameters"`` or ``"macs"`` of the whole network, ``"units"`` of all groups;
        ``"memory"``: bytes of parameters and buffers and, at its peak, of the activations of one
        image, from running candidates (:func:`causalprune.measures.peak_activation_bytes`); or
        ``"latency"``: the median time of a forward pass on this machine, from timing candidates
        in alternation with the whole network. Kernels prefer some widths to others: latency falls
        steadily only with a `round_to` such as 8.
    example : Tensor [N, ...], optional
        An input; default: the shape that `scores` remembers.
    scope : str or mapping of str to float
        ``"global"``, ``"layer"``, or the fraction of its units that each named layer loses, in
        [0, 1), all others staying whole. ``plan.ratio`` is then ``None``, and
        ``plan.achieved_ratio`` is what all of it together saves of `of`. Names as in `protect`;
        the name of a layer goes before a pattern that matches it.
    protect : iterable of str
        Layers that keep all units: names, modules that hold layers, or shell patterns such as
        ``"layer1.*"``. Where an addition or a gate couples layers, one protected layer holds the
        units of all of them, and the plan says so.
    round_to : int, optional
        Of every group that loses units, each layer that makes them keeps a multiple of this many
        of their channels; a group with no more than that stays whole. A layer whose outputs are
        several groups (its map is split), or that reads several (they are concatenated), has a
        multiple of that many in all only if each of them has: one that loses nothing has as many
        as before.
    latency_batch : int
        Images in a timed pass.
    latency_repeats : int
        Timed passes of a candidate, each next to one of the whole network; the chosen one is
        timed four times as often.
    threads : int, optional
        torch's threads during the timing; by default as they are set.

    Returns
    -------
    Plan
        Printable; ``plan.reached`` tells whether the target could be reached.

    Raises
    ------
    InvalidArgumentError
        If an argument is out of range, or `scores` belong to another network, lack units, or are
        not finite.
    UnknownNameError
        If `protect` or `scope` names no layer.
    UnsupportedModelError
        If the network has no unit that can be removed for good.

    Examples
    --------
    >>> import torch
    >>> from causalprune.scoring import score
    >>> model = nn.Sequential(nn.Linear(4, 10), nn.ReLU(), nn.Linear(10, 2))
    >>> decided = plan(model, score(model, torch.zeros(1, 4), "l1"), ratio=0.4, of="units")
    >>> len(decided.remove["0"]), decided.after.parameters
    (4, 44)
    """
    check_request(ratio, of, scope)
    step = check_round_to(round_to)
    _check_scores(model, scores)
    image = example_of(model, scores.example_shape, scores.example_dtype, example)
    timing = check_timing(image, latency_batch, latency_repeats, threads)
    graph = capture(model, image)
    _check_removable(model, graph)
    task = _Task(model, graph, sizes_of(model, graph, image), image, of, timing)
    importance = importances(graph, scores.frame)
    held = held_groups(graph, protect)
    named = shares_of_groups(graph, scope, held) if isinstance(scope, Mapping) else None
    empty = replace(
        _empty(task, scores, held),
        ratio=None if named is not None or ratio is None else float(ratio),
        scope=scope if isinstance(scope, str) else {n: float(s) for n, s in scope.items()},
        round_to=step,
    )
    ranks = _ranks(task, scores, importance, scope, weighed=bool(empty.ratio))
    course = course_of(
        graph,
        task.sizes,
        ranks,
        {g for gs in held.values() for g in gs},
        step,
        ranks if scope == "layer" else importance,
    )
    if named is not None:
        choice, latencies = _by_share(course, named), None
    else:
        choice, latencies = _chosen(task, course, float(empty.ratio or 0.0))
    return _completed(task, empty, course.remove(choice.taken), choice.reached, latencies)


def _empty(task: _Task, scores: Scores, held: Mapping[str, tuple[str, ...]]) -> Plan:
    """Return the plan that removes nothing."""
    holding = {group: name for name, groups in held.items() for group in groups}
    return Plan(
        remove={},
        ratio=0.0,
        achieved_ratio=0.0,
        reached=True,
        of=task.of,
        scope="global",
        method=scores.method,
        before=task.sizes.whole,
        after=task.sizes.whole,
        table=tuple(
            PlanRow(g.name, g.kind, g.n_units, g.n_units, holding.get(g.name, ""))
            for g in task.graph.removable
        ),
        fingerprint=scores.fingerprint,
        example_shape=tuple(task.image.shape),
        example_dtype=str(task.image.dtype).removeprefix("torch."),
        protected=held,
    )


@dataclass(frozen=True)
class _Task:
    """What is pruned, and what of it counts."""

    model: nn.Module
    graph: UnitGraph
    sizes: Sizes
    image: Tensor
    of: str
    timing: Timing


def _check_scores(model: nn.Module, scores: object) -> None:
    if not isinstance(scores, Scores):
        raise InvalidArgumentError(f"scores: expected Scores, got {type(scores).__name__}")
    if scores.fingerprint == fingerprint(model):
        return
    told = _unlike(model, scores)
    raise InvalidArgumentError(
        "scores: expected scores of this network, got scores of one with other parameters"
        + (f" ({told})" if told else "")
    )


def _unlike(model: nn.Module, scores: Scores) -> str:
    """Say where the layers of a network differ from those that were scored, as far as is known."""
    modules, told = dict(model.named_modules()), []
    for name, n_units in scores.frame.groupby("group", sort=False).size().items():
        weight = getattr(modules.get(str(name)), "weight", None)
        if str(name) not in modules:
            told.append(f"it has no layer {name!r}")
        elif isinstance(weight, Tensor) and weight.shape[0] % n_units:
            told.append(f"{name!r} has {weight.shape[0]} outputs, not {n_units}")
    return "; ".join(told[:3]) + ("; ..." if len(told) > 3 else "")


def _check_removable(model: nn.Module, graph: UnitGraph) -> None:
    if graph.removable:
        return
    reasons = {group.name: group.surgery for group in graph.groups} | dict(graph.refused)
    told = "; ".join(f"{layer}: {reason}" for layer, reason in reasons.items())
    raise UnsupportedModelError(
        f"model: no unit of {type(model).__name__} can be removed for good ({told or 'no layers'})"
    )


def _ranks(
    task: _Task,
    scores: Scores,
    importance: Mapping[str, Sequence[float]],
    scope: str | Mapping[str, float],
    *,
    weighed: bool,
) -> Mapping[str, Sequence[float]]:
    """Return what units go by, lowest first; `weighed`: whether what they save is asked for."""
    method = METHODS.get(scores.method)
    on_a_scale = bool(scores.frame["effect"].notna().any())
    equal = {name: [1.0] * len(values) for name, values in importance.items()}
    if scope != "global" or not weighed or not on_a_scale:
        return ranks_of(importance, "layer" if scope == "layer" else "global", equal)
    if method is None or not method.orders:
        return ranks_of(importance, "global", _saved(task))
    if not (scores.frame["category"] != "").all():
        return ranks_of(importance, "global", equal)
    # An order of categories is no scale: what units save can only decide within one.
    ranks = {name: [0.0] * len(values) for name, values in importance.items()}
    order = removal_order(
        scores, _saved(task), by_category=True, per_cost=True, allow_critical=True
    )
    for place, unit in enumerate(order):
        ranks[unit.group][unit.unit] = float(place)
    return ranks


def _saved(task: _Task) -> dict[str, list[float]]:
    """Return what each unit alone saves of the target quantity."""
    if task.of == "memory":
        return memory_saved(task.model, task.graph, task.sizes, task.image)
    if task.of == "latency":
        return time_saved(task.model, task.sizes, task.timing)
    return saved_by_units(task.sizes, task.of)


def _chosen(task: _Task, course: Course, ratio: float) -> tuple[Choice, Latencies | None]:
    if ratio == 0:
        return Choice(np.zeros_like(course.limits), 0.0, True), None
    if task.of == "latency":
        return timed(course, task.model, task.graph, task.timing, ratio)
    if task.of == "memory":
        measure = weighed(course, task.model, task.graph, task.image)
        choice = choose(course, measure, ratio, slack=MEMORY_SLACK, patience=MEMORY_PATIENCE)
        return choice, None
    return choose(course, counted(course, task.of), ratio), None


def _by_share(course: Course, shares: Mapping[str, float]) -> Choice:
    """Take of every named group the blocks that come nearest to its share."""
    taken, reached = np.zeros_like(course.limits), True
    for lane, (group, number) in enumerate(course.sizes.lanes):
        n_units = course.sizes.counts[group][number]
        gone = np.cumsum([0, *(len(block.units) for block in course.blocks[lane])])
        wanted = shares.get(group, 0.0) * n_units
        taken[lane] = int(np.abs(gone - wanted).argmin())
        reached = reached and bool(wanted - gone[-1] < 0.5)
    return Choice(taken, 0.0, reached)


def _completed(
    task: _Task,
    empty: Plan,
    remove: Mapping[str, Sequence[int]],
    reached: bool,
    latencies: Latencies | None,
) -> Plan:
    """Fill in what goes and what is left; memory and latency are those of the real candidate."""
    decided = replace(with_removal(empty, remove, task.sizes), reached=reached)
    if task.of not in ("memory", "latency"):
        return decided
    small = shrunk_copy(task.model, task.graph, decided.remove)
    if task.of == "memory":
        whole, left = memory_of(task.model, task.image), memory_of(small, task.image)
        return replace(
            decided,
            achieved_ratio=1 - left / whole if whole else 0.0,
            before=replace(decided.before, memory=whole),
            after=replace(decided.after, memory=left),
        )
    if latencies is None and decided.remove:
        latencies = compared(task.model, small, task.timing, FINAL_REPEATS * task.timing.repeats)
    if latencies is None:
        return decided
    before, after = latencies
    saved = 1 - after.median_ms / before.median_ms
    return replace(decided, achieved_ratio=saved, latency_before=before, latency_after=after)
