"""A pruning run as it stands: the network, the trace, and what both schedules do with them."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from rich.console import Console
from torch import Tensor, nn

from causalprune.errors import UnsupportedModelError
from causalprune.graph import UnitGraph, capture
from causalprune.pruning.calibration import Images
from causalprune.pruning.checkpoints import (
    check_same_run,
    read_checkpoint,
    set_random_state,
    write_checkpoint,
)
from causalprune.pruning.examples import example_of
from causalprune.pruning.footprint import Sizes, sizes_of
from causalprune.pruning.plans import Plan, with_removal
from causalprune.pruning.retraining import Retraining, retrain
from causalprune.pruning.selection import plan
from causalprune.pruning.surgery import apply
from causalprune.pruning.targets import memory_of
from causalprune.pruning.trace import Removal, Step, Trace
from causalprune.pruning.training import correct_images
from causalprune.scoring import Scores, score

__all__ = [
    "Request",
    "Run",
    "begin",
    "extended",
    "in_original",
    "kept_units",
    "share_of",
    "train_again",
]


@dataclass(frozen=True)
class Request:
    """What a run was asked for, whatever its schedule.

    Attributes
    ----------
    ratio : float or None
        ``None`` where the scope says it layer by layer.
    of : str
    scoring : Mapping of str to Any
        Arguments of :func:`causalprune.scoring.score` but the network and the data.
    planning : Mapping of str to Any
        Arguments of :func:`causalprune.pruning.plan` but the network, the scores and the target.
    compensation : Mapping of str to Any
        Arguments of :func:`causalprune.pruning.apply`; empty without compensation.
    retraining : Retraining or None
    training_data : Any
        What a recipe trains on.
    """

    ratio: float | None
    of: str
    scoring: Mapping[str, Any]
    planning: Mapping[str, Any] = field(default_factory=dict)
    compensation: Mapping[str, Any] = field(default_factory=dict)
    retraining: Retraining | None = None
    training_data: Any = None


@dataclass
class Run:
    """A run between two steps.

    Attributes
    ----------
    original : nn.Module
        The network as it was given; never changed.
    network : nn.Module
        As it stands; `original` itself before the first step.
    request : Request
    data : Any
        What units are scored on.
    held_out : Images or None
    trace : Trace
    graph : UnitGraph
        Of the original network.
    sizes : Sizes
        Of the original network.
    protected : frozenset of str
        Groups that lose nothing.
    folder : Path or None
        Where checkpoints go.
    arguments : Mapping of str to JSON value
        What the result depends on, for the checkpoints.
    on_step : callable of (Step) -> Any, or None
    """

    original: nn.Module
    network: nn.Module
    request: Request
    data: Any
    held_out: Images | None
    trace: Trace
    graph: UnitGraph
    sizes: Sizes
    protected: frozenset[str] = frozenset()
    folder: Path | None = None
    arguments: Mapping[str, Any] = field(default_factory=dict)
    on_step: Callable[[Step], Any] | None = None
    _began: float = field(default_factory=time.perf_counter)

    def scores(self, seed: int = 0, **changes: Any) -> Scores:
        """Score the network as it stands; `seed` is added to the run's."""
        arguments = {**self.request.scoring, **changes}
        arguments["seed"] += seed
        found = score(self.network, self.data, **arguments)
        self.trace = replace(self.trace, outcome=found.outcome)
        return found

    def pruned(self, network: nn.Module, decided: Plan) -> nn.Module:
        """Apply a plan, with the run's compensation."""
        return apply(network, decided, **self.request.compensation)

    def correct(self, network: nn.Module) -> Tensor | None:
        """Which held-out images [N] are right, where images are held out."""
        if self.held_out is None:
            return None
        batch_size = self.request.scoring["batch_size"]
        return correct_images(network, self.held_out.data, batch_size=batch_size)

    def accuracy(self, network: nn.Module) -> float | None:
        """Held-out accuracy, where images are held out."""
        return share_of(self.correct(network))

    @cached_property
    def correct_before(self) -> Tensor | None:
        """Which held-out images [N] the original network gets right."""
        return self.correct(self.original)

    def without(self, units: Sequence[Removal]) -> tuple[Plan, nn.Module]:
        """Take `units` out of the original network as well, beside all that are gone."""
        decided = extended(self.trace.plan, units, self.sizes)
        network = self.pruned(self.original, decided)
        return self.weighed(decided, network), network

    def weighed(self, decided: Plan, network: nn.Module) -> Plan:
        """Fill in what a target of memory has to be measured for."""
        if self.request.of != "memory":
            return decided
        image = example_of(self.original, decided.example_shape, decided.example_dtype)
        whole, left = memory_of(self.original, image), memory_of(network, image)
        return replace(
            decided,
            achieved_ratio=1 - left / whole,
            before=replace(decided.before, memory=whole),
            after=replace(decided.after, memory=left),
        )

    def record(self, step: Step, network: nn.Module | None = None, **changes: Any) -> None:
        """Note a step, save a checkpoint, and tell the user's callback, in this order."""
        now = time.perf_counter()
        step, self._began = replace(step, seconds=now - self._began), now
        self.trace = replace(self.trace, steps=(*self.trace.steps, step), **changes)
        self.network = self.network if network is None else network
        self.save()
        if self.request.scoring.get("progress"):
            Console().print(_told(len(self.trace.steps), step), highlight=False, markup=False)
        if self.on_step is not None:
            self.on_step(step)

    def stop(self, reason: str, *, reached: bool) -> None:
        """Note why the run ends."""
        ended = replace(self.trace.plan, reached=reached)
        self.trace = replace(self.trace, plan=ended, stopped=reason)
        self.save()

    def save(self) -> None:
        """Write a checkpoint, where the run has a folder for it."""
        if self.folder is not None:
            write_checkpoint(self.folder, self.network, self.trace, self.arguments)


