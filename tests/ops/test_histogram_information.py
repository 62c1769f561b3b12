"""histogram_information against its definition, sklearn's, and torch's own machinery."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from sklearn.metrics import mutual_info_score
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from causalprune import reference
from causalprune.errors import InvalidArgumentError
from causalprune.ops import histogram_information


def samples(n: int, n_x: int, n_y: int) -> tuple[Tensor, Tensor]:
    """Columns of y that know columns of x, some of them skewed, one dead where there is room."""
    x, y = torch.randn(n, n_x), torch.randn(n, n_y)
    y[:, 0] += 2 * x[:, 0]
    if n_y > 1:
        y[:, 1] = x[:, -1].exp()
    if n_x > 2:
        x[:, 1] = 3.5
    return x, y


SIZES = [(1, 1, 1, 64), (2, 3, 2, 2), (97, 3, 5, 7), (1000, 15, 4, 64), (333, 4, 33, 256)]


@pytest.mark.parametrize(("n", "n_x", "n_y", "bins"), SIZES)
def test_agrees_with_the_definition(n: int, n_x: int, n_y: int, bins: int) -> None:
    x, y = samples(n, n_x, n_y)
    want = reference.histogram_information(x, y, bins).clamp(min=0)
    torch.testing.assert_close(histogram_information(x, y, bins), want, rtol=0, atol=1e-12)


def test_agrees_with_sklearn_on_more_samples_than_16_bits_count() -> None:
    x, y = samples(70_001, 1, 2)
    got = histogram_information(x, y, 16)
    for o in range(2):
        codes = []
        for column in (x[:, 0].double(), y[:, o].double()):
            low, high = column.min(), column.max()
            codes.append(((column - low) * (16 / (high - low))).floor().clamp(max=15).numpy())
        assert got[o, 0].item() * math.log(2) == pytest.approx(mutual_info_score(*codes), abs=1e-9)


def test_edges_are_numpys() -> None:
    x, y = samples(500, 2, 2)
    counts = np.histogram2d(x[:, 0].double().numpy(), y[:, 0].double().numpy(), bins=64)[0] / 500
    product = counts.sum(1, keepdims=True) * counts.sum(0, keepdims=True)
    filled = counts > 0
    want = (counts[filled] * np.log2(counts[filled] / product[filled])).sum()
    # numpy makes its edges by addition: a value within rounding of one may change its bin.
    assert histogram_information(x, y)[0, 0].item() == pytest.approx(want, abs=0.02)


def test_of_itself_is_the_entropy_and_of_a_constant_zero() -> None:
    x = torch.arange(64.0).repeat(3)[:, None]
    assert histogram_information(x, x).item() == pytest.approx(6.0, abs=1e-12)
    dead = torch.full((192, 1), 2.5)
    assert histogram_information(x, dead).item() == 0.0
    assert histogram_information(dead, x).item() == 0.0


def test_independent_columns_have_the_bias_that_is_documented() -> None:
    x, y = torch.rand(20_000, 3), torch.rand(20_000, 3)
    got = histogram_information(x, y, 16)
    expected = 15 * 15 / (2 * 20_000 * math.log(2))
    assert got.mean().item() == pytest.approx(expected, rel=0.15)


def test_strides_and_threads_change_nothing() -> None:
    x, y = samples(600, 31, 40)
    once = histogram_information(x, y)
    assert torch.equal(histogram_information(x.T.contiguous().T, y[:, torch.arange(40)]), once)
    wide = torch.randn(600, 93)
    wide[:, ::3] = x
    assert torch.equal(histogram_information(wide[:, ::3], y), once)
    for threads in (2, 3):
        torch.set_num_threads(threads)
        assert torch.equal(histogram_information(x, y), once)


def test_opcheck() -> None:
    x, y = samples(50, 3, 4)
    operator = torch.ops.causalprune.histogram_information.default
    torch.library.opcheck(operator, (x, y, 8))
    torch.library.opcheck(operator, (x.T.contiguous().T, y[:, ::2], 64))
    with FakeTensorMode():
        fake = histogram_information(torch.empty(7, 3), torch.empty(7, 5))
    assert fake.shape == (5, 3) and fake.dtype == torch.float64


def test_has_no_derivative() -> None:
    x, y = samples(20, 2, 2)
    with pytest.raises(NotImplementedError, match="histogram_information has no derivative"):
        histogram_information(x.requires_grad_(), y).sum().backward()


def test_no_columns() -> None:
    assert histogram_information(torch.zeros(5, 0), torch.zeros(5, 3)).shape == (3, 0)


@pytest.mark.parametrize(
    ("x", "y", "bins", "words"),
    [
        (torch.zeros(4, 2), torch.zeros(4, 2), 257, "bins.*2 to 256.*257"),
        (torch.zeros(4, 2), torch.zeros(4, 2), True, "bins.*True"),
        (torch.zeros(4, 2), torch.zeros(5, 2), 8, "y.*4 samples.*5"),
        (torch.zeros(4, 2).double(), torch.zeros(4, 2), 8, "x.*float32.*float64"),
        (torch.zeros(4), torch.zeros(4, 2), 8, r"x.*\[N, columns\].*\[4\]"),
        (torch.zeros(0, 2), torch.zeros(0, 2), 8, "x.*samples.*0"),
        (
            torch.zeros(4, 2),
            torch.tensor([[0.0], [1.0], [math.nan], [2.0]]),
            8,
            r"y.*nan.*\[2, 0\]",
        ),
        ([[1.0]], torch.zeros(1, 1), 8, "x.*tensor.*list"),
    ],
)
def test_bad_input_is_named(x: Tensor, y: Tensor, bins: int, words: str) -> None:
    with pytest.raises(InvalidArgumentError, match=words):
        histogram_information(x, y, bins)
