"""``pytest benchmarks --benchmark-only``: sparse and channel-pruned convolutions by the call.

Packing, convolution and unpacking as `causalprune.ops` runs them, beside torch's dense convolution
in both memory layouts. One thread, CPU time of that thread.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

import pytest
import torch
import torch.nn.functional as F
from pytest_benchmark.fixture import BenchmarkFixture
from torch import Tensor

from causalprune.measures.kernel_benchmarks import LAYERS, ConvolutionLayer
from causalprune.ops import channel_conv2d, sparse_conv2d


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    with torch.no_grad():
        yield
    torch.set_num_threads(before)


def _calls(layer: ConvolutionLayer) -> dict[str, Callable[[], Tensor]]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(8, layer.inputs, layer.size, layer.size, generator=generator)
    shape = (layer.outputs, layer.inputs, layer.kernel, layer.kernel)
    weight = 0.05 * torch.randn(shape, generator=generator)
    zeros = weight * (torch.rand(shape, generator=generator) < 0.1)
    bias, padding = torch.zeros(layer.outputs), layer.kernel // 2
    inputs, outputs = torch.arange(0, layer.inputs, 2), torch.arange(0, layer.outputs, 2)
    half, half_bias = weight[::2, ::2].contiguous(), bias[::2].contiguous()
    last = torch.channels_last
    last_x, last_weight = x.contiguous(memory_format=last), weight.contiguous(memory_format=last)
    return {
        "dense": lambda: F.conv2d(x, weight, bias, padding=padding),
        "dense, channels_last": lambda: F.conv2d(last_x, last_weight, bias, padding=padding),
        "sparse, 90 % zeros": lambda: sparse_conv2d(x, zeros, bias, padding=padding),
        "half of the channels": lambda: channel_conv2d(
            x, half, half_bias, inputs, outputs, layer.outputs, padding=padding
        ),
    }


@pytest.mark.parametrize("call", list(_calls(ConvolutionLayer("", 4, 4, 4, 1))))
@pytest.mark.parametrize("layer", LAYERS, ids=lambda layer: layer.name.replace(" ", "_"))
def test_convolutions(benchmark: BenchmarkFixture, layer: ConvolutionLayer, call: str) -> None:
    benchmark.group = layer.name
    benchmark._timer = time.thread_time
    run = _calls(layer)[call]
    run()  # the plan is made on the first calls
    run()
    benchmark(run)
