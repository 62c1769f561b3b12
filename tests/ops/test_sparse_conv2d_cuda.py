"""The sparse CUDA kernel against float64; runs wherever a GPU and a CUDA build are at hand.

The plan is plain torch and is tested everywhere.
"""

from __future__ import annotations

import pytest
import torch
from convolution_cuda_cases import (
    ACTIVATIONS,
    GEOMETRIES,
    Geometry,
    activated,
    agree,
    definition,
    draw,
)
from torch import Tensor

from causalprune import _native
from causalprune.errors import InvalidArgumentError
from causalprune.ops.sparse_conv2d_cuda import SparsePlan, sparse_conv2d_cuda, sparse_plan_cuda


def listed_weight(plan: SparsePlan) -> Tensor:
    """The dense weight that a plan stands for."""
    dense = torch.zeros(plan.channel.shape[0], plan.inputs_per_group, *plan.kernel)
    for slot, channel in enumerate(plan.channel.tolist()):
        for entry in plan.entries[plan.row_start[slot] : plan.row_start[slot + 1]]:
            code = int(entry[0])
            place = (code >> 12, code >> 6 & 63, code & 63)
            assert dense[channel][place] == 0
            dense[channel][place] = entry[1].view(torch.float32)
    return dense


@pytest.mark.parametrize("groups", [1, 3])
def test_the_plan_lists_every_nonzero_once(groups: int) -> None:
    weight = torch.randn(12, 5, 3, 2).relu()
    weight[4] = 0
    weight[7, 2, 1, 1] = torch.nan
    plan = sparse_plan_cuda(weight, groups)
    assert torch.equal(listed_weight(plan).nan_to_num(7.0), weight.nan_to_num(7.0))
    counts = plan.row_start.diff()
    for group in range(groups):
        part = slice(group * 12 // groups, (group + 1) * 12 // groups)
        assert bool((plan.channel[part] * groups // 12 == group).all())
        assert bool((counts[part].diff() <= 0).all())
    for first, last in zip(plan.row_start[:-1], plan.row_start[1:], strict=True):
        assert bool((plan.entries[first:last, 0].diff() > 0).all())


def test_the_plan_of_nothing_is_empty() -> None:
    plan = sparse_plan_cuda(torch.zeros(4, 3, 3, 3))
    assert plan.entries.shape == (0, 2)
    assert plan.row_start.tolist() == [0] * 5


@pytest.mark.parametrize(
    ("weight", "groups", "named"),
    [
        (torch.ones(4, 2, 3, 3, dtype=torch.float64), 1, "weight"),
        (torch.ones(4, 2), 1, "weight"),
        (torch.ones(4, 2, 65, 1), 1, "weight"),
        (torch.ones(4, 2, 3, 3), 3, "groups"),
    ],
)
def test_the_plan_refuses_by_name(weight: Tensor, groups: int, named: str) -> None:
    with pytest.raises(InvalidArgumentError, match=f"^{named}: expected"):
        sparse_plan_cuda(weight, groups)


needs_cuda = pytest.mark.skipif(
    not (_native.with_cuda and torch.cuda.is_available()),
    reason="needs a CUDA device and a build with CUDA kernels",
)


def pruned(weight: Tensor, sparsity: float) -> Tensor:
    return weight * (torch.rand_like(weight) >= sparsity)


def launch(
    x: Tensor,
    weight: Tensor,
    geometry: Geometry,
    bias: Tensor | None = None,
    residual: Tensor | None = None,
    activation: str = "none",
    plan: SparsePlan | None = None,
) -> Tensor:
    return sparse_conv2d_cuda(x, weight, bias, residual, *geometry.options, activation, plan)


@needs_cuda
@pytest.mark.parametrize("sparsity", [0.0, 0.6, 0.95, 1.0])
@pytest.mark.parametrize("geometry", GEOMETRIES, ids=str)
def test_agrees_with_the_definition(geometry: Geometry, sparsity: float) -> None:
    x, weight, bias = draw(geometry)
    weight = pruned(weight, sparsity)
    weight[geometry.outputs // 2] = 0
    found = launch(x, weight, geometry, bias)
    agree(found, *definition(x, weight, bias, geometry))


@needs_cuda
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_ends_with_residual_and_activation(activation: str) -> None:
    geometry = GEOMETRIES[1]
    x, weight, bias = draw(geometry)
    expected, size = definition(x, weight, bias, geometry)
    residual = 3 * torch.randn(expected.shape, device="cuda")
    found = launch(x, weight, geometry, bias, residual, activation)
    expected = activated(expected + residual.double().cpu(), activation)
    agree(found, expected, size + residual.double().cpu().abs())


@needs_cuda
@pytest.mark.parametrize("geometry", [GEOMETRIES[3], GEOMETRIES[5]], ids=str)
def test_takes_any_strides(geometry: Geometry) -> None:
    x, weight, bias = draw(geometry)
    expected = launch(x, weight, geometry, bias)
    wide = torch.randn(2 * x.shape[0], x.shape[1], *x.shape[2:], device="cuda")
    wide[1::2] = x
    assert torch.equal(launch(wide[1::2], weight, geometry, bias), expected)
    last = x.contiguous(memory_format=torch.channels_last)
    assert torch.equal(launch(last, weight, geometry, bias), expected)


@needs_cuda
def test_non_finite_values_go_where_weights_read_them() -> None:
    geometry = Geometry(2, 6, 40, (12, 13))
    x, weight, _ = draw(geometry)
    weight[7, 2] = 0
    x[1, 2, 5, 6] = torch.inf
    found = launch(x, weight, geometry)
    assert found[0].isfinite().all()
    assert found[1, 7].isfinite().all()  # none of its weights reads the channel
    beside = [k for k in range(40) if k != 7]
    assert (~found[1, beside, 4:7, 5:8].isfinite()).all()
    assert found[1, beside, 8:].isfinite().all()
    weight[3, 0, 0, 0] = torch.nan
    assert launch(x, weight, geometry)[0, 3].isnan().any()


@needs_cuda
def test_a_plan_serves_several_calls_on_a_side_stream() -> None:
    geometry = GEOMETRIES[2]
    x, weight, bias = draw(geometry)
    weight = pruned(weight, 0.9)
    plan = sparse_plan_cuda(weight)
    expected = launch(x, weight, geometry, bias)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        found = [launch(x, weight, geometry, bias, plan=plan) for _ in range(3)]
    stream.synchronize()
    assert all(torch.equal(each, expected) for each in found)


@needs_cuda
def test_can_be_captured_in_a_graph() -> None:
    geometry = GEOMETRIES[1]
    x, weight, bias = draw(geometry)
    plan = sparse_plan_cuda(weight)
    launch(x, weight, geometry, bias, plan=plan)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        found = launch(x, weight, geometry, bias, plan=plan)
    x.copy_(torch.randn_like(x))
    graph.replay()
    agree(found, *definition(x, weight, bias, geometry))


@needs_cuda
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")
def test_runs_on_the_device_of_its_tensors() -> None:
    geometry = GEOMETRIES[1]
    x, weight, bias = draw(geometry)
    expected = launch(x, weight, geometry, bias)
    there = launch(x.to("cuda:1"), weight.to("cuda:1"), geometry, bias.to("cuda:1"))
    assert there.device.index == 1
    assert torch.equal(there.cpu(), expected.cpu())
    with pytest.raises(InvalidArgumentError, match=r"^weight: expected a tensor on cuda:0"):
        launch(x, weight.to("cuda:1"), geometry)


@needs_cuda
def test_empty_tensors_are_fine() -> None:
    geometry = GEOMETRIES[1]
    x, weight, bias = draw(geometry)
    assert launch(x[:0], weight, geometry).shape == (0, 33, 14, 14)
    assert launch(x, weight[:0], geometry).shape == (3, 0, 14, 14)
    assert bool((launch(x[:, :0], weight[:, :0], geometry, bias) == bias[:, None, None]).all())


@needs_cuda
def test_refuses_what_does_not_fit_by_name() -> None:
    geometry = GEOMETRIES[1]
    x, weight, bias = draw(geometry)
    good = sparse_plan_cuda(weight)
    for named, call in {
        "x": lambda: launch(x.cpu(), weight, geometry),
        "weight": lambda: launch(x, weight[:, :-1], geometry),
        "bias": lambda: launch(x, weight, geometry, bias[:-1]),
        "residual": lambda: launch(x, weight, geometry, bias, x),
        "activation": lambda: launch(x, weight, geometry, activation="tanh"),
        "plan": lambda: launch(x, weight[:-1], geometry, plan=good),
    }.items():
        with pytest.raises(InvalidArgumentError, match=f"^{named}: expected"):
            call()
