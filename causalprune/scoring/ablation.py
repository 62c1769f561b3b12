"""Exact ablation: run the network again without each unit, one unit at a time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from causalprune.errors import InvalidArgumentError
from causalprune.graph import Interventions
from causalprune.scoring.data import Batch
from causalprune.scoring.methods import Job, MethodResult, UnitScores, register_method
from causalprune.scoring.outcomes import evaluate
from causalprune.scoring.tally import Tally

__all__ = ["ExactEffects", "ablation"]


@register_method(
    "ablation",
    takes_budget=True,
    shards=(),
    interventions=("zero", "mean", "resample", "predicted"),
    compares=True,
)
def ablation(
    job: Job,
    *,
    ratio: float = 0.5,
    surrogate: str | None = None,
    rank: str = "importance",
    scope: str = "global",
    population: str = "distribution",
) -> Mapping[str, UnitScores] | MethodResult:
    """Total effect of do(unit := value) on the outcome: the reference of every cheaper score.

    Per image, Y with the unit intervened on where its consumers read, minus Y; for an outcome
    that compares two outputs (``"logits"``, ``"divergence"``), the distance between them. With
    ``intervention="predicted"`` the unit gets its best linear prediction from the other units of
    its group: the effect is what is lost after they have stood in for it. What lies before
    the consumers is computed once a batch (suffix replay), which changes no value. The cost of a
    unit is the share of the network's multiply-accumulates that lie behind it, times the images:
    an upper bound, because images on which it is zero already are not run.

    With a budget, exact effects are computed only where the decision which units to remove is
    open, and a surrogate of all images makes up for those that are left out
    (:func:`causalprune.scoring.racing.race`). The options below belong to that; `ratio` is also
    what the importances are sharpest for.

    Parameters
    ----------
    job : Job
    ratio : float
        Fraction of the units that is to be removed, in (0, 1).
    surrogate : str, optional
        ``"log_odds"``, ``"path"``, ``"taylor"``, ``"logit"`` or ``"none"``
        (:func:`causalprune.scoring.surrogates.surrogate_of`). Default: the best one that costs
        no more than ``"path"``. An outcome without a gradient has ``"none"``.
    rank : str
        What decides: ``"importance"`` (mean of abs(Y_do - Y)) or ``"effect"`` (mean of Y_do - Y,
        for the worse).
    scope : str
        ``"global"``: one boundary for all units; ``"layer"``: one in every group.
    population : str
        Whether effects and their intervals are of the ``"distribution"`` that the images were
        drawn from, or of the ``"images"`` at hand.

    Raises
    ------
    InvalidArgumentError
        If an option is out of range or given without a budget, or the budget does not pay for
        the surrogate, or without one for one image.
    """
    # Imported here, because a race computes exact effects with what is below.
    from causalprune.scoring.racing import RaceOptions, race

    options = RaceOptions(ratio, surrogate, rank, scope, population)
    if job.budget is not None:
        return race(job, options)
    if options != RaceOptions():
        raise InvalidArgumentError(
            "budget: expected one with the options ratio, surrogate, rank, scope, population; "
            "without a budget every unit is computed on every image"
        )
    exact = ExactEffects(job)
    tally = Tally(job, by_group=True)
    n_batches = job.batches.n_batches
    total = None if n_batches is None else n_batches * len(job.graph.groups)
    with torch.no_grad(), job.bar("exact ablation", total) as advance:
        for batch in tally.batches():
            exact.observe(batch)
            for group in tally.groups():
                effects = exact.effects(group.name, range(group.n_units))
                tally.add(group.name, effects, exact.interventions.cost(group.name) * len(effects))
                advance()
    return tally.scores()


class ExactEffects:
    """Per-image effects of interventions on the units of a network.

    Call :meth:`observe` with a batch first; the other methods answer for its images. Use inside
    ``torch.no_grad()``.

    Parameters
    ----------
    job : Job
    """

    def __init__(self, job: Job) -> None:
        self._job = job
        self.interventions = Interventions(
            job.model,
            job.graph,
            example=job.batches.example,
            value=job.intervention,
            max_cache_bytes=job.max_cache_bytes,
            seed=job.seed,
        )
        if self.interventions.needs_calibration:
            with torch.no_grad():
                self.interventions.calibrate(batch.inputs for batch in job.batches)
        self._targets: Tensor | None = None
        self._output = self._plain = torch.zeros(0)

    def observe(self, batch: Batch) -> Tensor:
        """Run the network as it is; returns the outcome Y [N], float64."""
        self._output = self.interventions.observe(batch.inputs)
        self._targets = batch.targets
        self._plain = self.outcome_of(self._output, "on the whole network")
        return self._plain

    def outcome_of(self, output: Tensor, where: str, images: Sequence[int] | None = None) -> Tensor:
        """Y [n], float64, of an output [n, K] of `images` (all); `where` names it in errors."""
        plain, targets = self._output, self._targets
        if images is not None:
            chosen = list(images)
            plain, targets = plain[chosen], None if targets is None else targets[chosen]
        return evaluate(self._job.outcome, output, targets, where, plain)

    def effects(
        self, group: str, units: Sequence[int], images: Sequence[int] | None = None
    ) -> Tensor:
        """``Y_do(unit) - Y`` [n, len(units)], float64, of each unit alone on `images` (all)."""
        outputs = self.interventions.remove(group, units, images)
        columns = []
        for unit, output in zip(units, outputs, strict=True):
            where = f"after removing unit {unit} of layer {group!r}"
            columns.append(self.outcome_of(output, where, images))
        plain = self._plain if images is None else self._plain[list(images)]
        return torch.stack(columns, 1) - plain[:, None]
