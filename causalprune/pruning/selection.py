"""Choosing the units that go."""

from __future__ import annotations

import math
import numbers
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from causalprune.errors import InvalidArgumentError, UnknownNameError, UnsupportedModelError
from causalprune.graph import UnitGraph, capture
from causalprune.pruning.footprint import Footprint, Sizes, sizes_of
from causalprune.pruning.plans import Plan, PlanRow
from causalprune.scoring import Scores, fingerprint

__all__ = ["check_request", "example_of", "plan"]

Unit = tuple[str, int]


def plan(
    model: nn.Module,
    scores: Scores,
    ratio: float = 0.5,
    of: str = "parameters",
    *,
    example: Tensor | None = None,
    scope: str = "global",
    protect: Iterable[str] = (),
) -> Plan:
    """Decide which units to remove so that a fraction of the network goes.

    Units are taken in ascending order of their rank until the target is reached; the last one is
    the unit that comes closest to it. The rank is, for ``scope="global"``, the importance divided
    by what the unit alone would save of `of` (importances on the scale of an outcome compare
    across layers), or the plain importance for l1, l2 and random; for ``scope="layer"`` the
    quantile of the importance within its layer, so that every layer loses about the same fraction
    of its units. A layer always keeps at least one unit. Units that can be intervened on but not
    removed for good (attention heads, shuffled channels) stay. Nothing is changed.

    Parameters
    ----------
    model : nn.Module
        The network that was scored.
    scores : Scores
        From :func:`causalprune.scoring.score`.
    ratio : float
        Fraction of `of` to remove, in [0, 1).
    of : str
        ``"parameters"`` or ``"macs"`` of the whole network, or ``"units"`` of all groups.
    example : Tensor [N, ...], optional
        An input; default: the shape that `scores` remembers.
    scope : str
        ``"global"`` or ``"layer"``.
    protect : iterable of str
        Layers (any producer of a group) that keep all units.

    Returns
    -------
    Plan
        Printable; ``plan.reached`` tells whether the target could be reached.

    Raises
    ------
    InvalidArgumentError
        If an argument is out of range, or `scores` belong to another network.
    UnknownNameError
        If `protect` names a layer without units.
    UnsupportedModelError
        If the network has no unit that can be removed for good.

    Examples
    --------
    >>> from causalprune.scoring import score
    >>> model = nn.Sequential(nn.Linear(4, 10), nn.ReLU(), nn.Linear(10, 2))
    >>> decided = plan(model, score(model, torch.zeros(1, 4), "l1"), ratio=0.4, of="units")
    >>> len(decided.remove["0"]), decided.after.parameters
    (4, 44)
    """
    check_request(ratio, of, scope)
    if not isinstance(scores, Scores):
        raise InvalidArgumentError(f"scores: expected Scores, got {type(scores).__name__}")
    if scores.fingerprint != fingerprint(model):
        raise InvalidArgumentError(
            "scores: expected scores of this network, got scores of one with other parameters"
        )
    image = example_of(model, scores.example_shape, scores.example_dtype, example)
    graph = capture(model, image)
    _check_removable(model, graph)
    importance = _importance(graph, scores)
    sizes = sizes_of(model, graph, image)
    ranks = _ranks(importance, sizes, scores, of, scope)
    order = _removable(graph, ranks, _protected(graph, protect))
    removed, reached = _closest(order, sizes, float(ratio), of)
    remove = {
        g.name: units
        for g in graph.removable
        if (units := tuple(sorted(unit for name, unit in removed if name == g.name)))
    }
    kept = {g.name: g.n_units - len(remove.get(g.name, ())) for g in graph.removable}
    after = sizes.footprint(kept)
    return Plan(
        remove=remove,
        ratio=float(ratio),
        achieved_ratio=_removed_ratio(sizes.whole, after, of),
        reached=reached,
        of=of,
        scope=scope,
        method=scores.method,
        before=sizes.whole,
        after=after,
        table=tuple(PlanRow(g.name, g.kind, g.n_units, kept[g.name]) for g in graph.removable),
        fingerprint=scores.fingerprint,
        example_shape=tuple(image.shape),
        example_dtype=str(image.dtype).removeprefix("torch."),
    )


def example_of(
    model: nn.Module, shape: Sequence[int], dtype: str, example: Tensor | None = None
) -> Tensor:
    """Return one image on the model's device: the first of `example`, or noise of `shape`."""
    tensor = next(iter([*model.parameters(), *model.buffers()]), None)
    device = torch.device("cpu") if tensor is None else tensor.device
    if example is not None:
        if not isinstance(example, Tensor) or example.ndim < 2 or len(example) < 1:
            raise InvalidArgumentError("example: expected a batch of inputs [N, ...]")
        return example[:1].to(device)
    noise = torch.randn(tuple(shape), generator=torch.Generator().manual_seed(0))
    return noise.to(device, getattr(torch, dtype))


