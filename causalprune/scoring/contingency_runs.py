"""Contingency sets of a network's units, image by image, and the tables they make."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from causalprune.errors import InvalidArgumentError
from causalprune.graph import Interventions, UnitGroup
from causalprune.scoring.ablation import ExactEffects
from causalprune.scoring.cexcnn import probability_of
from causalprune.scoring.contingency import (
    Contingencies,
    Search,
    Units,
    grow_sets,
    try_every_set,
)
from causalprune.scoring.methods import Job, fixed_outcome
from causalprune.scoring.outcomes import OUTCOMES, Outcome, evaluate

__all__ = ["PREDICTION", "contingencies_per_image", "contingency_table", "search_notes"]

ROWS = 64
"""Copies of images that are run side by side, each without a set of units."""
IMAGES = 8
"""Images that share the rows while every set is tried: few sets fill them, too."""

PREDICTION = Outcome(
    "prediction", lambda logits, targets: logits.argmax(1).double(), None, False, False
)
"""What exact responsibility explains when no threshold is given; named in its scores."""


def contingencies_per_image(
    job: Job,
    method: str,
    search: Search,
    *,
    theta: float | None,
    target_class: int | None,
    layers: Sequence[str] | None,
) -> tuple[dict[str, list[Contingencies]], dict[str, float], Outcome]:
    """Search the smallest contingency sets of every group on every image.

    The event is "the predicted class stays on top" without `theta`, else "the probability of
    `target_class` (default: of the predicted class) falls by `theta` at the most". The variables
    of a search are the units of one group, on or off.

    Parameters
    ----------
    job : Job
    method : str
        Named in errors.
    search : Search
    theta : float or None
    target_class : int or None
    layers : sequence of str or None
        Groups to search; ``None``: all.

    Returns
    -------
    tuple
        By group: Contingencies image by image; forward-equivalents per unit; and the outcome
        that the event is about.

    Raises
    ------
    InvalidArgumentError
        If an argument is out of range, or with ``intervention="resample"``.
    UnknownNameError
        If a layer is no group.

    Examples
    --------
    >>> from torch import nn
    >>> from causalprune.graph import capture
    >>> from causalprune.scoring import OUTCOMES, as_batches
    >>> model = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2)).eval()
    >>> images = torch.randn(5, 4)
    >>> job = Job(
    ...     model, capture(model, images), as_batches(images, labels=False), OUTCOMES["loss"]
    ... )
    >>> found, _, outcome = contingencies_per_image(
    ...     job, "blame", Search(), theta=None, target_class=None, layers=None
    ... )
    >>> len(found["0"]), found["0"][0].responsibility.shape, outcome.name
    (5, torch.Size([3]), 'prediction')
    """
    outcome = _explained(job, theta, target_class)
    groups = _chosen(job, layers)
    job = fixed_outcome(job, method, outcome)
    if job.intervention == "resample":
        raise InvalidArgumentError(
            f"intervention: method {method!r} looks at one image at a time, which has no other "
            "image to take values from; expected 'zero' or 'mean', got 'resample'"
        )
    exact = ExactEffects(job)
    found: dict[str, list[Contingencies]] = {group.name: [] for group in groups}
    runs = 0.0
    with torch.no_grad(), job.bar(method, None) as advance:
        for batch in job.batches:
            for images in torch.split(batch.inputs, IMAGES):
                seen = _observed(exact.interventions, images, theta, target_class)
                runs += seen.n_rows
                tried = [
                    try_every_set(
                        group.n_units, len(images), functools.partial(_slack, seen, group), search
                    )
                    for group in groups
                ]
                for place, image in enumerate(images):
                    here = [of_images[place] for of_images in tried]
                    if len(images) > 1 and any(one.goes_on(search) for one in here):
                        seen = _observed(exact.interventions, image[None], theta, target_class)
                        runs += seen.n_rows
                    for group, one in zip(groups, here, strict=True):
                        slack = functools.partial(_slack_of_sets, seen, group)
                        found[group.name].append(grow_sets(one, slack, search))
                        advance()
    shared = runs / sum(group.n_units for group in groups)
    costs = {
        group.name: shared
        + exact.interventions.cost(group.name)
        * sum(result.n_sets for result in found[group.name])
        / group.n_units
        for group in groups
    }
    return found, costs, outcome


def _explained(job: Job, theta: float | None, target_class: int | None) -> Outcome:
    """Return what the event is about, named in the scores."""
    if theta is None:
        if target_class is not None:
            raise InvalidArgumentError(
                "target_class: the prediction is the network's own; expected None without theta, "
                f"got {target_class!r}"
            )
        return PREDICTION
    if isinstance(theta, bool) or not isinstance(theta, (int, float)) or not 0 < theta < 1:
        raise InvalidArgumentError(f"theta: expected a probability in (0, 1), got {theta!r}")
    if target_class is not None:
        return probability_of(target_class)
    return Outcome("probability of the predicted class", PREDICTION.function, True, False, False)


def _chosen(job: Job, layers: Sequence[str] | None) -> list[UnitGroup]:
    if layers is None:
        return list(job.graph.groups)
    if isinstance(layers, str) or not layers:
        raise InvalidArgumentError(f"layers: expected names of unit groups, got {layers!r}")
    return [job.graph.group(name) for name in dict.fromkeys(layers)]


@dataclass(frozen=True)
class _Observed:
    """Copies of images that the network was run on, one image's behind the other's."""

    interventions: Interventions
    event: Outcome
    labels: Tensor  # [n_rows] class that the event is about
    n_images: int

    @property
    def n_rows(self) -> int:
        return len(self.labels)


def _observed(
    interventions: Interventions, images: Tensor, theta: float | None, target_class: int | None
) -> _Observed:
    """Run the network as it is on as many copies of `images` [n, ...] as there are rows for."""
    copies = max(1, ROWS // len(images))
    plain = interventions.observe(images.repeat_interleave(copies, 0)).double()
    if theta is None:
        lead = OUTCOMES["margin"].function
        event = Outcome("lead of the predicted class", lead, True, False, False)
        return _Observed(interventions, event, plain.argmax(1), len(images))
    if target_class is None:
        labels = plain.argmax(1)
    else:
        probability_of(target_class).function(plain, None)  # refuses what is no class
        labels = torch.full_like(plain.argmax(1), target_class)
    probability = OUTCOMES["probability"].function
    least = probability(plain, labels) - theta

    def above(logits: Tensor, targets: Tensor) -> Tensor:
        return probability(logits, targets) - least

    event = Outcome("probability above the threshold", above, True, False, False)
    return _Observed(interventions, event, labels, len(images))


def _slack(seen: _Observed, group: UnitGroup, masks: Tensor) -> Tensor:
    """Slack [M, n_images] of the event without the units `masks` [M, n_units] of `group`."""
    copies = seen.n_rows // seen.n_images
    where = f"after removing sets of units of layer {group.name!r}"
    parts = []
    for part in torch.split(masks, copies):
        spare = part[:1].expand(copies - len(part), -1)
        rows = torch.cat([part, spare]).repeat(seen.n_images, 1)
        output = seen.interventions.remove_masked({group.name: rows})
        slack = evaluate(seen.event, output, seen.labels, where).view(seen.n_images, copies)
        parts.append(slack[:, : len(part)].T.cpu())
    return torch.cat(parts)


def _slack_of_sets(seen: _Observed, group: UnitGroup, sets: Sequence[Units]) -> Tensor:
    """Slack [n_sets] of one image without sets of equally many units."""
    masks = torch.zeros(len(sets), group.n_units, dtype=torch.bool)
    return _slack(seen, group, masks.scatter_(1, torch.tensor(sets), True))[:, 0]


def contingency_table(found: Mapping[str, Sequence[Contingencies]]) -> dict[str, list[object]]:
    """Return columns with one row per image and unit.

    ``image``, ``group``, ``unit``, ``responsibility``, ``upper`` (equal to it where it is exact),
    ``exact``, ``contingency`` (size of the set found, -1 without), ``n_contingencies`` (how many
    contingency sets of that size there are, 0 without; -1 where not all sets of the size were
    tried) and ``witness`` (the units of the first of them, separated by blanks).

    Examples
    --------
    >>> found = Contingencies(((1,), None), (1, 0), depth=2, n_sets=3)
    >>> table = contingency_table({"conv1": [found]})
    >>> table["responsibility"], table["exact"], table["n_contingencies"], table["witness"]
    ([0.5, 0.0], [True, True], [1, 0], ['1', ''])
    """
    columns: dict[str, list[object]] = {
        "image": [],
        "group": [],
        "unit": [],
        "responsibility": [],
        "upper": [],
        "exact": [],
        "contingency": [],
        "n_contingencies": [],
        "witness": [],
    }
    for group, results in found.items():
        for image, result in enumerate(results):
            n = len(result.witness)
            columns["image"] += [image] * n
            columns["group"] += [group] * n
            columns["unit"] += range(n)
            columns["responsibility"] += result.responsibility.tolist()
            columns["upper"] += result.upper.tolist()
            columns["exact"] += result.exact.tolist()
            columns["contingency"] += [-1 if w is None else len(w) for w in result.witness]
            columns["n_contingencies"] += [-1 if n is None else n for n in result.n_smallest]
            columns["witness"] += [" ".join(map(str, w or ())) for w in result.witness]
    return columns


def search_notes(found: Mapping[str, Sequence[Contingencies]]) -> tuple[str, ...]:
    """Say how many responsibilities are lower bounds, if any.

    Examples
    --------
    >>> found = Contingencies(((1,), None, None), (2, None, None), depth=1, n_sets=9)
    >>> search_notes({"conv1": [found]})[0][:49]
    '2 of 3 responsibilities are lower bounds: smaller'
    """
    exact = torch.cat([result.exact for results in found.values() for result in results])
    if bool(exact.all()):
        return ()
    return (
        f"{int((~exact).sum())} of {len(exact)} responsibilities are lower bounds: smaller "
        "contingency sets than those found, or any, may exist among the sets that were not tried; "
        "raise max_contingency or beam_width",
    )
