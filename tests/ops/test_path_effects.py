from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from causalprune import _native, reference
from causalprune.ops import EDGE_STATISTICS, PathEffects, path_effects

ACTIVATIONS = ("identity", "relu", "gelu", "silu", "hardswish")
ISAS = tuple(_native.available_isas())


@pytest.fixture(params=ISAS)
def isa(request: pytest.FixtureRequest) -> Iterator[str]:
    with instruction_set(request.param):
        yield request.param


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """The oracle's many small convolutions are fastest on one thread."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@contextmanager
def instruction_set(name: str) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CAUSALPRUNE_ISA", name)
        assert _native.chosen_isa() == name
        yield


def generator(*seed: object) -> torch.Generator:
    return torch.Generator().manual_seed(sum(map(ord, repr(seed))))


def conv_inputs(
    x_shape: tuple[int, int, int, int],
    n_outputs: int,
    kernel: tuple[int, int],
    *,
    signed: bool = False,
    seed: object = 0,
    **geometry: Any,
) -> dict[str, Tensor]:
    """x (behind a ReLU unless signed), weight, pre and grad of a convolution."""
    random = generator(x_shape, n_outputs, kernel, seed)
    x = torch.randn(x_shape, generator=random)
    x = x if signed else x.relu()
    inner = x_shape[1] // geometry.get("groups", 1)
    weight = torch.randn(n_outputs, inner, *kernel, generator=random)
    weight /= max(1, inner * kernel[0] * kernel[1]) ** 0.5
    pre = nn.functional.conv2d(x, weight, **geometry)
    pre = pre + 0.5 * torch.randn(pre.shape, generator=random)
    return {"x": x, "weight": weight, "pre": pre, "grad": torch.randn(pre.shape, generator=random)}


def as_images(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """A linear layer's tensors as those of a 1x1 convolution, as the oracle takes them."""
    images = {}
    for name, tensor in tensors.items():
        if tensor.ndim == 3:
            tensor = tensor.transpose(1, 2)
        images[name] = tensor[(...,) + (None,) * (4 - tensor.ndim)]
    return images


def unit_scale(tensors: dict[str, Tensor], grad: Tensor | None, **options: Any) -> Tensor:
    """No less than the sum of |grad d| behind each unit effect [N, I]."""
    x, weight, pre = tensors["x"], tensors["weight"], tensors["pre"]
    groups = options.get("groups", 1)
    rows = []
    for n in range(x.shape[0]):
        edge, _ = reference.path_effects(x[n : n + 1], weight, pre[n : n + 1], **options)
        rows.append(edge[..., 1].unflatten(0, (groups, -1)).sum(1).flatten())
    largest = 1.0 if grad is None or grad.numel() == 0 else grad.abs().max().item()
    return torch.stack(rows) * largest if rows else x.new_zeros(0, x.shape[1]).double()


def tolerance(scale: Tensor, dims: tuple[int, ...]) -> Tensor:
    """1e-5 of each sum's own terms, and 1e-6 of the layer's largest.

    The second term is for edges of nearly no weight, where phi(pre - c) - phi(pre) cancels.
    """
    if scale.numel() == 0:
        return scale
    return 1e-5 * scale + 1e-6 * scale.amax(dims, keepdim=True)


def assert_agrees(tensors: dict[str, Tensor], *, with_grad: bool = True, **options: Any) -> None:
    """The operator on every instruction set against the float64 oracle, on the same tensors."""
    images = as_images(tensors) if tensors["weight"].ndim == 2 else tensors
    grad = images["grad"] if with_grad else None
    edge, unit = reference.path_effects(
        images["x"], images["weight"], images["pre"], grad, **options
    )
    largest = 1.0 if grad is None or grad.numel() == 0 else grad.abs().max().item()
    absolute, square = edge[..., 1], edge[..., 2]
    edge_scale = torch.stack([absolute, absolute, square, absolute * largest], -1)
    edge_bound = tolerance(edge_scale, (0, 1))
    unit_bound = tolerance(unit_scale(images, grad, **options), (0, 1))
    given_grad = tensors["grad"] if with_grad else None
    for isa in ISAS:
        with instruction_set(isa):
            got = path_effects(
                tensors["x"], tensors["weight"], tensors["pre"], given_grad, **options
            )
        assert got.edge.dtype == got.unit.dtype == torch.float64
        assert got.edge.shape == edge.shape and got.unit.shape == unit.shape
        assert got.edge.is_contiguous() and got.unit.is_contiguous()
        excess = (got.edge - edge).abs() - edge_bound
        assert (excess <= 0).all(), f"{isa}: edge off by {excess.max().item()} more than allowed"
        excess = (got.unit - unit).abs() - unit_bound
        assert (excess <= 0).all(), f"{isa}: unit off by {excess.max().item()} more than allowed"


