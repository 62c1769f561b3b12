"""histogram_information's CUDA kernels; they run wherever a GPU and a CUDA build are at hand."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from causalprune import _native, reference
from causalprune.errors import InvalidArgumentError
from causalprune.ops import histogram_information

pytestmark = pytest.mark.skipif(
    not (_native.with_cuda and torch.cuda.is_available()),
    reason="needs a CUDA device and a build with CUDA kernels",
)

SIZES = [(1, 1, 1, 64), (2, 3, 2, 2), (97, 3, 5, 7), (1000, 65, 4, 64), (333, 4, 33, 256)]


def samples(n: int, n_x: int, n_y: int) -> tuple[Tensor, Tensor]:
    """Columns of y that know columns of x, some skewed, rectified or of one value."""
    torch.manual_seed(n)
    x, y = torch.randn(n, n_x, device="cuda"), torch.randn(n, n_y, device="cuda")
    y[:, 0] += 2 * x[:, 0]
    if n_y > 1:
        y[:, 1] = x[:, -1].exp()
    if n_x > 2:
        x[:, 1] = 3.5
        x[:, 2].relu_()
    return x, y


@pytest.mark.parametrize(("n", "n_x", "n_y", "bins"), SIZES)
def test_agrees_with_the_definition_and_the_cpu(n: int, n_x: int, n_y: int, bins: int) -> None:
    x, y = samples(n, n_x, n_y)
    found = histogram_information(x, y, bins)
    assert found.device == x.device and found.dtype == torch.float64
    want = reference.histogram_information(x.cpu(), y.cpu(), bins).clamp(min=0)
    torch.testing.assert_close(found.cpu(), want, rtol=0, atol=1e-12)
    on_cpu = histogram_information(x.cpu(), y.cpu(), bins)
    torch.testing.assert_close(found.cpu(), on_cpu, rtol=0, atol=1e-12)


@pytest.mark.parametrize("bins", [64, 181, 256])
def test_more_samples_than_16_bits_count(bins: int) -> None:
    x, y = samples(200_003, 3, 2)
    on_cpu = histogram_information(x.cpu(), y.cpu(), bins)
    found = histogram_information(x, y, bins)
    torch.testing.assert_close(found.cpu(), on_cpu, rtol=0, atol=1e-12)


def test_strides_and_streams_change_nothing() -> None:
    x, y = samples(600, 31, 40)
    once = histogram_information(x, y)
    assert torch.equal(histogram_information(x.T.contiguous().T, y), once)
    wide = torch.randn(1200, 93, device="cuda")
    wide[::2, ::3] = x
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        found = [histogram_information(wide[::2, ::3], y) for _ in range(3)]
    stream.synchronize()
    assert all(torch.equal(each, once) for each in found)


def test_columns_that_are_not_finite_give_nan() -> None:
    x, y = samples(100, 4, 3)
    x[7, 0], x[8, 3], y[9, 2] = torch.nan, -torch.inf, torch.inf
    found = histogram_information(x, y)
    broken = torch.zeros(3, 4, dtype=torch.bool, device="cuda")
    broken[:, 0] = broken[:, 3] = broken[2] = True
    assert torch.equal(found.isnan(), broken)
    assert (found[:2, 1] == 0).all()


def test_no_columns_and_bad_input() -> None:
    x, y = samples(10, 2, 3)
    assert histogram_information(x[:, :0], y).shape == (3, 0)
    with pytest.raises(InvalidArgumentError, match=r"samples.*0"):
        histogram_information(x[:0], y[:0])
    with pytest.raises(InvalidArgumentError, match=r"^y: expected"):
        histogram_information(x, y.cpu())


def test_opcheck() -> None:
    x, y = samples(50, 3, 4)
    torch.library.opcheck(torch.ops.causalprune.histogram_information.default, (x, y, 8))
