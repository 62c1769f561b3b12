"""Outcomes: one number per image whose change under an intervention is the effect."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from causalprune.errors import (
    DataError,
    InvalidArgumentError,
    UnknownNameError,
    UnsupportedModelError,
)

__all__ = [
    "DEFAULT_OUTCOME",
    "OUTCOMES",
    "Outcome",
    "evaluate",
    "register_outcome",
    "resolve_outcome",
]

OutcomeFunction = Callable[..., Tensor]


@dataclass(frozen=True)
class Outcome:
    """An outcome Y(x).

    Attributes
    ----------
    name : str
    function : callable
        ``(logits [N, K] float64, targets [N] int64 or None) -> [N]``.
    higher_is_better : bool or None
        Decides which sign of an effect makes a unit critical; ``None``: no categories.
    differentiable : bool
        Whether gradient-based methods (path, taylor) may use it.
    needs_labels : bool
        Whether `targets` must be class indices.
    """

    name: str
    function: OutcomeFunction
    higher_is_better: bool | None = None
    differentiable: bool = True
    needs_labels: bool = True


OUTCOMES: dict[str, Outcome] = {}

DEFAULT_OUTCOME = "loss"
"""What :func:`score` measures unless told otherwise."""


def register_outcome(
    name: str,
    *,
    higher_is_better: bool | None = None,
    differentiable: bool = True,
    needs_labels: bool = True,
) -> Callable[[OutcomeFunction], OutcomeFunction]:
    """Make an outcome known under `name` (decorator).

    Parameters
    ----------
    name : str
        What users pass as ``outcome=``.
    higher_is_better : bool, optional
        See :class:`Outcome`.
    differentiable : bool
        See :class:`Outcome`.
    needs_labels : bool
        See :class:`Outcome`.

    Raises
    ------
    InvalidArgumentError
        If the name is taken.

    Examples
    --------
    >>> @register_outcome("entropy", higher_is_better=False, needs_labels=False)
    ... def entropy(logits, targets):
    ...     return torch.special.entr(logits.softmax(1)).sum(1)
    >>> OUTCOMES.pop("entropy").higher_is_better
    False
    """

    def register(function: OutcomeFunction) -> OutcomeFunction:
        if name in OUTCOMES:
            raise InvalidArgumentError(f"name: expected a new outcome name, got {name!r}")
        OUTCOMES[name] = Outcome(name, function, higher_is_better, differentiable, needs_labels)
        return function

    return register


def resolve_outcome(outcome: str | OutcomeFunction) -> Outcome:
    """Return the registered outcome of that name, or wrap a callable."""
    if isinstance(outcome, str):
        if outcome not in OUTCOMES:
            raise UnknownNameError("outcome", outcome, OUTCOMES)
        return OUTCOMES[outcome]
    if callable(outcome):
        name = getattr(outcome, "__name__", type(outcome).__name__)
        return Outcome(name, outcome, needs_labels=False)
    raise InvalidArgumentError(
        f"outcome: expected a name or a callable (logits, targets) -> [N], got {outcome!r}"
    )


def evaluate(outcome: Outcome, output: object, targets: Tensor | None, where: str) -> Tensor:
    """Return the outcome [N], float64, of a network's output; `where` names the run in errors."""
    if not isinstance(output, Tensor):
        raise UnsupportedModelError(
            f"model: expected one tensor as output, got {type(output).__name__}"
        )
    if outcome.needs_labels and output.ndim != 2:
        raise UnsupportedModelError(
            f"model: outcome {outcome.name!r} expects logits [N, K], got {tuple(output.shape)}"
        )
    if outcome.needs_labels and targets is not None and int(targets.max()) >= output.shape[1]:
        raise DataError(
            f"data: expected targets in [0, {output.shape[1]}), got {int(targets.max())}"
        )
    value = outcome.function(output.double(), targets)
    if not isinstance(value, Tensor) or value.shape != output.shape[:1]:
        got = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
        raise InvalidArgumentError(
            f"outcome: expected one value per image [{output.shape[0]}], got {got}"
        )
    if not bool(torch.isfinite(value).all()):
        raise DataError(f"outcome {outcome.name!r} is not finite {where}")
    return value.double()


def _true_class(values: Tensor, targets: Tensor) -> Tensor:
    return values.gather(1, targets[:, None]).squeeze(1)


@register_outcome("loss", higher_is_better=False)
def _loss(logits: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy(logits, targets, reduction="none")


@register_outcome("probability", higher_is_better=True)
def _probability(logits: Tensor, targets: Tensor) -> Tensor:
    return _true_class(logits.softmax(1), targets)


@register_outcome("logit", higher_is_better=True)
def _logit(logits: Tensor, targets: Tensor) -> Tensor:
    return _true_class(logits, targets)


@register_outcome("margin", higher_is_better=True)
def _margin(logits: Tensor, targets: Tensor) -> Tensor:
    others = logits.scatter(1, targets[:, None], -torch.inf)
    return _true_class(logits, targets) - others.amax(1)


@register_outcome("correctness", higher_is_better=True, differentiable=False)
def _correctness(logits: Tensor, targets: Tensor) -> Tensor:
    return (logits.argmax(1) == targets).double()
