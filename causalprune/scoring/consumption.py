"""Path effects at one consumer: what its output loses when units are cut from what it reads."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from causalprune.errors import UnsupportedModelError
from causalprune.graph import Consumer, ConsumerSite, UnitGraph
from causalprune.graph.recording import Recorder
from causalprune.graph.steps import folded
from causalprune.ops import path_effects
from causalprune.ops.registration import kernel_device
from causalprune.reference import ACTIVATIONS

__all__ = [
    "Layout",
    "Reading",
    "by_unit",
    "cut",
    "first_order",
    "images_first",
    "layer_of",
    "per_column",
    "readings_of",
    "recorder_of",
]

Effects = dict[str, Tensor]
"""Group name to per-image effects [N, n_units], float64."""


@dataclass(frozen=True)
class Layout:
    """Units of one group that occupy the same number of places.

    Attributes
    ----------
    group : str
    units : Tensor [u], int64
    places : Tensor [u, m], int64
        Along the consumer's axis.
    """

    group: str
    units: Tensor
    places: Tensor

    @property
    def whole(self) -> bool:
        """Whether the places are 0, 1, 2, ... so that nothing need be gathered."""
        flat = self.places.flatten()
        return bool(torch.equal(flat, torch.arange(len(flat))))


@dataclass(frozen=True)
class Reading:
    """One layer that reads units, or one branch where they are cut, with all groups it reads.

    Attributes
    ----------
    site : ConsumerSite
    module : nn.Module
    consumer : Consumer
        One of its groups' (kind and axis are common to all).
    weight : Tensor or None
        [O, I / groups, ...], the batch norm behind the layer folded in; ``None`` where units are
        cut on their own branch.
    layouts : tuple of Layout
    sizes : Mapping of str to int
        Group name to its number of units.
    """

    site: ConsumerSite
    module: nn.Module
    consumer: Consumer
    weight: Tensor | None
    layouts: tuple[Layout, ...]
    sizes: Mapping[str, int]

    @property
    def key(self) -> str:
        """Name of the value that units are cut from: a node's own, or what the node reads."""
        return self.site.node + ("" if self.consumer.at_output else ":read")

    @property
    def is_linear(self) -> bool:
        """Whether no activation follows that the effects are exact through."""
        return self.site.activation == "identity"


def readings_of(model: nn.Module, graph: UnitGraph) -> list[Reading]:
    """Every layer and branch of `graph` where units are read, each once.

    Raises
    ------
    UnsupportedModelError
        If the graph does not say where a consumer computes.
    """
    # One layer may read the units of one group and be where those of another one are cut.
    read: dict[tuple[str, bool], list[tuple[str, int, Consumer]]] = {}
    for group in graph.groups:
        for consumer in group.consumers:
            place = (consumer.layer, consumer.at_output)
            read.setdefault(place, []).append((group.name, group.n_units, consumer))
    found = []
    for (layer, _), parts in read.items():
        site = graph.sites.get(layer)
        if site is None:
            raise UnsupportedModelError(
                f"model: the method needs to see the operators around {layer!r} "
                f"({graph.untraced or 'which the captured graph does not show'}); "
                "use method='ablation'"
            )
        module = model.get_submodule(layer)
        norm = None if site.norm is None else model.get_submodule(site.norm)
        consumer = parts[0][2]
        weight = None if consumer.at_output else folded(layer_of(module), norm)[0]
        layouts = tuple(x for name, n, c in parts for x in _layouts(name, n, c))
        found.append(
            Reading(
                site,
                module,
                consumer,
                weight,
                layouts,
                {name: n for name, n, _ in parts},
            )
        )
    return found


def recorder_of(
    traced: fx.GraphModule,
    readings: Sequence[Reading],
    see: Callable[[Reading, Tensor], Tensor],
) -> Recorder:
    """Prepare to run a network; `see` is given every reading and its value, and returns it.

    Parameters
    ----------
    traced : fx.GraphModule
        From :meth:`causalprune.scoring.methods.Job.trace`.
    readings : sequence of Reading
        Of the same network.
    see : callable
        The value is what the consumer reads, or that of the branch; the network goes on with what
        is returned.
    """
    outputs = {r.site.node: partial(see, r) for r in readings if r.consumer.at_output}
    inputs = {r.site.node: partial(see, r) for r in readings if not r.consumer.at_output}
    return Recorder(traced, outputs, inputs)


