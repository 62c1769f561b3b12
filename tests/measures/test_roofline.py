"""The roofline's work and traffic, against a layer that is really there."""

from __future__ import annotations

import pytest
import roofline_points
import torch
from torch import nn

from causalprune.measures import count_macs
from causalprune.measures.convolution_layers import ConvolutionLayer, layer_tensors
from causalprune.ops import channel_update, path_effects, relative_sensitivity

LAYERS = [ConvolutionLayer("3x3", 5, 7, 9, 3), ConvolutionLayer("1x1", 6, 4, 5, 1)]


def tensor_bytes(*tensors: torch.Tensor) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


@pytest.mark.parametrize("layer", LAYERS, ids=lambda layer: layer.name)
def test_counts(layer: ConvolutionLayer) -> None:
    x, weight, _ = layer_tensors(layer, roofline_points.IMAGES, torch.Generator().manual_seed(0))
    module = nn.Conv2d(
        layer.inputs, layer.outputs, layer.kernel, padding=layer.padding, bias=False
    ).eval()
    macs = count_macs(module, x[:1]) * len(x)
    with torch.no_grad():
        out = module(x)

    forward, traffic = roofline_points.counts(layer, roofline_points.FORWARD)
    assert forward == 2 * macs
    assert traffic == tensor_bytes(x, weight, out)

    edges = out.numel() * layer.inputs
    for name, which, extra in (
        (roofline_points.ONE, "grad_weighted", 3),
        (roofline_points.ALL, "all", 7),
    ):
        effects = path_effects(x, weight, out, out, padding=layer.padding, statistics=which)
        operations, traffic = roofline_points.counts(layer, name)
        assert operations == 2 * macs + extra * edges
        assert traffic == tensor_bytes(x, weight, out, out, effects.edge, effects.unit)

    shares = relative_sensitivity(x, weight, padding=layer.padding)
    for name in (roofline_points.MEAN, roofline_points.LARGEST):
        operations, traffic = roofline_points.counts(layer, name)
        assert operations == 6 * macs
        assert traffic == tensor_bytes(x, weight, shares)

    operations, traffic = roofline_points.counts(layer, roofline_points.SPARSE)
    assert operations == pytest.approx(0.1 * 2 * macs)
    assert traffic == pytest.approx(tensor_bytes(x, out) + 0.1 * 8 * weight.numel())

    rows = torch.zeros(roofline_points.ROWS, *out.shape[1:])
    change = torch.zeros(roofline_points.ROWS, 1, layer.size, layer.size)
    updated = channel_update(rows, change, weight[:, :1], padding=layer.padding)
    operations, traffic = roofline_points.counts(layer, roofline_points.UPDATE)
    assert operations == 2 * rows.numel() * layer.kernel**2
    assert traffic == tensor_bytes(rows, change, weight[:, :1], updated)


def test_unknown_operators_are_refused() -> None:
    with pytest.raises(ValueError, match=r"operator: expected one of torch, .*'sum'"):
        roofline_points.counts(LAYERS[0], "sum")


def test_points_of_a_layer() -> None:
    points = roofline_points.points(LAYERS[:1], seconds=0.001)
    assert [point.operator for point in points] == list(roofline_points.OPERATORS)
    for point in points:
        assert point.seconds > 0 and point.spread >= 0
        assert point.gflops == pytest.approx(point.operations / point.seconds / 1e9)
        assert point.intensity == point.operations / point.bytes


def test_sizes_of_caches() -> None:
    first, second, third = roofline_points.cache_bytes()
    assert 4 << 10 <= first < second <= third
