"""The registry of scoring methods, and what a method is given and gives back."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from inspect import Parameter, signature
from typing import TYPE_CHECKING, Any

from torch import Tensor, fx, nn

from causalprune.errors import InvalidArgumentError, UnknownNameError
from causalprune.graph import UnitGraph, trace
from causalprune.scoring.data import Batches
from causalprune.scoring.intervals import PairedMean
from causalprune.scoring.outcomes import DEFAULT_OUTCOME, OUTCOMES, Outcome

if TYPE_CHECKING:
    from causalprune.scoring.tally import Share

__all__ = [
    "METHODS",
    "Job",
    "Method",
    "MethodResult",
    "UnitScores",
    "fixed_outcome",
    "register_method",
    "resolve_method",
]


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
    intervention : str
        Value that do() gives a unit: ``"zero"``, ``"mean"``, ``"resample"`` or ``"predicted"``.
    budget : float or None
        Forward-equivalents that may be spent; ``None``: as many as it takes.
    confidence : float
        Level of the intervals.
    max_cache_bytes : int
        Bound on what is kept of a run of the network.
    seed : int
    progress : bool
        Whether to show a progress bar.
    share : Share or None
        What this process does of a job that is spread over several; ``None``: all of it. Methods
        meet it through :class:`causalprune.scoring.tally.Tally` alone.
    """

    model: nn.Module
    graph: UnitGraph
    batches: Batches
    outcome: Outcome
    intervention: str = "zero"
    budget: float | None = None
    confidence: float = 0.95
    max_cache_bytes: int = 2**30
    seed: int = 0
    progress: bool = False
    share: Share | None = None

    @property
    def n_units(self) -> int:
        """Number of units in all groups."""
        return sum(group.n_units for group in self.graph.groups)

    def trace(self) -> fx.GraphModule:
        """Trace the network as it was for its graph, whose sites name the nodes.

        Raises
        ------
        UntraceableModelError
            If it cannot be traced.
        """
        return trace(self.model, self.batches.example, exported=self.graph.exported)

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


def fixed_outcome(job: Job, method: str, outcome: Outcome) -> Job:
    """Return `job` with the outcome that a method's definition fixes.

    Parameters
    ----------
    job : Job
    method : str
        Named in the error.
    outcome : Outcome

    Raises
    ------
    InvalidArgumentError
        If the user asked for yet another outcome than ``score``'s default.

    Examples
    --------
    >>> from causalprune.scoring.data import as_batches
    >>> import torch
    >>> images = as_batches(torch.zeros(1, 2), labels=False)
    >>> job = Job(nn.Identity(), UnitGraph(()), images, OUTCOMES["loss"])
    >>> fixed_outcome(job, "cexcnn", OUTCOMES["correctness"]).outcome.name
    'correctness'
    """
    if job.outcome not in (OUTCOMES[DEFAULT_OUTCOME], outcome):
        raise InvalidArgumentError(
            f"outcome: method {method!r} is defined on {outcome.name!r}, leave out `outcome`; "
            f"got {job.outcome.name!r}"
        )
    return replace(job, outcome=outcome)


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
    n : int or Tensor [n_units], int64
        Images on which the unit's effect was taken.
    cost : float or Tensor [n_units]
        Forward-equivalents spent on each unit, over all images; one is one forward pass of one
        image.
    low, high : Tensor [n_units] or None
        Interval of `effect`; ``None``: Student-t from `se` and `n`.
    category : tuple of str or None
        "critical", "neutral", "detrimental" or "" for each unit; ``None``: from the interval.
    statistics : PairedMean or None
        What `effect` was computed from, where it is a mean over images; it can be merged with
        that of other images.
    """

    importance: Tensor
    effect: Tensor | None = None
    se: Tensor | None = None
    n: int | Tensor = 0
    cost: float | Tensor = 0.0
    low: Tensor | None = None
    high: Tensor | None = None
    category: tuple[str, ...] | None = None
    statistics: PairedMean | None = None

    @classmethod
    def of(cls, mean: PairedMean, cost: float | Tensor) -> UnitScores:
        """Effects from a paired mean; the importance is the mean absolute change per image.

        Signed means cancel: a unit that helps some images and hurts others is not dispensable.
        """
        return cls(
            mean.mean_absolute, mean.mean, mean.standard_error, mean.n, cost, statistics=mean
        )


@dataclass(frozen=True)
class MethodResult:
    """What a method gives back when there is more than one number per unit.

    Attributes
    ----------
    units : Mapping of str to UnitScores
        Group name to the scores of its units.
    edges : Mapping of str to Tensor
        Layer name to the scores of its connections: [O, I] (edges) or the shape of the layer's
        weight (single weights). What they mean is the method's to say.
    notes : tuple of str
        What a reader of the scores should know.
    tables : Mapping of str to Mapping of str to sequence
        Table name to its columns, each a Tensor, an array or a sequence [rows] of numbers, truth
        values or strings: whatever has another shape than one row per unit.
    outcome : Outcome or None
        What `effect` is in, where the method's definition fixes it; ``None``: the job's outcome.
    """

    units: Mapping[str, UnitScores]
    edges: Mapping[str, Tensor] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    tables: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    outcome: Outcome | None = None


MethodFunction = Callable[..., "Mapping[str, UnitScores] | MethodResult"]


@dataclass(frozen=True)
class Method:
    """A registered scoring method."""

    name: str
    function: MethodFunction
    needs_data: bool
    needs_labels: bool
    needs_gradient: bool
    shards: tuple[str, ...] | None = None
    takes_budget: bool = False
    interventions: tuple[str, ...] = ("zero",)
    outcomes: tuple[str, ...] | None = None
    compares: bool = False
    orders: bool = False

    def takes_outcome(self, name: str) -> bool:
        """Tell whether the method measures changes of the outcome called `name`."""
        if self.outcomes is not None:
            return name in self.outcomes
        return self.compares or name not in OUTCOMES or not OUTCOMES[name].compares

    def check_outcome(self, outcome: Outcome) -> None:
        """Raise where the method does not measure changes of `outcome`.

        Methods that measure no outcome take the default of :func:`score`, which then stands for
        nothing.

        Raises
        ------
        InvalidArgumentError
            If it does not; the message says what does.
        """
        known = self.outcomes is None or outcome.name in self.outcomes
        if not known and outcome is not OUTCOMES[DEFAULT_OUTCOME]:
            choices = " or ".join(repr(name) for name in self.outcomes or ())
            measures = f"is defined on {choices}" if choices else "measures no outcome to choose"
            raise InvalidArgumentError(
                f"outcome: method {self.name!r} {measures}, leave out `outcome`; got "
                f"{outcome.name!r}"
            )
        if known and outcome.compares and not self.compares and self.outcomes is None:
            able = ", ".join(repr(name) for name in sorted(METHODS) if METHODS[name].compares)
            raise InvalidArgumentError(
                f"outcome: {outcome.name!r} compares two outputs, which method {self.name!r} "
                f"cannot; expected an outcome of one output such as 'loss', or one of the methods "
                f"{able}"
            )
        if self.needs_gradient and not outcome.differentiable:
            raise InvalidArgumentError(
                f"outcome: method {self.name!r} needs a differentiable outcome, got "
                f"{outcome.name!r}; use method='ablation', or an outcome such as 'loss'"
            )

    @property
    def options(self) -> tuple[str, ...]:
        """Names of the method's own options: its keyword-only parameters."""
        parameters = signature(self.function).parameters.values()
        return tuple(p.name for p in parameters if p.kind is Parameter.KEYWORD_ONLY)


