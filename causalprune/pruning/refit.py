"""Refitting a pruned network to the original one, layer after layer, in closed form."""

from __future__ import annotations

import copy
import math
import numbers
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from causalprune.errors import InvalidArgumentError, UnknownNameError, UnsupportedModelError
from causalprune.graph import UnitGraph, evaluating
from causalprune.graph.intervene import check_units
from causalprune.pruning.lockstep import Budget, Passage, peak_bytes
from causalprune.pruning.readers import Reader, Traced, readers_of, traced_of
from causalprune.pruning.regression import Change, Moments
from causalprune.scoring.data import as_batches

__all__ = ["LayerFit", "calibration_images", "check_request", "refit", "refit_in_place"]

CHUNK_BYTES = 2**24
"""Values of one network that are alive at a time: about what a processor's cache holds."""
SMALLEST_CHUNK = 8
"""Images: with fewer, adding up the moments costs more than computing them."""
ROUNDS = 4
"""Regressions of a layer with a rectifier behind it; more bring nothing on held-out images."""
SMALLEST_SCALE = 1e-4
"""Channels that a batch norm scales by less than this part of the mean stay as they are."""


@dataclass(frozen=True)
class LayerFit:
    """How far a layer's pre-activation was from the original network's.

    Attributes
    ----------
    layer : str
    before, after : float
        Sum of squared differences over the calibration images without and with the change of
        this layer, all layers before it refitted; `after` without what a rectifier behind the
        layer hides.
    """

    layer: str
    before: float
    after: float


def refit(
    original: nn.Module,
    small: nn.Module,
    graph: UnitGraph,
    data: Any,
    *,
    remove: Mapping[str, Sequence[int]],
    layers: str = "all",
    max_images: int | None = None,
    batch_size: int = 256,
    ridge: float = 1e-3,
    max_cache_bytes: int = 2**30,
) -> nn.Module:
    """Return a copy of a pruned network whose layers make up for the units that are gone.

    For each layer that reads removed units, in the order of computation: the ridge regression of
    the original network's pre-activation behind it (batch norm and residual addition included) on
    what the layer reads in the pruned network, as corrected so far, and a constant. In closed
    form, without labels and without training. With target T, current pre-activation S, patches X
    (n positions of all images) and R = T - S the change D of the weight and the constant c
    minimise::

        |R - X D - c|^2 + lambda |D|^2,    lambda = ridge * mean(diag(X'X))

    so that a layer stays as it is as far as its inputs tell nothing. Where a rectifier follows,
    what it hides is no error: the regression is repeated with targets that, where the original
    pre-activation is cut off (ReLU: <= 0), are the pruned network's own as far as it is cut off,
    too; every round lowers a bound of the squared error behind the rectifier (majorisation, with
    one Gram matrix for all rounds). Behind a batch norm of scale a the weight changes by D / a.
    The constant goes into the layer's bias or into the running means of the batch norms behind
    it; where there are neither, it is left out.

    Definition: this project's own; see "compensation" in the documentation of :func:`apply`.

    Parameters
    ----------
    original : nn.Module
    small : nn.Module
        `original` without the units `remove`, by :func:`apply`, however many steps it took; what
        else has changed since (an earlier refit, training) is a start like any other.
    graph : UnitGraph
        Of `original`, from :func:`causalprune.graph.capture`.
    data : DataLoader, Dataset, iterable, pair of tensors, or Tensor
        Calibration images, as for :func:`causalprune.scoring.score`; no labels needed. They are
        held in memory.
    remove : Mapping of str to sequence of int
        Group name to the units of `original` that `small` lacks (``plan.remove``).
    layers : str
        ``"consumers"``: layers that read removed units. ``"all"``: also every convolution, linear
        layer and attention output projection behind them, the classifier included.
    max_images : int, optional
        Use the first `max_images` images only.
    batch_size : int
        Images per batch of `data`, where it is not in batches already.
    ridge : float
        Penalty on the change, relative to the mean square of what the layer reads.
    max_cache_bytes : int
        Most bytes of values to hold between two layers; with less, more is computed again.

    Returns
    -------
    nn.Module
        The same structure as `small`.

    Raises
    ------
    InvalidArgumentError
        If `small` is not `original` without `remove`, or `ridge` is no number >= 0.
    UnknownNameError
        If a group is unknown, or `layers` is none of the two.
    UnsupportedModelError
        If a network cannot be traced, or gives NaN or infinities.
    DataError
        As :func:`causalprune.scoring.score`.

    Examples
    --------
    A unit that repeats another one is made up for exactly:

    >>> from causalprune.graph import capture
    >>> from causalprune.pruning import plan, apply
    >>> from causalprune.scoring import score
    >>> model = nn.Sequential(nn.Linear(3, 2), nn.ReLU(), nn.Linear(2, 1))
    >>> _ = model[0].weight.data[1].copy_(model[0].weight[0]), model[0].bias.data.fill_(1.0)
    >>> images = torch.randn(50, 3)
    >>> gone = plan(model, score(model, images, "l1"), ratio=0.5, of="units")
    >>> small = refit(model, apply(model, gone), capture(model, images), images,
    ...               remove=gone.remove, ridge=1e-7)
    >>> bool((small(images) - model(images)).abs().max() < 1e-3)
    True
    """
    check_request(layers, ridge)
    small = copy.deepcopy(small)
    images = calibration_images(original, data, max_images, batch_size)
    refit_in_place(
        original,
        small,
        graph,
        images,
        remove=remove,
        layers=layers,
        ridge=ridge,
        max_cache_bytes=max_cache_bytes,
    )
    return small


