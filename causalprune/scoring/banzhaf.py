"""Random multi-unit designs: the effect of removing a unit when others are removed too."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from causalprune.errors import InvalidArgumentError, RecordError, UnknownNameError
from causalprune.graph import UnitGraph
from causalprune.scoring.ablation import ExactEffects
from causalprune.scoring.methods import Job, MethodResult, UnitScores, register_method
from causalprune.scoring.random_designs import (
    Estimate,
    difference_of_means,
    draw_masks,
    regression_on_masks,
)

if TYPE_CHECKING:
    from causalprune.scoring.scores import Scores

__all__ = ["banzhaf", "recorded_masks"]

REMOVAL_PROBABILITY = 0.1
MASKS_PER_IMAGE = 8
ESTIMATORS = ("difference", "regression")

Probability = float | Sequence[float] | Tensor


@register_method(
    "banzhaf", takes_budget=True, interventions=("zero", "mean", "resample"), compares=True
)
def banzhaf(
    job: Job,
    *,
    q: Probability | Mapping[str, Probability] = REMOVAL_PROBABILITY,
    n_masks: int | None = None,
    estimator: str = "difference",
) -> MethodResult:
    """Effect of removing a unit while every other unit is missing with probability q.

    For each image `n_masks` masks are drawn that remove every unit u independently with
    probability q_u, and the network is run once for each (image, mask). The estimand is the
    weighted Banzhaf value ``E[Y(S + u) - Y(S)]`` over images and over the sets S of other removed
    units; ``q=0.5`` is Banzhaf's own value, and as q goes to 0 it becomes the effect of
    ``"ablation"``. All rows serve all units at once. Images are compared with themselves (fixed
    effects) and standard errors are over images. `importance` is the effect, signed so that a
    unit whose removal makes the outcome better ranks lowest (its size where an outcome has no
    better side).

    Parameters
    ----------
    job : Job
        Its budget, where given, sets the number of masks: an image costs ``n_masks + 1``.
    q : float, sequence [n_units], or mapping of group name to either
        Removal probabilities in (0, 1); groups that a mapping leaves out have 0.1.
    n_masks : int, optional
        Masks per image, at least 2. Default: what the budget buys, else 8.
    estimator : str
        ``"difference"``: difference of means between rows without and with the unit
        (:func:`difference_of_means`). ``"regression"``: least squares on all units' masks, which
        takes the noise of the other units out (:func:`regression_on_masks`).

    Returns
    -------
    MethodResult
        Table ``"design"``, one row per (image, mask): ``image``, ``mask``, ``outcome``,
        ``outcome_whole`` (of the whole network), ``target`` where there are targets,
        ``n_removed``, ``log_probability`` of the mask (natural), and for every group the fraction
        of its units that is removed. Treatments are randomised by construction, so it feeds
        DoWhy and EconML as it is. Table ``"layers"``: group, its ``column`` in the
        design, ``n_units``, ``q`` (mean over its units). Table ``"units"``: group, unit, its
        ``q``. Table ``"masks"``: the masks, packed to bits; :func:`recorded_masks` unpacks them,
        and :func:`causalprune.scoring.mask_table` makes one table of all.

    Raises
    ------
    InvalidArgumentError
        If an option is out of range, the budget does not pay for two masks per image, or there
        are too few rows for a regression.

    References
    ----------
    Banzhaf (1965); Hammer and Holzman (1992): the value is the coefficient of the best linear
    approximation; Wang and Jia (2023), "Data Banzhaf": all rows serve all units.
    """
    if estimator not in ESTIMATORS:
        raise UnknownNameError("estimator", estimator, ESTIMATORS)
    probability = _probabilities(job.graph, q)
    masks_per_image = _masks_per_image(job, n_masks)
    masks, outcomes, wholes, targets = _run(job, probability, masks_per_image)
    if estimator == "regression":
        _check_memory(job)
        estimate = regression_on_masks(masks, outcomes)
    else:
        estimate = difference_of_means(masks, outcomes)
    spent = outcomes.numel() + len(outcomes)
    return MethodResult(
        _unit_scores(job, estimate, spent / job.n_units),
        notes=_notes(estimate, masks_per_image, spent),
        tables={
            "design": _design(job.graph, probability, masks, outcomes, wholes, targets),
            "layers": _layers(job.graph, probability),
            "units": _units(job.graph, probability),
            "masks": {"bits": np.packbits(masks.numpy(), axis=None)},
        },
    )


def recorded_masks(scores: Scores) -> dict[str, np.ndarray[Any, np.dtype[np.bool_]]]:
    """Unpack the masks behind scores of method ``"banzhaf"``.

    Returns
    -------
    dict of str to ndarray [rows, n_units], bool
        Group name to which of its units were removed, row for row as in
        ``scores.tables["design"]``.

    Raises
    ------
    RecordError
        If the scores hold no masks.

    Examples
    --------
    >>> from torch import nn
    >>> from causalprune.scoring import score
    >>> model = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))
    >>> scores = score(model, (torch.randn(5, 4), torch.arange(5) % 2), "banzhaf", n_masks=2)
    >>> recorded_masks(scores)["0"].shape
    (10, 3)
    """
    if not {"design", "masks", "layers"} <= set(scores.tables):
        raise RecordError(
            f"scores: expected masks of method 'banzhaf', got tables {sorted(scores.tables)} of "
            f"method {scores.method!r}"
        )
    layers, n_rows = scores.tables["layers"], len(scores.tables["design"])
    counts = layers["n_units"].to_numpy()
    bits = scores.tables["masks"]["bits"].to_numpy().astype(np.uint8)
    flat = np.unpackbits(bits, count=n_rows * int(counts.sum())).astype(bool)
    parts = np.split(flat.reshape(n_rows, -1), np.cumsum(counts)[:-1], axis=1)
    return dict(zip(layers["group"], parts, strict=True))


# ---- running the design --------------------------------------------------------------------------


def _run(
    job: Job, probability: Tensor, n_masks: int
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """Return masks [N, T, U], outcomes [N, T], the whole network's outcomes [N], targets [N]."""
    generator = torch.Generator().manual_seed(job.seed)
    exact = ExactEffects(job)
    masks, outcomes, wholes, targets = [], [], [], []
    n_batches = job.batches.n_batches
    total = None if n_batches is None else n_batches * n_masks
    with torch.no_grad(), job.bar("random designs", total) as advance:
        for batch in job.batches:
            wholes.append(exact.observe(batch).cpu())
            drawn = draw_masks(probability, len(batch.inputs), n_masks, generator)
            columns = []
            for index in range(n_masks):
                output = exact.interventions.remove_masked(
                    _by_group(job.graph, drawn[:, index].to(batch.inputs.device))
                )
                columns.append(exact.outcome_of(output, f"under random mask {index}").cpu())
                advance()
            masks.append(drawn)
            outcomes.append(torch.stack(columns, 1))
            if batch.targets is not None:
                targets.append(batch.targets.cpu())
    return (
        torch.cat(masks),
        torch.cat(outcomes),
        torch.cat(wholes),
        torch.cat(targets) if len(targets) == len(masks) else None,
    )


