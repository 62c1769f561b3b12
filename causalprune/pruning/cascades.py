"""The prune-retrain cascade of Lost in Pruning, for weights and for filters."""

from __future__ import annotations

import copy
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from causalprune.errors import InvalidArgumentError, UnknownNameError
from causalprune.graph import UnitGraph, capture
from causalprune.measures import count_macs
from causalprune.pruning.calibration import collect, digest, read_once
from causalprune.pruning.cascade_steps import (
    CascadeFolder,
    CascadeStep,
    check_ratios,
    open_folder,
)
from causalprune.pruning.checkpoints import described, set_random_state, weights_digest
from causalprune.pruning.examples import example_of
from causalprune.pruning.expansion import expanded
from causalprune.pruning.footprint import Footprint, Sizes, sizes_of
from causalprune.pruning.masks import WeightMasks, apply_masks
from causalprune.pruning.plans import Plan
from causalprune.pruning.retraining import Retraining
from causalprune.pruning.retraining import retrain as train_again
from causalprune.pruning.run import extended, in_original, kept_units
from causalprune.pruning.selection import plan
from causalprune.pruning.surgery import apply
from causalprune.pruning.trace import Removal
from causalprune.pruning.training import evaluate
from causalprune.pruning.weights import WEIGHT_METHODS, check_weight_method, choose_weights
from causalprune.scoring import Scores, score
from causalprune.scoring.ft import filter_budget
from causalprune.scoring.keep_budgets import TOLERANCE, count_parameters
from causalprune.scoring.outcomes import DEFAULT_OUTCOME
from causalprune.scoring.pfp import channel_budget
from causalprune.scoring.sensitivities import sample_size

__all__ = ["FILTER_METHODS", "cascade"]

FILTER_METHODS = ("ft", "pfp")
"""Methods that allocate whole filters to a keep ratio."""


def cascade(
    model: nn.Module,
    data: Any,
    method: str = "wt",
    ratios: Sequence[float] = (0.5, 0.75, 0.875),
    *,
    retrain: Retraining | None = None,
    calibration: Any = None,
    held_out: Any = None,
    filters: str = "removed",
    checkpoint: str | os.PathLike[str] | None = None,
    form: str = "deterministic",
    outcome: str | Callable[..., Tensor] = DEFAULT_OUTCOME,
    max_images: int | None = None,
    batch_size: int = 256,
    seed: int = 0,
    progress: bool = False,
    **options: Any,
) -> Iterator[CascadeStep]:
    """Prune a trained network to one ratio after the other, retraining it at each.

    Every step scores the network as it stands, prunes it to the next keep ratio of the original
    size, and trains it again: weights are kept, the optimiser is fresh, and the whole schedule is
    run anew. What is pruned stays pruned.

    Parameters
    ----------
    model : nn.Module
        Takes one tensor [N, ...] and returns logits [N, K]; untouched.
    data : DataLoader, Dataset, iterable of (inputs, targets), or pair of tensors
        What a recipe trains on.
    method : {"wt", "sipp", "snip", "ft", "pfp"}
        Weights by magnitude, relative sensitivity or connection sensitivity; filters by their
        norm, the same fraction of every layer, or by the sensitivity of their channels.
    ratios : sequence of float
        Ascending fractions of the original network's parameters that are gone, in [0, 1).
    retrain : SgdRecipe or callable, optional
        See :func:`causalprune.pruning.retraining.retrain`. Default: no retraining.
    calibration : optional
        Images for the scores, as in :func:`causalprune.scoring.score`. The source takes them from
        the validation images. Default: `data`.
    held_out : optional
        Labelled images on which accuracies are measured; nothing is chosen by them.
    filters : {"removed", "masked"}
        Filters that go are removed for good, or the yielded network has the original's shape with
        zeros, and masks beside.
    checkpoint : path-like, optional
        Folder in which every finished ratio is kept. The same call goes on where a killed one
        stopped, to the same result; finished ratios are yielded from the folder.
    form, outcome
        Of ``"sipp"`` and ``"snip"``; see :func:`causalprune.pruning.weights.prune_weights`.
    max_images : int, optional
        Images of `calibration` to use. Default: for ``"sipp"`` and ``"pfp"`` the published sample
        size (:func:`causalprune.scoring.sensitivities.sample_size`), else all.
    batch_size, seed, progress
        See :func:`causalprune.scoring.score`.
    **options
        Options of the method.

    Yields
    ------
    CascadeStep
        One for every ratio, when it is done.

    Raises
    ------
    UnknownNameError
        If the method, form or choice of filters is unknown.
    InvalidArgumentError
        If ratios are not ascending fractions, or one cannot be had.
    CheckpointError
        If the folder holds another cascade, or cannot be written: the finished ratios in it stay.
    CausalPruneError
        Whatever scoring and surgery raise.
    Exception
        Whatever a user's training function raises; finished ratios are in the checkpoint.

    Notes
    -----
    Source: Liebenwein, Baykal, Carter, Gifford, Rus (2021), "Lost in Pruning", section 3 and
    appendix. Theirs masks filters, here they are removed by default, which computes the same.

    Examples
    --------
    >>> from causalprune.pruning.retraining import SgdRecipe
    >>> _ = torch.manual_seed(0)
    >>> model = nn.Sequential(nn.Linear(4, 10), nn.ReLU(), nn.Linear(10, 2))
    >>> data = torch.randn(64, 4), torch.arange(64) % 2
    >>> steps = cascade(model, data, "wt", (0.3, 0.6), retrain=SgdRecipe(epochs=1))
    >>> [sum(int((p != 0).sum()) for p in step.model.parameters()) for step in steps]
    [50, 28]
    """
    wanted = check_ratios(ratios)
    if method in FILTER_METHODS:
        if filters not in ("removed", "masked"):
            raise UnknownNameError("choice of filters", filters, ("removed", "masked"))
        if form != "deterministic":
            raise InvalidArgumentError(f"form: expected none for {method!r}, got {form!r}")
    elif method in WEIGHT_METHODS:
        check_weight_method(method, form, outcome)
    else:
        raise UnknownNameError("method of a cascade", method, (*WEIGHT_METHODS, *FILTER_METHODS))
    if read_once(data):
        data = collect(data, max_images=None, batch_size=batch_size, seed=seed).data
    sampled = method in ("sipp", "pfp")
    scored = collect(
        data if calibration is None else calibration,
        max_images=max_images or (sample_size(model) if sampled else None),
        batch_size=batch_size,
        seed=seed,
    )
    scoring: dict[str, Any] = {
        "outcome": outcome,
        "batch_size": batch_size,
        "seed": seed,
        "progress": progress,
    }
    request = _Request(model, data, scored.data, method, form, scoring, options, retrain, held_out)
    folder = None
    if checkpoint is not None:
        arguments = {
            "network": weights_digest(model),
            "images": digest(scored),
            "method": method,
            "ratios": list(wanted),
            "form": form,
            "scoring": described({**scoring, **options}),
            "retrain": described(retrain),
        }
        folder = open_folder(checkpoint, arguments)
    # Not a generator itself, so that a bad argument is told of at once.
    return _steps(request, wanted, filters == "masked", folder)


