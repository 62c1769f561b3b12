"""The signed first-order effect of removing a unit (after Molchanov et al. 2019)."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from causalprune.graph import CONSUMER_INPUT, Consumer, Replay, trace
from causalprune.scoring.intervals import PairedMean
from causalprune.scoring.methods import Job, UnitScores, register_method
from causalprune.scoring.outcomes import evaluate

__all__ = ["per_unit", "taylor"]

FORWARDS_PER_IMAGE = 3.0
"""A forward pass and a backward pass of twice its work."""


@register_method("taylor", needs_gradient=True)
def taylor(job: Job) -> Mapping[str, UnitScores]:
    """First-order effect of do(unit := 0): ``-a * dY/da`` per image, summed over positions.

    Activation and gradient are taken where the consumers read the unit, and added over the
    consumers; signed, per sample (Molchanov et al. 2019 square the batch mean instead).
    """
    sites = [job.graph.sites[c.layer] for g in job.graph.groups for c in g.consumers]
    replay = Replay(trace(job.model), consumers=[site.node for site in sites])
    keys = [site.node + CONSUMER_INPUT for site in sites]
    totals = {group.name: PairedMean(group.n_units) for group in job.graph.groups}
    with torch.enable_grad(), job.bar("taylor", job.batches.n_batches) as advance:
        for batch in job.batches:
            output = replay(batch.inputs.detach().requires_grad_())
            value = evaluate(job.outcome, output, batch.targets, "on the whole network")
            readings = [replay.values[key] for key in keys]
            gradients = torch.autograd.grad(value.sum(), readings, allow_unused=True)
            products = {
                key: _product(reading, gradient)
                for key, reading, gradient in zip(keys, readings, gradients, strict=True)
            }
            for group in job.graph.groups:
                parts = [
                    per_unit(products[job.graph.sites[c.layer].node + CONSUMER_INPUT], c)
                    for c in group.consumers
                ]
                totals[group.name].update(-torch.stack(parts).sum(0))
            advance()
    share = FORWARDS_PER_IMAGE / job.n_units
    return {name: UnitScores.of(mean, share * mean.n) for name, mean in totals.items()}


def per_unit(values: Tensor, consumer: Consumer) -> Tensor:
    """Sum the values of a consumer's input over positions and columns: [N, n_units]."""
    if consumer.kind == "conv":
        return values.sum((2, 3))
    columns = values.reshape(values.shape[0], -1, values.shape[-1]).sum(1)
    return columns.reshape(len(columns), -1, consumer.features_per_unit).sum(2)


def _product(reading: Tensor, gradient: Tensor | None) -> Tensor:
    reading = reading.detach().double()
    # No gradient: the outcome does not depend on this reading at all.
    return torch.zeros_like(reading) if gradient is None else reading * gradient.double()
