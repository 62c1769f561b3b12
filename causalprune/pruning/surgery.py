"""Removing units for good: every tensor that belongs to them is sliced."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from causalprune.errors import InvalidArgumentError, UnsupportedModelError
from causalprune.graph import Consumer, UnitGraph, capture, evaluating, removed
from causalprune.graph.heads import follow_heads
from causalprune.graph.intervene import check_units
from causalprune.pruning.attention import fewer_heads
from causalprune.pruning.compensation import check_compensation, fold_means
from causalprune.pruning.examples import example_of, probes
from causalprune.pruning.plans import Plan, mismatch
from causalprune.pruning.refit import calibration_images, refit_in_place
from causalprune.scoring import fingerprint

__all__ = ["apply", "shrunk_copy"]

VERIFIED_TOLERANCE = 1e-3
"""Far above float32 rounding, far below what a wrong slice does; relative to the largest output."""


def apply(
    model: nn.Module,
    plan: Plan,
    *,
    example: Tensor | None = None,
    compensation: str = "none",
    data: Any = None,
    max_images: int | None = None,
    batch_size: int = 256,
    ridge: float = 1e-3,
    refit_layers: str = "all",
    max_cache_bytes: int = 2**30,
) -> nn.Module:
    """Return a physically smaller copy of a network; the network itself is untouched.

    Weights, biases, batch-norm parameters and buffers, depthwise filters, whole groups of grouped
    convolutions and the consumers' input columns, those of training's auxiliary classifiers too,
    are sliced, and the modules' size attributes with them; modules keep their classes, modes and
    devices. An ``nn.MultiheadAttention`` that loses heads becomes another module of plain
    torch layers with the same call (:func:`causalprune.pruning.attention.fewer_heads`). The copy
    needs no causalprune to run or to be pickled. Before it is
    returned it is run on a few images of noise against the original with the same units zeroed
    (:func:`causalprune.graph.removed`).

    With a `compensation` the remaining weights then make up for the units that are gone, from
    images alone: no labels, no training. It never changes the names and shapes of the state, so
    that the plan alone gives a fresh network into which that state loads.

    Parameters
    ----------
    model : nn.Module
        A network of the structure that `plan` was made for.
    plan : Plan
        From :func:`plan`.
    example : Tensor [N, ...], optional
        An input; default: noise of the shape that `plan` remembers.
    compensation : str
        ``"none"``. ``"mean"``: every consumer of a removed unit gets what the unit's mean over
        `data` gave it as a constant (exact but where a convolution's padding takes part). This
        goes to its bias, or to the running means of the batch norms behind it; where a layer has
        neither it is left out. ``"refit"``: the consumers' weights are changed in closed form so
        that their outputs come closest to the original network's; see
        :func:`causalprune.pruning.refit.refit`.
    data : DataLoader, Dataset, iterable, pair of tensors, or Tensor, optional
        Images for the compensation, as for :func:`causalprune.scoring.score`; no labels needed.
    max_images : int, optional
        Use the first `max_images` images of `data` only.
    batch_size : int
        Images per batch of `data`, where it is not in batches already.
    ridge, refit_layers, max_cache_bytes
        `ridge`, `layers` and `max_cache_bytes` of :func:`causalprune.pruning.refit.refit`.

    Returns
    -------
    nn.Module

    Raises
    ------
    InvalidArgumentError
        If `plan` is for another network, or names units that do not exist or cannot be removed
        for good, or all units of a group; if a compensation has no `data`.
    UnsupportedModelError
        If the smaller network does not compute what the masked one does (its forward depends on
        the number of units in a way that the trace does not show).

    Examples
    --------
    >>> from causalprune.pruning import plan
    >>> from causalprune.scoring import score
    >>> model = nn.Sequential(nn.Linear(4, 10), nn.ReLU(), nn.Linear(10, 2))
    >>> scores = score(model, torch.zeros(1, 4), "l1")
    >>> apply(model, plan(model, scores, ratio=0.4, of="units"))
    Sequential(
      (0): Linear(in_features=4, out_features=6, bias=True)
      (1): ReLU()
      (2): Linear(in_features=6, out_features=2, bias=True)
    )
    """
    check_compensation(compensation, data, ridge, refit_layers)
    if not isinstance(plan, Plan):
        raise InvalidArgumentError(f"plan: expected a Plan, got {type(plan).__name__}")
    if not isinstance(model, nn.Module):
        raise InvalidArgumentError(f"model: expected a torch.nn.Module, got {type(model).__name__}")
    if plan.fingerprint != fingerprint(model):
        told = mismatch(plan, model)
        raise InvalidArgumentError(
            "plan: expected a plan for this network, got one for a network with other parameters"
            + (f" ({told})" if told else "")
        )
    image = example_of(model, plan.example_shape, plan.example_dtype, example)
    graph = capture(model, image)
    _check_units(graph, plan)
    small = shrunk_copy(model, graph, plan.remove)
    _verify(model, small, graph, plan, image)
    if compensation != "none":
        images = calibration_images(model, data, max_images, batch_size)
        if compensation == "mean":
            fold_means(model, small, graph, images, plan.remove)
        else:
            refit_in_place(
                model,
                small,
                graph,
                images,
                remove=plan.remove,
                layers=refit_layers,
                ridge=ridge,
                max_cache_bytes=max_cache_bytes,
            )
    return small


def shrunk_copy(
    model: nn.Module, graph: UnitGraph, remove: Mapping[str, Sequence[int]]
) -> nn.Module:
    """Return a copy of `model` without the units `remove` (group name to units), unverified."""
    try:
        small = copy.deepcopy(model)
    except Exception as error:  # user modules may hold anything
        raise UnsupportedModelError(f"model: cannot be copied: {error}") from error
    _shrink(small, graph, remove)
    return small


def _check_units(graph: UnitGraph, plan: Plan) -> None:
    for name, units in plan.remove.items():
        group = graph.group(name)
        gone = check_units(group, units, "plan.remove")
        if group.surgery:
            raise InvalidArgumentError(
                f"plan.remove: expected units that can be removed for good, got units of {name!r}: "
                f"{group.surgery}"
            )
        if len(gone) == group.n_units:
            raise InvalidArgumentError(
                f"plan.remove: expected at least one unit of {name!r} to stay, got all removed"
            )
        for place in group.owned:
            if not len(place.columns([u for u in range(group.n_units) if u not in gone])):
                raise InvalidArgumentError(
                    f"plan.remove: expected at least one channel of {place.layer!r} to stay, got "
                    f"the units of {name!r} that hold all of them"
                )


def _shrink(model: nn.Module, graph: UnitGraph, remove: Mapping[str, Sequence[int]]) -> None:
    """Slice every layer once, by what the units of all groups together take from it.

    A layer behind a concatenation holds channels of several groups, and perhaps of none.
    """
    gone: dict[tuple[str, str], list[Tensor]] = {}
    for name, units in remove.items():
        group = graph.group(name)
        chosen = sorted(set(units))
        for place in (*group.owned, *group.consumers, *group.training):
            role = "consumer" if isinstance(place, Consumer) else place.role
            if role == "heads":  # a module that only has to know how many there are
                attention = model.get_submodule(place.layer)
                follow_heads(attention, group.n_units, group.n_units - len(chosen))
            elif getattr(place, "kind", "") != "attention":  # it reads its own heads
                gone.setdefault((place.layer, role), []).append(place.columns(chosen))
    for (layer, role), columns in gone.items():
        module = model.get_submodule(layer)
        if isinstance(module, nn.MultiheadAttention):
            kept = _kept(module.num_heads, torch.cat(columns))
            _replace(model, layer, fewer_heads(module, kept, graph.masks.get(layer)))
        else:
            _SLICERS[role](module, torch.cat(columns))


def _replace(model: nn.Module, layer: str, module: nn.Module) -> None:
    parent, _, name = layer.rpartition(".")
    setattr(model.get_submodule(parent), name, module)


def _kept(size: int, gone: Tensor) -> Tensor:
    mask = torch.ones(size, dtype=torch.bool)
    mask[gone] = False
    return mask.nonzero().flatten()


def _slice_producer(module: nn.Module, gone: Tensor) -> None:
    kept = _kept(_weight(module).shape[0], gone)
    _slice(module, ("weight", "bias"), 0, kept)
    if isinstance(module, nn.Conv2d):
        if module.groups > 1:  # whole groups go, with the channels that they read
            n_read = module.in_channels // module.groups
            module.groups = module.groups * len(kept) // module.out_channels
            module.in_channels = n_read * module.groups
        module.out_channels = len(kept)
    elif isinstance(module, nn.Linear):
        module.out_features = len(kept)


def _slice_depthwise(module: nn.Module, gone: Tensor) -> None:
    assert isinstance(module, nn.Conv2d)
    kept = _kept(module.out_channels, gone)
    _slice(module, ("weight", "bias"), 0, kept)
    module.in_channels = module.out_channels = module.groups = len(kept)


def _slice_norm(module: nn.Module, gone: Tensor) -> None:
    assert isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d, nn.InstanceNorm2d))
    kept = _kept(module.num_features, gone)
    _slice(module, ("weight", "bias", "running_mean", "running_var"), 0, kept)
    module.num_features = len(kept)


def _slice_consumer(module: nn.Module, gone: Tensor) -> None:
    kept = _kept(_weight(module).shape[1], gone)
    _slice(module, ("weight",), 1, kept)
    if isinstance(module, nn.Conv2d):
        module.in_channels = len(kept)
    elif isinstance(module, nn.Linear):
        module.in_features = len(kept)


_SLICERS: dict[str, Callable[[nn.Module, Tensor], None]] = {
    "producer": _slice_producer,
    "depthwise": _slice_depthwise,
    "norm": _slice_norm,
    "consumer": _slice_consumer,
}


def _weight(module: nn.Module) -> Tensor:
    weight = module.weight
    assert isinstance(weight, Tensor)
    return weight


def _slice(module: nn.Module, names: tuple[str, ...], dim: int, index: Tensor) -> None:
    for name in names:
        tensor = getattr(module, name)
        if tensor is None:
            continue
        part = tensor.detach().index_select(dim, index.to(tensor.device))
        if isinstance(tensor, nn.Parameter):
            part = nn.Parameter(part, requires_grad=tensor.requires_grad)
        setattr(module, name, part)


def _verify(
    model: nn.Module, small: nn.Module, graph: UnitGraph, plan: Plan, image: Tensor
) -> None:
    """Run the copy against the masked original."""
    for probe in probes(image):
        with torch.no_grad(), evaluating(model), evaluating(small):
            with removed(model, graph, plan.remove):
                expected = model(probe)
            try:
                got = small(probe)
            except Exception as error:
                raise UnsupportedModelError(
                    f"model: the pruned copy of {type(model).__name__} does not run; its forward "
                    f"depends on the number of units: {error}"
                ) from error
        if not _agree(got, expected):
            raise UnsupportedModelError(
                f"model: the pruned copy of {type(model).__name__} does not compute what the "
                "masked network does; its forward depends on the number of units"
            )


def _agree(got: object, expected: object) -> bool:
    if not isinstance(got, Tensor) or not isinstance(expected, Tensor):
        raise UnsupportedModelError(
            f"model: expected one tensor as output, got {type(expected).__name__}"
        )
    if got.shape != expected.shape or got.dtype != expected.dtype:
        return False
    tolerance = max(VERIFIED_TOLERANCE, 30 * torch.finfo(expected.dtype).eps)
    scale = max(1e-9, float(expected.abs().nan_to_num(0.0, 0.0, 0.0).max()))
    return torch.allclose(got, expected, rtol=0.0, atol=tolerance * scale, equal_nan=True)
