"""Filter norms: the data-free baselines l1 and l2."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from causalprune.graph import UnitGroup
from causalprune.scoring.methods import Job, UnitScores, register_method

__all__ = ["l1", "l2"]


@register_method("l1", needs_data=False, needs_labels=False)
def l1(job: Job) -> Mapping[str, UnitScores]:
    """Sum of absolute weights that produce a unit (Li et al. 2017, eq. 1).

    Biases, batch norms and depthwise weights are left out; in a coupled group the norms of all
    producers are added.
    """
    return {
        group.name: UnitScores(_rows(job.model, group).abs().sum(1)) for group in job.graph.groups
    }


@register_method("l2", needs_data=False, needs_labels=False)
def l2(job: Job) -> Mapping[str, UnitScores]:
    """Euclidean norm of the weights that produce a unit; all producers of a group together."""
    return {
        group.name: UnitScores(_rows(job.model, group).square().sum(1).sqrt())
        for group in job.graph.groups
    }


def _rows(model: nn.Module, group: UnitGroup) -> Tensor:
    """Weights [n_units, fan-in of all producers], float64."""
    rows = []
    for name in group.producers:
        weight = model.get_submodule(name).weight
        assert isinstance(weight, Tensor)
        rows.append(weight.detach().to("cpu", torch.float64).flatten(1))
    return torch.cat(rows, 1)
