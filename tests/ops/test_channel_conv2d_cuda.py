"""The channel-list CUDA kernel against float64; runs wherever a GPU and a CUDA build are at hand.

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
from causalprune.ops.channel_conv2d_cuda import (
    ChannelPlan,
    channel_conv2d_cuda,
    channel_plan_cuda,
)


def test_the_plan_packs_the_weight_and_finds_the_other_channels() -> None:
    weight = torch.randn(6, 2, 3, 5)
    inputs, outputs = torch.randperm(9)[:4], torch.randperm(10)[:6]
    plan = channel_plan_cuda(weight, inputs, outputs, 9, 10, groups=2)
    assert plan.weight.is_contiguous()
    for row in range(6):
        for column in range(2):
            packed = plan.weight[row // 3, :, :, column, row % 3]
            assert torch.equal(packed, weight[row, column])
    assert sorted(plan.others.tolist() + outputs.tolist()) == list(range(10))


@pytest.mark.parametrize(
    ("inputs", "outputs", "groups", "named"),
    [
        ([0, 5], [1], 1, "inputs"),
        ([0, -1], [1], 1, "inputs"),
        ([2, 2], [1], 1, "inputs"),
        ([0, 1], [4], 1, "outputs"),
        ([0, 1], [1], 2, "groups"),
        ([0, 1, 2], [1], 1, "weight"),
    ],
)
def test_the_plan_refuses_by_name(inputs, outputs, groups: int, named: str) -> None:
    with pytest.raises(InvalidArgumentError, match=f"^{named}: expected"):
        channel_plan_cuda(
            torch.ones(1, 2, 3, 3), torch.tensor(inputs), torch.tensor(outputs), 5, 4, groups
        )


needs_cuda = pytest.mark.skipif(
    not (_native.with_cuda and torch.cuda.is_available()),
    reason="needs a CUDA device and a build with CUDA kernels",
)


class Layer:
    """A drawn layer whose channels lie scattered in wider tensors."""

    def __init__(self, geometry: Geometry, more: int = 5) -> None:
        self.geometry = geometry
        narrow, self.weight, self.bias = draw(geometry)
        self.narrow = narrow
        self.n_outputs = geometry.outputs + more
        self.inputs = torch.randperm(geometry.inputs + more, device="cuda")[: geometry.inputs]
        self.outputs = torch.randperm(self.n_outputs, device="cuda")[: geometry.outputs]
        # What is not listed must not be read.
        self.x = narrow.new_full(
            (narrow.shape[0], geometry.inputs + more, *geometry.size), torch.nan
        )
        self.x[:, self.inputs] = narrow
        self.expected, self.size = definition(narrow, self.weight, self.bias, geometry)

    def plan(self) -> ChannelPlan:
        return channel_plan_cuda(
            self.weight,
            self.inputs,
            self.outputs,
            self.x.shape[1],
            self.n_outputs,
            self.geometry.groups,
        )

    def launch(
        self,
        residual: Tensor | None = None,
        activation: str = "none",
        plan: ChannelPlan | None = None,
        x: Tensor | None = None,
    ) -> Tensor:
        return channel_conv2d_cuda(
            self.x if x is None else x,
            self.weight,
            self.bias,
            residual,
            self.inputs,
            self.outputs,
            self.n_outputs,
            *self.geometry.options,
            activation,
            plan,
        )

    def others(self) -> list[int]:
        return sorted(set(range(self.n_outputs)) - set(self.outputs.tolist()))


@needs_cuda
@pytest.mark.parametrize("geometry", GEOMETRIES, ids=str)
def test_agrees_with_the_definition(geometry: Geometry) -> None:
    layer = Layer(geometry)
    found = layer.launch()
    agree(found[:, layer.outputs], layer.expected, layer.size)
    assert not found[:, layer.others()].any()


@needs_cuda
@pytest.mark.parametrize("geometry", [GEOMETRIES[1], GEOMETRIES[10]], ids=str)
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_ends_with_residual_and_activation(activation: str, geometry: Geometry) -> None:
    layer = Layer(geometry)
    residual = 3 * torch.randn_like(layer.launch())
    found = layer.launch(residual, activation)
    wide = residual.double().cpu()
    of_listed = wide[:, layer.outputs.cpu()]
    expected = activated(layer.expected + of_listed, activation)
    agree(found[:, layer.outputs], expected, layer.size + of_listed.abs())
    others = layer.others()
    agree(found[:, others], activated(wide[:, others], activation), wide[:, others].abs())


@needs_cuda
def test_takes_any_strides() -> None:
    layer = Layer(GEOMETRIES[3])
    expected = layer.launch()
    last = layer.x.contiguous(memory_format=torch.channels_last)
    assert torch.equal(layer.launch(x=last), expected)
    wide = torch.randn(2 * layer.x.shape[0], *layer.x.shape[1:], device="cuda")
    wide[::2] = layer.x
    assert torch.equal(layer.launch(x=wide[::2]), expected)


@needs_cuda
def test_non_finite_values_go_through() -> None:
    layer = Layer(Geometry(2, 8, 16, (12, 13)))
    layer.x[1, layer.inputs[2], 5, 6] = torch.nan
    found = layer.launch(activation="relu")[:, layer.outputs]
    assert found[0].isfinite().all()
    assert found[1, :, 4:7, 5:8].isnan().all()
    assert found[1, :, 8:].isfinite().all()


@needs_cuda
def test_a_plan_serves_several_calls_on_a_side_stream() -> None:
    layer = Layer(GEOMETRIES[2])
    expected, plan = layer.launch(), layer.plan()
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        found = [layer.launch(plan=plan) for _ in range(3)]
    stream.synchronize()
    assert all(torch.equal(each, expected) for each in found)


@needs_cuda
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")
def test_runs_on_the_device_of_its_tensors() -> None:
    layer = Layer(GEOMETRIES[1])
    expected = layer.launch().cpu()
    for name in ("x", "weight", "bias", "inputs", "outputs"):
        setattr(layer, name, getattr(layer, name).to("cuda:1"))
    found = layer.launch()
    assert found.device.index == 1
    assert torch.equal(found.cpu(), expected)


@needs_cuda
def test_empty_lists_are_fine() -> None:
    layer = Layer(GEOMETRIES[1])
    residual = torch.randn_like(layer.launch())
    nothing = layer.inputs[:0]
    rest = (residual, nothing, nothing, layer.n_outputs, *layer.geometry.options, "relu")
    found = channel_conv2d_cuda(layer.x, layer.weight[:0, :0], None, *rest)
    assert torch.equal(found, residual.relu())
    rest = (None, nothing, layer.outputs, layer.n_outputs, *layer.geometry.options, "none")
    found = channel_conv2d_cuda(layer.x, layer.weight[:, :0], layer.bias, *rest)
    assert bool((found[:, layer.outputs] == layer.bias[:, None, None]).all())
    assert layer.launch(x=layer.x[:0]).shape == (0, layer.n_outputs, 14, 14)


@needs_cuda
def test_refuses_what_does_not_fit_by_name() -> None:
    layer = Layer(GEOMETRIES[1])
    plan = layer.plan()
    with pytest.raises(InvalidArgumentError, match=r"^x: expected"):
        layer.launch(x=layer.x.double())
    with pytest.raises(InvalidArgumentError, match=r"^residual: expected"):
        layer.launch(residual=layer.x)
    with pytest.raises(InvalidArgumentError, match=r"^activation: expected"):
        layer.launch(activation="tanh")
    with pytest.raises(InvalidArgumentError, match=r"^plan: expected"):
        layer.launch(plan=plan, x=layer.x[:, 1:])
