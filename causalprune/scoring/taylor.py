"""The signed first-order effect of removing a unit (after Molchanov et al. 2019)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from causalprune.scoring.methods import Job, UnitScores, register_method
from causalprune.scoring.path import UnitPaths
from causalprune.scoring.tally import Tally

__all__ = ["first_order_paths", "taylor"]

FORWARDS_PER_PASS = 2.0
"""A backward pass, of twice a forward's work."""


@register_method(
    "taylor",
    needs_gradient=True,
    shards=("projections",),
    interventions=("zero", "mean", "predicted"),
    compares=True,
)
def taylor(job: Job, *, projections: int | None = None) -> Mapping[str, UnitScores]:
    """First-order effect of do(unit := 0): ``-a * dY/da`` per image, summed over positions.

    With ``intervention="mean"``: ``-(a - mean) * dY/da``, the mean being the unit's over the data;
    with ``"predicted"``, minus its linear prediction by the other units of its group instead.
    Activation and gradient are taken where the consumers read the unit, and added over the
    consumers; signed, per sample (Molchanov et al. 2019 square the batch mean instead).

    For an outcome that compares two outputs the effect is the distance that the first-order
    changes of all logits come to: for ``"logits"`` ``mean_k (c_k - mean c)^2`` with
    ``c_k = -a * dz_k/da``, a Gauss-Newton form, from random `projections` where there are many
    classes (unbiased); for another one its value when the logits of the image's likeliest
    classes change so.

    Parameters
    ----------
    job : Job
    projections : int, optional
        Backward passes for an outcome that compares. Default: 16, or as many as are exact (one
        less than there are classes for ``"logits"``, else one for each class).
    """
    paths, tally = first_order_paths(job, projections), Tally(job)
    with job.bar("taylor", job.batches.n_batches) as advance:
        for batch in tally.batches():
            found = paths.effects(batch, tally.batch)
            share = (1 + FORWARDS_PER_PASS * paths.n_passes) / job.n_units
            for name, effects in found.items():
                tally.add(name, effects, cost=share * len(effects))
            advance()
    return tally.scores()


def first_order_paths(job: Job, projections: int | None = None) -> UnitPaths:
    """Path effects that take every consumer, too, as linear: ``-a * dY/da`` of each image."""
    linear = {
        layer: replace(site, activation="identity", out=site.pre)
        for layer, site in job.graph.sites.items()
    }
    linearised = replace(job, graph=replace(job.graph, sites=linear))
    return UnitPaths.of(linearised, projections=projections)
