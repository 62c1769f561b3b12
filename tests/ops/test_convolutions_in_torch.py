"""sparse_conv2d and channel_conv2d inside torch's own machinery, and their derivatives."""

from __future__ import annotations

import threading
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from convolution_cases import ACTIVATIONS, channel_problem, sparse_problem
from path_effects_layers import generator
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from causalprune.ops import channel_conv2d, sparse_conv2d


def operator_options(options: dict[str, Any], activation: str) -> tuple[Any, ...]:
    pairs = [
        list(options.get(name, (default, default)))
        for name, default in (("stride", 1), ("padding", 0), ("dilation", 1))
    ]
    return (*pairs, options.get("groups", 1), activation)


@pytest.mark.parametrize(
    ("layer", "activation"),
    [("3x3", "relu"), ("groups, stride 3", "silu"), ("1x1, stride 2", "none")],
)
def test_opcheck(layer: str, activation: str) -> None:
    tensors, options = sparse_problem(layer, seed="opcheck")
    x, weight, bias, residual = tensors.values()
    rest = operator_options(options, activation)
    operator = torch.ops.causalprune.sparse_conv2d.default
    for tensor in (x, weight, bias, residual):
        tensor.requires_grad_()
    torch.library.opcheck(operator, (x, weight, bias, residual, *rest))
    last = x.detach().contiguous(memory_format=torch.channels_last)
    torch.library.opcheck(operator, (last, weight.detach(), None, None, *rest))


def test_opcheck_of_channel_lists() -> None:
    tensors, options = channel_problem("3x3", seed="opcheck")
    x, weight, bias, residual, inputs, outputs, n_outputs = tensors.values()
    rest = (inputs, outputs, n_outputs, *operator_options(options, "relu"))
    operator = torch.ops.causalprune.channel_conv2d.default
    for tensor in (x, weight, bias, residual):
        tensor.requires_grad_()
    torch.library.opcheck(operator, (x, weight, bias, residual, *rest))
    last = x.detach().contiguous(memory_format=torch.channels_last)
    torch.library.opcheck(operator, (last, weight.detach(), None, None, *rest))


def test_fake_and_meta_tensors_carry_shape_dtype_and_strides() -> None:
    x, weight = torch.empty(5, 12, 9, 9, device="meta"), torch.empty(8, 3, 3, 3, device="meta")
    got = sparse_conv2d(x, weight, groups=4, stride=2)
    assert got.device.type == "meta" and got.shape == (5, 8, 4, 4) and got.is_contiguous()
    with FakeTensorMode():
        x = torch.empty(5, 12, 9, 9).contiguous(memory_format=torch.channels_last)
        lists = torch.empty(6, dtype=torch.int64), torch.empty(8, dtype=torch.int64)
        got = channel_conv2d(x, torch.empty(8, 6, 3, 3), None, *lists, 20, padding=1)
    assert got.device.type == "cpu" and got.shape == (5, 20, 9, 9)
    assert got.is_contiguous(memory_format=torch.channels_last)


class Layers(nn.Module):
    """Both operators, one behind the other."""

    def __init__(self) -> None:
        super().__init__()
        random = generator("layers")
        weight = torch.randn(16, 3, 3, 3, generator=random)
        weight[torch.rand(weight.shape, generator=random) < 0.7] = 0
        self.first = nn.Parameter(weight)
        self.second = nn.Parameter(torch.randn(5, 7, 1, 1, generator=random))
        self.register_buffer("inputs", torch.tensor([3, 0, 15, 4, 9, 10, 2]))
        self.register_buffer("outputs", torch.tensor([7, 1, 0, 12, 4]))

    def forward(self, x: Tensor) -> Tensor:
        wide = sparse_conv2d(x, self.first, padding=1, activation="relu")
        lists = self.inputs, self.outputs, 16
        return channel_conv2d(wide, self.second, None, *lists, residual=wide, activation="silu")


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_compile_passes_through(backend: str) -> None:
    torch._dynamo.reset()
    model, x = Layers(), torch.randn(2, 3, 9, 9, generator=generator(backend))
    expected = model(x)
    expected.square().sum().backward()
    wanted = {name: parameter.grad for name, parameter in model.named_parameters()}
    model.zero_grad()
    compiled = torch.compile(model, backend=backend, fullgraph=True)
    got = compiled(x)
    torch.testing.assert_close(got, expected)
    got.square().sum().backward()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, wanted[name])
    with torch.no_grad():
        torch.testing.assert_close(compiled(x), expected)
        model.second.zero_()
        torch.testing.assert_close(compiled(x), model(x))
        assert not torch.allclose(compiled(x), expected)


def test_export_passes_through() -> None:
    model, x = Layers().eval(), torch.randn(2, 3, 9, 9, generator=generator("export"))
    with torch.no_grad():
        program = torch.export.export(model, (x,))
        found = {str(node.target) for node in program.graph.nodes}
        assert {"causalprune.sparse_conv2d.default", "causalprune.channel_conv2d.default"} <= found
        torch.testing.assert_close(program.module()(x), model(x))


