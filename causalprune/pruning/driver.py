"""Score, plan and apply in one call: at once, step by step, or in rounds with retraining."""

from __future__ import annotations

import dataclasses
import os
import warnings
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Literal, overload

from torch import Tensor, nn

from causalprune.errors import InvalidArgumentError, TargetNotReachedWarning, UnknownNameError
from causalprune.pruning.calibration import Images, read_once
from causalprune.pruning.compensation import check_compensation
from causalprune.pruning.iterative import iterate
from causalprune.pruning.plans import Plan
from causalprune.pruning.progressive import progress as progress_steps
from causalprune.pruning.retraining import Retraining
from causalprune.pruning.run import Request, begin
from causalprune.pruning.run_inputs import arguments_of, images_of
from causalprune.pruning.schedules import (
    TOLERANCE,
    TOLERANCE_SEEN,
    Iterative,
    Progressive,
    Schedule,
    is_guarded,
    resolve_schedule,
)
from causalprune.pruning.selection import check_request
from causalprune.pruning.trace import Step, Trace
from causalprune.scoring import resolve_method

__all__ = ["prune"]


@overload
def prune(
    model: nn.Module,
    data: Any,
    method: str = ...,
    ratio: float | None = ...,
    of: str = ...,
    outcome: str | Callable[..., Tensor] | None = ...,
    *,
    return_trace: Literal[False] = ...,
    **options: Any,
) -> nn.Module: ...


@overload
def prune(
    model: nn.Module,
    data: Any,
    method: str = ...,
    ratio: float | None = ...,
    of: str = ...,
    outcome: str | Callable[..., Tensor] | None = ...,
    *,
    return_trace: Literal[True],
    **options: Any,
) -> tuple[nn.Module, Trace]: ...


