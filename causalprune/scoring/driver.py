"""The public function score()."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from causalprune.errors import InvalidArgumentError, UnknownNameError, UnsupportedModelError
from causalprune.graph import INTERVENTIONS, UnitGraph, capture, evaluating
from causalprune.scoring.data import as_batches
from causalprune.scoring.intervals import student_t_quantile
from causalprune.scoring.methods import (
    METHODS,
    Job,
    Method,
    MethodResult,
    UnitScores,
    resolve_method,
)
from causalprune.scoring.outcomes import DEFAULT_OUTCOME, Outcome, resolve_outcome
from causalprune.scoring.scores import COLUMNS, Scores, as_table, fingerprint

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["open_job", "run_job", "score"]


def score(
    model: nn.Module,
    data: Any,
    method: str = "path",
    outcome: str | Callable[..., Tensor] = DEFAULT_OUTCOME,
    budget: float | None = None,
    *,
    units: str = "groups",
    intervention: str = "zero",
    confidence: float = 0.95,
    max_images: int | None = None,
    batch_size: int = 256,
    max_cache_bytes: int = 2**30,
    seed: int = 0,
    progress: bool = False,
    **options: Any,
) -> Scores:
    """Score every removable unit of a network.

    The estimand of ``effect`` is the mean over the images of ``Y_do(unit := 0) - Y``: what the
    outcome of an image changes by when the unit is removed and everything else is left as it is.
    ``ablation`` computes it exactly (within a `budget`: with intervals that say how sure it is),
    ``path`` exactly up to the consumers' activations and at first order behind them, ``taylor``
    at first order throughout; norms, variances and information are scores without an effect. The
    network is evaluated in eval mode, its modes are restored, and neither it nor the global
    random state is changed. A network that cannot be traced is captured by hooks, with a
    :class:`causalprune.errors.CapturedByHooksWarning`.

    Parameters
    ----------
    model : nn.Module
        Takes one tensor [N, ...] and returns logits [N, K].
    data : DataLoader, Dataset, iterable of (inputs, targets), pair of tensors, or Tensor
        A bare tensor will do where no labels are needed (norms, random, callable outcomes and
        those that compare outputs). Methods without data read only the shape of the first image.
    method : str
        Interventions: ``"ablation"``, ``"irreplaceable"``, ``"path"``, ``"taylor"``,
        ``"banzhaf"``, ``"cswap"``, ``"cexcnn"``, ``"responsibility"``, ``"blame"``. Information:
        ``"datafree"``, ``"mint"``. Lost in pruning: ``"wt"``, ``"sipp"``, ``"ft"``, ``"pfp"``.
        Baselines: ``"random"``, ``"l1"``, ``"l2"``, ``"bn_scale"``, ``"snip"``, ``"thinet"``,
        ``"variance"``, ``"integrated_gradients"``, ``"conductance"``, ``"edge_patching"``. Or a
        registered one.
        Each is described where it is defined: ``help(causalprune.scoring.METHODS[name].function)``.
    outcome : str or callable
        ``"loss"`` (cross-entropy), ``"probability"``, ``"logit"``, ``"margin"`` (all of the true
        class), ``"correctness"`` (0 or 1; has no gradient), or ``(logits [N, K], targets) ->
        [N]``, which may be differentiated by `method`. Without labels, the distance of an image's
        output from what it was: ``"logits"`` (mean over classes of the squared change of the
        centred logits) or ``"divergence"`` (KL of the probabilities), for ``"ablation"``,
        ``"banzhaf"``, ``"taylor"`` and ``"path"``. Methods that measure no outcome, or one of
        their own, refuse others than the default.
    budget : float, optional
        Forward-equivalents that may be spent (``"ablation"``, ``"banzhaf"``), one being a forward
        pass of one image. Default: as many as the method takes; ``"ablation"`` runs every unit on
        every image.
    units : str
        ``"groups"``: what surgery removes together is one intervention, cut where its consumers
        read. ``"filters"``: every layer's own output channels, cut on their own branch.
    intervention : str
        What do() sets a unit to: ``"zero"``, ``"mean"`` (its mean over the images),
        ``"resample"`` (its value on another image of the batch) or ``"predicted"`` (its best
        linear prediction from the other units of its group). Methods that cannot refuse it.
    confidence : float
        Level of the intervals, in (0, 1).
    max_images : int, optional
        Use the first `max_images` of the data only. Default: all.
    batch_size : int
        Images per batch where the data does not come in batches.
    max_cache_bytes : int
        Bound on what is kept of a run of the network, so that memory stays within it whatever
        the network.
    seed : int
        Of all random choices: importances of ``"random"``, masks, samples, donors of
        ``"resample"``, and the order of a loader that shuffles.
    progress : bool
        Show a progress bar.
    **options
        Options of the method, named in its own description.

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
    with open_job(
        model,
        data,
        method,
        outcome,
        budget,
        units=units,
        intervention=intervention,
        confidence=confidence,
        max_images=max_images,
        batch_size=batch_size,
        max_cache_bytes=max_cache_bytes,
        seed=seed,
        progress=progress,
        options=options,
    ) as (chosen, job):
        return run_job(chosen, job, options)


