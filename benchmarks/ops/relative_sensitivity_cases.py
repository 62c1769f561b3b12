"""Shapes and peers of the relative_sensitivity benchmark: what a user would write in torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType

import torch
import torch.nn.functional as F
from path_effects_cases import Layer, forward_nchw
from torch import Tensor

from causalprune import reference
from causalprune.ops import relative_sensitivity

CHUNK = 64


def native(given: Layer, aggregate: str) -> Callable[[], object]:
    return lambda: relative_sensitivity(
        given.x, given.weight, aggregate=aggregate, padding=given.padding
    )


def straightforward(given: Layer, aggregate: str) -> Callable[[], object]:
    """The float64 reference's own loops, in float32."""
    return lambda: reference.relative_sensitivity(
        given.x, given.weight, aggregate=aggregate, padding=given.padding, dtype=torch.float32
    )


def products(
    x: Tensor, weight: Tensor, aggregate: str, stride: int = 1, padding: int = 0
) -> Tensor:
    """The best torch can do: BLAS for the denominators and, as far as it goes, for the shares."""
    rows = weight.flatten(1)
    signed = torch.stack([rows.clamp_min(0), (-rows).clamp_min(0)])
    best = torch.zeros_like(rows)
    for image in x:
        for part in (image.clamp_min(0), (-image).clamp_min(0)):
            if not bool(part.any()):
                continue
            patches = F.unfold(part[None], weight.shape[2:], 1, padding, stride)[0]
            sums = signed @ patches
            inverse = torch.where(sums > 2.0**-23, sums.reciprocal(), 0.0)
            if aggregate == "mean":
                found = signed * (inverse @ patches.T) / patches.shape[1]
            else:
                found = signed * _largest(inverse, patches)
            best = torch.maximum(best, found.sum(0))
    return best.reshape(weight.shape)


def torch_products(given: Layer, aggregate: str) -> Callable[[], Tensor]:
    return lambda: products(given.x, given.weight, aggregate, padding=given.padding)


def _largest(inverse: Tensor, patches: Tensor) -> Tensor:
    """Maximum over p of inverse [2, O, P] times patches [F, P], a few f at a time."""
    parts = [(inverse[:, :, None] * chunk).amax(-1) for chunk in patches.split(CHUNK)]
    return torch.cat(parts, -1)


PEERS: Mapping[str, Callable[[Layer], Callable[[], object]]] = MappingProxyType(
    {
        "forward (NCHW)": forward_nchw,
        "torch products, mean": lambda given: torch_products(given, "mean"),
        "torch products, max": lambda given: torch_products(given, "max"),
        "relative_sensitivity, mean": lambda given: native(given, "mean"),
        "relative_sensitivity, max": lambda given: native(given, "max"),
    }
)
