"""Exact ablation: run the network again without each unit, one unit at a time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from causalprune.graph import Interventions
from causalprune.scoring.data import Batch
from causalprune.scoring.intervals import PairedMean
from causalprune.scoring.methods import Job, UnitScores, register_method
from causalprune.scoring.outcomes import evaluate

__all__ = ["ExactEffects", "ablation"]


@register_method("ablation")
def ablation(job: Job) -> Mapping[str, UnitScores]:
    """Total effect of do(unit := value) on the outcome: the reference of every cheaper score.

    Per image, Y with the unit intervened on where its consumers read, minus Y. What lies before
    the consumers is computed once a batch (suffix replay), which changes no value.
    """
    exact = ExactEffects(job)
    totals = {group.name: PairedMean(group.n_units) for group in job.graph.groups}
    n_batches = job.batches.n_batches
    total = None if n_batches is None else n_batches * len(job.graph.groups)
    with torch.no_grad(), job.bar("exact ablation", total) as advance:
        for batch in job.batches:
            exact.observe(batch)
            for group in job.graph.groups:
                totals[group.name].update(exact.effects(group.name, range(group.n_units)))
                advance()
    return {
        name: UnitScores.of(mean, exact.interventions.cost(name) * mean.n)
        for name, mean in totals.items()
    }


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
            job.model, job.graph, value=job.intervention, max_cache_bytes=job.max_cache_bytes
        )
        self._targets: Tensor | None = None
        self._plain = torch.zeros(0)

    def observe(self, batch: Batch) -> Tensor:
        """Run the network as it is; returns the outcome Y [N], float64."""
        output = self.interventions.observe(batch.inputs)
        self._targets = batch.targets
        self._plain = evaluate(self._job.outcome, output, batch.targets, "on the whole network")
        return self._plain

    def effects(
        self, group: str, units: Sequence[int], images: Sequence[int] | None = None
    ) -> Tensor:
        """``Y_do(unit) - Y`` [n, len(units)], float64, of each unit alone on `images` (all)."""
        chosen = list(range(len(self._plain))) if images is None else list(images)
        outputs = self.interventions.remove(group, units, images)
        targets = None if self._targets is None else self._targets[chosen]
        columns = []
        for unit, output in zip(units, outputs, strict=True):
            where = f"after removing unit {unit} of layer {group!r}"
            columns.append(evaluate(self._job.outcome, output, targets, where))
        return torch.stack(columns, 1) - self._plain[chosen][:, None]
