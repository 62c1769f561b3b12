"""Contingency sets of a network's units, image by image, and the tables they make."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from causalprune.errors import InvalidArgumentError
from causalprune.graph import UnitGroup
from causalprune.scoring.ablation import ExactEffects
from causalprune.scoring.cexcnn import probability_of
from causalprune.scoring.contingency import (
    Contingencies,
    Search,
    Slack,
    Units,
    smallest_contingencies,
)
from causalprune.scoring.methods import Job, fixed_outcome
from causalprune.scoring.outcomes import Outcome, evaluate

__all__ = ["PREDICTION", "contingencies_per_image", "contingency_table", "search_notes"]

ROWS = 64
"""Sets that are run side by side, each on a copy of the image."""

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
            for image in batch.inputs:
                plain = exact.interventions.observe(image.repeat(ROWS, *[1] * image.ndim))
                runs += ROWS
                event = _event(plain[:1], theta, target_class)
                for group in groups:
                    slack = _slack_of(exact, group, event)
                    found[group.name].append(smallest_contingencies(group.n_units, slack, search))
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


def _event(plain: Tensor, theta: float | None, target_class: int | None) -> Outcome:
    """Slack of the event on the image with logits `plain` [1, K], as an outcome."""
    label = int(plain.argmax(1)) if target_class is None else target_class

    def lead(logits: Tensor, targets: Tensor | None) -> Tensor:
        others = logits.index_fill(1, torch.tensor([label], device=logits.device), -torch.inf)
        return logits[:, label] - others.amax(1)

    if theta is None:
        return Outcome("lead of the predicted class", lead, True, False, False)
    probability = probability_of(label).function
    least = probability(plain.double(), None) - theta

    def above(logits: Tensor, targets: Tensor | None) -> Tensor:
        return probability(logits, None) - least

    return Outcome("probability above the threshold", above, True, False, False)


def _slack_of(exact: ExactEffects, group: UnitGroup, event: Outcome) -> Slack:
    """Run sets of units of `group` as rows of batches, on copies of the observed image."""

    def slack(sets: Sequence[Units]) -> Tensor:
        parts = []
        for start in range(0, len(sets), ROWS):
            rows = sets[start : start + ROWS]
            mask = torch.zeros(ROWS, group.n_units, dtype=torch.bool)
            for row, units in enumerate(rows):
                mask[row, list(units)] = True
            mask[len(rows) :] = mask[0]  # rows to spare
            output = exact.interventions.remove_masked({group.name: mask})
            where = f"after removing sets of units of layer {group.name!r}"
            parts.append(evaluate(event, output, None, where)[: len(rows)].cpu())
        return torch.cat(parts)

    return slack


def contingency_table(found: Mapping[str, Sequence[Contingencies]]) -> dict[str, list[object]]:
    """Return columns with one row per image and unit.

    ``image``, ``group``, ``unit``, ``responsibility``, ``upper`` (equal to it where it is exact),
    ``exact``, ``contingency`` (size of the set found, -1 without) and ``witness`` (its units,
    separated by blanks).

    Examples
    --------
    >>> table = contingency_table({"conv1": [Contingencies(((1,), None), depth=2, n_sets=3)]})
    >>> table["responsibility"], table["exact"], table["witness"]
    ([0.5, 0.0], [True, True], ['1', ''])
    """
    names = ("image", "group", "unit", "responsibility", "upper", "exact", "contingency", "witness")
    columns: dict[str, list[object]] = {name: [] for name in names}
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
            columns["witness"] += [" ".join(map(str, w or ())) for w in result.witness]
    return columns


def search_notes(found: Mapping[str, Sequence[Contingencies]]) -> tuple[str, ...]:
    """Say how many responsibilities are lower bounds, if any.

    Examples
    --------
    >>> search_notes({"conv1": [Contingencies(((1,), None, None), depth=1, n_sets=9)]})[0][:49]
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
