"""Progressive pruning: score the network as it stands, remove a chunk, look, go on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from causalprune.pruning.chunks import NEAREST, REACHED, at_target, halved, next_chunk, step_size
from causalprune.pruning.guard import Finding, look
from causalprune.pruning.plans import Plan
from causalprune.pruning.run import Run, train_again
from causalprune.pruning.schedules import Progressive
from causalprune.pruning.trace import Removal, Step
from causalprune.scoring import Scores

__all__ = ["progress"]


def progress(run: Run, schedule: Progressive) -> None:
    """Prune until the target is reached, or nothing more may go.

    Every round scores the network as it stands, takes a chunk of units in the order of
    :func:`causalprune.pruning.ordering.removal_order`, and applies all units taken so far to the
    original network, with compensation: the result depends on which units went, not on the way.
    With a guard (:func:`causalprune.pruning.guard.look`), a chunk after which held-out accuracy
    has fallen too far is reverted and a layer is frozen; the scores, being those of the same
    network, stay.

    Parameters
    ----------
    run : Run
        Goes on from where it stands, also from the middle.
    schedule : Progressive

    Notes
    -----
    Source: Bauvin, Baret and Ahmad (2025), C-SWAP; the loop is reconstructed: chunk sizes, guard,
    what is frozen and when it stops.
    """
    scores: Scores | None = None
    while not run.trace.stopped:
        if at_target(run):  # before anything is scored for nothing
            run.stop(REACHED, reached=True)
            continue
        kept_steps = sum(step.verdict == "kept" for step in run.trace.steps)
        if scores is None:
            scores = _scores(run, schedule, kept_steps)
        chunk, reason = next_chunk(run, schedule, scores)
        if not chunk:
            run.stop(reason, reached=reason == NEAREST)
        elif _try(run, schedule, chunk):
            scores = None
    if run.request.retraining is not None and not _retrained(run):
        train_again(run)


def _retrained(run: Run) -> bool:
    return any(step.verdict == "retrained" for step in run.trace.steps)


def _scores(run: Run, schedule: Progressive, kept_steps: int) -> Scores:
    changes: dict[str, Any] = {}
    if "ratio" in run.request.scoring:  # of a race within a budget: what this step decides
        changes["ratio"] = min(0.5, step_size(run, schedule))
    return run.scores(kept_steps, **changes)


def _try(run: Run, schedule: Progressive, chunk: Sequence[Removal]) -> bool:
    """Take a chunk out and look; returns whether it stays out."""
    decided, candidate = run.without(chunk)
    found = look(run, schedule, candidate)
    if found.passes:
        run.record(_step("kept", chunk, decided, found), candidate, plan=decided)
        return True
    if len(chunk) > 1 and halved(run) < schedule.halvings:
        run.record(_step("reverted", chunk, decided, found, ": half as much next"))
        return False
    frozen, parts = _to_blame(run, schedule, chunk)
    step = _step("reverted", chunk, decided, found, f": frozen {', '.join(frozen)}")
    run.record(replace(step, frozen=frozen, parts=parts))
    return False


def _step(
    verdict: str, chunk: Sequence[Removal], decided: Plan, found: Finding, then: str = ""
) -> Step:
    return Step(verdict, tuple(chunk), decided.after, found.accuracy, found.reason + then)


def _to_blame(
    run: Run, schedule: Progressive, chunk: Sequence[Removal]
) -> tuple[tuple[str, ...], dict[str, float]]:
    """Return groups to freeze, and held-out accuracy with the units of each alone taken out."""
    groups = tuple(dict.fromkeys(unit.group for unit in chunk))
    if schedule.blame == "chunk" or len(groups) == 1:
        return groups, {}
    parts = {}
    for name in groups:
        alone = [unit for unit in chunk if unit.group == name]
        _, candidate = run.without(alone)
        parts[name] = run.accuracy(candidate) or 0.0
    return (min(groups, key=parts.__getitem__),), parts
