"""The signed first-order effect of removing a unit (after Molchanov et al. 2019)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from causalprune.scoring.methods import Job, UnitScores, register_method
from causalprune.scoring.path import UnitPaths
from causalprune.scoring.tally import Tally

__all__ = ["first_order_paths", "taylor"]

FORWARDS_PER_IMAGE = 3.0
"""A forward pass and a backward pass of twice its work."""


@register_method("taylor", needs_gradient=True, shards=(), interventions=("zero", "mean"))
def taylor(job: Job) -> Mapping[str, UnitScores]:
    """First-order effect of do(unit := 0): ``-a * dY/da`` per image, summed over positions.

    With ``intervention="mean"``: ``-(a - mean) * dY/da``, the mean being the unit's over the data.
    Activation and gradient are taken where the consumers read the unit, and added over the
    consumers; signed, per sample (Molchanov et al. 2019 square the batch mean instead).
    """
    paths = first_order_paths(job)
    tally, share = Tally(job), FORWARDS_PER_IMAGE / job.n_units
    with job.bar("taylor", job.batches.n_batches) as advance:
        for batch in tally.batches():
            for name, effects in paths.effects(batch).items():
                tally.add(name, effects, cost=share * len(effects))
            advance()
    return tally.scores()


def first_order_paths(job: Job) -> UnitPaths:
    """Path effects that take every consumer, too, as linear: ``-a * dY/da`` of each image."""
    linear = {
        layer: replace(site, activation="identity", out=site.pre)
        for layer, site in job.graph.sites.items()
    }
    return UnitPaths.of(replace(job, graph=replace(job.graph, sites=linear)))
