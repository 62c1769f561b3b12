"""The scale of a unit's batch norm (Liu et al. 2017, "network slimming")."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from causalprune.errors import UnsupportedModelError
from causalprune.graph import UnitGroup
from causalprune.scoring.methods import Job, MethodResult, UnitScores, register_method

__all__ = ["bn_scale"]


@register_method("bn_scale", needs_data=False, needs_labels=False, outcomes=())
def bn_scale(job: Job) -> MethodResult:
    """Absolute scale ``|gamma|`` of the batch norm behind a unit.

    In a coupled group the scales of all norms are added. A unit without one passes unscaled and
    counts as 1; ``Scores.notes`` names such groups, for which this says nothing.

    Raises
    ------
    UnsupportedModelError
        If no unit has one.
    """
    found: dict[str, UnitScores] = {}
    without = []
    for group in job.graph.groups:
        scales = _scales(job.model, group)
        if scales is None:
            without.append(group.name)
            scales = torch.ones(group.n_units, dtype=torch.float64)
        found[group.name] = UnitScores(scales)
    if len(without) == len(job.graph.groups):
        raise UnsupportedModelError(
            "model: method 'bn_scale' ranks units by the batch norm behind them; no unit has one"
        )
    notes = (f"no batch norm scales the units of {', '.join(without)}",) if without else ()
    return MethodResult(found, notes=notes)


def _scales(model: nn.Module, group: UnitGroup) -> Tensor | None:
    total = torch.zeros(group.n_units, dtype=torch.float64)
    scaled: Mapping[str, Tensor] = {
        owned.layer: norm.weight.detach().abs().double().cpu()
        for owned in group.owned
        if owned.role == "norm"
        and isinstance(norm := model.get_submodule(owned.layer), (nn.BatchNorm1d, nn.BatchNorm2d))
        and norm.weight is not None
    }
    for owned in group.owned:
        if owned.layer in scaled and owned.role == "norm":
            for unit in range(group.n_units):
                total[unit] += scaled[owned.layer][owned.columns([unit])].sum()
    return total if scaled else None
