"""Cheap effects of all units on every image, to be corrected by a few exact ones."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from causalprune.errors import InvalidArgumentError, UnknownNameError
from causalprune.scoring import path, taylor
from causalprune.scoring.data import Batch
from causalprune.scoring.methods import Job
from causalprune.scoring.outcomes import OUTCOMES, Outcome
from causalprune.scoring.projections import MOST_PROJECTIONS, moved_distances, n_directions

__all__ = ["SURROGATES", "Surrogate", "evaluated", "surrogate_cost", "surrogate_of"]

MOST_CLASSES = 32
"""Classes that ``"logit"`` follows; of more, each image's true class and its likeliest others."""

SHARE_OF_BUDGET = 0.5
"""Share of a budget that the projections of an outcome that compares two outputs may take: with
all of them, the cheap effects of an image explain nearly all of the exact ones (on the CIFAR
ResNet-20 correlations of 0.97 over images, with 4 of 9 projections 0.83, with one 0.48)."""

_ON_LOG_ODDS: dict[str, Callable[[Tensor], Tensor]] = {
    "loss": lambda odds: F.softplus(-odds),
    "probability": torch.sigmoid,
}
"""Outcomes that depend on the logits through the log odds of the true class alone."""


@dataclass(frozen=True)
class Surrogate:
    """A way to cheap effects.

    Attributes
    ----------
    name : str
    forwards_per_image : float
        Its cost in forward-equivalents; all units come at once.
    effects : callable
        ``Batch -> Tensor [N, n_units]``, float64, CPU: all groups' units side by side.
    """

    name: str
    forwards_per_image: float
    effects: Callable[[Batch], Tensor]


def surrogate_of(name: str | None, job: Job) -> Surrogate | None:
    """Prepare a surrogate for a job.

    - ``"path"``: path effects on the outcome (:class:`causalprune.scoring.path.UnitPaths`), exact
      up to the consumers' activations and first order behind them.
    - ``"taylor"``: first order from the unit on.

      For an outcome that compares two outputs both are distances, from as many projections as
      half of the budget pays for (see :func:`causalprune.scoring.path.path`).
    - ``"log_odds"``: path effects on the log odds of the true class, and the loss or probability
      of the odds so changed exactly: what saturates is not taken as linear, at the price of
      ``"path"``. For the outcomes "loss" and "probability" only.
    - ``"logit"``: path effects on every class's logit, and the outcome of the logits so changed
      exactly; a backward pass for each class, of which an image has at most 32: its true class and
      the likeliest others, while the logits of the rest are left as they are.

    Parameters
    ----------
    name : str or None
        ``"none"``: no surrogate. ``None``: ``"log_odds"`` where the outcome allows, ``"path"``
        where it is differentiable and the network could be traced, else ``"none"``; ``"taylor"``
        instead of ``"path"`` for an outcome that compares two outputs.
    job : Job

    Raises
    ------
    UnknownNameError
        If there is no such surrogate.
    InvalidArgumentError
        If the outcome does not allow it.
    """
    if name is None:
        name = _best_for(job)
    if name not in SURROGATES:
        raise UnknownNameError("surrogate", name, SURROGATES)
    make = SURROGATES[name]
    if make is None:
        return None
    if not job.graph.traced:
        raise InvalidArgumentError(
            f"surrogate: {name!r} needs the graph of the network's operators, which there is not "
            f"({job.graph.untraced}); use surrogate='none'"
        )
    if not job.outcome.differentiable:
        raise InvalidArgumentError(
            f"surrogate: outcome {job.outcome.name!r} has no gradient, which {name!r} needs; use "
            "surrogate='none'"
        )
    return make(job)


def surrogate_cost(surrogate: Surrogate | None, n_images: int, budget: float) -> float:
    """Return the forward-equivalents that a surrogate takes on `n_images` images.

    Raises
    ------
    InvalidArgumentError
        If `budget` does not pay for them.
    """
    if surrogate is None:
        return 0.0
    cost = surrogate.forwards_per_image * n_images
    if budget < cost:
        raise InvalidArgumentError(
            f"budget: expected at least {cost:.0f} forward-equivalents, what surrogate "
            f"{surrogate.name!r} takes on {n_images} images, got {budget:g}; use fewer images "
            "(max_images) or surrogate='none'"
        )
    return cost


def evaluated(surrogate: Surrogate, images: Batch, batch_size: int) -> Tensor:
    """Return the cheap effects [N, n_units] of all images, a batch at a time."""
    inputs, targets = images.inputs, images.targets
    parts = []
    for start in range(0, len(inputs), batch_size):
        rows = slice(start, start + batch_size)
        parts.append(
            surrogate.effects(Batch(inputs[rows], None if targets is None else targets[rows]))
        )
    return torch.cat(parts)


def _best_for(job: Job) -> str:
    if not job.outcome.differentiable or not job.graph.traced or job.intervention == "resample":
        return "none"
    if job.outcome.compares:
        return "taylor"
    by_odds = OUTCOMES.get(job.outcome.name) is job.outcome and job.outcome.name in _ON_LOG_ODDS
    return "log_odds" if by_odds else "path"


