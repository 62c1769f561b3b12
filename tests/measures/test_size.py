"""Parameters, bytes and multiply-accumulates against counts made by hand."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from causalprune.errors import InvalidArgumentError
from causalprune.measures import (
    count_layer_weights,
    count_macs,
    count_parameters,
    parameter_bytes,
)


def test_shared_parameters_count_once() -> None:
    first, second = nn.Linear(5, 5, bias=False), nn.Linear(5, 5, bias=False)
    second.weight = first.weight
    model = nn.Sequential(first, second)
    assert count_parameters(model) == 25
    assert parameter_bytes(model) == 100


def test_buffers_are_bytes_but_not_parameters() -> None:
    model = nn.BatchNorm2d(3)
    assert count_parameters(model) == 6
    # weight, bias, running mean and variance in float32; the batch counter is one int64
    assert parameter_bytes(model) == 4 * 3 * 4 + 8


def test_bytes_follow_the_element_type() -> None:
    assert parameter_bytes(nn.Linear(3, 2).half()) == 16


@pytest.mark.parametrize(
    ("channels", "filters", "kernel", "stride", "padding", "groups"),
    [(1, 6, 5, 1, 2, 1), (4, 8, 3, 2, 1, 1), (6, 6, 3, 1, 0, 6), (3, 9, 1, 1, 0, 3)],
)
def test_convolution_macs_by_formula(
    channels: int, filters: int, kernel: int, stride: int, padding: int, groups: int
) -> None:
    layer = nn.Conv2d(channels, filters, kernel, stride, padding, groups=groups)
    side = (15 + 2 * padding - kernel) // stride + 1
    expected = filters * side * side * (channels // groups) * kernel * kernel
    assert count_macs(layer, torch.zeros(1, channels, 15, 15)) == expected
    assert count_macs(layer, torch.zeros(3, channels, 15, 15)) == 3 * expected


def test_fused_attention_is_counted() -> None:
    tokens, width = 7, 12
    block = nn.TransformerEncoderLayer(width, 3, dim_feedforward=20, batch_first=True)
    products = 2 * tokens * tokens * width
    linear = tokens * width * (4 * width + 2 * 20)
    assert count_macs(block, torch.zeros(1, tokens, width)) == products + linear
    assert torch.backends.mha.get_fastpath_enabled()


def test_counting_leaves_modes_and_statistics_alone() -> None:
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Dropout())
    model[2].eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    count_macs(model, torch.randn(4, 1, 5, 5))
    assert [module.training for module in model] == [True, True, False]
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name])


def test_an_example_that_is_no_tensor_is_refused() -> None:
    with pytest.raises(InvalidArgumentError, match=r"example: expected a torch\.Tensor, got list"):
        count_macs(nn.Linear(1, 1), [1.0])  # type: ignore[arg-type]


def test_layer_weights_by_name_without_zeros_where_asked() -> None:
    attention = nn.MultiheadAttention(4, 2)
    model = nn.ModuleDict(
        {"a": nn.Conv2d(2, 3, 3, groups=1), "b": attention, "c": nn.BatchNorm2d(3)}
    )
    model["d"] = nn.Sequential(nn.Linear(5, 2, bias=False), nn.ConvTranspose2d(2, 3, 2))
    assert count_layer_weights(model) == {"a": 54, "b": 64, "d.0": 10, "d.1": 24}
    with torch.no_grad():
        model["a"].weight[1] = 0
        model["a"].bias.zero_()
        attention.out_proj.weight[:, 0] = 0
    assert count_layer_weights(model, nonzero=True) == {"a": 36, "b": 60, "d.0": 10, "d.1": 24}
    assert count_layer_weights(nn.Linear(3, 2)) == {"": 6}
