"""One row a unit: cheap features of all, the exact effect of a chosen few, and why those."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from causalprune.errors import InvalidArgumentError
from causalprune.scoring.ablation import ExactEffects
from causalprune.scoring.data import as_batches
from causalprune.scoring.driver import open_job, score
from causalprune.scoring.intervals import PairedMean
from causalprune.scoring.methods import Job, resolve_method
from causalprune.scoring.outcomes import DEFAULT_OUTCOME, resolve_outcome
from causalprune.scoring.scores import Scores
from causalprune.scoring.unit_designs import draw_units, inclusion_probabilities

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["FEATURE_METHODS", "unit_table"]

FEATURE_METHODS = ("path", "taylor", "variance", "l1", "l2")
"""Cheap scores that a table has unless told otherwise; the first one decides what is ablated."""


def unit_table(
    model: nn.Module,
    data: Any,
    methods: Sequence[str] = FEATURE_METHODS,
    outcome: str | Callable[..., Tensor] = DEFAULT_OUTCOME,
    *,
    tail: float = 0.05,
    sample: float = 0.15,
    floor: float = 0.2,
    units: str = "groups",
    intervention: str = "zero",
    max_images: int | None = None,
    batch_size: int = 256,
    max_cache_bytes: int = 2**30,
    seed: int = 0,
    progress: bool = False,
) -> pd.DataFrame:
    """Tabulate cheap scores of all units, and the exact effect of a recorded random sample.

    What an ablated unit does is *observed*: what is missing are the units that were not ablated,
    under a sampling that is known. So the units which the first of `methods` ranks highest are
    ablated for certain (`tail`), the others with a probability in proportion to that score, which
    the table records. :func:`causalprune.analysis.unit_effects` estimates from it the effects of
    the others, and of whole layers, with intervals.

    Parameters
    ----------
    model, data, outcome, units, intervention, max_images, batch_size, max_cache_bytes, seed
        As :func:`causalprune.scoring.score` takes them. All images are held in memory.
    methods : sequence of str
        Scoring methods that give the features; importances of the first one, which must not be
        negative, decide what is ablated. A method that does not take `outcome` or `intervention`
        is run with the defaults of :func:`causalprune.scoring.score`.
    tail, sample : float
        Fractions of the units that are ablated for certain, and at random from the others.
    floor : float
        Share of a uniform size in the sampling, in (0, 1]; with ``tail=0, floor=1`` the sampling
        is uniform.
    progress : bool
        Show progress bars.

    Returns
    -------
    DataFrame
        One row a unit. ``layer``, ``unit``, ``kind``; for every method ``score_<method>`` (its
        importance) and, where it estimates the effect on `outcome`, ``effect_<method>``;
        ``size`` (what was sampled by), ``probability`` of being ablated, in (0, 1], and
        ``ablated``; of those that were, ``effect`` (mean over the images of Y_do - Y),
        ``se`` (its standard error over images) and ``importance`` (mean of abs(Y_do - Y)), else
        NaN; ``n`` (images), ``cost`` (forward-equivalents spent, cheap scores included) and
        ``cost_ablation`` (what ablating the unit takes); ``measured``, the outcome's name, as in
        ``frame.attrs["outcome"]``.

    Raises
    ------
    InvalidArgumentError
        If an argument is out of range, or the first method gives a negative or non-finite score.

    References
    ----------
    Sarndal, Swensson and Wretman (1992), "Model Assisted Survey Sampling", chapters 3 and 6.

    Examples
    --------
    >>> _ = torch.manual_seed(0)
    >>> model = nn.Sequential(nn.Linear(4, 10), nn.ReLU(), nn.Linear(10, 2))
    >>> data = torch.randn(20, 4), torch.arange(20) % 2
    >>> table = unit_table(model, data, ("taylor", "l1"), tail=0.2, sample=0.3)
    >>> len(table), int(table["ablated"].sum()), int((table["probability"] == 1).sum())
    (10, 5, 2)
    """
    names = _checked_methods(methods)
    wanted = resolve_outcome(outcome)
    common: dict[str, Any] = {
        "units": units,
        "max_images": max_images,
        "batch_size": batch_size,
        "max_cache_bytes": max_cache_bytes,
        "seed": seed,
        "progress": progress,
    }
    images = as_batches(
        data, batch_size=batch_size, max_images=max_images, labels=wanted.needs_labels
    ).collect()
    again = images.inputs if images.targets is None else (images.inputs, images.targets)
    cheap = [_cheap(model, again, name, outcome, intervention, common) for name in names]
    frame = _features(cheap, wanted.name)
    size = frame[f"score_{names[0]}"].to_numpy()
    if not (np.isfinite(size) & (size >= 0)).all():
        raise InvalidArgumentError(
            f"methods: expected finite importances of at least 0 from the first one, {names[0]!r}, "
            f"which decides what is ablated; got {size.min():g}"
        )
    frame["size"] = size
    frame["probability"] = inclusion_probabilities(size, tail=tail, sample=sample, floor=floor)
    frame["ablated"] = draw_units(frame["probability"], list(frame["layer"]), seed)
    with open_job(
        model, again, "ablation", outcome, intervention=intervention, options={}, **common
    ) as (_, job):
        frame = _ablate(job, frame)
    frame["measured"] = frame.attrs["outcome"] = wanted.name
    return frame


def _checked_methods(methods: Sequence[str]) -> list[str]:
    names = [methods] if isinstance(methods, str) else list(methods)
    if not names or len(set(names)) < len(names):
        raise InvalidArgumentError(f"methods: expected different scoring methods, got {names!r}")
    for name in names:
        resolve_method(name)
    return names


def _cheap(
    model: nn.Module,
    data: Any,
    name: str,
    outcome: str | Callable[..., Tensor],
    intervention: str,
    common: Any,
) -> Scores:
    """Score by a method on `outcome`, or on the default where it does not measure that one."""
    method, wanted = resolve_method(name), resolve_outcome(outcome)
    possible = wanted.differentiable or not method.needs_gradient
    own = outcome if possible and method.takes_outcome(wanted.name) else DEFAULT_OUTCOME
    does = intervention if intervention in method.interventions else "zero"
    return score(model, data, name, own, intervention=does, **common)


def _features(scores: Sequence[Scores], outcome: str) -> pd.DataFrame:
    frame = scores[0].frame[["layer", "unit", "kind"]].copy()
    for found in scores:
        frame[f"score_{found.method}"] = found.frame["importance"].to_numpy()
    for found in scores:
        effect = found.frame["effect"].to_numpy()
        if found.outcome == outcome and np.isfinite(effect).all():
            frame[f"effect_{found.method}"] = effect
    frame["cost"] = np.sum([found.frame["cost"].to_numpy() for found in scores], axis=0)
    return frame


def _ablate(job: Job, frame: pd.DataFrame) -> pd.DataFrame:
    """Return the table with the exact effects of the drawn units, and what they cost."""
    exact = ExactEffects(job)
    drawn = {
        group.name: frame.index[(frame["layer"] == group.name) & frame["ablated"]]
        for group in job.graph.groups
    }
    totals = {name: PairedMean(len(rows)) for name, rows in drawn.items()}
    with torch.no_grad(), job.bar("ablating", job.batches.n_batches) as advance:
        for batch in job.batches:
            exact.observe(batch)
            for name, rows in drawn.items():
                if len(rows):
                    chosen = frame.loc[rows, "unit"].tolist()
                    totals[name].update(exact.effects(name, chosen))
            advance()
    n_images = max(total.n for total in totals.values())
    of_layer = {name: exact.interventions.cost(name) * n_images for name in drawn}
    frame[["effect", "se", "importance"]] = np.nan
    for name, rows in drawn.items():
        if len(rows):
            frame.loc[rows, "effect"] = totals[name].mean.numpy()
            frame.loc[rows, "se"] = totals[name].standard_error.numpy()
            frame.loc[rows, "importance"] = totals[name].mean_absolute.numpy()
    frame["n"] = np.where(frame["ablated"], n_images, 0)
    frame["cost_ablation"] = frame["layer"].map(of_layer)
    # The plain run, which all ablated units share.
    shared = n_images / int(frame["ablated"].sum())
    frame["cost"] += np.where(frame["ablated"], frame["cost_ablation"] + shared, 0.0)
    order = ["size", "probability", "ablated", "effect", "se", "importance", "n", "cost"]
    last = [*order, "cost_ablation"]
    return frame[[*(column for column in frame if column not in last), *last]]