# ---- against the oracle --------------------------------------------------------------------------

LAYERS: dict[str, tuple[Any, ...]] = {
    "1 to 1": ((1, 1, 1, 1), 1, (1, 1), {}),
    "15 to 33, 1x1": ((2, 15, 5, 6), 33, (1, 1), {}),
    "97 to 15, 1x1": ((1, 97, 4, 4), 15, (1, 1), {}),
    "3 to 97, 3x3": ((2, 3, 7, 6), 97, (3, 3), {"padding": 1}),
    "33 to 15, 3x3": ((1, 33, 9, 9), 15, (3, 3), {}),
    "5x5": ((2, 3, 9, 11), 17, (5, 5), {"padding": 2}),
    "7x7 stride 2": ((1, 3, 23, 22), 16, (7, 7), {"stride": 2, "padding": 3}),
    "1x3": ((2, 4, 6, 17), 15, (1, 3), {"padding": (0, 1)}),
    "3x1": ((2, 4, 17, 6), 15, (3, 1), {"padding": (1, 0), "stride": (2, 1)}),
    "1x1 stride 2": ((2, 5, 9, 8), 17, (1, 1), {"stride": 2}),
    "1x1 padded": ((2, 5, 3, 4), 17, (1, 1), {"padding": (2, 1)}),
    "stride 1x3": ((1, 4, 9, 20), 18, (3, 3), {"stride": (1, 3), "padding": (0, 2)}),
    "dilation 2x3": ((2, 3, 11, 13), 15, (3, 3), {"dilation": (2, 3), "padding": (2, 1)}),
    "4 groups": ((2, 12, 6, 7), 20, (3, 3), {"groups": 4, "padding": 1}),
    "3 groups, 1x1": ((2, 9, 5, 5), 51, (1, 1), {"groups": 3}),
    "depthwise": ((2, 33, 7, 7), 33, (3, 3), {"groups": 33, "padding": 1}),
    "depthwise times 2": ((1, 15, 8, 7), 30, (3, 3), {"groups": 15, "stride": 2}),
    "tile spans images": ((33, 5, 2, 3), 15, (1, 1), {}),
    "one pixel, 3x3": ((5, 6, 1, 1), 17, (3, 3), {"padding": 1}),
    "wide, 3x3": ((1, 2, 4, 301), 15, (3, 3), {"padding": 1}),
    "wide, 1x1": ((1, 3, 3, 301), 33, (1, 1), {}),
    "many positions": ((2, 1, 70, 70), 3, (3, 3), {}),
    "300 inputs": ((2, 300, 3, 3), 17, (3, 3), {"padding": 1}),
}


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("layer", LAYERS)
def test_agrees_with_the_oracle(layer: str, activation: str) -> None:
    x_shape, n_outputs, kernel, geometry = LAYERS[layer]
    for signed in (False, True):
        tensors = conv_inputs(x_shape, n_outputs, kernel, signed=signed, **geometry)
        assert_agrees(tensors, with_grad=signed, activation=activation, **geometry)


@pytest.mark.parametrize("with_grad", [False, True])
@pytest.mark.parametrize(("n_inputs", "n_outputs"), [(1, 1), (15, 97), (97, 33), (33, 15), (3, 70)])
def test_linear_agrees_with_the_oracle(n_inputs: int, n_outputs: int, with_grad: bool) -> None:
    random = generator(n_inputs, n_outputs)
    weight = torch.randn(n_outputs, n_inputs, generator=random)
    for shape in ((7,), (3, 21)):
        x = torch.randn(*shape, n_inputs, generator=random).relu()
        pre = x @ weight.T
        grad = torch.randn(pre.shape, generator=random)
        tensors = {"x": x, "weight": weight, "pre": pre, "grad": grad}
        for activation in ACTIVATIONS:
            assert_agrees(tensors, with_grad=with_grad, activation=activation)