def check_request(ratio: object, of: str, scope: str) -> None:
    """Refuse a target that no plan could be made for."""
    if isinstance(ratio, bool) or not isinstance(ratio, numbers.Real) or not 0 <= float(ratio) < 1:
        raise InvalidArgumentError(f"ratio: expected a number in [0, 1), got {ratio!r}")
    if of not in ("parameters", "macs", "units"):
        raise UnknownNameError("quantity (of)", of, ("parameters", "macs", "units"))
    if scope not in ("global", "layer"):
        raise UnknownNameError("scope", scope, ("global", "layer"))


def _check_removable(model: nn.Module, graph: UnitGraph) -> None:
    if graph.removable:
        return
    reasons = {group.name: group.surgery for group in graph.groups} | dict(graph.refused)
    told = "; ".join(f"{layer}: {reason}" for layer, reason in reasons.items())
    raise UnsupportedModelError(
        f"model: no unit of {type(model).__name__} can be removed for good ({told or 'no layers'})"
    )


def _importance(graph: UnitGraph, scores: Scores) -> dict[str, list[float]]:
    frame, found = scores.frame, {}
    for group in graph.removable:
        rows = frame[frame["group"] == group.name].sort_values("unit")
        if rows["unit"].tolist() != list(range(group.n_units)):
            raise InvalidArgumentError(
                f"scores: expected one row for each of the {group.n_units} units of "
                f"{group.name!r}, got {len(rows)}"
            )
        found[group.name] = [float(value) for value in rows["importance"]]
        if not all(math.isfinite(value) for value in found[group.name]):
            raise InvalidArgumentError(f"scores: importance of {group.name!r} is not finite")
    return found


def _protected(graph: UnitGraph, protect: Iterable[str]) -> set[str]:
    if isinstance(protect, str):
        protect = (protect,)
    owner = {name: group.name for group in graph.groups for name in group.producers}
    for name in protect:
        if name not in owner:
            raise UnknownNameError("layer to protect", name, owner)
    return {owner[name] for name in protect}


def _ranks(
    importance: Mapping[str, list[float]], sizes: Sizes, scores: Scores, of: str, scope: str
) -> dict[Unit, float]:
    on_outcome_scale = bool(scores.frame["effect"].notna().any())
    ranks: dict[Unit, float] = {}
    for name, values in importance.items():
        if scope == "layer":
            order = sorted(range(len(values)), key=values.__getitem__)
            ranks.update({(name, u): (i + 0.5) / len(values) for i, u in enumerate(order)})
            continue
        saved = 1.0
        if on_outcome_scale:
            alone = sizes.footprint({name: len(values) - 1})
            saved = max(1.0, getattr(sizes.whole, of) - getattr(alone, of))
        ranks.update({(name, unit): value / saved for unit, value in enumerate(values)})
    return ranks


def _removable(graph: UnitGraph, ranks: Mapping[Unit, float], protected: set[str]) -> list[Unit]:
    """Units in the order in which they go; the last unit of a group never does."""
    place = {group.name: index for index, group in enumerate(graph.removable)}
    left = {group.name: group.n_units for group in graph.removable}
    order: list[Unit] = []
    for name, unit in sorted(ranks, key=lambda u: (ranks[u], place[u[0]], u[1])):
        if name not in protected and left[name] > 1:
            left[name] -= 1
            order.append((name, unit))
    return order


def _removed_ratio(before: Footprint, after: Footprint, of: str) -> float:
    whole = getattr(before, of)
    return 1 - getattr(after, of) / whole if whole else 0.0


@dataclass(frozen=True)
class _Ruler:
    """Achieved ratio of removing some units."""

    sizes: Sizes
    of: str

    def __call__(self, removed: Sequence[Unit]) -> float:
        kept = dict(self.sizes.units)
        for name, _ in removed:
            kept[name] -= 1
        return _removed_ratio(self.sizes.whole, self.sizes.footprint(kept), self.of)


def _closest(order: list[Unit], sizes: Sizes, ratio: float, of: str) -> tuple[list[Unit], bool]:
    """Longest run of `order` within the target, and one more unit if that comes closer."""
    achieved = _Ruler(sizes, of)
    low, high = 0, len(order)
    while low < high:
        middle = (low + high + 1) // 2
        if achieved(order[:middle]) <= ratio + 1e-12:
            low = middle
        else:
            high = middle - 1
    chosen = order[:low]
    if low == len(order):
        return chosen, achieved(chosen) >= ratio - 1e-12
    following: dict[str, Unit] = {}
    for unit in order[low:]:
        following.setdefault(unit[0], unit)
    candidates = [chosen, *([*chosen, unit] for unit in following.values())]
    return min(candidates, key=lambda units: abs(achieved(units) - ratio)), True
