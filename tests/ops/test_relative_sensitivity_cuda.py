"""relative_sensitivity's CUDA kernels; they run wherever a GPU and a CUDA build are at hand."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from causalprune import _native, reference
from causalprune.ops import relative_sensitivity

pytestmark = pytest.mark.skipif(
    not (_native.with_cuda and torch.cuda.is_available()),
    reason="needs a CUDA device and a build with CUDA kernels",
)

AGGREGATES = ("mean", "max")

# x, outputs, kernel, options: every blocking, several blocks of each, images longer than a run
LAYERS: dict[str, tuple[tuple[int, int, int, int], int, tuple[int, int], dict[str, Any]]] = {
    "1 to 1": ((1, 1, 1, 1), 1, (1, 1), {}),
    "15 to 33, 1x1": ((2, 15, 5, 6), 33, (1, 1), {}),
    "97 to 200, 1x1 stride 2": ((3, 97, 15, 14), 200, (1, 1), {"stride": 2}),
    "3 to 97, 3x3": ((2, 3, 27, 26), 97, (3, 3), {"padding": 1}),
    "70 to 16, 3x3": ((2, 70, 9, 9), 16, (3, 3), {}),
    "7x7 stride 2": ((3, 3, 23, 22), 16, (7, 7), {"stride": 2, "padding": 3}),
    "3x1": ((2, 4, 17, 6), 15, (3, 1), {"padding": (1, 0), "stride": (2, 1)}),
    "dilation 2x3": ((2, 3, 11, 13), 15, (3, 3), {"dilation": (2, 3), "padding": (2, 1)}),
    "4 groups": ((2, 12, 6, 7), 20, (3, 3), {"groups": 4, "padding": 1}),
    "depthwise": ((2, 33, 7, 7), 33, (3, 3), {"groups": 33, "padding": 1}),
    "50 images": ((50, 9, 3, 2), 40, (2, 2), {}),
}


def layer(name: str, *, signed: bool = True) -> tuple[Tensor, Tensor, dict[str, Any]]:
    shape, n_outputs, kernel, options = LAYERS[name]
    torch.manual_seed(len(name))
    x = torch.randn(shape, device="cuda")
    groups = options.get("groups", 1)
    weight = torch.randn(n_outputs, shape[1] // groups, *kernel, device="cuda")
    return x if signed else x.relu(), weight, options


def agree(found: Tensor, x: Tensor, weight: Tensor, aggregate: str, options: dict) -> None:
    wanted = reference.relative_sensitivity(x.cpu(), weight.cpu(), aggregate=aggregate, **options)
    assert found.device == x.device and found.dtype == torch.float32
    torch.testing.assert_close(found.cpu().double(), wanted, rtol=3e-5, atol=0.0)


@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("aggregate", AGGREGATES)
@pytest.mark.parametrize("name", LAYERS)
def test_agrees_with_the_definition(name: str, aggregate: str, signed: bool) -> None:
    x, weight, options = layer(name, signed=signed)
    found = relative_sensitivity(x, weight, aggregate=aggregate, **options)
    agree(found, x, weight, aggregate, options)


@pytest.mark.parametrize("aggregate", AGGREGATES)
def test_a_batch_that_the_workspace_does_not_hold_at_once(aggregate: str) -> None:
    x = torch.randn(70, 4, 64, 64, device="cuda")
    weight = torch.randn(40, 4, 3, 3, device="cuda")
    size = _native.relative_sensitivity_cuda_workspace(
        x.shape, weight.shape, (1, 1), (1, 1), (1, 1), 1
    )
    assert size < 70 * 2 * 40 * 64 * 64
    found = relative_sensitivity(x, weight, aggregate=aggregate, padding=1)
    on_cpu = relative_sensitivity(x.cpu(), weight.cpu(), aggregate=aggregate, padding=1)
    torch.testing.assert_close(found.cpu(), on_cpu, rtol=3e-5, atol=0.0)


@pytest.mark.parametrize("aggregate", AGGREGATES)
@pytest.mark.parametrize("shape", [(300, 97), (3, 21, 97), (5, 1, 15)])
def test_linear_layers(shape: tuple[int, ...], aggregate: str) -> None:
    x, weight = torch.randn(shape, device="cuda"), torch.randn(130, shape[-1], device="cuda")
    found = relative_sensitivity(x, weight, aggregate=aggregate)
    on_cpu = relative_sensitivity(x.cpu(), weight.cpu(), aggregate=aggregate)
    torch.testing.assert_close(found.cpu(), on_cpu, rtol=3e-5, atol=0.0)


def test_takes_any_strides() -> None:
    x, weight, options = layer("15 to 33, 1x1")
    expected = relative_sensitivity(x, weight, **options)
    last = x.contiguous(memory_format=torch.channels_last)
    wide = torch.randn(2 * x.shape[0], *x.shape[1:], device="cuda")
    wide[::2] = x
    for strided in (last, wide[::2]):
        assert torch.equal(relative_sensitivity(strided, weight, **options), expected)


@pytest.mark.parametrize("aggregate", AGGREGATES)
def test_is_deterministic_on_any_stream(aggregate: str) -> None:
    x, weight, options = layer("97 to 200, 1x1 stride 2")
    expected = relative_sensitivity(x, weight, aggregate=aggregate, **options)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        found = [relative_sensitivity(x, weight, aggregate=aggregate, **options) for _ in range(3)]
    stream.synchronize()
    assert all(torch.equal(each, expected) for each in found)


def test_empty() -> None:
    weight = torch.randn(4, 3, 3, 3, device="cuda")
    for shape in ((0, 3, 5, 5), (2, 3, 2, 2)):
        found = relative_sensitivity(torch.ones(shape, device="cuda"), weight)
        assert found.shape == weight.shape and not found.any()


def test_sums_at_the_threshold() -> None:
    weight = torch.tensor([[1.0, -1.0], [2.0, 3.0]], device="cuda")
    tiny = torch.tensor([[2.0**-23, 0.0]], device="cuda")
    assert relative_sensitivity(tiny, weight).tolist() == [[0.0, 0.0], [1.0, 0.0]]


@pytest.mark.parametrize("aggregate", AGGREGATES)
@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_non_finite_values_show_in_the_sensitivities(value: float, aggregate: str) -> None:
    x, weight, options = layer("4 groups")
    x[1, 4, 3, 3] = value  # of the second group
    found = relative_sensitivity(x, weight, aggregate=aggregate, **options)
    assert found[5:10].isnan().all()
    assert found[:5].isfinite().all() and found[10:].isfinite().all()
    x, weight, options = layer("4 groups")
    weight[7, 1, 1, 1] = value
    found = relative_sensitivity(x, weight, aggregate=aggregate, **options)
    assert found[7, 1, 1, 1].isnan()
    assert found[:7].isfinite().all() and found[8:].isfinite().all()


def test_wrong_shapes_name_the_argument() -> None:
    x, weight, _ = layer("3 to 97, 3x3")
    with pytest.raises(ValueError, match=r"^weight: expected"):
        relative_sensitivity(x[:, 1:], weight)
    with pytest.raises(ValueError, match=r"^weight: expected"):
        relative_sensitivity(x, weight.cpu())


def test_opcheck() -> None:
    x, weight, _ = layer("4 groups")
    operator = torch.ops.causalprune.relative_sensitivity.default
    torch.library.opcheck(operator, (x, weight, "mean", [1, 1], [1, 1], [1, 1], 4))
