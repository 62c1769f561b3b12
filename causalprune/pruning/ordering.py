"""In which order a progressive run takes units."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

from causalprune.pruning.ranking import per_saving
from causalprune.pruning.trace import Removal
from causalprune.scoring import Scores

__all__ = ["removal_of", "removal_order"]

CATEGORIES = ("detrimental", "neutral", "", "critical")
"""In the order in which they go."""


def removal_order(
    scores: Scores,
    saved: Mapping[str, Sequence[float]],
    *,
    by_category: bool,
    per_cost: bool,
    held: Collection[str] = (),
    allow_critical: bool = False,
    within_layers: bool = False,
) -> list[Removal]:
    """Order the units of a network for removal, first to go first.

    Parameters
    ----------
    scores : Scores
        Of the network as it stands.
    saved : Mapping of str to sequence of float
        What each unit of every group alone saves.
    by_category : bool
        Detrimental units by descending abs(xi), then neutral ones by ascending abs(xi), then
        critical ones by ascending abs(xi); xi is the effect, for ``"cswap"`` its extreme over
        classes that decides the category
        (:func:`causalprune.scoring.cswap.cswap_importance`). Otherwise: by ascending importance.
    per_cost : bool
        Divide what a unit is worth by what it saves, within its category; a detrimental unit is
        worth less than nothing, and goes the sooner the more it saves.
    held : collection of str
        Groups that are left out.
    allow_critical : bool
        Whether critical units are in the order at all; only asked where `by_category`.
    within_layers : bool
        Take the same fraction of every group, each in its own order: by the place of a unit in
        its group instead of by its worth.

    Returns
    -------
    list of Removal
        Units as the network that stands numbers them.

    Notes
    -----
    Source: Bauvin, Baret and Ahmad (2025), C-SWAP; the order of its loop is reconstructed.

    Examples
    --------
    >>> import torch
    >>> from torch import nn
    >>> from causalprune.scoring import score
    >>> model = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 2))
    >>> with torch.no_grad():
    ...     _ = model[0].weight.copy_(torch.tensor([[2.0, 0.0], [1.0, 0.0], [3.0, 0.0]]))
    >>> scores = score(model, torch.zeros(1, 2), "l1")
    >>> order = removal_order(scores, {"0": [7.0] * 3}, by_category=False, per_cost=False)
    >>> [unit.unit for unit in order]
    [1, 0, 2]
    """
    frame = scores.frame[scores.frame["group"].isin(set(saved) - set(held))]
    units = [removal_of(row) for row in frame.to_dict("records")]
    if by_category and not allow_critical:
        units = [unit for unit in units if unit.category != "critical"]
    worth = _worth_by_category(scores.method) if by_category else _importance

    def key(unit: Removal) -> tuple[float, ...]:
        category, value = worth(unit)
        return category, per_saving(value, saved[unit.group][unit.unit]) if per_cost else value

    units.sort(key=key)  # stable: ties in the order of the network
    if within_layers:
        places = _places(units, {name: len(values) for name, values in saved.items()})
        units = [
            unit
            for *_, unit in sorted(
                (
                    (worth(unit)[0], place, number, unit)
                    for number, (place, unit) in enumerate(zip(places, units, strict=True))
                ),
                key=lambda row: row[:3],
            )
        ]
    return units


def _places(units: Sequence[Removal], sizes: Mapping[str, int]) -> list[float]:
    """Quantile of every unit within its group, in an order of units of all groups."""
    seen: Counter[str] = Counter()
    places = []
    for unit in units:
        seen[unit.group] += 1
        places.append(seen[unit.group] / sizes[unit.group])
    return places


def removal_of(row: Mapping[Any, Any]) -> Removal:
    """Return a row of ``Scores.frame`` as a unit to remove."""
    numbers = {name: float(row[name]) for name in ("importance", "effect", "low", "high")}
    return Removal(str(row["group"]), int(row["unit"]), category=str(row["category"]), **numbers)


def _importance(unit: Removal) -> tuple[float, float]:
    return 0.0, unit.importance


def _worth_by_category(method: str) -> Callable[[Removal], tuple[float, float]]:
    def worth(unit: Removal) -> tuple[float, float]:
        size = _xi(unit) if method == "cswap" else abs(unit.effect)
        place = float(CATEGORIES.index(unit.category))
        return place, -size if unit.category == "detrimental" else size

    return worth


def _xi(unit: Removal) -> float:
    """Undo how ``cswap_importance`` folds abs(xi) of each category into an interval."""
    folded = {"detrimental": -unit.importance, "critical": unit.importance - 1}
    share = folded.get(unit.category, unit.importance)
    return share / (1 - share) if share < 1 else float("inf")
