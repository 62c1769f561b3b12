"""Responsibility: how far a unit is from deciding the outcome by itself."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from causalprune.errors import DataError, InvalidArgumentError, UnknownNameError
from causalprune.graph import UnitGroup, capture, evaluating
from causalprune.scoring.cexcnn import deletion_effects, probability_of
from causalprune.scoring.contingency import Search
from causalprune.scoring.contingency_runs import (
    contingencies_per_image,
    contingency_table,
    search_notes,
)
from causalprune.scoring.methods import Job, MethodResult, UnitScores, register_method
from causalprune.scoring.outcomes import OUTCOMES
from causalprune.scoring.scores import Scores, fingerprint

__all__ = ["additive_responsibility", "responsibility", "responsibility_map"]

ACCURACY_THRESHOLD = 0.01
"""Default `theta` of the additive form: one point of accuracy, or of probability."""


@register_method(
    "responsibility",
    needs_labels=False,
    interventions=("zero", "mean", "resample"),
    outcomes=("correctness",),
)
def responsibility(
    job: Job,
    *,
    form: str = "additive",
    theta: float | None = None,
    target_class: int | None = None,
    layers: Sequence[str] | None = None,
    max_contingency: int = 2,
    max_sets: int = 50_000,
    beam_width: int = 8,
    beam_contingency: int = 8,
) -> MethodResult:
    """Degree of responsibility, ``1 / (k + 1)``: k other units must go before this one decides.

    ``form="additive"`` takes the units' own effects e of :func:`~causalprune.scoring.cexcnn.cexcnn`
    (falls of accuracy, or of the probability of `target_class`) on the images given and adds them
    up; see :func:`additive_responsibility`. ``form="exact"`` is about one image: it removes sets
    of units of one group and looks whether the prediction flips; table ``contingencies`` tells for
    every unit the set found, how many there are of its size (``n_contingencies``, -1 where not all
    were tried), and whether a smaller one is ruled out (``exact``) or the responsibility is a lower
    bound. For several images: method ``blame``.

    Parameters
    ----------
    job : Job
    form : str
        ``"additive"`` or ``"exact"``.
    theta : float, optional
        Additive: the fall that counts, default 0.01. Exact: the event is "the probability falls
        by `theta` at the most"; default: the event is "the prediction is unchanged".
    target_class : int, optional
        Class whose probability counts. Default: accuracy (additive), the predicted class (exact).
    layers : sequence of str, optional
        Exact: groups to search; the others get NaN, which plans refuse. Default: all.
    max_contingency, max_sets, beam_width, beam_contingency : int
        Exact: how far sets are searched for; see :class:`causalprune.scoring.contingency.Search`.

    Raises
    ------
    InvalidArgumentError
        If an option is out of range, or an outcome is given: the method has its own.
    DataError
        If labels are needed and missing, or ``form="exact"`` is given more than one image.

    Notes
    -----
    Source: Chockler and Halpern (2004), "Responsibility and blame"; Debbi (2021), CexCNN.

    Examples
    --------
    >>> _ = torch.manual_seed(0)
    >>> model = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))
    >>> from causalprune.scoring import score
    >>> scores = score(model, torch.randn(1, 4), method="responsibility", form="exact")
    >>> bool(scores.tables["contingencies"]["exact"].all())
    True
    """
    search = Search(max_contingency, max_sets, beam_width, beam_contingency)
    if form == "additive":
        if layers is not None:
            raise InvalidArgumentError(
                f"layers: expected None with form='additive', got {layers!r}"
            )
        return _additive(job, ACCURACY_THRESHOLD if theta is None else theta, target_class)
    if form != "exact":
        raise UnknownNameError("form", form, ("additive", "exact"))
    n_images = sum(len(batch.inputs) for batch in job.batches)
    if n_images != 1:
        raise DataError(
            "data: responsibility in its exact form is about one image, expected one, got "
            f"{n_images}; method='blame' averages it over images"
        )
    found, costs, outcome = contingencies_per_image(
        job, "responsibility", search, theta=theta, target_class=target_class, layers=layers
    )
    units = {}
    for group in job.graph.groups:
        (result,) = found.get(group.name, [None])
        if result is None:
            units[group.name] = UnitScores(torch.full((group.n_units,), torch.nan))
        else:
            units[group.name] = UnitScores(result.responsibility, n=1, cost=costs[group.name])
    tables = {"contingencies": contingency_table(found)}
    return MethodResult(units, notes=search_notes(found), tables=tables, outcome=outcome)


def additive_responsibility(effects: Tensor | Sequence[float], theta: float) -> Tensor:
    """Responsibility of units whose effects are taken to add up.

    1 where ``e >= theta``; 0 where ``e <= 0``; else the other non-negative effects below theta
    are added to e, largest first, until the sum reaches theta after w of them: ``1 / (w + 1)``;
    0 if it never does.

    Parameters
    ----------
    effects : Tensor or sequence [n_units]
        Falls of the outcome when each unit is deleted alone, in units of the outcome.
    theta : float
        Fall that counts as a change of the outcome; positive.

    Returns
    -------
    Tensor [n_units], float64

    Raises
    ------
    InvalidArgumentError
        If `theta` is not positive, or an effect is not finite or not in one dimension.

    Notes
    -----
    Source: Debbi (2021), CexCNN, after Chockler and Halpern (2004).

    Examples
    --------
    >>> additive_responsibility([0.3, 0.15, 0.1, 0.04, 0.01, 0.0, -0.2], theta=0.21).tolist()
    [1.0, 0.5, 0.5, 0.3333333333333333, 0.3333333333333333, 0.0, 0.0]
    """
    if isinstance(theta, bool) or not isinstance(theta, (int, float)) or not 0 < theta < np.inf:
        raise InvalidArgumentError(f"theta: expected a positive number, got {theta!r}")
    values = torch.as_tensor(effects, dtype=torch.float64).cpu().numpy()
    if values.ndim != 1 or not np.isfinite(values).all():
        raise InvalidArgumentError(
            f"effects: expected finite numbers [n_units], got {values.tolist()}"
        )
    # Falls of accuracy are multiples of 1 / n: a sum that equals theta must not miss it by an ulp.
    reach = theta * (1 - 1e-12)
    order = np.argsort(-values, kind="stable")
    below = order[(values[order] < reach) & (values[order] >= 0)]
    result = np.where(values >= reach, 1.0, 0.0)
    for unit in below[values[below] > 0]:
        sums = values[unit] + np.cumsum(values[below[below != unit]])
        enough = np.flatnonzero(sums >= reach)
        if len(enough):
            result[unit] = 1 / (enough[0] + 2)
    return torch.from_numpy(result)


def responsibility_map(model: nn.Module, image: Tensor, scores: Scores, layer: str) -> Tensor:
    """Heat map of an image: the feature maps of a layer, weighted with their responsibility.

    The maps are those that the layer's units end in (behind the batch norm, where there is one),
    with negative values set to zero, as a rectifier passes them on; their sum weighted with
    ``importance`` is resized bilinearly to the image.

    Parameters
    ----------
    model : nn.Module
        The network that `scores` are of.
    image : Tensor [1, C, H, W] or [C, H, W]
        On the model's device.
    scores : Scores
        Of method ``"responsibility"`` or ``"blame"``.
    layer : str
        A group of filters in ``scores.frame["group"]``.

    Returns
    -------
    Tensor [H, W]
        In the model's dtype; not negative, in units of the feature maps.

    Raises
    ------
    InvalidArgumentError
        If an argument does not fit, or `layer` has no maps or was not searched.
    UnknownNameError
        If there is no such group.

    Notes
    -----
    Source: Debbi (2021), CexCNN.

    Examples
    --------
    >>> from causalprune.scoring import score
    >>> model = nn.Sequential(nn.Conv2d(1, 3, 3), nn.ReLU(), nn.Flatten(), nn.Linear(48, 2))
    >>> image = torch.randn(1, 1, 6, 6)
    >>> scores = score(model, image, method="responsibility", form="exact")
    >>> responsibility_map(model, image, scores, "0").shape
    torch.Size([6, 6])
    """
    weights = _weights(model, scores, layer)
    images = image[None] if isinstance(image, Tensor) and image.ndim == 3 else image
    if not isinstance(images, Tensor) or images.ndim != 4 or len(images) != 1:
        got = tuple(images.shape) if isinstance(images, Tensor) else type(images).__name__
        raise InvalidArgumentError(f"image: expected one image [C, H, W], got {got}")
    with torch.no_grad(), evaluating(model):
        maps = _maps(model, images, capture(model, images).group(layer))
        heat = (maps.relu() * weights.to(maps)[:, None, None]).sum(0)
        resized = F.interpolate(heat[None, None], images.shape[2:], mode="bilinear")
    return resized[0, 0]


def _additive(job: Job, theta: float, target_class: int | None) -> MethodResult:
    additive_responsibility([], theta)  # a wrong theta must not cost the effects first
    units = {}
    for name, (mean, cost) in deletion_effects(job, "responsibility", target_class).items():
        units[name] = UnitScores(
            additive_responsibility(-mean.mean, theta),
            mean.mean,
            mean.standard_error,
            mean.n,
            cost,
            statistics=mean,
        )
    accuracy = target_class is None
    outcome = OUTCOMES["correctness"] if accuracy else probability_of(int(target_class or 0))
    notes = (f"additive responsibility for a fall of {theta:g} in {outcome.name}",)
    return MethodResult(units, notes=notes, outcome=outcome)


def _weights(model: nn.Module, scores: Scores, layer: str) -> Tensor:
    """Responsibilities [n_units] of the units of `layer`."""
    if not isinstance(scores, Scores) or scores.method not in ("responsibility", "blame"):
        got = scores.method if isinstance(scores, Scores) else type(scores).__name__
        raise InvalidArgumentError(f"scores: expected those of responsibility or blame, got {got}")
    if scores.fingerprint != fingerprint(model):
        raise InvalidArgumentError(
            "scores: expected scores of this network, got those of one with other parameters"
        )
    rows = scores.frame[scores.frame["group"] == layer]
    if rows.empty:
        raise UnknownNameError("unit group", layer, scores.frame["group"].unique())
    weights = torch.from_numpy(rows["importance"].to_numpy(np.float64, copy=True))
    if not bool(weights.isfinite().all()):
        raise InvalidArgumentError(f"layer: expected a layer that was searched, got {layer!r}")
    return weights


def _maps(model: nn.Module, images: Tensor, group: UnitGroup) -> Tensor:
    """Return what the units end in on one image [n_units, H, W]: the last owned output."""
    seen: list[Tensor] = []
    owned = group.owned[-1]
    module = model.get_submodule(owned.layer)
    handle = module.register_forward_hook(lambda module, inputs, output: seen.append(output))
    try:
        model(images)
    finally:
        handle.remove()
    if group.kind != "filter" or not seen or seen[-1].ndim != 4:
        raise InvalidArgumentError(
            f"layer: expected a layer of filters with maps [C, H, W], got {group.name!r}"
        )
    return seen[-1][0, owned.columns(range(group.n_units)).to(seen[-1].device)]
