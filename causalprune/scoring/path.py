"""Path effects: cut every path from a unit into its consumers, exactly up to the activation."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from causalprune import _native
from causalprune.errors import DataError
from causalprune.graph import (
    CONSUMER_INPUT,
    Consumer,
    ConsumerSite,
    Replay,
    trace,
)
from causalprune.ops import path_effects
from causalprune.scoring.intervals import PairedMean
from causalprune.scoring.methods import Job, UnitScores, register_method
from causalprune.scoring.outcomes import evaluate

__all__ = ["path", "unit_effects"]

FORWARDS_PER_IMAGE = 4.0
"""A forward, a backward of twice its work, and the consumers' products once more."""


@register_method("path", needs_gradient=True)
def path(job: Job) -> Mapping[str, UnitScores]:
    """Effect of cutting a unit's paths into its consumers; first order behind their activation.

    For a consumer with pre-activation ``y_j`` (batch norm folded in, shortcut included) the cut
    changes its output by ``d_ij = phi(y_j - c_ij) - phi(y_j)``, exactly; the effect on the
    outcome of image n is ``sum_j sum_p dY/dphi_j * d_ij``, added over the consumers. Exact where
    what follows is linear, so for ``outcome="logit"`` in the last hidden layer. A unit that was
    flattened into several columns is cut in all of them at once. Where an activation is not one
    that the operator knows, it is taken at first order (named in ``Scores.notes``). Source:
    methods of Ahmad et al. (2023), local form; computed in float32 with float64 sums.
    """
    sites = job.graph.sites
    read = [sites[c.layer] for group in job.graph.groups for c in group.consumers]
    replay = Replay(
        trace(job.model),
        keep={name for site in read for name in (site.pre, site.out)},
        consumers=[site.node for site in read],
    )
    outs = sorted({site.out for site in read})
    totals = {group.name: PairedMean(group.n_units) for group in job.graph.groups}
    with torch.enable_grad(), job.bar("path effects", job.batches.n_batches) as advance:
        for batch in job.batches:
            output = replay(batch.inputs.detach().requires_grad_())
            value = evaluate(job.outcome, output, batch.targets, "on the whole network")
            values = [replay.values[name] for name in outs]
            found = torch.autograd.grad(value.sum(), values, allow_unused=True)
            gradients = {
                name: torch.zeros_like(v) if g is None else g
                for name, v, g in zip(outs, values, found, strict=True)
            }
            for group in job.graph.groups:
                parts = [
                    unit_effects(job.model, c, sites[c.layer], replay.values, gradients)
                    for c in group.consumers
                ]
                effects = torch.stack(parts).sum(0)
                if not bool(torch.isfinite(effects).all()):
                    unit = int((~torch.isfinite(effects)).any(0).nonzero()[0])
                    raise DataError(
                        f"path effect of unit {unit} of layer {group.name!r} is not finite"
                    )
                totals[group.name].update(effects)
            advance()
    share = FORWARDS_PER_IMAGE / job.n_units
    return {name: UnitScores.of(mean, share * mean.n) for name, mean in totals.items()}


def unit_effects(
    model: nn.Module,
    consumer: Consumer,
    site: ConsumerSite,
    values: Mapping[str, Tensor],
    gradients: Mapping[str, Tensor],
) -> Tensor:
    """Path effects [N, n_units], float64, of all units through one consumer.

    Parameters
    ----------
    model : nn.Module
    consumer : Consumer
    site : ConsumerSite
    values : Mapping of str to Tensor
        What :class:`causalprune.graph.Replay` kept: the consumer's input and the pre-activation.
    gradients : Mapping of str to Tensor
        dY/d(value of node ``site.out``), per image.
    """
    module = model.get_submodule(consumer.layer)
    x = values[site.node + CONSUMER_INPUT]
    pre, grad = values[site.pre], gradients[site.out]
    weight = _folded_weight(model, module, site)
    if isinstance(module, nn.Conv2d):
        x, options = _padded(x, module)
        return _effects(x, weight, pre, grad, site.activation, options)
    n_images, width = x.shape[0], consumer.features_per_unit
    if width == 1:
        return _effects(
            x.flatten(1, -2) if x.ndim > 2 else x,
            weight,
            pre.flatten(1, -2) if pre.ndim > 2 else pre,
            grad.flatten(1, -2) if grad.ndim > 2 else grad,
            site.activation,
            {},
        )
    # The columns of a flattened unit are cut jointly: a convolution whose kernel covers them all.
    tokens = x.reshape(-1, x.shape[-1] // width, 1, width)
    kernel = weight.reshape(weight.shape[0], -1, 1, width)
    shape = (-1, weight.shape[0], 1, 1)
    unit = _effects(tokens, kernel, pre.reshape(shape), grad.reshape(shape), site.activation, {})
    return unit.reshape(n_images, -1, unit.shape[1]).sum(1)


def _effects(
    x: Tensor, weight: Tensor, pre: Tensor, grad: Tensor, activation: str, options: dict[str, Any]
) -> Tensor:
    on_gpu = x.device.type == "cuda" and _native.with_cuda
    device = x.device if on_gpu else torch.device("cpu")
    tensors = [t.detach().to(device, torch.float32).contiguous() for t in (x, weight, pre, grad)]
    unit: Tensor = path_effects(*tensors, activation=activation, **options).unit
    return unit


def _folded_weight(model: nn.Module, module: nn.Module, site: ConsumerSite) -> Tensor:
    weight = module.weight
    assert isinstance(weight, Tensor)
    weight = weight.detach()
    if site.norm is None:
        return weight
    norm = model.get_submodule(site.norm)
    assert isinstance(norm, (nn.BatchNorm1d, nn.BatchNorm2d)) and norm.running_var is not None
    scale = (norm.running_var.double() + norm.eps).rsqrt()
    if norm.weight is not None:
        scale = scale * norm.weight.detach().double()
    return (weight.double() * scale.reshape(-1, *[1] * (weight.ndim - 1))).to(weight.dtype)


def _padded(x: Tensor, conv: nn.Conv2d) -> tuple[Tensor, dict[str, Any]]:
    """Apply by hand the paddings that are not symmetric zeros."""
    options: dict[str, Any] = {"stride": conv.stride, "dilation": conv.dilation}
    if conv.padding_mode == "zeros" and not isinstance(conv.padding, str):
        return x, {**options, "padding": conv.padding}
    mode = "constant" if conv.padding_mode == "zeros" else conv.padding_mode
    sides = conv._reversed_padding_repeated_twice
    return F.pad(x, sides, mode=mode), options