@dataclass(frozen=True)
class _Request:
    """What a cascade was asked for, whatever the step."""

    model: nn.Module
    data: Any
    calibration: Any
    method: str
    form: str
    scoring: Mapping[str, Any]
    options: Mapping[str, Any]
    retraining: Retraining | None
    held_out: Any

    def accuracy(self, network: nn.Module) -> float | None:
        if self.held_out is None:
            return None
        return evaluate(network, self.held_out, batch_size=self.scoring["batch_size"])


@dataclass(frozen=True)
class _Original:
    """The units of the original network; filters are counted in them."""

    graph: UnitGraph
    sizes: Sizes
    nothing: Plan


@dataclass(frozen=True)
class _State:
    """The network between two steps, and what is gone."""

    network: nn.Module
    keep_ratio: float = 1.0
    masks: WeightMasks | None = None
    plan: Plan | None = None
    removed: tuple[Removal, ...] = field(default=())


def _steps(
    request: _Request, ratios: Sequence[float], masked: bool, folder: CascadeFolder | None
) -> Iterator[CascadeStep]:
    original = _original(request)
    state = _State(request.model, plan=None if original is None else original.nothing)
    n_finished = 0 if folder is None else len(folder.finished)
    for number, ratio in enumerate(ratios):
        if folder is not None and number < n_finished:
            step, state = _restored(request, folder, number)
            goes_on = number + 1 == n_finished < len(ratios)
            if goes_on and folder.random_state and request.retraining is not None:
                set_random_state(folder.random_state)
        else:
            step, state = _next(request, original, state, ratio)
            if folder is not None:
                folder.add(step)
        yield _handed_over(request, original, step, masked)


def _restored(request: _Request, folder: CascadeFolder, number: int) -> tuple[CascadeStep, _State]:
    tensors, masks = folder.tensors(number)
    decided = folder.plan(number)
    network = copy.deepcopy(request.model) if decided is None else apply(request.model, decided)
    network.load_state_dict(tensors)
    step = folder.step(number, network, masks if decided is None else None)
    return step, _State(network, step.keep_ratio, step.masks, decided)


