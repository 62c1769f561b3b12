"""channel_update against its oracle, on every instruction set, and inside torch's machinery."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from causalprune import _native, reference
from causalprune.errors import InvalidArgumentError
from causalprune.ops import channel_update

# rows, changed channels, outputs, height, width, kernel, then stride, padding, dilation
LAYERS: dict[str, tuple[int, int, int, int, int, tuple[int, int], dict[str, tuple[int, int]]]] = {
    "3x3": (3, 1, 17, 9, 7, (3, 3), {"padding": (1, 1)}),
    "64 outputs": (2, 2, 64, 8, 8, (3, 3), {"padding": (1, 1)}),
    "97 outputs, strided": (2, 1, 97, 11, 13, (3, 3), {"stride": (2, 2), "padding": (1, 1)}),
    "5x5, dilated": (1, 3, 16, 12, 33, (5, 5), {"dilation": (2, 2)}),
    "1x1": (4, 1, 15, 6, 6, (1, 1), {}),
    "one output": (2, 1, 1, 6, 6, (3, 3), {"stride": (2, 1), "padding": (2, 0)}),
    "5x1": (2, 2, 33, 15, 4, (5, 1), {"padding": (2, 0), "dilation": (1, 3)}),
    "wide padding": (1, 1, 20, 2, 2, (3, 3), {"padding": (5, 4)}),
    "no rows": (0, 1, 20, 5, 5, (3, 3), {}),
}


def problem(layer: str, seed: int = 0) -> tuple[Tensor, Tensor, Tensor, dict[str, Any]]:
    rows, changed, outputs, height, width, kernel, options = LAYERS[layer]
    draw = torch.Generator().manual_seed(seed)
    difference = torch.randn(rows, changed, height, width, generator=draw)
    weight = torch.randn(outputs, changed, *kernel, generator=draw)
    shape = F.conv2d(difference, weight, None, **options).shape
    return torch.randn(shape, generator=draw), difference, weight, options


@pytest.fixture(params=_native.available_isas())
def isa(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("CAUSALPRUNE_ISA", request.param)
    name: str = request.param
    return name


@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("layer", LAYERS)
def test_agrees_with_the_oracle(isa: str, layer: str, relu: bool) -> None:
    plain, difference, weight, options = problem(layer)
    got = channel_update(plain, difference, weight, relu=relu, **options)
    expected = reference.channel_update(plain, difference, weight, relu=relu, **options)
    size = reference.channel_update(plain.abs(), difference.abs(), weight.abs(), **options)
    assert got.dtype == torch.float32
    assert bool(((got - expected).abs() <= 1e-6 * size).all())


def test_any_strides() -> None:
    plain, difference, weight, options = problem("64 outputs")
    whole = channel_update(plain, difference, weight, **options)
    every = torch.randn(2, 5, 8, 8).contiguous(memory_format=torch.channels_last)
    every[:, 2:4] = difference
    columns = torch.randn(64, 7, 3, 3)
    columns[:, 3:5] = weight
    last = plain.contiguous(memory_format=torch.channels_last)
    for got in (
        channel_update(last, every[:, 2:4], columns[:, 3:5], **options),
        channel_update(plain.flip(0).flip(0), difference, weight, **options),
    ):
        assert torch.equal(got, whole)
        assert got.is_contiguous(memory_format=torch.channels_last)


def test_same_bits_on_several_threads() -> None:
    draw = torch.Generator().manual_seed(3)
    plain = torch.randn(9, 50, 30, 30, generator=draw)
    difference = torch.randn(9, 1, 30, 30, generator=draw)
    weight = torch.randn(50, 1, 3, 3, generator=draw)
    before = torch.get_num_threads()
    try:
        results = []
        for threads in (1, 3):
            torch.set_num_threads(threads)
            results.append(channel_update(plain, difference, weight, padding=1))
    finally:
        torch.set_num_threads(before)
    assert torch.equal(*results)


def test_other_dtypes_go_through_torch() -> None:
    plain, difference, weight, options = problem("3x3")
    tensors = [t.double() for t in (plain, difference, weight)]
    got = channel_update(*tensors, relu=True, **options)
    expected = reference.channel_update(*tensors, relu=True, **options)
    torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-12)


def test_values_that_are_not_finite_go_through() -> None:
    plain, difference, weight, options = problem("3x3")
    plain[0, 0, 0, 0] = torch.nan
    difference[1, 0, 4, 3] = torch.inf
    got = channel_update(plain, difference, weight, **options)
    assert got[0, 0, 0, 0].isnan() and not got[1, :, 4, 3].isfinite().any()
    assert got[2].isfinite().all()


def test_opcheck() -> None:
    plain, difference, weight, _ = problem("3x3")
    torch.library.opcheck(
        torch.ops.causalprune.channel_update.default,
        (plain, difference, weight, [1, 1], [1, 1], [1, 1], True),
        test_utils=("test_schema", "test_faketensor", "test_aot_dispatch_dynamic"),
    )


def test_no_derivative() -> None:
    plain, difference, weight, options = problem("3x3")
    result = channel_update(plain.requires_grad_(), difference, weight, **options)
    with pytest.raises(NotImplementedError, match="no derivative"):
        result.sum().backward()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"plain": torch.zeros(3, 17, 9, 8)}, "width"),
        ({"plain": torch.zeros(2, 17, 9, 7)}, "plain"),
        ({"difference": torch.zeros(3, 1, 9)}, "difference: expected 4 dimensions"),
        ({"difference": torch.zeros(3, 1, 9, 7, dtype=torch.float64)}, "difference"),
        ({"weight": torch.zeros(17, 2, 3, 3)}, "weight"),
        ({"stride": 0}, "stride"),
        ({"padding": -1}, "padding"),
        ({"dilation": 2**40}, "dilation"),
    ],
)
def test_bad_input(change: dict[str, Any], message: str) -> None:
    plain, difference, weight, options = problem("3x3")
    arguments: dict[str, Any] = {
        "plain": plain,
        "difference": difference,
        "weight": weight,
        **options,
        **change,
    }
    with pytest.raises(InvalidArgumentError, match=message):
        channel_update(**arguments)