def _path(job: Job) -> Surrogate:
    n = _n_passes(job, path.FORWARDS_PER_PASS)
    paths = path.UnitPaths.of(job, projections=n if job.outcome.compares else None)
    return _surrogate("path", job, paths, path.FORWARDS_PER_PASS * n)


def _taylor(job: Job) -> Surrogate:
    n = _n_passes(job, taylor.FORWARDS_PER_PASS)
    paths = taylor.first_order_paths(job, n if job.outcome.compares else None)
    return _surrogate("taylor", job, paths, taylor.FORWARDS_PER_PASS * n)


def _surrogate(name: str, job: Job, paths: path.UnitPaths, backward: float) -> Surrogate:
    cost = 1 + backward + _of_calibration(job)
    return Surrogate(name, cost, lambda batch: _side_by_side(job, paths, batch))


def _n_passes(job: Job, forwards_per_pass: float) -> int:
    """Return how many backward passes the outcome takes, or the budget allows."""
    if not job.outcome.compares:
        return 1
    most = MOST_PROJECTIONS
    if job.budget is not None:
        n_images = sum(len(batch.inputs) for batch in job.batches)
        left = SHARE_OF_BUDGET * job.budget / n_images - 1 - _of_calibration(job)
        most = max(1, min(most, int(left / forwards_per_pass)))
    with torch.no_grad():
        return n_directions(job.outcome, job.model(job.batches.example), most)


def _of_calibration(job: Job) -> float:
    """Forward-equivalents per image of what is expected of the units."""
    return float(job.intervention in ("mean", "predicted"))


def _log_odds(job: Job) -> Surrogate:
    outcome = job.outcome
    if OUTCOMES.get(outcome.name) is not outcome or outcome.name not in _ON_LOG_ODDS:
        raise InvalidArgumentError(
            f"surrogate: 'log_odds' knows the outcomes {', '.join(_ON_LOG_ODDS)}, got "
            f"{outcome.name!r}; use 'path' or 'logit'"
        )
    of_odds = _ON_LOG_ODDS[outcome.name]
    seen: list[Tensor] = []

    def log_odds(logits: Tensor, targets: Tensor) -> Tensor:
        true = logits.gather(1, targets[:, None]).squeeze(1)
        others = logits.scatter(1, targets[:, None], -torch.inf).logsumexp(1)
        seen.append((true - others).detach().cpu())
        return true - others

    paths = _paths(job, Outcome("log odds of the true class", log_odds))

    def effects(batch: Batch) -> Tensor:
        seen.clear()
        change = _side_by_side(job, paths, batch)
        # The first image may have been run once more, ahead of all, to see what memory it takes.
        odds = torch.cat(seen)[-len(batch.inputs) :, None]
        return of_odds(odds + change) - of_odds(odds)

    return Surrogate("log_odds", 1 + path.FORWARDS_PER_PASS + _of_calibration(job), effects)


def _logit(job: Job) -> Surrogate:
    with torch.no_grad():
        output = job.model(job.batches.example)
    n_classes = min(output.shape[1], MOST_CLASSES) if output.ndim == 2 else 0
    if n_classes == 0:
        raise InvalidArgumentError(
            f"surrogate: 'logit' expects a model that returns logits [N, K], got "
            f"{tuple(output.shape)}"
        )
    paths = _paths(job, OUTCOMES["logit"])

    def effects(batch: Batch) -> Tensor:
        with torch.no_grad():
            logits = job.model(batch.inputs).double()
        classes = _followed(logits, batch.targets, n_classes)
        changes = torch.stack(
            [
                _side_by_side(job, paths, Batch(batch.inputs, classes[:, k].contiguous()))
                for k in range(n_classes)
            ],
            2,
        )
        where = "under the linear suffix of surrogate 'logit'"
        return moved_distances(job.outcome, logits, batch.targets, classes, changes, where)

    forwards = 1 + n_classes * (1 + path.FORWARDS_PER_PASS) + _of_calibration(job)
    return Surrogate("logit", forwards, effects)


def _followed(logits: Tensor, targets: Tensor | None, n_classes: int) -> Tensor:
    """Return the classes [N, n_classes] whose logits are followed on each image."""
    first = logits if targets is None else logits.scatter(1, targets[:, None], torch.inf)
    return first.topk(n_classes, 1).indices


def _paths(job: Job, outcome: Outcome) -> path.UnitPaths:
    return path.UnitPaths.of(replace(job, outcome=outcome))


def _side_by_side(job: Job, paths: path.UnitPaths, batch: Batch) -> Tensor:
    found = paths.effects(batch)
    return torch.cat([found[group.name] for group in job.graph.groups], 1)


SURROGATES: dict[str, Callable[[Job], Surrogate] | None] = {
    "path": _path,
    "taylor": _taylor,
    "log_odds": _log_odds,
    "logit": _logit,
    "none": None,
}
"""Name to what prepares the surrogate of a job."""
