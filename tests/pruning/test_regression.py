"""The Gram matrix and the regression that refits a layer."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from causalprune.pruning.gram import ShiftedGram, patches_of
from causalprune.pruning.regression import Moments


@pytest.mark.parametrize(
    ("kernel", "options"),
    [
        ((3, 3), {"padding": 1}),
        ((3, 3), {}),
        ((5, 2), {"padding": (3, 1)}),
        ((1, 4), {"padding": "same"}),
        ((3, 3), {"padding": 2, "dilation": 2}),
        ((2, 3), {"padding": (0, 3), "dilation": (3, 1)}),
        ((3, 3), {"padding": 1, "padding_mode": "reflect"}),
    ],
)
@pytest.mark.filterwarnings("ignore:Using padding='same'")
def test_gram_matrix_without_unfolding(kernel: tuple[int, int], options: dict[str, object]) -> None:
    layer = nn.Conv2d(3, 2, kernel, **options).double()  # type: ignore[arg-type]
    gram, rows = ShiftedGram(layer), []
    for n_images in (1, 3):
        part = torch.randn(n_images, 3, 7, 5).double()
        gram.add(part)
        rows.append(patches_of(layer, part)[0])
    unfolded = torch.cat(rows)
    torch.testing.assert_close(gram.matrix(), unfolded.T @ unfolded, rtol=1e-12, atol=1e-10)
    with torch.no_grad():  # and the patches are what the layer multiplies
        product = unfolded[-len(rows[-1]) :] @ layer.weight.flatten(1).T + layer.bias
        expected = layer(part).movedim(1, -1).reshape(product.shape)
    torch.testing.assert_close(product, expected)


@pytest.mark.parametrize("by_rows", [False, True])
@pytest.mark.parametrize("constant", [False, True])
@pytest.mark.parametrize("kind", ["conv", "strided", "grouped", "depthwise", "pointwise", "linear"])
def test_regression_is_that_of_least_squares(kind: str, constant: bool, by_rows: bool) -> None:
    layer: nn.Conv2d | nn.Linear = {
        "conv": nn.Conv2d(4, 6, 3, padding=1),
        "strided": nn.Conv2d(4, 6, 3, stride=2, padding=1),
        "grouped": nn.Conv2d(4, 6, 3, groups=2),
        "depthwise": nn.Conv2d(4, 4, 3, groups=4, padding=2),
        "pointwise": nn.Conv2d(4, 6, 1, stride=(1, 2)),
        "linear": nn.Linear(4, 6),
    }[kind].double()  # type: ignore[assignment]
    ridge, moments = 0.01, Moments(layer, by_rows)
    rows, explained = [], []
    for n_images in (3, 4):
        inputs = torch.randn(n_images, *((9, 4) if kind == "linear" else (4, 7, 6))).double() + 1
        residual = torch.randn_like(layer(inputs)).detach()
        moments.add(inputs, residual)
        rows.append(patches_of(layer, inputs))
        explained.append(residual.movedim(1, -1).flatten(0, -2) if kind != "linear" else
                         residual.flatten(0, 1))  # fmt: skip
    change = moments.solve(ridge, constant=constant)
    x, r = torch.cat(rows, 1), torch.cat(explained)
    groups, per_group = len(x), r.shape[1] // len(x)
    for g in range(groups):
        own = slice(g * per_group, (g + 1) * per_group)
        penalty = (ridge * x[g].square().sum() / x.shape[2]).sqrt() * torch.eye(x.shape[2])
        one = torch.ones(len(r), 1) if constant else torch.zeros(len(r), 0)
        left = torch.cat([x[g], one], 1)
        below = torch.cat([penalty, torch.zeros(len(penalty), one.shape[1])], 1)
        target = torch.cat([r[:, own], torch.zeros(len(penalty), per_group)])
        solution = torch.linalg.lstsq(torch.cat([left, below]), target).solution
        torch.testing.assert_close(change.weight[own].flatten(1).T, solution[: x.shape[2]])
        if constant:
            torch.testing.assert_close(change.constant[own], solution[-1])
        torch.testing.assert_close(change.before[own], r[:, own].square().sum(0))
        after = (r[:, own] - left @ solution).square().sum(0)
        torch.testing.assert_close(change.after[own], after)


def test_regression_on_columns_that_repeat_takes_the_smallest_change() -> None:
    layer, moments = nn.Linear(4, 1).double(), None
    inputs = torch.randn(50, 2).double().repeat(1, 2)
    moments = Moments(layer)
    moments.add(inputs, inputs.sum(1, keepdim=True))
    change = moments.solve(0.0)
    torch.testing.assert_close(change.weight, torch.ones(1, 4).double())
