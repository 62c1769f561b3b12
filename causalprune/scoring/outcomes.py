"""Outcomes: one number per image whose change under an intervention is the effect.

An outcome is computed from one output (loss, probability, ...) or *compares* two: it is then a
distance of the output under an intervention from the output as it is, 0 where nothing changes.
"""

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
        ``(logits [N, K] float64, targets [N] int64 or None) -> [N]``; where the outcome compares,
        ``(plain logits [N, K] float64, logits [N, K] float64) -> [N]``.
    higher_is_better : bool or None
        Decides which sign of an effect makes a unit critical; ``None``: no categories.
    differentiable : bool
        Whether gradient-based methods (path, taylor) may use it.
    needs_labels : bool
        Whether `targets` must be class indices.
    compares : bool
        Whether it is a distance D of the output under an intervention from the plain output of
        the same image. An effect is then ``D(Y_do) - D(Y) = D(Y_do)``, without labels.
    """

    name: str
    function: OutcomeFunction
    higher_is_better: bool | None = None
    differentiable: bool = True
    needs_labels: bool = True
    compares: bool = False


OUTCOMES: dict[str, Outcome] = {}

DEFAULT_OUTCOME = "loss"
"""What :func:`score` measures unless told otherwise."""


def register_outcome(
    name: str,
    *,
    higher_is_better: bool | None = None,
    differentiable: bool = True,
    needs_labels: bool | None = None,
    compares: bool = False,
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
    needs_labels : bool, optional
        See :class:`Outcome`. Default: unless it compares.
    compares : bool
        See :class:`Outcome`.

    Raises
    ------
    InvalidArgumentError
        If the name is taken, or the outcome is to compare outputs and to see labels.

    Examples
    --------
    >>> @register_outcome("entropy", higher_is_better=False, needs_labels=False)
    ... def entropy(logits, targets):
    ...     return torch.special.entr(logits.softmax(1)).sum(1)
    >>> OUTCOMES.pop("entropy").higher_is_better
    False
    >>> @register_outcome("moved", higher_is_better=False, compares=True)
    ... def moved(plain, logits):
    ...     return (logits - plain).abs().amax(1)
    >>> OUTCOMES.pop("moved").needs_labels
    False
    """
    if compares and needs_labels:
        raise InvalidArgumentError(
            f"needs_labels: expected False for outcome {name!r}, which compares two outputs and "
            f"sees no labels, got {needs_labels!r}"
        )
    labelled = not compares if needs_labels is None else needs_labels

    def register(function: OutcomeFunction) -> OutcomeFunction:
        if name in OUTCOMES:
            raise InvalidArgumentError(f"name: expected a new outcome name, got {name!r}")
        OUTCOMES[name] = Outcome(
            name, function, higher_is_better, differentiable, labelled, compares
        )
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


def evaluate(
    outcome: Outcome,
    output: object,
    targets: Tensor | None,
    where: str,
    plain: Tensor | None = None,
) -> Tensor:
    """Return the outcome [N], float64, of a network's output; `where` names the run in errors.

    Parameters
    ----------
    outcome : Outcome
    output : Tensor [N, K]
        Other shapes [N, ...] where the outcome is a callable.
    targets : Tensor [N], int64, or None
    where : str
    plain : Tensor [N, K], optional
        The output of the same images as it is, for an outcome that compares; on the same device.

    Raises
    ------
    UnsupportedModelError
        If the output is not what the outcome expects.
    DataError
        If a target is no class, or the outcome is not finite.
    InvalidArgumentError
        If the outcome does not give one value per image, or compares and `plain` is missing.
    """
    if not isinstance(output, Tensor):
        raise UnsupportedModelError(
            f"model: expected one tensor as output, got {type(output).__name__}"
        )
    if (outcome.needs_labels or outcome.compares) and output.ndim != 2:
        raise UnsupportedModelError(
            f"model: outcome {outcome.name!r} expects logits [N, K], got {tuple(output.shape)}"
        )
    if outcome.needs_labels and targets is not None and int(targets.max()) >= output.shape[1]:
        raise DataError(
            f"data: expected targets in [0, {output.shape[1]}), got {int(targets.max())}"
        )
    value = _value(outcome, output, targets, plain)
    if not isinstance(value, Tensor) or value.shape != output.shape[:1]:
        got = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
        raise InvalidArgumentError(
            f"outcome: expected one value per image [{output.shape[0]}], got {got}"
        )
    if not bool(torch.isfinite(value).all()):
        raise DataError(f"outcome {outcome.name!r} is not finite {where}")
    return value.double()


def _value(
    outcome: Outcome, output: Tensor, targets: Tensor | None, plain: Tensor | None
) -> object:
    if not outcome.compares:
        return outcome.function(output.double(), targets)
    if plain is None:
        raise InvalidArgumentError(
            f"outcome: {outcome.name!r} compares two outputs, got one; "
            "use method='ablation', or an outcome such as 'loss'"
        )
    return outcome.function(plain.double(), output.double())


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


@register_outcome("logits", higher_is_better=False, compares=True)
def _logits(plain: Tensor, logits: Tensor) -> Tensor:
    """Mean over the K classes of the squared change of the centred logits, in logits squared.

    Centred: minus their mean over the classes, which no probability depends on. A mean over
    classes, not a sum, so that networks of many classes compare with those of few.
    """
    if logits.shape[1] < 2:
        raise UnsupportedModelError(
            f"model: outcome 'logits' compares classes, expected logits [N, K] of at least two, "
            f"got {tuple(logits.shape)}"
        )
    return (logits - plain).var(1, correction=0)


@register_outcome("divergence", higher_is_better=False, compares=True)
def _divergence(plain: Tensor, logits: Tensor) -> Tensor:
    """Kullback-Leibler divergence ``KL(softmax(plain) || softmax(logits))``, in nats."""
    before, after = plain.log_softmax(1), logits.log_softmax(1)
    probability = before.exp()
    # A class of probability 0 adds nothing, whatever its logit has become.
    return torch.where(probability > 0, probability * (before - after), 0.0).sum(1)
