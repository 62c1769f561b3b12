from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from path_effects_layers import ACTIVATIONS, LAYERS, assert_agrees, conv_inputs, generator, strided
from torch import Tensor, nn

from causalprune.ops import EDGE_STATISTICS, PathEffects, path_effects


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


def test_arguments_are_left_alone(isa: str) -> None:
    tensors = conv_inputs((2, 5, 6, 6), 17, (1, 1), signed=True)
    before = {name: tensor.clone() for name, tensor in tensors.items()}
    path_effects(*tensors.values(), activation="gelu")
    for name, tensor in tensors.items():
        assert torch.equal(tensor, before[name]), name
