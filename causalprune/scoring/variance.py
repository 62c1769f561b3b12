"""Variance of a unit's activation: what cannot be folded into a bias."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from causalprune.scoring.consumption import Reading, by_unit, readings_of, recorder_of
from causalprune.scoring.intervals import PairedMean
from causalprune.scoring.methods import Job, UnitScores, register_method

__all__ = ["variance"]


@register_method("variance", needs_labels=False, outcomes=())
def variance(job: Job) -> Mapping[str, UnitScores]:
    """Variance of what the consumers read of a unit, over images and positions.

    A unit whose value never changes can go for nothing once its mean is folded into its
    consumers' biases; the variance is the mean square of what is lost then. Summed over a unit's
    columns, averaged over its consumers. After variance-based pruning (Berisha et al. 2025),
    whose criterion for hidden units this is; reconstructed from the abstract for other units.
    """
    readings = readings_of(job.model, job.graph)
    seen: dict[str, PairedMean] = {}

    def see(reading: Reading, value: Tensor) -> Tensor:
        columns = value.detach().movedim(reading.consumer.axis, -1).flatten(0, -2)
        seen.setdefault(reading.site.layer, PairedMean(columns.shape[1])).update(columns)
        return value

    recorder = recorder_of(job.trace(), readings, see)
    n_images = 0
    with torch.no_grad(), job.bar("variance", job.batches.n_batches) as advance:
        for batch in job.batches:
            recorder.run(batch.inputs)
            n_images += len(batch.inputs)
            advance()
    totals = {g.name: torch.zeros(g.n_units, dtype=torch.float64) for g in job.graph.groups}
    for reading in readings:
        of_column = seen[reading.site.layer].variance
        for name, found in by_unit(reading, of_column[None]).items():
            totals[name] += found[0] / len(job.graph.group(name).consumers)
    cost = n_images / job.n_units
    return {name: UnitScores(total, n=n_images, cost=cost) for name, total in totals.items()}