def layer_of(module: nn.Module) -> nn.Conv2d | nn.Linear:
    """Return the layer whose weights read the units, of an attention layer its projection.

    Raises
    ------
    UnsupportedModelError
        If `module` is none that path effects know.
    """
    if isinstance(module, nn.MultiheadAttention):
        return module.out_proj
    projection = getattr(module, "proj", module)
    if isinstance(projection, (nn.Conv2d, nn.Linear)):
        return projection
    raise UnsupportedModelError(
        "model: the method knows convolutions, linear and attention layers as consumers, got a "
        f"{type(module).__name__}; use method='ablation'"
    )


def _layouts(group: str, n_units: int, consumer: Consumer) -> Iterator[Layout]:
    units, places = [], []
    for span in consumer.spans:
        start = span.start + np.arange(span.n_units)[:, None] * span.stride
        places.append((start + np.arange(span.width)).ravel())
        units.append(np.repeat(span.unit + np.arange(span.n_units), span.width))
    if not units:
        return
    unit, place = np.concatenate(units), np.concatenate(places)
    order = np.argsort(unit, kind="stable")
    unit, place = unit[order], place[order]
    counts = np.bincount(unit, minlength=n_units)
    for m in sorted(set(counts.tolist()) - {0}):
        chosen = np.flatnonzero(counts == m)
        columns = place[np.isin(unit, chosen)].reshape(len(chosen), m)
        yield Layout(group, torch.from_numpy(chosen), torch.from_numpy(columns))


# ---- first order ---------------------------------------------------------------------------------


def first_order(reading: Reading, value: Tensor, gradient: Tensor, n_images: int) -> Effects:
    """``-value * dY/dvalue`` summed over each unit's places: exact where the consumer is linear.

    Parameters
    ----------
    reading : Reading
    value : Tensor
        What the consumer reads, or the branch's value.
    gradient : Tensor
        dY/dvalue, of the same shape.
    n_images : int
    """
    columns = -per_column(value.detach() * gradient, reading.consumer.axis, n_images)
    return by_unit(reading, columns)


def images_first(value: Tensor, of_one: torch.Size) -> Tensor:
    """Bring the images of `value` to dimension 0: the one that grew since a run of one image."""
    grown = [
        axis
        for axis, (alone, together) in enumerate(zip(of_one, value.shape, strict=True))
        if alone != together
    ]
    return value.movedim(grown[0], 0) if grown and grown[0] else value


def per_column(product: Tensor, axis: int, n_images: int) -> Tensor:
    """Sum over everything but images and units: [N, C], float64."""
    product = product.movedim(axis, -1) if axis != -1 else product
    flat = product.reshape(n_images, -1, product.shape[-1])
    return flat.sum(1, dtype=torch.float64).cpu()


def by_unit(reading: Reading, columns: Tensor) -> Effects:
    """Sum columns [N, C] over the places of every unit: group name to [N, n_units], float64."""
    effects = _zeros(reading, len(columns))
    for layout in reading.layouts:
        effects[layout.group][:, layout.units] += columns[:, layout.places].sum(2)
    return effects


def _zeros(reading: Reading, n_images: int) -> Effects:
    return {g: torch.zeros(n_images, n, dtype=torch.float64) for g, n in reading.sizes.items()}


# ---- exact up to the activation ------------------------------------------------------------------


def cut(
    reading: Reading, value: Tensor, pre: Tensor, grad: Tensor, n_images: int
) -> tuple[Effects, Tensor | None]:
    """Effects of cutting every unit, the activation behind the consumer taken exactly.

    Parameters
    ----------
    reading : Reading
    value : Tensor
        What the consumer reads, or the branch's value.
    pre : Tensor
        What enters the activation.
    grad : Tensor
        dY / d(activation's output), shaped as `pre`.
    n_images : int

    Returns
    -------
    effects : dict of str to Tensor [N, n_units], float64
    edges : Tensor [O, I], float64, or None
        Sums over the images of every edge's effect, I being the layer's inputs per group of a
        grouped convolution; the units it reads, in the order of the groups, where one unit
        occupies several inputs; ``None`` where units are cut on their own branch.
    """
    value, pre, grad = value.detach(), pre.detach(), grad.detach()
    if reading.weight is None:
        return _cut_branch(reading, value, pre, grad, n_images), None
    single = [layout for layout in reading.layouts if layout.places.shape[1] == 1]
    joint = [layout for layout in reading.layouts if layout.places.shape[1] > 1]
    effects, edges = _zeros(reading, n_images), []
    if single or not joint:
        unit, edge = _cut_single(reading, value, pre, grad, n_images)
        for layout in single:
            effects[layout.group][:, layout.units] += unit[:, layout.places[:, 0]]
        chosen = [layout.places[:, 0] for layout in single]
        edges.append(edge[:, torch.cat(chosen)] if joint and single else edge)
    for layout in joint:
        of_conv = isinstance(reading.module, nn.Conv2d)
        unit, edge = (_cut_joint_channels if of_conv else _cut_joint_features)(
            reading, layout, value, pre, grad, n_images
        )
        effects[layout.group][:, layout.units] += unit
        edges.append(edge)
    return effects, torch.cat(edges, 1)