@pytest.mark.parametrize("kernel", [1, 3])
@pytest.mark.parametrize("zeros", [0.0, 0.5, 0.97, 1.0])
def test_zeros_and_negatives_among_the_inputs(kernel: int, zeros: float) -> None:
    tensors = conv_inputs((2, 9, 6, 7), 18, (kernel, kernel), signed=True)
    random = generator(zeros)
    x = tensors["x"]
    x[torch.rand(x.shape, generator=random) < zeros] = 0.0
    x[:, 2] = 0.0
    x[:, 3] = x[:, 3].abs()
    x[:, 4] = -x[:, 4].abs()
    for activation in ACTIVATIONS:
        assert_agrees(tensors, activation=activation)
    got = path_effects(*tensors.values())
    assert (got.edge[:, 2] == 0).all() and (got.unit[:, 2] == 0).all()


def strided(tensor: Tensor, how: str) -> Tensor:
    """The same values in another layout of memory."""
    if how == "channels_last":
        return tensor.contiguous(memory_format=torch.channels_last)
    if how == "transposed":
        return tensor.transpose(2, 3).contiguous().transpose(2, 3)
    if how == "gaps":
        shape = [2 * size for size in tensor.shape]
        target = tensor.new_full(shape, float("nan"))[::2, ::2, 1::2, ::2]
        return target.copy_(tensor)
    assert how == "batch innermost"
    return tensor.permute(1, 2, 3, 0).contiguous().permute(3, 0, 1, 2)


@pytest.mark.parametrize("kernel", [1, 3])
@pytest.mark.parametrize("how", ["channels_last", "transposed", "gaps", "batch innermost"])
def test_any_strides(how: str, kernel: int) -> None:
    tensors = conv_inputs((3, 7, 6, 9), 18, (kernel, kernel), signed=True)
    moved = {name: strided(tensor, how) for name, tensor in tensors.items()}
    assert all(torch.equal(moved[name], tensors[name]) for name in tensors)
    assert moved["x"].stride() != tensors["x"].stride()
    assert_agrees(moved, activation="relu")
    assert_agrees(moved, activation="gelu")


@pytest.mark.parametrize("kernel", [1, 3])
def test_expanded_inputs(kernel: int) -> None:
    row = torch.randn(1, 5, 1, 1, generator=generator(kernel))
    x = row.expand(3, 5, 6, 7)
    weight = torch.randn(17, 5, kernel, kernel, generator=generator("weight", kernel))
    pre = nn.functional.conv2d(x, weight)[:1].expand(3, -1, -1, -1)
    grad = torch.ones(1, 1, 1, 1).expand(pre.shape)
    assert 0 in x.stride() and 0 in pre.stride() and 0 in grad.stride()
    tensors = {"x": x, "weight": weight, "pre": pre, "grad": grad}
    assert_agrees(tensors)
    with_ones, without = path_effects(*tensors.values()), path_effects(x, weight, pre)
    torch.testing.assert_close(with_ones.unit, without.unit, rtol=1e-6, atol=1e-5)


def test_negated_views() -> None:
    tensors = conv_inputs((2, 5, 6, 6), 17, (3, 3), signed=True)
    lazy = torch.complex(tensors["x"], tensors["x"]).conj().imag
    assert lazy.is_neg() and torch.equal(lazy, -tensors["x"])
    assert_agrees({**tensors, "x": lazy})


def test_views_with_an_offset() -> None:
    tensors = conv_inputs((4, 6, 8, 8), 17, (3, 3), signed=True)
    part = {name: tensor if name == "weight" else tensor[1:3] for name, tensor in tensors.items()}
    assert_agrees(part)
    part["weight"] = torch.cat([part["weight"], part["weight"]], 1)[:, 6:]
    assert not part["weight"].is_contiguous()
    assert_agrees(part)


@pytest.mark.parametrize("kernel", [1, 3])
def test_empty_batch(isa: str, kernel: int) -> None:
    weight = torch.randn(4, 3, kernel, kernel)
    for shape in ((0, 3, 5, 5), (0, 3, kernel, kernel)):
        x = torch.zeros(shape)
        got = path_effects(x, weight, nn.functional.conv2d(x, weight))
        assert got.edge.shape == (4, 3, 4) and (got.edge == 0).all()
        assert got.unit.shape == (0, 3)


