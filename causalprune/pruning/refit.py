"""Refitting a pruned network to the original one, layer after layer, in closed form."""

from __future__ import annotations

import copy
import math
import numbers
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from causalprune.errors import InvalidArgumentError, UnknownNameError
from causalprune.graph import UnitGraph, evaluating
from causalprune.graph.intervene import check_units
from causalprune.pruning.pairs import pairs_of
from causalprune.pruning.readers import readers_of, traced_of
from causalprune.pruning.refit_run import LayerFit, Run
from causalprune.scoring.data import as_batches

__all__ = ["LayerFit", "calibration_images", "check_request", "refit", "refit_in_place"]

LAYERS = ("consumers", "all", "pairs")


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

    A subset of the units is not the best that so many units can do. With ``layers="pairs"`` the
    layer that makes them, what has weights between (a depthwise convolution, a gate) and their
    consumer are changed together so that the consumer's pre-activation comes closest to the
    original one's: a linear regression on all their weights at once, what lies between taken to
    first order (a step of Gauss and Newton), solved by conjugate gradients, twice. It is computed
    from seven eighths of the images; the step is halved until it helps on the others, and left
    out where it never does. Then everything goes on as with ``"all"``. Groups that several layers
    make, or of which something else than one consumer's pre-activation is computed, have no such
    pair.

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
        layer and attention output projection behind them, the classifier included. ``"pairs"``:
        also, before its consumer, the layer that makes the units which stay, both together; see
        below. Takes several times as long.
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
        If a group is unknown, or `layers` is none of the three.
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
        pairs = pairs_of(after, readers, graph, remove) if layers == "pairs" else {}
        run = Run(before, after, readers, images, max_cache_bytes, in_parts=bool(pairs))
        fits: list[LayerFit] = []
        settled: set[str] = set()  # changed with a pair, away from what the original computes there
        for index, reader in enumerate(readers):
            if reader.layer not in settled:
                fits.append(run.refit(index, float(ridge)))
            if reader.layer in pairs:
                consumer, *steps = run.refit_pair(pairs[reader.layer], float(ridge))
                fits += [consumer, *steps]
                if steps:
                    settled |= {inner.layer for inner in pairs[reader.layer].layers[1:-1]}
        return tuple(fits)


def check_request(layers: str, ridge: object) -> None:
    """Refuse a choice of layers that is not known, and a penalty that is no number >= 0."""
    if layers not in LAYERS:
        raise UnknownNameError("choice of layers", layers, LAYERS)
    number = isinstance(ridge, numbers.Real) and not isinstance(ridge, bool)
    if not number or not 0 <= float(ridge) < math.inf:  # type: ignore[arg-type]
        raise InvalidArgumentError(f"ridge: expected a number >= 0, got {ridge!r}")
