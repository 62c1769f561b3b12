"""Connection sensitivity (Lee, Ajanthan and Torr 2019, "SNIP")."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn
from torch.func import functional_call

from causalprune.scoring.methods import Job, MethodResult, UnitScores, register_method
from causalprune.scoring.norms import produced
from causalprune.scoring.outcomes import evaluate

__all__ = ["snip"]

FORWARDS_PER_IMAGE = 3.0
"""A forward pass and a backward pass of twice its work."""


@register_method("snip", needs_gradient=True)
def snip(job: Job) -> MethodResult:
    """``|w dL/dw|`` of the mean outcome, as a share of all weights' (eq. 5 of the paper).

    ``Scores.edges[layer]`` has the sensitivity of every weight of every convolution and linear
    layer; they add up to one. A unit's importance is the sum over the weights that produce it,
    in all producers of its group.
    """
    weights = {name: w.detach() for name, w in _weights(job.model).items()}
    total = {name: torch.zeros_like(w, dtype=torch.float64) for name, w in weights.items()}
    n_images = 0
    others = {
        name: tensor.detach()
        for name, tensor in [*job.model.named_parameters(), *job.model.named_buffers()]
        if name not in weights
    }
    with torch.enable_grad(), job.bar("snip", job.batches.n_batches) as advance:
        for batch in job.batches:
            asked = {name: w.clone().requires_grad_() for name, w in weights.items()}
            output = functional_call(job.model, {**others, **asked}, (batch.inputs,))
            value = evaluate(job.outcome, output, batch.targets, "on the whole network")
            found = torch.autograd.grad(value.sum(), list(asked.values()), allow_unused=True)
            for name, gradient in zip(asked, found, strict=True):
                if gradient is not None:
                    total[name] += gradient.double()
            n_images += len(batch.inputs)
            advance()
    sensitivity = {name: (g / n_images * weights[name].double()).abs() for name, g in total.items()}
    scale = sum(float(s.sum()) for s in sensitivity.values()) or 1.0
    twin = copy.deepcopy(job.model)
    with torch.no_grad():
        for name, parameter in twin.named_parameters():
            shared = sensitivity.get(name, torch.zeros_like(parameter, dtype=torch.float64))
            parameter.copy_(shared / scale)
    cost = FORWARDS_PER_IMAGE * n_images / job.n_units
    units = {
        group.name: UnitScores(produced(twin, group, torch.clone), n=n_images, cost=cost)
        for group in job.graph.groups
    }
    edges = {
        name.removesuffix(".weight"): s / scale
        for name, s in sensitivity.items()
        if name.endswith(".weight")
    }
    return MethodResult(units, edges)


def _weights(model: nn.Module) -> dict[str, Tensor]:
    """Every parameter of a layer that has two dimensions or more: what connects."""
    kinds = (nn.Conv2d, nn.Linear, nn.MultiheadAttention)
    return {
        f"{layer}.{name}" if layer else name: parameter
        for layer, module in model.named_modules()
        if isinstance(module, kinds)
        for name, parameter in module.named_parameters(recurse=False)
        if parameter.ndim > 1
    }
