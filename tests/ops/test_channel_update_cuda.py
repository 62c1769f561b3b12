"""channel_update's CUDA kernel; it runs wherever a GPU and a CUDA build are at hand."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from causalprune import _native, reference
from causalprune.errors import InvalidArgumentError
from causalprune.ops import channel_update

pytestmark = pytest.mark.skipif(
    not (_native.with_cuda and torch.cuda.is_available()),
    reason="needs a CUDA device and a build with CUDA kernels",
)

# rows, changed channels, outputs, height, width, kernel, then stride, padding, dilation: every
# blocking, outputs that four do and do not divide
LAYERS: dict[str, tuple[int, int, int, int, int, tuple[int, int], dict[str, tuple[int, int]]]] = {
    "3x3": (3, 1, 17, 9, 7, (3, 3), {"padding": (1, 1)}),
    "64 outputs": (2, 2, 64, 8, 8, (3, 3), {"padding": (1, 1)}),
    "16 outputs": (3, 1, 16, 32, 33, (3, 3), {"padding": (1, 1)}),
    "30 outputs": (3, 5, 30, 15, 14, (3, 3), {"padding": (1, 1)}),
    "97 outputs, strided": (2, 1, 97, 11, 13, (3, 3), {"stride": (2, 2), "padding": (1, 1)}),
    "5x5, dilated": (1, 3, 16, 12, 33, (5, 5), {"dilation": (2, 2)}),
    "1x1": (4, 1, 15, 6, 6, (1, 1), {}),
    "40 channels, 1x1": (2, 40, 132, 6, 6, (1, 1), {"stride": (2, 1)}),
    "one output": (2, 1, 1, 6, 6, (3, 3), {"stride": (2, 1), "padding": (2, 0)}),
    "wide padding": (1, 1, 20, 2, 2, (3, 3), {"padding": (5, 4)}),
    "no rows": (0, 1, 20, 5, 5, (3, 3), {}),
}


def problem(layer: str) -> tuple[Tensor, Tensor, Tensor, dict[str, Any]]:
    rows, changed, outputs, height, width, kernel, options = LAYERS[layer]
    torch.manual_seed(len(layer))
    difference = torch.randn(rows, changed, height, width, device="cuda")
    weight = torch.randn(outputs, changed, *kernel, device="cuda")
    shape = F.conv2d(difference, weight, None, **options).shape
    return torch.randn(shape, device="cuda"), difference, weight, options


@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("layer", LAYERS)
def test_agrees_with_the_oracle(layer: str, relu: bool) -> None:
    plain, difference, weight, options = problem(layer)
    got = channel_update(plain, difference, weight, relu=relu, **options)
    tensors = [t.cpu() for t in (plain, difference, weight)]
    expected = reference.channel_update(*tensors, relu=relu, **options)
    size = reference.channel_update(*(t.abs() for t in tensors), **options)
    assert got.dtype == torch.float32 and got.device == plain.device
    assert got.is_contiguous(memory_format=torch.channels_last)
    assert bool(((got.cpu() - expected).abs() <= 1e-6 * size).all())


def test_any_strides() -> None:
    plain, difference, weight, options = problem("40 channels, 1x1")
    whole = channel_update(plain, difference, weight, **options)
    every = torch.randn(2, 45, 6, 6, device="cuda").contiguous(memory_format=torch.channels_last)
    every[:, 2:42] = difference
    columns = torch.randn(132, 47, 1, 1, device="cuda")
    columns[:, 3:43] = weight
    last = plain.contiguous(memory_format=torch.channels_last)
    got = channel_update(last, every[:, 2:42], columns[:, 3:43], **options)
    assert torch.equal(got, whole)


def test_no_changed_channels() -> None:
    plain, difference, weight, options = problem("30 outputs")
    got = channel_update(plain, difference[:, :0], weight[:, :0], relu=True, **options)
    assert torch.equal(got, plain.relu())


def test_is_deterministic_on_any_stream() -> None:
    tensors, options = problem("16 outputs")[:3], problem("16 outputs")[3]
    expected = channel_update(*tensors, **options)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        found = [channel_update(*tensors, **options) for _ in range(3)]
    stream.synchronize()
    assert all(torch.equal(each, expected) for each in found)


def test_other_dtypes_go_through_torch() -> None:
    plain, difference, weight, options = problem("3x3")
    tensors = [t.double() for t in (plain, difference, weight)]
    got = channel_update(*tensors, relu=True, **options)
    expected = reference.channel_update(*(t.cpu() for t in tensors), relu=True, **options)
    torch.testing.assert_close(got.cpu(), expected, rtol=1e-12, atol=1e-12)


def test_values_that_are_not_finite_go_through() -> None:
    plain, difference, weight, options = problem("3x3")
    plain[0, 0, 0, 0] = torch.nan
    difference[1, 0, 4, 3] = torch.inf
    got = channel_update(plain, difference, weight, relu=True, **options)
    assert got[0, 0, 0, 0].isnan()
    assert got[1, :, 4, 3].isinf().any() and got[2].isfinite().all()


def test_bad_input_is_named() -> None:
    plain, difference, weight, options = problem("3x3")
    with pytest.raises(InvalidArgumentError, match="width"):
        channel_update(plain[..., :-1], difference, weight, **options)
    with pytest.raises(InvalidArgumentError, match="weight"):
        channel_update(plain, difference, weight.cpu(), **options)