def _next(
    request: _Request, original: _Original | None, state: _State, ratio: float
) -> tuple[CascadeStep, _State]:
    start = time.perf_counter()
    if original is None:
        state = _fewer_weights(request, state, 1 - ratio)
    else:
        state = _fewer_filters(request, original, state, 1 - ratio)
    before = request.accuracy(state.network)
    losses: list[float] = []
    network = state.network
    if request.retraining is not None:
        network = train_again(
            network,
            request.data,
            request.retraining,
            masks=state.masks,
            on_epoch=lambda _, loss: losses.append(loss),
        )
        state = replace(state, network=network)
    step = CascadeStep(
        ratio,
        state.keep_ratio,
        abs(state.keep_ratio - (1 - ratio)) < TOLERANCE * (1 - ratio),
        network,
        state.masks,
        state.plan,
        state.removed,
        _footprint(request, state),
        before,
        before if request.retraining is None else request.accuracy(network),
        tuple(losses),
        time.perf_counter() - start,
    )
    return step, state


def _handed_over(
    request: _Request, original: _Original | None, step: CascadeStep, masked: bool
) -> CascadeStep:
    """Give the caller a network of its own: what it does to it must not reach the next step."""
    if original is None or not masked:
        return replace(step, model=copy.deepcopy(step.model))
    assert step.plan is not None
    wide, masks = expanded(request.model, step.model, original.graph, step.plan.remove)
    return replace(step, model=wide, masks=masks)


def _fewer_weights(request: _Request, state: _State, keep_ratio: float) -> _State:
    budget = choose_weights(
        state.network,
        request.calibration,
        request.method,
        keep_ratio,
        form=request.form,
        gone=state.masks,
        options=request.options,
        **request.scoring,
    )
    network = copy.deepcopy(state.network)
    apply_masks(network, budget.masks, budget.scale)
    return _State(network, budget.keep_ratio, budget.masks)


def _fewer_filters(
    request: _Request, original: _Original, state: _State, keep_ratio: float
) -> _State:
    assert state.plan is not None
    network = state.network
    scores = score(
        network, request.calibration, request.method, **request.scoring, **request.options
    )
    graph = capture(network, example_of(network, scores.example_shape, scores.example_dtype))
    importance = {
        str(name): torch.from_numpy(rows["importance"].to_numpy(copy=True))
        for name, rows in scores.frame.groupby("group", sort=False)
    }
    choose = filter_budget if request.method == "ft" else channel_budget
    budget = choose(
        network,
        graph,
        importance,
        keep_ratio,
        original_size=count_parameters(request.model),
    )
    gone = _removals(scores, budget.kept)
    here: dict[str, tuple[int, ...]] = {}
    for removal in gone:
        here[removal.group] = (*here.get(removal.group, ()), removal.unit)
    pruned = apply(network, replace(plan(network, scores, 0.0), remove=here))
    removed = in_original(gone, kept_units(state.plan))
    decided = extended(state.plan, removed, original.sizes)
    kept = count_parameters(pruned) / count_parameters(request.model)
    return _State(pruned, kept, None, replace(decided, ratio=1 - keep_ratio), removed)


def _removals(scores: Scores, kept: Mapping[str, Sequence[int]]) -> list[Removal]:
    """Units of the network as it stands that a budget lets go."""
    stays = {(name, unit) for name, units in kept.items() for unit in units}
    rows = zip(*(scores.frame[name] for name in ("group", "unit", "importance")), strict=True)
    return [
        Removal(str(group), int(unit), float(importance))
        for group, unit, importance in rows
        if group in kept and (group, unit) not in stays
    ]


def _original(request: _Request) -> _Original | None:
    """Units of the original network; ``None`` where single weights go."""
    if request.method not in FILTER_METHODS:
        return None
    # Only the shape of an image matters: scores that need no data name the groups.
    names = score(request.model, request.calibration, "random", max_images=1)
    image = example_of(request.model, names.example_shape, names.example_dtype)
    graph = capture(request.model, image)
    nothing = replace(plan(request.model, names, 0.0), method=request.method)
    return _Original(graph, sizes_of(request.model, graph, image), nothing)


def _footprint(request: _Request, state: _State) -> Footprint:
    if state.plan is not None:
        return state.plan.after
    images = request.calibration
    image = example_of(
        request.model, (), "float32", images if isinstance(images, Tensor) else images[0]
    )
    tensors = [*request.model.parameters(), *request.model.buffers()]
    return Footprint(
        parameters=round(state.keep_ratio * count_parameters(request.model)),
        macs=count_macs(request.model, image),
        bytes=sum(tensor.numel() * tensor.element_size() for tensor in tensors),
        units=0,
    )
