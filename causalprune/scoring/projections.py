"""First-order changes of all logits, as far as a distance between two outputs needs them."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from causalprune.errors import InvalidArgumentError, UnsupportedModelError
from causalprune.scoring.outcomes import OUTCOMES, Outcome, evaluate

__all__ = [
    "MOST_PROJECTIONS",
    "check_projections",
    "directions_of",
    "distances",
    "generator_of",
    "moved_distances",
    "n_directions",
]

MOST_PROJECTIONS = 16
"""Backward passes unless told otherwise: exact up to 17 classes with outcome ``"logits"``."""

_ROWS = 2**16


def check_projections(outcome: Outcome, projections: int | None) -> None:
    """Raise where `projections` is no number of backward passes, or `outcome` has no use for it.

    Raises
    ------
    InvalidArgumentError
    """
    if projections is None:
        return
    if not outcome.compares:
        raise InvalidArgumentError(
            f"projections: expected none with outcome {outcome.name!r}, which takes one backward "
            f"pass, got {projections!r}"
        )
    if not isinstance(projections, int) or isinstance(projections, bool) or projections < 1:
        raise InvalidArgumentError(f"projections: expected a positive integer, got {projections!r}")


def n_directions(outcome: Outcome, output: object, projections: int | None) -> int:
    """Return how many backward passes an output [N, K] takes; 1 where nothing is compared.

    Raises
    ------
    UnsupportedModelError
        If the outcome compares and the output is not [N, K].
    """
    if not outcome.compares:
        return 1
    if not isinstance(output, Tensor) or output.ndim != 2:
        got = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
        raise UnsupportedModelError(
            f"model: outcome {outcome.name!r} expects logits [N, K], got {got}"
        )
    most = output.shape[1] - _is_squared(outcome)
    return max(1, min(most, projections or MOST_PROJECTIONS))


def generator_of(seed: int, batch: int) -> torch.Generator:
    """Return the source of the directions of a batch: the same whoever works on it, and when."""
    state = np.random.SeedSequence([seed % 2**64, batch]).generate_state(1, np.uint64)[0]
    return torch.Generator().manual_seed(int(state >> 1))


def directions_of(outcome: Outcome, logits: Tensor, n: int, generator: torch.Generator) -> Tensor:
    """Return what is to be known of the logits' changes: [N, n, K], float64.

    For ``"logits"``, whose distance is a quadratic form, n random orthonormal directions among
    those that sum to zero, drawn for every image, so that the sum of squared changes along them
    has the distance as its mean; for n = K - 1 it is the distance. For other outcomes the n
    likeliest classes of the image.

    Parameters
    ----------
    outcome : Outcome
        One that compares.
    logits : Tensor [N, K], float64
        Of the network as it is.
    n : int
        From :func:`n_directions`.
    generator : torch.Generator
        On the CPU.

    References
    ----------
    Hutchinson (1990), for the trace of a quadratic form; with orthonormal directions instead of
    independent ones, which leaves only the share of the directions that were not drawn.

    Examples
    --------
    >>> logits = torch.randn(2, 5, dtype=torch.float64)
    >>> v = directions_of(OUTCOMES["logits"], logits, 4, generator_of(0, 0))
    >>> change = torch.randn(2, 5, dtype=torch.float64)
    >>> found = torch.einsum("nrk,nk->nr", v, change).square().sum(1)
    >>> bool(torch.allclose(found, change.var(1, correction=0)))
    True
    """
    n_images, n_classes = logits.shape
    if not _is_squared(outcome):
        classes = logits.topk(n, 1).indices
        chosen: Tensor = torch.nn.functional.one_hot(classes, n_classes).to(logits)
        return chosen
    drawn = torch.randn(n_images, n_classes, n, generator=generator, dtype=torch.float64)
    basis, _ = torch.linalg.qr(drawn - drawn.mean(1, keepdim=True))
    directions: Tensor = basis.mT.to(logits) * ((n_classes - 1) / (n * n_classes)) ** 0.5
    return directions


def distances(outcome: Outcome, logits: Tensor, directions: Tensor, changes: Tensor) -> Tensor:
    """Distance [N, u], float64, CPU, that first-order changes of the logits come to.

    Parameters
    ----------
    outcome : Outcome
        One that compares.
    logits : Tensor [N, K], float64
    directions : Tensor [N, r, K]
        From :func:`directions_of`.
    changes : Tensor [N, u, r], float64
        Of the logits along the directions.
    """
    if _is_squared(outcome):
        return changes.square().sum(2).cpu()
    classes = directions.argmax(2)
    return moved_distances(outcome, logits, None, classes, changes, "at first order")


def moved_distances(
    outcome: Outcome,
    logits: Tensor,
    targets: Tensor | None,
    classes: Tensor,
    changes: Tensor,
    where: str,
) -> Tensor:
    """Outcome of the logits [N, K] with `changes` [N, u, m] at `classes` [N, m], minus plain.

    The outcome may compare, or not. Returns [N, u], float64, CPU; `where` names it in errors.
    """
    plain = evaluate(outcome, logits, targets, where, logits).cpu()
    n_images, n_units, _ = changes.shape
    result = torch.empty(n_images, n_units, dtype=torch.float64)
    step = max(1, _ROWS // n_images)
    for start in range(0, n_units, step):
        part = changes[:, start : start + step].to(logits.device)
        as_is = logits[:, None].repeat(1, part.shape[1], 1)
        moved = as_is.scatter_add(2, classes[:, None].expand_as(part), part).flatten(0, 1)
        repeated = None if targets is None else targets.repeat_interleave(part.shape[1])
        value = evaluate(outcome, moved, repeated, where, as_is.flatten(0, 1)).cpu()
        result[:, start : start + step] = value.reshape(n_images, -1) - plain[:, None]
    return result


def _is_squared(outcome: Outcome) -> bool:
    """Whether the distance is the variance over classes of the change of the logits."""
    return OUTCOMES.get(outcome.name) is outcome and outcome.name == "logits"