def _by_group(graph: UnitGraph, masks: Tensor) -> dict[str, Tensor]:
    parts = torch.split(masks, [group.n_units for group in graph.groups], dim=1)
    return {group.name: part for group, part in zip(graph.groups, parts, strict=True)}


def _probabilities(graph: UnitGraph, q: Probability | Mapping[str, Probability]) -> Tensor:
    """Return the removal probability [U], float64, of every unit of every group."""
    if isinstance(q, Mapping):
        names = [group.name for group in graph.groups]
        for name in q:
            if name not in names:
                raise UnknownNameError("unit group in q", name, names)
    parts = []
    for group in graph.groups:
        own = q.get(group.name, REMOVAL_PROBABILITY) if isinstance(q, Mapping) else q
        try:
            value = torch.as_tensor(own, dtype=torch.float64).cpu()
            value = value.expand(group.n_units) if value.ndim == 0 else value
        except (TypeError, ValueError, RuntimeError):
            value = torch.zeros(0)
        if value.shape != (group.n_units,) or not bool(((value > 0) & (value < 1)).all()):
            raise InvalidArgumentError(
                f"q: expected removal probabilities in (0, 1), one or {group.n_units}, for "
                f"{group.name!r}, got {own!r}"
            )
        parts.append(value)
    return torch.cat(parts)


