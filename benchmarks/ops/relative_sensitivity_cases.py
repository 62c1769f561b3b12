"""Shapes and peers of the relative_sensitivity benchmark: what a user would write in torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType

import torch
from path_effects_cases import Layer, forward_nchw
from torch import Tensor

from causalprune import reference
from causalprune.measures.sensitivity_peers import product_sensitivity
from causalprune.ops import relative_sensitivity


def native(given: Layer, aggregate: str) -> Callable[[], object]:
    return lambda: relative_sensitivity(
        given.x, given.weight, aggregate=aggregate, padding=given.padding
    )


def straightforward(given: Layer, aggregate: str) -> Callable[[], object]:
    """The float64 reference's own loops, in float32."""
    return lambda: reference.relative_sensitivity(
        given.x, given.weight, aggregate=aggregate, padding=given.padding, dtype=torch.float32
    )


def torch_products(given: Layer, aggregate: str) -> Callable[[], Tensor]:
    return lambda: product_sensitivity(given.x, given.weight, aggregate, padding=given.padding)


PEERS: Mapping[str, Callable[[Layer], Callable[[], object]]] = MappingProxyType(
    {
        "forward (NCHW)": forward_nchw,
        "torch products, mean": lambda given: torch_products(given, "mean"),
        "torch products, max": lambda given: torch_products(given, "max"),
        "relative_sensitivity, mean": lambda given: native(given, "mean"),
        "relative_sensitivity, max": lambda given: native(given, "max"),
    }
)