def _told(number: int, step: Step) -> str:
    size = f"{step.footprint.parameters:,} parameters, {step.footprint.macs:,} MACs"
    return f"step {number}: {step.verdict}, {len(step.removed)} units, {size}; {step.reason}"


def begin(
    model: nn.Module,
    request: Request,
    data: Any,
    held_out: Images | None,
    trace: Callable[[Plan], Trace],
    *,
    folder: Path | None,
    arguments: Mapping[str, Any],
    on_step: Callable[[Step], Any] | None,
) -> Run:
    """Begin a run, or go on where its checkpoint left off.

    Raises
    ------
    CheckpointError
        If the folder holds a run of other arguments, another network or other data.
    RecordError
        If what it holds cannot be read.
    """
    found = None if folder is None else read_checkpoint(folder)
    if found is not None and folder is not None:
        check_same_run(folder, found.arguments, arguments)
    # Only the shape of an image matters: one that needs no data names the groups and the sizes.
    names = score(model, data, "random", max_images=1, batch_size=request.scoring["batch_size"])
    planning = {k: v for k, v in request.planning.items() if k in ("protect", "round_to")}
    empty = plan(model, names, 0.0, request.of, **planning)
    example = example_of(model, empty.example_shape, empty.example_dtype)
    graph = capture(model, example)
    sizes = sizes_of(model, graph, example)
    run = Run(
        model,
        model,
        request,
        data,
        held_out,
        trace(
            replace(
                empty,
                ratio=request.ratio,
                scope=request.planning.get("scope", "global"),
                method=request.scoring["method"],
            )
        ),
        graph,
        sizes,
        frozenset(group for held in empty.protected.values() for group in held),
        folder,
        arguments,
        on_step,
    )
    if found is None:
        run.trace = replace(run.trace, accuracy=share_of(run.correct_before))
        return run
    run.trace = found.trace
    if run.trace.steps:
        run.network = apply(model, run.trace.plan)
        run.network.load_state_dict(found.state)
    if request.retraining is not None:
        set_random_state(found.random_state)
    return run


def share_of(correct: Tensor | None) -> float | None:
    """Accuracy over images [N] that are right or wrong; ``None`` where there are none."""
    return None if correct is None else int(correct.sum()) / len(correct)


def kept_units(decided: Plan) -> dict[str, list[int]]:
    """Units of every group that a plan keeps, in their order.

    The k-th of a group is unit k of the pruned network.
    """
    kept = {}
    for row in decided.table:
        gone = set(decided.remove.get(row.group, ()))
        kept[row.group] = [unit for unit in range(row.units) if unit not in gone]
    return kept


def extended(decided: Plan, removed: Iterable[Removal], sizes: Sizes) -> Plan:
    """Add units, as the original network numbers them, to a plan."""
    remove = {name: list(units) for name, units in decided.remove.items()}
    for unit in removed:
        remove.setdefault(unit.group, []).append(unit.unit)
    return with_removal(decided, remove, sizes)


def in_original(units: Sequence[Removal], kept: Mapping[str, Sequence[int]]) -> tuple[Removal, ...]:
    """Renumber units of the network as it stands as those of the original network."""
    return tuple(replace(unit, unit=kept[unit.group][unit.unit]) for unit in units)


def train_again(run: Run) -> None:
    """Retrain the network as it stands, and record it.

    What the training raises goes on to the caller, with a note where the run stands.
    """
    request = run.request
    assert request.retraining is not None
    copied = copy.deepcopy(run.network)
    try:
        trained = retrain(copied, request.training_data, request.retraining)
        _set_modes(trained, run.network)
    except Exception as error:
        _add_note(error, _where(run))
        raise
    if _shapes(trained) != _shapes(run.network):
        raise UnsupportedModelError(
            "retrain: expected a network of the same parameters and buffers, got one that differs "
            f"in {', '.join(sorted(_shapes(trained) ^ _shapes(run.network))[:3])}"
        )
    run.record(
        Step("retrained", (), run.trace.plan.after, run.accuracy(trained), "retrained"), trained
    )


def _set_modes(trained: nn.Module, as_in: nn.Module) -> None:
    modes = {name: module.training for name, module in as_in.named_modules()}
    for name, module in trained.named_modules():
        module.training = modes.get(name, module.training)


def _shapes(network: nn.Module) -> set[str]:
    return {f"{name} {list(t.shape)}" for name, t in network.state_dict().items()}


def _where(run: Run) -> str:
    number = len(run.trace.steps)
    if run.folder is None:
        return f"causalprune: retraining after step {number} failed; no checkpoint was asked for"
    return (
        f"causalprune: retraining after step {number} failed; the network before it is in "
        f"{run.folder}: call again with the same arguments to go on from there"
    )


def _add_note(error: BaseException, note: str) -> None:
    """``BaseException.add_note``, which Python 3.10 does not have."""
    error.__dict__.setdefault("__notes__", []).append(note)
