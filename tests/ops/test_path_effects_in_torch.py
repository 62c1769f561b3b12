"""path_effects on threads, and inside torch's own machinery."""

from __future__ import annotations

import threading
from typing import Any

import pytest
import torch
from path_effects_layers import LAYERS, assert_agrees, conv_inputs, generator, strided
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from causalprune.ops import path_effects

# ---- threads -------------------------------------------------------------------------------------

# Each is more than 2^20 multiply-adds, below which no thread is started.
THREADED: dict[str, tuple[Any, ...]] = {
    "3x3": ((4, 20, 14, 14), 40, (3, 3), {"padding": 1}),
    "few inputs, outputs in chunks": ((6, 3, 16, 16), 90, (3, 3), {"padding": 1}),
    "groups": ((3, 24, 12, 12), 96, (3, 3), {"groups": 3}),
    "600 inputs": ((2, 600, 5, 5), 50, (1, 1), {}),
    "1100 outputs": ((2, 257, 2, 3), 1100, (1, 1), {}),
}


@pytest.mark.parametrize("layer", THREADED)
def test_same_bits_for_any_number_of_threads(isa: str, layer: str) -> None:
    x_shape, n_outputs, kernel, geometry = THREADED[layer]
    tensors = conv_inputs(x_shape, n_outputs, kernel, signed=True, **geometry)
    work = tensors["pre"][:, 0].numel() * tensors["weight"].numel()
    assert work > 1 << 20
    for activation in ("relu", "silu"):
        results = []
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            results.append(path_effects(*tensors.values(), activation=activation, **geometry))
        for other in results[1:]:
            assert torch.equal(results[0].edge, other.edge)
            assert torch.equal(results[0].unit, other.unit)


def test_agrees_with_the_oracle_on_several_threads() -> None:
    torch.set_num_threads(3)
    for x_shape, n_outputs, kernel, geometry in THREADED.values():
        assert_agrees(conv_inputs(x_shape, n_outputs, kernel, **geometry), **geometry)


def test_two_python_threads_at_once() -> None:
    problems = [conv_inputs((2, 17, 12, 12), 33, (3, 3), seed=seed) for seed in range(2)]
    expected = [path_effects(*tensors.values()) for tensors in problems]
    start = threading.Barrier(2)
    wrong: list[object] = []

    def run(which: int) -> None:
        start.wait()
        for _ in range(25):
            got = path_effects(*problems[which].values())
            if not (
                torch.equal(got.edge, expected[which].edge)
                and torch.equal(got.unit, expected[which].unit)
            ):
                wrong.append(which)

    workers = [threading.Thread(target=run, args=(which,)) for which in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert wrong == []
    assert not torch.equal(expected[0].edge, expected[1].edge)


# ---- torch around it -----------------------------------------------------------------------------


def operator_arguments(layer: str) -> tuple[Any, ...]:
    x_shape, n_outputs, kernel, geometry = LAYERS[layer]
    tensors = conv_inputs(x_shape, n_outputs, kernel, **geometry)

    def pair(name: str, default: int) -> list[int]:
        value = geometry.get(name, default)
        return [value, value] if isinstance(value, int) else list(value)

    tail = (pair("stride", 1), pair("padding", 0), pair("dilation", 1), geometry.get("groups", 1))
    return (*tensors.values(), "relu", *tail)


@pytest.mark.parametrize("statistics", ["all", "grad_weighted"])
@pytest.mark.parametrize("layer", ["15 to 33, 1x1", "3x1", "dilation 2x3", "4 groups"])
def test_opcheck(layer: str, statistics: str) -> None:
    x, weight, pre, grad, *rest = (*operator_arguments(layer), statistics)
    operator = torch.ops.causalprune.path_effects.default
    torch.library.opcheck(operator, (x, weight, pre, grad, *rest))
    torch.library.opcheck(operator, (strided(x, "channels_last"), weight, pre, None, *rest))


def test_fake_and_meta_tensors_carry_shape_dtype_and_device() -> None:
    with FakeTensorMode():
        fake = path_effects(
            torch.empty(5, 12, 9, 9), torch.empty(8, 3, 3, 3), torch.empty(5, 8, 7, 7), groups=4
        )
    meta = path_effects(
        torch.empty(5, 12, 9, 9, device="meta"),
        torch.empty(8, 3, 3, 3, device="meta"),
        torch.empty(5, 8, 7, 7, device="meta"),
        groups=4,
    )
    assert meta.edge.device.type == "meta" and fake.edge.device.type == "cpu"
    for got in (fake, meta):
        assert got.edge.shape == (8, 3, 4) and got.unit.shape == (5, 12)
        assert got.edge.dtype == got.unit.dtype == torch.float64
        assert got.edge.is_contiguous() and got.unit.is_contiguous()


def test_fake_tensors_of_one_statistic() -> None:
    with FakeTensorMode():
        fake = path_effects(
            torch.empty(5, 12, 9, 9),
            torch.empty(8, 3, 3, 3),
            torch.empty(5, 8, 7, 7),
            groups=4,
            statistics="grad_weighted",
        )
    assert fake.edge.shape == (8, 3, 1) and fake.unit.shape == (5, 12)


class Scored(nn.Module):
    """A layer that returns its output and the effects of its paths."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Conv2d(3, 17, 3, padding=1, bias=False)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        pre = self.layer(x)
        effects = path_effects(x, self.layer.weight, pre, activation="silu", padding=1)
        return nn.functional.silu(pre), effects.edge, 2.0 * effects.unit


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_compile_passes_through(backend: str) -> None:
    torch._dynamo.reset()
    model, x = Scored().eval(), torch.randn(2, 3, 8, 8, generator=generator(backend))
    compiled = torch.compile(model, backend=backend, fullgraph=True)
    with torch.no_grad():
        for got, wanted in zip(compiled(x), model(x), strict=True):
            torch.testing.assert_close(got, wanted)


def test_export_passes_through() -> None:
    model, x = Scored().eval(), torch.randn(2, 3, 8, 8, generator=generator("export"))
    with torch.no_grad():
        program = torch.export.export(model, (x,))
        assert any("causalprune.path_effects" in str(node.target) for node in program.graph.nodes)
        for got, wanted in zip(program.module()(x), model(x), strict=True):
            torch.testing.assert_close(got, wanted)


def test_inputs_that_require_grad() -> None:
    tensors = conv_inputs((2, 5, 6, 6), 7, (3, 3))
    plain = path_effects(*tensors.values())
    for tensor in tensors.values():
        tensor.requires_grad_()
    tracked = path_effects(*tensors.values())
    assert torch.equal(plain.edge, tracked.edge) and torch.equal(plain.unit, tracked.unit)
    with torch.no_grad():
        assert not path_effects(*tensors.values()).unit.requires_grad
    for tensor in tensors.values():
        assert tensor.grad is None


def test_backward_says_that_there_is_none() -> None:
    tensors = conv_inputs((1, 2, 4, 4), 3, (3, 3))
    tensors["weight"].requires_grad_()
    effects = path_effects(*tensors.values())
    with pytest.raises(NotImplementedError, match=r"causalprune::path_effects has no derivative"):
        effects.edge.sum().backward()