def calibration_images(
    model: nn.Module, data: Any, max_images: int | None, batch_size: int
) -> Tensor:
    """Return all images [N, ...] of `data` on the device of `model`."""
    tensor = next(iter([*model.parameters(), *model.buffers()]), None)
    device = torch.device("cpu") if tensor is None else tensor.device
    batches = as_batches(
        data, batch_size=batch_size, max_images=max_images, labels=False, device=device
    )
    return batches.collect().inputs


def refit_in_place(
    original: nn.Module,
    small: nn.Module,
    graph: UnitGraph,
    images: Tensor,
    *,
    remove: Mapping[str, Sequence[int]],
    layers: str = "all",
    ridge: float = 1e-3,
    max_cache_bytes: int = 2**30,
) -> tuple[LayerFit, ...]:
    """Refit the layers of `small` itself to `images` [N, ...]; see :func:`refit`."""
    check_request(layers, ridge)
    if not any(check_units(graph.group(name), units, "remove") for name, units in remove.items()):
        return ()
    with evaluating(original), evaluating(small), torch.no_grad():
        before, after = traced_of(original, images[:1], graph), traced_of(small, images[:1])
        readers = readers_of(before, after, graph, remove, layers)
        run = _Run(before, after, readers, images, max_cache_bytes)
        return tuple(run.refit(index, float(ridge)) for index in range(len(readers)))


def check_request(layers: str, ridge: object) -> None:
    """Refuse a choice of layers that is not known, and a penalty that is no number >= 0."""
    if layers not in ("consumers", "all"):
        raise UnknownNameError("choice of layers", layers, ("consumers", "all"))
    number = isinstance(ridge, numbers.Real) and not isinstance(ridge, bool)
    if not number or not 0 <= float(ridge) < math.inf:  # type: ignore[arg-type]
        raise InvalidArgumentError(f"ridge: expected a number >= 0, got {ridge!r}")


class _Run:
    """Both networks on all calibration images, chunk by chunk, as far as they have been fitted."""

    def __init__(
        self,
        original: Traced,
        small: Traced,
        readers: Sequence[Reader],
        images: Tensor,
        max_cache_bytes: int,
    ) -> None:
        self._original, self._small, self._readers = original, small, readers
        self._n_images = len(images)
        budget = Budget(max_cache_bytes)
        n_chunk = max(SMALLEST_CHUNK, CHUNK_BYTES // peak_bytes(original.steps, images[:1]))
        self._passages = [
            (Passage(original.steps, chunk, budget), Passage(small.steps, chunk, budget))
            for chunk in torch.split(images, n_chunk)
        ]

    def refit(self, index: int, ridge: float) -> LayerFit:
        """Change one layer; the ones before it are done."""
        reader = self._readers[index]
        moments, made = self._add(index, reader), None
        first = change = self._solve(reader, moments, ridge)
        for _ in range(0 if reader.flat_below is None else ROUNDS - 1):
            made = change.weight if made is None else made + change.weight
            moments.restart()
            self._add(index, reader, moments)
            change = self._solve(reader, moments, ridge, made)
        return LayerFit(reader.layer, float(first.before.sum()), float(change.after.sum()))

    @staticmethod
    def _solve(
        reader: Reader, moments: Moments, ridge: float, made: Tensor | None = None
    ) -> Change:
        if not moments.finite:
            raise UnsupportedModelError(
                f"model: expected finite values around {reader.layer!r}, got NaN or infinity"
            )
        change = moments.solve(ridge, constant=reader.place is not None, made=made)
        _change(reader, change)
        return change

    def _add(self, index: int, reader: Reader, moments: Moments | None = None) -> Moments:
        """Add up the residuals of a layer as it stands; from the second time on, `moments`."""
        hidden = moments is not None
        targets = {later.target for later in self._readers[index:]}
        target_end = self._original.places[reader.target] + 1
        place, end = self._small.places[reader.step.name], self._small.places[reader.pre] + 1
        for original, small in self._passages:
            wanted = reader.of_target(original.move(target_end, targets)[reader.target])
            values = small.move(place, ())
            inputs = reader.inputs(values.__getitem__)
            got = small.run(end, (reader.pre,), (place, values))[reader.pre]
            if hidden and reader.flat_below is not None:
                # Where the activation is 0 for the target, it may as well stay below.
                wanted = torch.where(
                    wanted > reader.flat_below, wanted, got.clamp(max=reader.flat_below)
                )
            residual = wanted - got
            moments = moments or self._moments_for(reader, residual, len(small.images))
            moments.add(inputs, residual)
        assert moments is not None
        return moments

    def _moments_for(self, reader: Reader, residual: Tensor, n_images: int) -> Moments:
        weight = reader.module.weight
        n_positions = residual.numel() // len(weight) // n_images * self._n_images
        return Moments(reader.module, by_rows=n_positions <= weight[0].numel())


def _change(reader: Reader, change: Change) -> None:
    """Write a change of the pre-activation into the layer and what holds its constant."""
    weight, norm = reader.module.weight, reader.norm
    inverse = torch.ones_like(change.constant)
    if norm is not None:
        assert norm.running_var is not None
        scale = (norm.running_var.double() + norm.eps).rsqrt()
        if norm.weight is not None:
            scale = scale * norm.weight.double()
        usable = scale.abs() > SMALLEST_SCALE * scale.abs().mean()
        inverse = torch.where(usable, 1 / torch.where(usable, scale, 1.0), 0.0)
    added = change.weight * inverse.reshape(-1, *[1] * (weight.ndim - 1))
    weight.add_(added.to(weight))
    if reader.place is not None:
        reader.place.add(change.constant * inverse)
