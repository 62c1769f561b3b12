"""Layers, tensors and tolerances of the tests of sparse_conv2d and channel_conv2d."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import pytest
import torch
from path_effects_layers import generator
from torch import Tensor

from causalprune import reference

ACTIVATIONS = tuple(reference.CONVOLUTION_ACTIVATIONS)

# x, outputs, kernel, then stride, padding, dilation, groups
LAYERS: dict[str, tuple[tuple[int, ...], int, tuple[int, int], dict[str, Any]]] = {
    "one of all": ((1, 1, 1, 1), 1, (1, 1), {}),
    "3x3": ((2, 15, 9, 7), 33, (3, 3), {"padding": (1, 1)}),
    "1x1 to 97": ((1, 33, 15, 15), 97, (1, 1), {}),
    "depthwise": ((2, 15, 10, 9), 15, (3, 3), {"padding": (1, 1), "groups": 15}),
    "groups, stride 3": (
        (3, 12, 17, 11),
        6,
        (3, 3),
        {"stride": (3, 3), "padding": (1, 1), "groups": 3},
    ),
    "dilation": ((1, 5, 15, 33), 4, (3, 2), {"padding": (2, 0), "dilation": (2, 3)}),
    "padding beyond the kernel": ((1, 3, 4, 5), 7, (2, 2), {"padding": (5, 3)}),
    "17 images": ((17, 4, 3, 3), 5, (3, 3), {"padding": (1, 1)}),
    "5x1, stride 2x1": ((2, 7, 11, 8), 15, (5, 1), {"stride": (2, 1), "padding": (2, 0)}),
    "97 columns": ((1, 2, 1, 97), 3, (1, 3), {"padding": (0, 1)}),
    "1x1, stride 2": ((4, 6, 9, 9), 8, (1, 1), {"stride": (2, 2)}),
}


def sparse_problem(
    layer: str, *, density: float = 0.3, seed: object = 0
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """x, weight, bias and residual; and the options of the layer."""
    x_shape, n_outputs, kernel, options = LAYERS[layer]
    random = generator(layer, density, seed)
    weight = torch.randn(
        n_outputs, x_shape[1] // options.get("groups", 1), *kernel, generator=random
    )
    weight[torch.rand(weight.shape, generator=random) >= density] = 0
    x = torch.randn(x_shape, generator=random)
    shape = torch.nn.functional.conv2d(x, weight, None, **options).shape
    tensors = {"x": x, "weight": weight, "bias": torch.randn(n_outputs, generator=random)}
    return {**tensors, "residual": torch.randn(shape, generator=random)}, dict(options)


def channel_problem(
    layer: str, *, kept: float = 0.5, seed: object = 0
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The same for lists, which keep a part of every group in random order."""
    tensors, options = sparse_problem(layer, density=1.0, seed=seed)
    random = generator(layer, kept, seed, "lists")
    groups = options.get("groups", 1)
    width, n_outputs = tensors["x"].shape[1], tensors["weight"].shape[0]
    reads = max(1, round(kept * width / groups))
    writes = max(1, round(kept * n_outputs / groups))
    tensors["weight"] = tensors["weight"][: groups * writes, :reads].clone()
    tensors["bias"] = tensors["bias"][: groups * writes].clone()
    lists = {
        "inputs": torch.randperm(width, generator=random)[: groups * reads],
        "outputs": torch.randperm(n_outputs, generator=random)[: groups * writes],
        "n_outputs": n_outputs,
    }
    return {**tensors, **lists}, options


def assert_agrees(
    got: Tensor,
    oracle: Callable[..., Tensor],
    tensors: dict[str, Any],
    options: dict[str, Any],
) -> None:
    """Within 2e-6 of the sum of absolute terms of the float64 oracle."""
    expected = oracle(**tensors, **options)
    absolute = {
        name: value.abs() if isinstance(value, Tensor) and value.is_floating_point() else value
        for name, value in tensors.items()
    }
    size = oracle(**absolute, **{**options, "activation": "none"})
    assert got.shape == expected.shape and got.dtype == torch.float32
    error = (got.double() - expected).abs() - 2e-6 * size - 2e-7
    assert bool((error <= 0).all()), f"off by {error.max().item():.2e} more than allowed"


def without_dense(patch: pytest.MonkeyPatch, *operators: str) -> None:
    """Let these operators fail where they would run dense."""

    def refuse(*arguments: object) -> Tensor:
        raise AssertionError("ran dense")

    for name in operators:
        module = importlib.import_module(f"causalprune.ops.{name}")
        patch.setattr(module, "_dense", refuse)