def _cut_single(
    reading: Reading, x: Tensor, pre: Tensor, grad: Tensor, n_images: int
) -> tuple[Tensor, Tensor]:
    assert reading.weight is not None
    module = reading.module
    if isinstance(module, nn.Conv2d):
        x, options = _padded(x, module)
        return _kernel(x, reading.weight, pre, grad, reading.site.activation, options)
    x, pre, grad = (value.reshape(n_images, -1, value.shape[-1]) for value in (x, pre, grad))
    return _kernel(x, reading.weight, pre, grad, reading.site.activation, {})


def _cut_joint_features(
    reading: Reading, layout: Layout, x: Tensor, pre: Tensor, grad: Tensor, n_images: int
) -> tuple[Tensor, Tensor]:
    """All features of a unit at once: a convolution whose kernel covers them."""
    assert reading.weight is not None
    weight, n_units, width = reading.weight, *layout.places.shape
    if not (layout.whole and layout.places.numel() == x.shape[-1]):
        places = layout.places.flatten()
        x, weight = x[..., places.to(x.device)], weight[:, places.to(weight.device)]
    kernel = weight.reshape(weight.shape[0], n_units, 1, width)
    shape = (-1, weight.shape[0], 1, 1)
    unit, edge = _kernel(
        x.reshape(-1, n_units, 1, width),
        kernel,
        pre.reshape(shape),
        grad.reshape(shape),
        reading.site.activation,
        {},
    )
    return unit.reshape(n_images, -1, n_units).sum(1), edge


def _cut_joint_channels(
    reading: Reading, layout: Layout, x: Tensor, pre: Tensor, grad: Tensor, n_images: int
) -> tuple[Tensor, Tensor]:
    """Several channels of a convolution at once, one unit after the other: a rare layout."""
    assert reading.weight is not None and isinstance(reading.module, nn.Conv2d)
    module, phi = reading.module, ACTIVATIONS[reading.site.activation]
    after, units, edges = phi(pre), [], []
    for places in layout.places:
        only = torch.zeros_like(x)
        only[:, places] = x[:, places]
        contribution = module._conv_forward(only, reading.weight, None)
        weighted = (grad * (phi(pre - contribution) - after)).sum((2, 3), dtype=torch.float64)
        units.append(weighted.sum(1).cpu())
        edges.append(weighted.sum(0).cpu())
    return torch.stack(units, 1), torch.stack(edges, 1)


def _cut_branch(
    reading: Reading, value: Tensor, pre: Tensor, grad: Tensor, n_images: int
) -> Effects:
    """Units that are added to a pre-activation: every element is its own path."""
    phi = ACTIVATIONS[reading.site.activation]
    change = grad * (phi(pre - value) - phi(pre))
    return by_unit(reading, per_column(change, reading.consumer.axis, n_images))


def _kernel(
    x: Tensor, weight: Tensor, pre: Tensor, grad: Tensor, activation: str, options: dict[str, Any]
) -> tuple[Tensor, Tensor]:
    tensors = [t.to(kernel_device(x), torch.float32) for t in (x, weight, pre, grad)]
    found = path_effects(*tensors, activation=activation, **options, statistics="grad_weighted")
    return found.unit.cpu(), found.edge[..., 0].cpu()


def _padded(x: Tensor, conv: nn.Conv2d) -> tuple[Tensor, dict[str, Any]]:
    """Apply by hand the paddings that are not symmetric zeros."""
    options: dict[str, Any] = {
        "stride": conv.stride,
        "dilation": conv.dilation,
        "groups": conv.groups,
    }
    if conv.padding_mode == "zeros" and not isinstance(conv.padding, str):
        return x, {**options, "padding": conv.padding}
    mode = "constant" if conv.padding_mode == "zeros" else conv.padding_mode
    sides: Sequence[int] = conv._reversed_padding_repeated_twice
    return F.pad(x, sides, mode=mode), options