METHODS: dict[str, Method] = {}


def register_method(
    name: str,
    *,
    needs_data: bool = True,
    needs_labels: bool = True,
    needs_gradient: bool = False,
    shards: tuple[str, ...] | None = None,
    takes_budget: bool = False,
    interventions: tuple[str, ...] = ("zero",),
    outcomes: tuple[str, ...] | None = None,
    compares: bool = False,
    orders: bool = False,
) -> Callable[[MethodFunction], MethodFunction]:
    """Make a scoring method known under `name` (decorator).

    The function takes a :class:`Job` and, as keyword-only parameters with defaults, the method's
    own options, which users pass to :func:`score` by name. It returns a mapping of group name to
    :class:`UnitScores`, or a :class:`MethodResult`.

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
    shards : tuple of str, optional
        Options with which it can be spread over processes, because it adds up effects in a
        :class:`causalprune.scoring.tally.Tally` and gives nothing else. Default: it cannot.
    takes_budget : bool
        Whether it can work within ``job.budget`` forward-equivalents.
    interventions : tuple of str
        Values of ``job.intervention`` that it honours; :func:`score` refuses the others. A method
        that intervenes on nothing leaves it at the default of :func:`score`.
    outcomes : tuple of str, optional
        Names of the outcomes whose changes it measures; ``()``: of none. :func:`score` refuses
        the others, but for its own default, which then stands for nothing. Default: any.
    compares : bool
        Whether it measures outcomes that compare two outputs
        (:class:`causalprune.scoring.outcomes.Outcome`), too.
    orders : bool
        Whether importances are places in an order rather than amounts: what a unit saves then
        decides within a category only.

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
        METHODS[name] = Method(
            name,
            function,
            needs_data,
            needs_labels,
            needs_gradient,
            shards,
            takes_budget,
            interventions,
            outcomes,
            compares,
            orders,
        )
        return function

    return register


def resolve_method(name: str) -> Method:
    """Return the registered method called `name`."""
    if name not in METHODS:
        raise UnknownNameError("scoring method", name, METHODS)
    return METHODS[name]
