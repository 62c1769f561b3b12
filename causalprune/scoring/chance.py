"""The random baseline."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from causalprune.scoring.methods import Job, UnitScores, register_method

__all__ = ["chance"]


@register_method("random", needs_data=False, needs_labels=False, outcomes=())
def chance(job: Job) -> Mapping[str, UnitScores]:
    """Draw every importance from U[0, 1), with a generator of its own from the seed."""
    generator = torch.Generator().manual_seed(job.seed)
    return {
        group.name: UnitScores(torch.rand(group.n_units, generator=generator, dtype=torch.float64))
        for group in job.graph.groups
    }
