"""Pruning in rounds: score, prune, retrain, and the same again on what is left."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from causalprune.pruning.ordering import removal_of
from causalprune.pruning.plans import Plan
from causalprune.pruning.run import Run, extended, in_original, kept_units, train_again
from causalprune.pruning.selection import plan
from causalprune.pruning.trace import Removal, Step
from causalprune.scoring import Scores

__all__ = ["iterate"]


def iterate(run: Run, rounds: int) -> None:
    """Prune in rounds that each keep the same fraction of what is left, retraining after each.

    Parameters
    ----------
    run : Run
        Goes on from where it stands, also between pruning and retraining.
    rounds : int
        One is one-shot pruning.
    """
    while not run.trace.stopped:
        verdicts = [step.verdict for step in run.trace.steps]
        n_pruned, n_retrained = verdicts.count("kept"), verdicts.count("retrained")
        if run.request.retraining is not None and n_retrained < n_pruned:
            train_again(run)
        elif n_pruned < rounds:
            _round(run, n_pruned + 1, rounds)
        else:
            reached = run.trace.plan.reached
            run.stop(
                "target reached" if reached else "nothing more may be removed", reached=reached
            )


def _round(run: Run, number: int, rounds: int) -> None:
    request, before = run.request, run.trace.plan
    ratio = request.ratio
    if rounds > 1 and ratio is not None:
        keep = (1 - ratio) ** (number / rounds)
        ratio = max(0.0, 1 - keep / (1 - before.achieved_ratio))
    changes: dict[str, Any] = {}
    if "ratio" in request.scoring and ratio is not None:  # of a race within a budget
        changes["ratio"] = min(max(ratio, 0.01), 0.99)
    scores = run.scores(number - 1, **changes)
    decided = plan(run.network, scores, ratio, request.of, **request.planning)
    small = run.pruned(run.network, decided)
    removed = in_original(_reasons(scores, decided), kept_units(before))
    whole = replace(decided, ratio=request.ratio)
    if number > 1:
        achieved = 1 - (1 - before.achieved_ratio) * (1 - decided.achieved_ratio)
        whole = replace(
            run.weighed(extended(before, removed, run.sizes), small),
            achieved_ratio=achieved,
            reached=decided.reached,
        )
    reason = f"round {number} of {rounds}"
    step = Step("kept", removed, whole.after, run.accuracy(small), reason)
    run.record(step, small, plan=whole)


def _reasons(scores: Scores, decided: Plan) -> list[Removal]:
    """Units of a plan with what their scores say, in the order of the network."""
    rows = {(row["group"], row["unit"]): row for row in scores.frame.to_dict("records")}
    return [
        removal_of(rows[group, unit]) for group, units in decided.remove.items() for unit in units
    ]