@contextmanager
def open_job(
    model: nn.Module,
    data: Any,
    method: str,
    outcome: str | Callable[..., Tensor] = DEFAULT_OUTCOME,
    budget: float | None = None,
    *,
    units: str = "groups",
    intervention: str = "zero",
    confidence: float = 0.95,
    max_images: int | None = None,
    batch_size: int = 256,
    max_cache_bytes: int = 2**30,
    seed: int = 0,
    progress: bool = False,
    options: Mapping[str, Any],
) -> Iterator[tuple[Method, Job]]:
    """Check the arguments of :func:`score` and yield the method and what it works on.

    Inside the ``with`` block the network is in eval mode and torch's own generator is seeded.
    """
    chosen, wanted = resolve_method(method), resolve_outcome(outcome)
    _check_arguments(model, confidence, seed)
    _check_numbers(budget, max_images, batch_size, max_cache_bytes)
    _check_choices(chosen, wanted, units, intervention, budget, options)
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
            max_images=max_images if chosen.needs_data else 1,
            labels=chosen.needs_labels and wanted.needs_labels,
            device=_device(model),
        )
        graph = capture(model, batches.example, units=units)
        _check_graph(model, graph, chosen)
        job = Job(
            model,
            graph,
            batches,
            wanted,
            intervention=intervention,
            budget=budget,
            confidence=confidence,
            max_cache_bytes=max_cache_bytes,
            seed=seed,
            progress=progress,
        )
        yield chosen, job


def run_job(method: Method, job: Job, options: Mapping[str, Any]) -> Scores:
    """Run a method on what :func:`open_job` yielded, inside its ``with`` block."""
    found = method.function(job, **options)
    result = found if isinstance(found, MethodResult) else MethodResult(found)
    _check_results(job.graph, result.units, method)
    measured = result.outcome or job.outcome
    return Scores(
        frame=_frame(job.graph, result.units, measured, job.confidence),
        method=method.name,
        outcome=measured.name if result.outcome or method.outcomes != () else "",
        confidence=job.confidence,
        fingerprint=fingerprint(job.model),
        example_shape=tuple(job.batches.example.shape),
        example_dtype=str(job.batches.example.dtype).removeprefix("torch."),
        notes=(*_notes(job.graph, method), *result.notes),
        edges={layer: edge.detach().cpu().numpy() for layer, edge in result.edges.items()},
        tables={name: as_table(name, columns) for name, columns in result.tables.items()},
    )


def _check_arguments(model: object, confidence: float, seed: int) -> None:
    if not isinstance(model, nn.Module):
        raise InvalidArgumentError(f"model: expected a torch.nn.Module, got {type(model).__name__}")
    if not isinstance(seed, int) or isinstance(seed, bool):
        raise InvalidArgumentError(f"seed: expected an integer, got {seed!r}")
    if not isinstance(confidence, (int, float)) or not 0 < confidence < 1:
        raise InvalidArgumentError(f"confidence: expected a number in (0, 1), got {confidence!r}")


