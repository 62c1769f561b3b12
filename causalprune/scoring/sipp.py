"""SiPP: how large a share of its filter's sums every single weight carries on average."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import torch
from scipy.optimize import brentq
from torch import Tensor, nn

from causalprune.errors import UnknownNameError
from causalprune.scoring.keep_budgets import (
    OUTER_STEPS,
    TOLERANCE,
    WeightBudget,
    check_scores,
    count_parameters,
    top_weights,
    weight_budget,
    weight_layers,
    weights_to_keep,
)
from causalprune.scoring.methods import Job, MethodResult, UnitScores, register_method
from causalprune.scoring.sensitivities import (
    CONSTANT,
    DELTA,
    FORWARDS_PER_IMAGE,
    check_bound,
    relative_sensitivities,
    sample_note,
    unit_values,
    unwatched,
)
from causalprune.scoring.weight_sampling import (
    SignedRows,
    sample_counts,
    sampling_errors,
    signed_rows,
)

__all__ = ["FORMS", "sipp", "sipp_budget"]

FORMS = ("deterministic", "hybrid", "randomised")

DOUBLINGS = 10
"""How far beyond the weights that are wanted the number of draws may rise."""


@register_method("sipp", needs_labels=False, outcomes=())
def sipp(job: Job) -> MethodResult:
    """Relative sensitivity of every weight: mean over output positions, maximum over points.

    ``Scores.edges[layer]`` holds the sensitivities s_if of
    :func:`causalprune.ops.relative_sensitivity` in the shape of the weight, also of layers whose
    units cannot be removed; :func:`sipp_budget` turns them into masks. The importance of a unit is
    the sum over the weights that read it, in all its consumers: the shares of the weights that
    produce it add up to about one per sign whatever the unit does. Units read by something that
    cannot be watched (heads) get the largest importance of the network, and a note. Source: Baykal,
    Liebenwein, Gilitschenski, Feldman, Rus 2019, "SiPPing neural networks".

    Raises
    ------
    DataError
        If a layer's input is not finite.
    InvalidArgumentError
        If a weight is not finite, or units are cut on their own branches (``units="filters"``).
    """
    edges, n_images = relative_sensitivities(job, "mean")
    found = {g.name: unit_values(g, job.model, edges, "sum", "sipp") for g in job.graph.groups}
    largest = max((float(values.max()) for values, _ in found.values()), default=0.0)
    units: dict[str, UnitScores] = {}
    notes = list(sample_note(job.model, n_images))
    share = FORWARDS_PER_IMAGE * n_images / job.n_units
    for name, (values, missing) in found.items():
        if missing:
            values.fill_(largest)
            notes.append(unwatched(name, missing, "the largest of the network"))
        units[name] = UnitScores(values, n=n_images, cost=share)
    for name in weight_layers(job.model):
        if name not in edges:
            notes.append(f"{name} did not run as a layer of its own: no sensitivities")
    return MethodResult(units, edges, tuple(notes))


def sipp_budget(
    model: nn.Module,
    sensitivities: Mapping[str, Tensor],
    positions: Mapping[str, int],
    keep_ratio: float,
    *,
    form: str = "deterministic",
    original_size: int | None = None,
    seed: int = 0,
    constant: float = CONSTANT,
    delta: float = DELTA,
) -> WeightBudget:
    """Keep single weights by their relative sensitivity, as many as a keep ratio leaves.

    ``"deterministic"``: the B highest of the whole network. ``"randomised"``: with S_i the sum
    of sensitivities of one filter and sign, and ``alpha_i = 2 C ln(8 (P + 1) kappa / delta) S_i``
    (P output positions, kappa kernel positions), m_i weights are drawn with replacement by
    ``q_f = s_if / S_i``; the m_i minimise ``sum err_i(m_i) / n_filters`` within ``sum m_i <= B``,
    where ``err_i(m) = (t + sqrt(t^2 + 6 t)) / 2``, ``t = alpha_i / (3 m)``. A weight drawn c times
    is multiplied by ``c / (m q)``, which leaves its expectation as it was; B is raised until the
    distinct weights drawn meet the keep ratio. ``"hybrid"``
    (reconstructed): with the same m_i, every filter and sign takes its m_i most sensitive weights
    instead where the sum of what that drops is the smaller error.

    Parameters
    ----------
    model : nn.Module
    sensitivities : Mapping of str to Tensor
        Layer name to s_if in the shape of the weight; layers without stay whole.
    positions : Mapping of str to int
        Layer name to P (``UnitGraph.positions``); 1 where it is missing.
    keep_ratio : float
        Parameters left by the original size, in (0, 1].
    form : {"deterministic", "randomised", "hybrid"}
    original_size : int, optional
        Parameters of the original network. Default: those of `model`.
    seed : int
        Of the draws.
    constant, delta : float
        C and delta.

    Returns
    -------
    WeightBudget
        With ``scale`` for the forms that draw. Weights of zero sensitivity are never drawn, so a
        high keep ratio may be out of their reach: ``keep_ratio`` tells.

    Raises
    ------
    UnknownNameError
        If the form is unknown.
    InvalidArgumentError
        If the keep ratio cannot be had, or sensitivities do not fit the network.
    """
    if form not in FORMS:
        raise UnknownNameError("form of sipp", form, FORMS)
    check_bound(constant, delta)
    if form == "deterministic":
        return top_weights(model, sensitivities, keep_ratio, original_size=original_size)
    target = weights_to_keep(model, keep_ratio, original_size=original_size)
    check_scores(model, sensitivities)
    layers = weight_layers(model)
    rows = {
        name: signed_rows(layer.weight, sensitivities[name])
        for name, layer in layers.items()
        if name in sensitivities
    }
    factors = {
        name: 2 * constant * math.log(8 * _reach(layers[name], positions.get(name, 1)) / delta)
        for name in rows
    }
    whole = sum(layer.weight.numel() for name, layer in layers.items() if name not in rows)

    def chosen(budget: int) -> dict[str, Tensor]:
        return _draw(rows, factors, budget, form, torch.Generator().manual_seed(seed))

    multiples = _search(chosen, target - whole, TOLERANCE * keep_ratio * count_parameters(model))
    scale, masks = {}, {}
    for name, layer in layers.items():
        found = multiples.get(name, torch.ones(layer.weight.numel()))
        scale[name] = found.reshape(layer.weight.shape).float()
        masks[name] = scale[name] > 0
    return weight_budget(model, masks, scale, original_size)


def _reach(layer: nn.Conv2d | nn.Linear, n_positions: int) -> int:
    """(P + 1) kappa of a layer."""
    return (n_positions + 1) * layer.weight[0, 0].numel()


def _draw(
    rows: Mapping[str, SignedRows],
    factors: Mapping[str, float],
    budget: int,
    form: str,
    generator: torch.Generator,
) -> dict[str, Tensor]:
    """Return what every weight is multiplied by [n], float64, with `budget` draws in all."""
    alpha = [factors[name] * row.sums for name, row in rows.items()]
    importance = [torch.full_like(a, 2 / len(a)) for a in alpha]
    counts = sample_counts(torch.cat(alpha), torch.cat(importance), budget)
    parts = torch.split(counts, [len(a) for a in alpha])
    found = {}
    for (name, row), own, part in zip(rows.items(), alpha, parts, strict=True):
        found[name] = row.drawn(part, generator)
        if form == "hybrid":
            errors = torch.where(part > 0, sampling_errors(own, part), 0.0)
            found[name] = row.mixed(part, errors, found[name])
        found[name] = row.unsorted(found[name])
    return found


def _search(
    chosen: Callable[[int], dict[str, Tensor]], target: int, tolerance: float
) -> dict[str, Tensor]:
    """Raise the number of draws until `target` weights were drawn, at most 20 steps of Brent's."""
    tried: dict[int, tuple[int, dict[str, Tensor]]] = {}

    def miss(log_budget: float) -> float:
        budget = round(math.exp(log_budget))
        if budget not in tried:
            found = chosen(budget)
            tried[budget] = sum(int((m > 0).sum()) for m in found.values()), found
        kept = tried[budget][0]
        return 0.0 if abs(kept - target) < tolerance else kept - target

    low = math.log(max(target, 1))
    high, doublings = low, 0
    while miss(high) < 0 and doublings < DOUBLINGS:
        high, doublings = high + math.log(2), doublings + 1
    if high > low and miss(high) > 0:
        brentq(miss, low, high, xtol=1e-9, maxiter=OUTER_STEPS, disp=False)
    return min(tried.values(), key=lambda each: abs(each[0] - target))[1]
