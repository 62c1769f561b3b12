"""Blame: exact responsibility, averaged over images."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch

from causalprune.scoring.contingency import Contingencies, Search
from causalprune.scoring.contingency_runs import (
    contingencies_per_image,
    contingency_table,
    search_notes,
)
from causalprune.scoring.methods import Job, MethodResult, UnitScores, register_method

__all__ = ["blame"]


@register_method("blame", needs_labels=False, interventions=("zero", "mean"), outcomes=())
def blame(
    job: Job,
    *,
    theta: float | None = None,
    target_class: int | None = None,
    layers: Sequence[str] | None = None,
    max_contingency: int = 1,
    max_sets: int = 50_000,
    beam_width: int = 8,
    beam_contingency: int = 4,
) -> MethodResult:
    """Mean over the images of the exact responsibility of every unit (``importance``).

    Responsibility as in :func:`causalprune.scoring.responsibility.responsibility` with
    ``form="exact"``, image by image; no labels are needed. Table ``blame`` has the standard error
    over the images, the upper bound that sets not tried leave open (``upper``), and the fraction
    of the images with an exact responsibility; table ``contingencies`` has every image. The
    default search is shallower than that of ``responsibility``, because it is made once per image.
    It still runs every pair of units of a group, on the CIFAR ResNet-20 some 7,000
    forward-equivalents an image: take a few images (``max_images``) and `layers`, or fewer sets.

    Parameters
    ----------
    job : Job
    theta, target_class, layers, max_contingency, max_sets, beam_width, beam_contingency
        As there.

    Raises
    ------
    InvalidArgumentError
        If an option is out of range, or an outcome is given: the method has its own.

    Notes
    -----
    Source: Chockler and Halpern (2004), "Responsibility and blame", with the images as equally
    likely contexts; Debbi (2021), CexCNN.

    Examples
    --------
    >>> from torch import nn
    >>> from causalprune.scoring import score
    >>> model = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))
    >>> scores = score(model, torch.randn(6, 4), method="blame")
    >>> each = scores.tables["contingencies"].groupby("unit")["responsibility"].mean()
    >>> bool((each.to_numpy() == scores.frame["importance"]).all())
    True
    """
    search = Search(max_contingency, max_sets, beam_width, beam_contingency)
    found, costs, outcome = contingencies_per_image(
        job, "blame", search, theta=theta, target_class=target_class, layers=layers
    )
    units = {}
    for group in job.graph.groups:
        results = found.get(group.name)
        if results is None:
            units[group.name] = UnitScores(torch.full((group.n_units,), torch.nan))
            continue
        mean = torch.stack([result.responsibility for result in results]).mean(0)
        units[group.name] = UnitScores(mean, n=len(results), cost=costs[group.name])
    tables = {"blame": _blame_table(found), "contingencies": contingency_table(found)}
    return MethodResult(units, notes=search_notes(found), tables=tables, outcome=outcome)


def _blame_table(found: Mapping[str, Sequence[Contingencies]]) -> dict[str, list[object]]:
    """One row per unit that was searched."""
    names = ("group", "unit", "blame", "se", "upper", "exact", "n")
    columns: dict[str, list[object]] = {name: [] for name in names}
    for group, results in found.items():
        each = torch.stack([result.responsibility for result in results])
        n, n_units = each.shape
        spread = each.std(0) / n**0.5 if n > 1 else torch.full((n_units,), math.nan)
        columns["group"] += [group] * n_units
        columns["unit"] += range(n_units)
        columns["blame"] += each.mean(0).tolist()
        columns["se"] += spread.tolist()
        columns["upper"] += torch.stack([result.upper for result in results]).mean(0).tolist()
        columns["exact"] += torch.stack([r.exact for r in results]).double().mean(0).tolist()
        columns["n"] += [n] * n_units
    return columns