def test_inference_mode() -> None:
    tensors, options = sparse_problem("3x3", seed="inference")
    whole = sparse_conv2d(**tensors, **options)
    with torch.inference_mode():
        assert torch.equal(sparse_conv2d(**tensors, **options), whole)
        made_here = tensors["weight"].clone()
        for scale in (1, 2):  # torch does not count this write
            got = sparse_conv2d(tensors["x"], made_here.mul_(scale), **options)
            torch.testing.assert_close(
                got, F.conv2d(tensors["x"], made_here, **options), rtol=1e-4, atol=1e-4
            )
    assert torch.equal(sparse_conv2d(**tensors, **options), whole)


def test_two_python_threads_at_once() -> None:
    problems = [sparse_problem("3x3", seed=seed) for seed in range(2)]
    shared = problems[0][0]["weight"]
    expected = [F.conv2d(tensors["x"], shared, **options) for tensors, options in problems]
    start = threading.Barrier(4)
    wrong: list[object] = []

    def run(which: int) -> None:
        tensors, options = problems[which % 2]
        x = tensors["x"]
        start.wait()
        for images in [slice(None), slice(1), slice(1, None)] * 6:
            got = sparse_conv2d(x[images], shared, **options)
            if not torch.allclose(got, expected[which % 2][images], rtol=1e-4, atol=1e-4):
                wrong.append((which, images))

    workers = [threading.Thread(target=run, args=(which,)) for which in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert wrong == []


# ---- derivatives ---------------------------------------------------------------------------------


def away_from_kinks(value: Tensor) -> Tensor:
    """Scaled so that few activations lie near 0, 6 or 3."""
    return 2 * value.double()


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_gradients_are_those_of_the_dense_convolution(activation: str) -> None:
    tensors, options = sparse_problem("groups, stride 3", density=1.0, seed=activation)
    given = [away_from_kinks(tensor).requires_grad_() for tensor in tensors.values()]

    def run(x: Tensor, weight: Tensor, bias: Tensor, residual: Tensor) -> Tensor:
        out = sparse_conv2d(x, weight, bias, residual=residual, **options, activation=activation)
        return out[:, :, :2, 1]

    assert torch.autograd.gradcheck(run, given, fast_mode=True)
    if activation in ("none", "silu", "gelu"):
        assert torch.autograd.gradgradcheck(run, given, fast_mode=True)


@pytest.mark.parametrize("activation", ["relu6", "hardswish", "silu"])
def test_gradients_of_channel_lists(activation: str) -> None:
    tensors, options = channel_problem("groups, stride 3", seed=activation)
    names = ("x", "weight", "bias", "residual")
    given = [away_from_kinks(tensors.pop(name)).requires_grad_() for name in names]

    def run(x: Tensor, weight: Tensor, bias: Tensor, residual: Tensor) -> Tensor:
        named = dict(zip(names, (x, weight, bias, residual), strict=True))
        return channel_conv2d(**named, **tensors, **options, activation=activation)[:, :, 1, :2]

    assert torch.autograd.gradcheck(run, given, fast_mode=True)


def test_zero_weights_have_no_gradient() -> None:
    tensors, options = sparse_problem("3x3")
    weight = tensors["weight"].requires_grad_()
    sparse_conv2d(tensors["x"], weight, **options).square().sum().backward()
    dense = weight.detach().clone().requires_grad_()
    F.conv2d(tensors["x"], dense, **options).square().sum().backward()
    assert weight.grad is not None and dense.grad is not None
    zero = weight == 0
    assert weight.grad[zero].count_nonzero() == 0 and dense.grad[zero].count_nonzero() > 100
    torch.testing.assert_close(weight.grad[~zero], dense.grad[~zero], rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("wanted", ["x", "weight", "bias", "residual"])
def test_gradients_one_at_a_time(wanted: str) -> None:
    tensors, options = sparse_problem("1x1, stride 2", density=1.0)
    tensors[wanted].requires_grad_()
    sparse_conv2d(**tensors, **options, activation="relu").sum().backward()
    got = tensors[wanted].grad
    tensors[wanted].grad = None
    residual = tensors.pop("residual")
    (F.conv2d(*tensors.values(), **options) + residual).relu().sum().backward()
    expected = residual.grad if wanted == "residual" else tensors[wanted].grad
    torch.testing.assert_close(got, expected)


def test_gradients_of_empty_tensors() -> None:
    x = torch.randn(0, 3, 5, 5, requires_grad=True)
    weight = torch.randn(4, 3, 3, 3, requires_grad=True)
    sparse_conv2d(x, weight).sum().backward()
    assert x.grad is not None and x.grad.shape == x.shape
    assert weight.grad is not None and weight.grad.count_nonzero() == 0
