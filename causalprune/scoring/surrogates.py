"""Cheap effects of all units on every image, to be corrected by a few exact ones."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from causalprune.errors import InvalidArgumentError, UnknownNameError
from causalprune.scoring import path, taylor
from causalprune.scoring.data import Batch
from causalprune.scoring.methods import Job
from causalprune.scoring.outcomes import OUTCOMES, Outcome, evaluate

__all__ = ["SURROGATES", "Surrogate", "evaluated", "surrogate_cost", "surrogate_of"]

MOST_CLASSES = 32
"""Classes that ``"logit"`` follows; of more, each image's true class and its likeliest others."""

_ROWS = 2**16

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
        where it is differentiable and the network could be traced, else ``"none"``.
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
    by_odds = OUTCOMES.get(job.outcome.name) is job.outcome and job.outcome.name in _ON_LOG_ODDS
    return "log_odds" if by_odds else "path"


def _path(job: Job) -> Surrogate:
    paths = _paths(job, job.outcome)
    return Surrogate(
        "path", path.FORWARDS_PER_IMAGE, lambda batch: _side_by_side(job, paths, batch)
    )


def _taylor(job: Job) -> Surrogate:
    paths = taylor.first_order_paths(job)
    return Surrogate(
        "taylor", taylor.FORWARDS_PER_IMAGE, lambda batch: _side_by_side(job, paths, batch)
    )


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

    return Surrogate("log_odds", path.FORWARDS_PER_IMAGE, effects)


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
        return _outcome_changes(job.outcome, logits, batch.targets, classes, changes)

    return Surrogate("logit", 1 + n_classes * path.FORWARDS_PER_IMAGE, effects)


def _followed(logits: Tensor, targets: Tensor | None, n_classes: int) -> Tensor:
    """Return the classes [N, n_classes] whose logits are followed on each image."""
    first = logits if targets is None else logits.scatter(1, targets[:, None], torch.inf)
    return first.topk(n_classes, 1).indices


def _outcome_changes(
    outcome: Outcome, logits: Tensor, targets: Tensor | None, classes: Tensor, changes: Tensor
) -> Tensor:
    """Outcome of the logits [N, K] with `changes` [N, n_units, m] at `classes`, minus plain."""
    where = "under the linear suffix of surrogate 'logit'"
    plain = evaluate(outcome, logits, targets, where).cpu()
    n_images, n_units, _ = changes.shape
    result = torch.empty(n_images, n_units, dtype=torch.float64)
    step = max(1, _ROWS // n_images)
    for start in range(0, n_units, step):
        part = changes[:, start : start + step].to(logits.device)
        moved = logits[:, None].repeat(1, part.shape[1], 1)
        moved.scatter_add_(2, classes[:, None].expand_as(part), part)
        repeated = None if targets is None else targets.repeat_interleave(part.shape[1])
        value = evaluate(outcome, moved.flatten(0, 1), repeated, where).cpu()
        result[:, start : start + step] = value.reshape(n_images, -1) - plain[:, None]
    return result


def _paths(job: Job, outcome: Outcome) -> path.UnitPaths:
    return path.UnitPaths(job.model, job.graph, outcome, max_cache_bytes=job.max_cache_bytes)


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
