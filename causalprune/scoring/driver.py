"""The public function score()."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from causalprune.errors import InvalidArgumentError, UnsupportedModelError
from causalprune.graph import UnitGraph, capture, evaluating
from causalprune.scoring.data import as_batches
from causalprune.scoring.intervals import student_t_quantile
from causalprune.scoring.methods import Job, Method, UnitScores, resolve_method
from causalprune.scoring.outcomes import Outcome, resolve_outcome
from causalprune.scoring.scores import COLUMNS, Scores, fingerprint

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["score"]


def score(
    model: nn.Module,
    data: Any,
    method: str = "path",
    outcome: str | Callable[..., Tensor] = "loss",
    budget: int | None = None,
    *,
    confidence: float = 0.95,
    batch_size: int = 256,
    seed: int = 0,
    progress: bool = False,
) -> Scores:
    """Score every removable unit of a network.

    The estimand of ``effect`` is the mean over the images of ``Y_do(unit := 0) - Y``: what the
    outcome of an image changes by when the unit is removed and everything else is left as it is.
    ``ablation`` computes it exactly, ``path`` exactly up to the consumers' activations and at
    first order behind them, ``taylor`` at first order throughout; ``l1``, ``l2`` and ``random``
    are baselines without an effect. The network is evaluated in eval mode, its modes are
    restored, and neither it nor the global random state is changed.

    Parameters
    ----------
    model : nn.Module
        Takes one tensor [N, ...] and returns logits [N, K].
    data : DataLoader, Dataset, iterable of (inputs, targets), pair of tensors, or Tensor
        A bare tensor will do where no labels are needed (norms, random, callable outcomes).
        Methods without data read only the shape of the first image.
    method : str
        ``"path"``, ``"ablation"``, ``"taylor"``, ``"l1"``, ``"l2"``, ``"random"``, or a
        registered one.
    outcome : str or callable
        ``"loss"`` (cross-entropy), ``"probability"``, ``"logit"``, ``"margin"`` (all of the true
        class), ``"correctness"`` (0 or 1; has no gradient), or ``(logits [N, K], targets) ->
        [N]``, which may be differentiated by `method`.
    budget : int, optional
        Number of images to use: the first `budget` of the data. Default: all.
    confidence : float
        Level of the intervals, in (0, 1).
    batch_size : int
        Images per batch where the data does not come in batches.
    seed : int
        For ``"random"``, and for a loader that shuffles.
    progress : bool
        Show a progress bar.

    Returns
    -------
    Scores
        Unit c is "critical" when removing it makes the outcome significantly worse,
        "detrimental" when significantly better, else "neutral".

    Raises
    ------
    UnknownNameError
        If the method or outcome is not registered.
    InvalidArgumentError
        If an argument is out of range, or `method` needs a gradient that `outcome` has not.
    DataError
        If the data is empty, malformed, lacks targets, or leads to an outcome that is not finite.
    UnsupportedModelError
        If no unit can be removed, or images of a batch influence each other in eval mode.

    Examples
    --------
    >>> _ = torch.manual_seed(0)
    >>> model = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))
    >>> with torch.no_grad():
    ...     model[2].weight[:, 1] = 0  # nobody listens to hidden unit 1
    >>> scores = score(model, (torch.randn(20, 4), torch.arange(20) % 2), method="ablation")
    >>> float(scores.frame["effect"][1]), scores.frame["category"][1]
    (0.0, 'neutral')
    """
    chosen, wanted = resolve_method(method), resolve_outcome(outcome)
    _check_arguments(model, chosen, wanted, budget, confidence, batch_size, seed)
    with (
        torch.random.fork_rng(devices=[]),
        torch.inference_mode(False),
        evaluating(model),
    ):
        # Not torch.manual_seed, which would also reseed every GPU, out of the fork's reach.
        torch.default_generator.manual_seed(seed)
        batches = as_batches(
            data,
            batch_size=batch_size,
            budget=budget if chosen.needs_data else 1,
            labels=chosen.needs_labels and wanted.needs_labels,
            device=_device(model),
        )
        graph = capture(model, batches.example)
        _check_graph(model, graph, chosen)
        job = Job(model, graph, batches, wanted, seed, progress)
        results = chosen.function(job)
        _check_results(graph, results, chosen)
    return Scores(
        frame=_frame(graph, results, wanted, confidence),
        method=chosen.name,
        outcome=wanted.name,
        confidence=confidence,
        fingerprint=fingerprint(model),
        example_shape=tuple(batches.example.shape),
        example_dtype=str(batches.example.dtype).removeprefix("torch."),
        notes=_notes(graph, chosen),
    )


def _check_arguments(
    model: object,
    method: Method,
    outcome: Outcome,
    budget: int | None,
    confidence: float,
    batch_size: int,
    seed: int,
) -> None:
    if not isinstance(model, nn.Module):
        raise InvalidArgumentError(f"model: expected a torch.nn.Module, got {type(model).__name__}")
    for name, value in {"budget": budget, "batch_size": batch_size}.items():
        if value is None and name == "budget":
            continue
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise InvalidArgumentError(f"{name}: expected a positive integer, got {value!r}")
    if not isinstance(seed, int) or isinstance(seed, bool):
        raise InvalidArgumentError(f"seed: expected an integer, got {seed!r}")
    if not isinstance(confidence, (int, float)) or not 0 < confidence < 1:
        raise InvalidArgumentError(f"confidence: expected a number in (0, 1), got {confidence!r}")
    if method.needs_gradient and not outcome.differentiable:
        raise InvalidArgumentError(
            f"outcome: method {method.name!r} needs a differentiable outcome, got "
            f"{outcome.name!r}; use method='ablation', or an outcome such as 'loss'"
        )


def _device(model: nn.Module) -> torch.device:
    tensor = next(iter([*model.parameters(), *model.buffers()]), None)
    return torch.device("cpu") if tensor is None else tensor.device


def _check_graph(model: nn.Module, graph: UnitGraph, method: Method) -> None:
    if not graph.groups:
        reasons = "; ".join(f"{layer}: {reason}" for layer, reason in graph.refused.items())
        raise UnsupportedModelError(
            f"model: no unit of {type(model).__name__} can be removed ({reasons or 'no layers'})"
        )
    if not method.needs_data:
        return
    for name, module in model.named_modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.running_mean is None:
            raise UnsupportedModelError(
                f"model: layer {name!r} normalises with batch statistics in eval mode, so images "
                "of a batch influence each other and have no effects of their own"
            )


def _check_results(graph: UnitGraph, results: Mapping[str, UnitScores], method: Method) -> None:
    """Hold a registered method to its contract."""
    for group in graph.groups:
        result = results.get(group.name)
        if result is None or result.importance.shape != (group.n_units,):
            got = None if result is None else tuple(result.importance.shape)
            raise InvalidArgumentError(
                f"method {method.name!r}: expected an importance [{group.n_units}] for "
                f"{group.name!r}, got {got}"
            )


def _notes(graph: UnitGraph, method: Method) -> tuple[str, ...]:
    notes = [f"{layer} left alone: {reason}" for layer, reason in graph.refused.items()]
    if method.name == "path":
        notes += [site.reason for site in graph.sites.values() if site.reason]
    return tuple(notes)


def _frame(
    graph: UnitGraph, results: Mapping[str, UnitScores], outcome: Outcome, confidence: float
) -> pd.DataFrame:
    import pandas as pd

    parts = []
    for group in graph.groups:
        result = results[group.name]
        nothing = np.full(group.n_units, np.nan)
        effect = nothing if result.effect is None else result.effect.double().cpu().numpy()
        se = nothing if result.se is None else result.se.double().cpu().numpy()
        half = (
            se * student_t_quantile((1 + confidence) / 2, result.n - 1) if result.n > 1 else nothing
        )
        low, high = effect - half, effect + half
        columns: dict[str, Any] = {
            "layer": group.name,
            "unit": np.arange(group.n_units),
            "kind": group.kind,
            "effect": effect,
            "se": se,
            "low": low,
            "high": high,
            "importance": result.importance.double().cpu().numpy(),
            "category": _categories(low, high, outcome.higher_is_better),
            "n": result.n,
            "cost": float(result.cost),
            "group": group.name,
        }
        parts.append(pd.DataFrame(columns)[list(COLUMNS)])
    return pd.concat(parts, ignore_index=True)


def _categories(low: Any, high: Any, higher_is_better: bool | None) -> list[str]:
    if higher_is_better is None:
        return [""] * len(low)
    rises, falls = ("detrimental", "critical") if higher_is_better else ("critical", "detrimental")
    return [
        "" if not np.isfinite(b - a) else rises if a > 0 else falls if b < 0 else "neutral"
        for a, b in zip(low, high, strict=True)
    ]