def _check_numbers(
    budget: float | None, max_images: int | None, batch_size: int, max_cache_bytes: int
) -> None:
    whole = {"batch_size": batch_size, "max_cache_bytes": max_cache_bytes}
    if max_images is not None:
        whole["max_images"] = max_images
    for name, value in whole.items():
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise InvalidArgumentError(f"{name}: expected a positive integer, got {value!r}")
    if budget is None:
        return
    if isinstance(budget, bool) or not isinstance(budget, (int, float)) or not budget > 0:
        raise InvalidArgumentError(
            f"budget: expected a positive number of forward-equivalents, got {budget!r}"
        )


def _check_choices(
    method: Method,
    outcome: Outcome,
    units: str,
    intervention: str,
    budget: float | None,
    options: Mapping[str, Any],
) -> None:
    if units not in ("groups", "filters"):
        raise UnknownNameError("choice of units", units, ("groups", "filters"))
    if intervention not in INTERVENTIONS:
        raise UnknownNameError("intervention", intervention, INTERVENTIONS)
    if intervention not in method.interventions:
        raise InvalidArgumentError(
            f"intervention: expected {_either(method.interventions)} for method {method.name!r}, "
            f"got {intervention!r}; methods that take it: "
            + _names(METHODS, lambda known: intervention in known.interventions)
        )
    method.check_outcome(outcome)
    if budget is not None and not method.takes_budget:
        able = _names(METHODS, lambda known: known.takes_budget)
        raise InvalidArgumentError(
            f"budget: expected none for method {method.name!r}, got {budget!r}; methods that work "
            f"within a budget: {able}"
        )
    for name in options:
        if name not in method.options:
            raise UnknownNameError(f"option of method {method.name!r}", name, method.options)


def _names(methods: Mapping[str, Method], able: Callable[[Method], bool]) -> str:
    return ", ".join(sorted(name for name, known in methods.items() if able(known)))


def _either(choices: tuple[str, ...]) -> str:
    return " or ".join(repr(choice) for choice in choices)


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
        effect, se = (_numbers(v, group.n_units) for v in (result.effect, result.se))
        n = np.broadcast_to(np.asarray(result.n, dtype=np.int64), group.n_units)
        quantile = {k: student_t_quantile((1 + confidence) / 2, k - 1) for k in set(n) if k > 1}
        half = se * np.array([quantile.get(k, np.nan) for k in n])
        low = effect - half if result.low is None else _numbers(result.low, group.n_units)
        high = effect + half if result.high is None else _numbers(result.high, group.n_units)
        category = result.category or _categories(low, high, outcome.higher_is_better)
        columns: dict[str, Any] = {
            "layer": group.name,
            "unit": np.arange(group.n_units),
            "kind": group.kind,
            "effect": effect,
            "se": se,
            "low": low,
            "high": high,
            "importance": _numbers(result.importance, group.n_units),
            "category": list(category),
            "n": n,
            "cost": np.broadcast_to(np.asarray(result.cost, dtype=np.float64), group.n_units),
            "group": group.name,
        }
        parts.append(pd.DataFrame(columns)[list(COLUMNS)])
    return pd.concat(parts, ignore_index=True)


def _numbers(values: Tensor | None, n_units: int) -> Any:
    return np.full(n_units, np.nan) if values is None else values.detach().double().cpu().numpy()


def _categories(low: Any, high: Any, higher_is_better: bool | None) -> list[str]:
    if higher_is_better is None:
        return [""] * len(low)
    rises, falls = ("detrimental", "critical") if higher_is_better else ("critical", "detrimental")
    return [
        "" if not np.isfinite(b - a) else rises if a > 0 else falls if b < 0 else "neutral"
        for a, b in zip(low, high, strict=True)
    ]