def prune(
    model: nn.Module,
    data: Any,
    method: str = "path",
    ratio: float | None = 0.5,
    of: str = "parameters",
    outcome: str | Callable[..., Tensor] | None = None,
    *,
    schedule: str | Schedule | None = None,
    budget: float | None = None,
    intervention: str = "zero",
    confidence: float = 0.95,
    max_images: int | None = None,
    scope: Any = "global",
    round_to: int | None = None,
    protect: Iterable[str] = (),
    compensation: str = "none",
    ridge: float = 1e-3,
    refit_layers: str = "all",
    held_out: Any = None,
    retrain: Retraining | None = None,
    checkpoint: str | os.PathLike[str] | None = None,
    on_step: Callable[[Step], Any] | None = None,
    return_trace: bool = False,
    batch_size: int = 256,
    max_cache_bytes: int = 2**30,
    seed: int = 0,
    progress: bool = False,
    **options: Any,
) -> nn.Module | tuple[nn.Module, Trace]:
    """Return a physically smaller copy of a network: score, then plan, then apply.

    ``schedule="one_shot"`` does each once. ``"progressive"`` (C-SWAP's way, and its default)
    scores the network as it stands, removes a chunk of units, detrimental ones first, reverts it
    and freezes a layer where held-out accuracy falls too far, and goes on until the target is
    reached or only critical units are left. ``"iterative"`` prunes in rounds, with retraining
    after each. `model` is untouched, and the result needs no causalprune.

    The result is that of the arguments alone: a run that was killed goes on from its `checkpoint`
    to the same network.

    Parameters
    ----------
    model : nn.Module
        Takes one tensor [N, ...] and returns logits [N, K].
    data : DataLoader, Dataset, iterable of (inputs, targets), pair of tensors, or Tensor
        See :func:`causalprune.scoring.score`. Read into memory, once, unless one pass over it is
        all that is needed (one shot, no compensation, no checkpoint).
    method : str
        Scoring method.
    ratio : float
        Fraction of `of` to remove, in [0, 1).
    of : str
        See :func:`causalprune.pruning.plan`; a progressive run counts anything but
        ``"latency"``.
    outcome : str or callable, optional
        What the effects are measured on. Default: ``"logits"``, how far the output moves on each
        image, for methods that can compare two outputs, because gains on some images do not make
        up for losses on others when a unit goes for good; else that of
        :func:`causalprune.scoring.score`.
    schedule : str or Schedule, optional
        ``"one_shot"``, ``"progressive"``, ``"iterative"``, or one of
        :class:`~causalprune.pruning.schedules.Progressive` and
        :class:`~causalprune.pruning.schedules.Iterative`, whose fields (chunk, guard, tolerance,
        ...; rounds) may also be given as `options`. Default: ``"progressive"`` for
        ``method="cswap"``, else ``"one_shot"``.
    budget, intervention, confidence, max_cache_bytes, seed, progress
        See :func:`causalprune.scoring.score`. `budget` is for every scoring of the network.
    max_images : int, optional
        Use the first `max_images` images of `data` only.
    scope, round_to, protect
        See :func:`causalprune.pruning.plan`.
    compensation : str
        ``"none"``, ``"mean"`` or ``"refit"``, on `data`; see :func:`causalprune.pruning.apply`.
        A progressive run compensates for all units taken so far against the original network
        after every step.
    ridge, refit_layers
        Of ``"refit"``; see :func:`causalprune.pruning.apply`.
    held_out : as `data`, optional
        Images whose accuracy guards a progressive run, and is noted in the trace. Default: where
        there is a guard, the last fifth of `data`, on which then nothing is scored. Never give
        the images that the result will be judged by.
    retrain : SgdRecipe or callable, optional
        Trains the network again: after every round of an iterative run, else once at the end. A
        function takes the network and trains it in place, or returns it; a recipe trains on all
        of `data`.
    checkpoint : path-like, optional
        Folder that keeps the run after every step; see :mod:`causalprune.pruning.checkpoints`. A
        run that finds its own checkpoint goes on from there (with `retrain`: and sets the random
        state of torch, numpy and Python to what it was).
    on_step : callable of (Step) -> Any, optional
        Called after every step, when its checkpoint is on disk.
    return_trace : bool
        Return the :class:`~causalprune.pruning.Trace` of the run as well.
    batch_size : int
        Images per batch where the data does not come in batches.
    **options
        Options of the method, and fields of the schedule.

    Returns
    -------
    nn.Module
        Of the same classes as `model`.
    Trace
        With ``return_trace=True``.

    Raises
    ------
    InvalidArgumentError, UnknownNameError
        If an argument is out of range, or an option belongs to neither method nor schedule.
    DataError
        If the data is malformed, or labels are missing where they are needed.
    CheckpointError
        If a checkpoint cannot be written, or is of another run.
    CausalPruneError
        Whatever else the three steps raise.
    Exception
        Whatever `retrain` raises; the checkpoint before it is kept, and a note says where.

    Warns
    -----
    TargetNotReachedWarning
        If less was removed than asked for; says why.

    Notes
    -----
    Source of the progressive schedule: Bauvin, Baret and Ahmad (2025), C-SWAP; reconstructed. See
    :class:`~causalprune.pruning.schedules.Progressive` for its choices.

    Examples
    --------
    >>> import torch
    >>> model = nn.Sequential(nn.Linear(4, 10), nn.ReLU(), nn.Linear(10, 2))
    >>> images, labels = torch.randn(8, 4), torch.arange(8) % 2
    >>> prune(model, (images, labels), ratio=0.5, of="units")[0].out_features
    5
    """
    # A bad ratio or option must not cost the time of scoring first.
    check_request(ratio, of, scope)
    check_compensation(compensation, data, ridge, refit_layers)
    name, chosen, left = resolve_schedule(schedule, method, options)
    _check_options(method, name, chosen, left)
    if isinstance(chosen, Progressive):
        _check_progressive(of, scope)
    if isinstance(chosen, Iterative) and isinstance(scope, Mapping):
        raise InvalidArgumentError(
            "scope: expected 'global' or 'layer' for an iterative run, got a mapping"
        )
    scoring: dict[str, Any] = {
        "method": method,
        "budget": budget,
        "intervention": intervention,
        "confidence": confidence,
        "batch_size": batch_size,
        "max_cache_bytes": max_cache_bytes,
        "seed": seed,
        "progress": progress,
        **_outcome(method, outcome),
        **_race(method, budget, ratio, scope),
        **left,
    }
    guarded = is_guarded(chosen, method, held_out=held_out is not None)
    if isinstance(chosen, Progressive) and chosen.tolerance is None:
        usual = TOLERANCE_SEEN if held_out is None else TOLERANCE
        chosen = dataclasses.replace(chosen, tolerance=usual)
    images, held = images_of(
        data,
        held_out,
        chosen,
        guarded=guarded,
        whole=name != "one_shot" or compensation != "none" or checkpoint is not None,
        needed=resolve_method(method).needs_data or compensation != "none",
        max_images=max_images,
        batch_size=batch_size,
        seed=seed,
    )
    scored = images.data if isinstance(images, Images) else data
    if not isinstance(images, Images):
        scoring["max_images"] = max_images
    planning: dict[str, Any] = {"scope": scope, "protect": _names(protect)}
    if round_to is not None:
        planning["round_to"] = round_to
    applying: dict[str, Any] = {}
    if compensation != "none":
        applying = {
            "compensation": compensation,
            "data": scored,
            "batch_size": batch_size,
            "ridge": ridge,
            "refit_layers": refit_layers,
            "max_cache_bytes": max_cache_bytes,
        }
    request = Request(
        ratio=None if ratio is None or isinstance(scope, Mapping) else float(ratio),
        of=of,
        scoring=scoring,
        planning=planning,
        compensation=applying,
        retraining=retrain,
        training_data=scored if read_once(data) else data,
    )
    arguments: dict[str, Any] = {}
    if checkpoint is not None:
        assert isinstance(images, Images)
        arguments = arguments_of(model, request, name, chosen, images, held)

    tolerance = chosen.tolerance if guarded and isinstance(chosen, Progressive) else None

    def trace(empty: Plan) -> Trace:
        return Trace(method, "", name, compensation, empty, tolerance)

    run = begin(
        model,
        request,
        scored,
        held,
        trace,
        folder=None if checkpoint is None else Path(checkpoint),
        arguments=arguments,
        on_step=on_step,
    )
    if isinstance(chosen, Progressive):
        progress_steps(run, chosen)
    else:
        iterate(run, chosen.rounds if isinstance(chosen, Iterative) else 1)
    _warn_if_short(run.trace)
    return (run.network, run.trace) if return_trace else run.network


