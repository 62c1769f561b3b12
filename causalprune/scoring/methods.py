"""The registry of scoring methods, and what a method is given and gives back."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

from torch import Tensor, nn

from causalprune.errors import InvalidArgumentError, UnknownNameError
from causalprune.graph import UnitGraph
from causalprune.scoring.data import Batches
from causalprune.scoring.intervals import PairedMean
from causalprune.scoring.outcomes import Outcome

__all__ = ["METHODS", "Job", "Method", "UnitScores", "register_method", "resolve_method"]


@dataclass(frozen=True)
class Job:
    """What a method works on; the network is in eval mode while it does.

    Attributes
    ----------
    model : nn.Module
    graph : UnitGraph
    batches : Batches
        One pass; empty use is fine for a method that needs no data.
    outcome : Outcome
    seed : int
    progress : bool
        Whether to show a progress bar.
    """

    model: nn.Module
    graph: UnitGraph
    batches: Batches
    outcome: Outcome
    seed: int = 0
    progress: bool = False

    @property
    def n_units(self) -> int:
        """Number of units in all groups."""
        return sum(group.n_units for group in self.graph.groups)

    @contextmanager
    def bar(self, label: str, total: int | None) -> Iterator[Callable[[], None]]:
        """Show a progress bar of `total` steps; yields the function that advances it."""
        if not self.progress:
            yield lambda: None
            return
        from rich.progress import Progress

        with Progress() as display:
            task = display.add_task(label, total=total)
            yield lambda: display.advance(task)


@dataclass(frozen=True)
class UnitScores:
    """Scores of the units of one group.

    Attributes
    ----------
    importance : Tensor [n_units]
        What plans rank by.
    effect : Tensor [n_units] or None
        Mean over images of Y_do - Y; ``None`` for a method without an effect scale.
    se : Tensor [n_units] or None
        Standard error of `effect`.
    n : int
        Images used.
    cost : float
        Forward-equivalents spent per unit.
    """

    importance: Tensor
    effect: Tensor | None = None
    se: Tensor | None = None
    n: int = 0
    cost: float = 0.0

    @classmethod
    def of(cls, mean: PairedMean, cost: float) -> UnitScores:
        """Effects from a paired mean; the importance is the mean absolute change per image.

        Signed means cancel: a unit that helps some images and hurts others is not dispensable.
        """
        return cls(mean.mean_absolute, mean.mean, mean.standard_error, mean.n, cost)


MethodFunction = Callable[[Job], Mapping[str, UnitScores]]


@dataclass(frozen=True)
class Method:
    """A registered scoring method."""

    name: str
    function: MethodFunction
    needs_data: bool
    needs_labels: bool
    needs_gradient: bool


METHODS: dict[str, Method] = {}


def register_method(
    name: str, *, needs_data: bool = True, needs_labels: bool = True, needs_gradient: bool = False
) -> Callable[[MethodFunction], MethodFunction]:
    """Make a scoring method known under `name` (decorator).

    Parameters
    ----------
    name : str
        What users pass as ``method=``.
    needs_data : bool
        Whether it reads more than the shape of one image.
    needs_labels : bool
        Whether it evaluates the outcome, and so needs targets where the outcome does.
    needs_gradient : bool
        Whether the outcome must be differentiable.

    Raises
    ------
    InvalidArgumentError
        If the name is taken.

    Examples
    --------
    >>> @register_method("constant", needs_data=False, needs_labels=False)
    ... def constant(job):
    ...     import torch
    ...     return {g.name: UnitScores(torch.ones(g.n_units)) for g in job.graph.groups}
    >>> METHODS.pop("constant").needs_data
    False
    """

    def register(function: MethodFunction) -> MethodFunction:
        if name in METHODS:
            raise InvalidArgumentError(f"name: expected a new method name, got {name!r}")
        METHODS[name] = Method(name, function, needs_data, needs_labels, needs_gradient)
        return function

    return register


def resolve_method(name: str) -> Method:
    """Return the registered method called `name`."""
    if name not in METHODS:
        raise UnknownNameError("scoring method", name, METHODS)
    return METHODS[name]