def _masks_per_image(job: Job, n_masks: int | None) -> int:
    if n_masks is not None:
        if not isinstance(n_masks, int) or isinstance(n_masks, bool) or n_masks < 2:
            raise InvalidArgumentError(f"n_masks: expected an integer of at least 2, got {n_masks}")
        return n_masks
    if job.budget is None:
        return MASKS_PER_IMAGE
    n_images = sum(len(batch.inputs) for batch in job.batches)
    bought = int(job.budget // n_images) - 1
    if bought < 2:
        raise InvalidArgumentError(
            f"budget: expected at least {3 * n_images} forward-equivalents, which pay for two "
            f"masks on each of {n_images} images, got {job.budget}"
        )
    return bought


def _check_memory(job: Job) -> None:
    if 8 * job.n_units**2 > job.max_cache_bytes:
        raise InvalidArgumentError(
            f"estimator: 'regression' on {job.n_units} units takes {8 * job.n_units**2} bytes, "
            f"more than max_cache_bytes={job.max_cache_bytes}; use 'difference'"
        )


# ---- recording -----------------------------------------------------------------------------------


def _unit_scores(job: Job, estimate: Estimate, cost: float) -> dict[str, UnitScores]:
    sizes = [group.n_units for group in job.graph.groups]
    effects, ses, ns = (torch.split(v, sizes) for v in (estimate.effect, estimate.se, estimate.n))
    better = job.outcome.higher_is_better
    found = {}
    for group, effect, se, n in zip(job.graph.groups, effects, ses, ns, strict=True):
        harm = effect.abs() if better is None else -effect if better else effect
        # One image, or none, says nothing about the spread over images.
        spread = torch.where(n > 1, se, torch.nan)
        found[group.name] = UnitScores(harm, effect, spread, n, cost)
    return found


def _notes(estimate: Estimate, n_masks: int, spent: int) -> tuple[str, ...]:
    notes = [f"{n_masks} random masks on each image, {spent} forward-equivalents in all"]
    silent = int((estimate.n == 0).sum())
    if silent:
        notes.append(
            f"{silent} units have no effect here: no image has rows both with and without them; "
            "raise n_masks or q"
        )
    return tuple(notes)


def _columns(graph: UnitGraph) -> list[str]:
    """Names that formula and graph languages take for a variable, one for each group."""
    names: list[str] = []
    for group in graph.groups:
        name = "removed_" + re.sub(r"\W", "_", group.name)
        names.append(name if name not in names else f"{name}_{len(names)}")
    return names


def _design(
    graph: UnitGraph,
    probability: Tensor,
    masks: Tensor,
    outcomes: Tensor,
    wholes: Tensor,
    targets: Tensor | None,
) -> dict[str, Any]:
    n_images, n_masks, _ = masks.shape
    rows = masks.flatten(0, 1)
    columns: dict[str, Any] = {
        "image": torch.arange(n_images).repeat_interleave(n_masks),
        "mask": torch.arange(n_masks).repeat(n_images),
        "outcome": outcomes.flatten(),
        "outcome_whole": wholes.repeat_interleave(n_masks),
    }
    if targets is not None:
        columns["target"] = targets.repeat_interleave(n_masks)
    columns["n_removed"] = rows.sum(1)
    odds = probability.log() - (-probability).log1p()
    kept = float((-probability).log1p().sum())
    chunks = torch.split(rows, 4096)
    columns["log_probability"] = torch.cat([chunk.double() @ odds for chunk in chunks]) + kept
    parts = _by_group(graph, rows).values()
    for name, part in zip(_columns(graph), parts, strict=True):
        columns[name] = part.double().mean(1)
    return columns


def _layers(graph: UnitGraph, probability: Tensor) -> dict[str, Any]:
    parts = torch.split(probability, [group.n_units for group in graph.groups])
    return {
        "group": [group.name for group in graph.groups],
        "column": _columns(graph),
        "n_units": [group.n_units for group in graph.groups],
        "q": [float(part.mean()) for part in parts],
    }


def _units(graph: UnitGraph, probability: Tensor) -> dict[str, Any]:
    return {
        "group": [group.name for group in graph.groups for _ in range(group.n_units)],
        "unit": [unit for group in graph.groups for unit in range(group.n_units)],
        "q": probability,
    }