def _check_options(
    method: str, schedule: str, chosen: Schedule, options: Mapping[str, Any]
) -> None:
    known = resolve_method(method).options
    fields = tuple(field.name for field in dataclasses.fields(chosen))
    for name in options:
        if name not in known:
            raise UnknownNameError(
                f"option of method {method!r} or schedule {schedule!r}", name, {*known, *fields}
            )


def _check_progressive(of: str, scope: object) -> None:
    if of == "latency":
        raise InvalidArgumentError(
            "of: expected 'parameters', 'macs', 'memory' or 'units' for a progressive run, got "
            "'latency', whose noise is larger than what a step saves"
        )
    if scope not in ("global", "layer"):
        raise InvalidArgumentError(
            f"scope: expected 'global' or 'layer' for a progressive run, got {scope!r}"
        )


def _outcome(
    method: str, outcome: str | Callable[..., Tensor] | None
) -> dict[str, str | Callable[..., Tensor]]:
    if outcome is not None:
        return {"outcome": outcome}
    return {"outcome": "logits"} if resolve_method(method).compares else {}


def _race(method: str, budget: float | None, ratio: float | None, scope: object) -> dict[str, Any]:
    """Tell a race within a budget where the decision lies."""
    if budget is None or method != "ablation" or ratio is None or not 0 < ratio < 1:
        return {}
    return {"ratio": float(ratio), "scope": "layer" if scope == "layer" else "global"}


def _names(protect: Iterable[str]) -> tuple[str, ...]:
    return (protect,) if isinstance(protect, str) else tuple(protect)


def _warn_if_short(trace: Trace) -> None:
    decided = trace.plan
    asked = "units layer by layer" if decided.ratio is None else f"{decided.ratio:.1%}"
    if not decided.reached:
        warnings.warn(
            f"asked to remove {asked} of {decided.of}, removed "
            f"{decided.achieved_ratio:.1%}: {trace.stopped}",
            TargetNotReachedWarning,
            stacklevel=3,
        )
