"""The irreplaceable effect: what is lost after the other units have stood in for one."""

from __future__ import annotations

from dataclasses import replace

from causalprune.scoring.ablation import ablation
from causalprune.scoring.methods import Job, MethodResult, fixed_outcome, register_method
from causalprune.scoring.outcomes import OUTCOMES

__all__ = ["irreplaceable"]


@register_method(
    "irreplaceable",
    needs_labels=False,
    takes_budget=True,
    shards=(),
    interventions=("zero", "predicted"),
    outcomes=("logits",),
    compares=True,
)
def irreplaceable(
    job: Job, *, ratio: float = 0.5, scope: str = "global", surrogate: str | None = None
) -> MethodResult:
    """Change of the centred logits that the best stand-in for a unit leaves.

    Exact ablation with ``intervention="predicted"`` and ``outcome="logits"``, which the defaults
    of :func:`causalprune.scoring.score` stand for here: every consumer reads, instead of the
    unit, its ridge regression (with a constant, coefficients from the same images) on what it
    reads of the other units of the group at the same position; the effect is the mean over
    classes of the squared change of the centred logits, per image, without labels. The stand-in
    is one change of the consumers' other weights, so refitting them all (``apply`` with
    ``compensation="refit"``) leaves them no larger an error. Of two units that copy each other
    both are replaceable, and only one can go: this is about one unit. For other outcomes:
    ``method="ablation", intervention="predicted"``.

    Our own; there is no source.

    Parameters
    ----------
    job : Job
        With enough images that there are many more positions than units in a group: from few,
        the regressions fit what they are given and everything looks replaceable.
    ratio, scope, surrogate
        As for :func:`causalprune.scoring.ablation.ablation` with a budget.

    Examples
    --------
    >>> import torch
    >>> from torch import nn
    >>> from causalprune.scoring import score
    >>> model = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))
    >>> with torch.no_grad():
    ...     _ = model[0].weight[1].copy_(model[0].weight[0])
    ...     _ = model[0].bias[1].copy_(model[0].bias[0])  # unit 1 is unit 0 once more
    >>> scores = score(model, torch.randn(50, 4), "irreplaceable")
    >>> bool((scores.frame["effect"][:2] < 1e-3).all()), scores.outcome
    (True, 'logits')
    """
    job = fixed_outcome(job, "irreplaceable", OUTCOMES["logits"])
    found = ablation(
        replace(job, intervention="predicted"), ratio=ratio, scope=scope, surrogate=surrogate
    )
    result = found if isinstance(found, MethodResult) else MethodResult(found)
    return replace(result, outcome=job.outcome)