def test_no_output_position_no_input_no_output(isa: str) -> None:
    got = path_effects(torch.ones(2, 3, 2, 2), torch.ones(4, 3, 3, 3), torch.ones(2, 4, 0, 0))
    assert (got.edge == 0).all() and got.unit.tolist() == [[0.0] * 3] * 2
    got = path_effects(torch.ones(2, 0), torch.ones(4, 0), torch.ones(2, 4))
    assert got.edge.shape == (4, 0, 4) and got.unit.shape == (2, 0)
    got = path_effects(torch.ones(2, 3), torch.ones(0, 3), torch.ones(2, 0))
    assert got.edge.shape == (0, 3, 4) and got.unit.tolist() == [[0.0] * 3] * 2
    got = path_effects(torch.ones(2, 0, 3), torch.ones(4, 3), torch.ones(2, 0, 4))
    assert (got.edge == 0).all() and got.unit.tolist() == [[0.0] * 3] * 2


def test_statistics_by_hand(isa: str) -> None:
    x, weight = torch.tensor([[2.0], [1.0]]), torch.tensor([[3.0]])
    pre, grad = torch.tensor([[5.0], [-1.0]]), torch.tensor([[10.0], [100.0]])
    # Image 0: relu(5 - 6) - relu(5) = -5; image 1: relu(-1 - 3) - relu(-1) = 0.
    got = path_effects(x, weight, pre, grad)
    assert dict(zip(EDGE_STATISTICS, got.edge[0, 0].tolist(), strict=True)) == {
        "sum": -5.0,
        "abs": 5.0,
        "square": 25.0,
        "grad_weighted": -50.0,
    }
    assert got.unit.tolist() == [[-50.0], [0.0]]
    assert isinstance(got, PathEffects)


def test_linear_takes_defaults_given_as_pairs() -> None:
    x, weight, pre = torch.ones(2, 3), torch.ones(4, 3), torch.ones(2, 4)
    plain = path_effects(x, weight, pre)
    pairs = path_effects(x, weight, pre, stride=(1, 1), padding=(0, 0), dilation=(1, 1))
    assert torch.equal(plain.edge, pairs.edge)


@st.composite
def problems(draw: st.DrawFn) -> tuple[dict[str, Tensor], dict[str, Any]]:
    def pair(low: int, high: int) -> tuple[int, int]:
        return draw(st.integers(low, high)), draw(st.integers(low, high))

    kernel, stride, padding, dilation = pair(1, 4), pair(1, 3), pair(0, 3), pair(1, 3)
    groups = draw(st.sampled_from([1, 1, 2, 3]))
    n_inputs = groups * draw(st.integers(1, 9))
    n_outputs = groups * draw(st.integers(1, 19))
    size = [
        draw(st.integers(max(1, dilation[k] * (kernel[k] - 1) + 1 - 2 * padding[k]), 15))
        for k in (0, 1)
    ]
    geometry = {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups}
    tensors = conv_inputs(
        (draw(st.integers(1, 3)), n_inputs, *size),
        n_outputs,
        kernel,
        signed=draw(st.booleans()),
        seed=draw(st.integers(0, 1000)),
        **geometry,
    )
    return tensors, {**geometry, "activation": draw(st.sampled_from(ACTIVATIONS))}


@settings(max_examples=80, deadline=None, derandomize=True)
@given(problem=problems(), with_grad=st.booleans())
def test_random_problems_agree_with_the_oracle(
    problem: tuple[dict[str, Tensor], dict[str, Any]], with_grad: bool
) -> None:
    tensors, options = problem
    assert_agrees(tensors, with_grad=with_grad, **options)


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


@pytest.mark.parametrize("layer", ["15 to 33, 1x1", "3x1", "dilation 2x3", "4 groups"])
def test_opcheck(layer: str) -> None:
    x, weight, pre, grad, *rest = operator_arguments(layer)
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


def test_arguments_are_left_alone(isa: str) -> None:
    tensors = conv_inputs((2, 5, 6, 6), 17, (1, 1), signed=True)
    before = {name: tensor.clone() for name, tensor in tensors.items()}
    path_effects(*tensors.values(), activation="gelu")
    for name, tensor in tensors.items():
        assert torch.equal(tensor, before[name]), name
