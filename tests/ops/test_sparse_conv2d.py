"""sparse_conv2d against its oracle, on every instruction set."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from convolution_cases import ACTIVATIONS, LAYERS, assert_agrees, sparse_problem, without_dense
from torch import Tensor

from causalprune import reference
from causalprune.ops import sparse_conv2d


@pytest.mark.parametrize("layer", LAYERS)
def test_agrees_with_the_oracle(isa: str, layer: str, monkeypatch: pytest.MonkeyPatch) -> None:
    without_dense(monkeypatch, "sparse_conv2d")
    draw = sum(map(ord, layer + isa))
    tensors, options = sparse_problem(layer, density=(0.0, 0.05, 0.3, 0.9)[draw % 4], seed=isa)
    for name in ("bias", "residual")[: draw % 3]:
        del tensors[name]
    options["activation"] = ACTIVATIONS[draw % len(ACTIVATIONS)]
    got = sparse_conv2d(**tensors, **options)
    assert_agrees(got, reference.sparse_conv2d, tensors, options)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_activations(isa: str, activation: str, monkeypatch: pytest.MonkeyPatch) -> None:
    without_dense(monkeypatch, "sparse_conv2d")
    tensors, options = sparse_problem("3x3", seed=activation)
    options["activation"] = activation
    tensors["x"] *= 3
    for residual in (tensors["residual"], None):
        tensors["residual"] = residual
        got = sparse_conv2d(**tensors, **options)
        given = {name: tensor for name, tensor in tensors.items() if tensor is not None}
        assert_agrees(got, reference.sparse_conv2d, given, options)


def strided(x: Tensor, how: str) -> Tensor:
    """The same numbers in other memory."""
    if how == "channels_last":
        return x.contiguous(memory_format=torch.channels_last)
    if how == "transposed":
        return x.transpose(2, 3).contiguous().transpose(2, 3)
    if how == "every second channel":
        return x.repeat_interleave(2, 1)[:, ::2]
    assert how == "of a larger image"
    return F.pad(x, (3, 2, 1, 4))[:, :, 1:-4, 3:-2]


@pytest.mark.parametrize(
    "how", ["channels_last", "transposed", "every second channel", "of a larger image"]
)
def test_any_strides(how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    without_dense(monkeypatch, "sparse_conv2d")
    tensors, options = sparse_problem("3x3")
    whole = sparse_conv2d(**tensors, **options)
    tensors["x"] = strided(tensors["x"], how)
    tensors["residual"] = strided(tensors["residual"], how)
    tensors["bias"] = tensors["bias"].repeat_interleave(3)[::3]
    got = sparse_conv2d(**tensors, **options)
    assert torch.equal(got, whole)
    dense = F.conv2d(tensors["x"], tensors["weight"], None, **options)
    assert got.stride() == dense.stride()
    tensors["weight"] = strided(tensors["weight"], how)
    assert torch.equal(sparse_conv2d(**tensors, **options), whole)


def test_one_image_for_all() -> None:
    tensors, options = sparse_problem("3x3")
    del tensors["residual"]
    tensors["x"] = tensors["x"][:1].expand(5, -1, -1, -1)
    got = sparse_conv2d(**tensors, **options)
    assert_agrees(got, reference.sparse_conv2d, tensors, options)


def test_same_bits_on_several_threads() -> None:
    random = torch.Generator().manual_seed(4)
    x = torch.randn(5, 24, 20, 20, generator=random)
    weight = torch.randn(50, 24, 3, 3, generator=random)
    weight[torch.rand(weight.shape, generator=random) < 0.8] = 0
    results = []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        results.append(sparse_conv2d(x, weight, padding=1, activation="silu"))
    assert torch.equal(results[0], results[1]) and torch.equal(results[0], results[2])


# ---- what is empty -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("x_shape", "weight_shape"),
    [
        ((0, 3, 5, 5), (4, 3, 3, 3)),
        ((2, 0, 5, 5), (4, 0, 3, 3)),
        ((2, 3, 5, 5), (0, 3, 3, 3)),
        ((2, 3, 0, 5), (4, 3, 1, 1)),
    ],
)
def test_empty_tensors(x_shape: tuple[int, ...], weight_shape: tuple[int, ...]) -> None:
    x, weight = torch.randn(x_shape), torch.randn(weight_shape)
    bias = torch.randn(weight_shape[0])
    padding = (1, 0) if x_shape[2] == 0 else (0, 0)
    got = sparse_conv2d(x, weight, bias, padding=padding, activation="relu")
    expected = reference.sparse_conv2d(x, weight, bias, padding=padding, activation="relu")
    torch.testing.assert_close(got.double(), expected)


def test_weights_without_numbers_give_the_bias(monkeypatch: pytest.MonkeyPatch) -> None:
    without_dense(monkeypatch, "sparse_conv2d")
    tensors, options = sparse_problem("3x3", density=0.0)
    got = sparse_conv2d(**tensors, **options)
    expected = tensors["residual"] + tensors["bias"][:, None, None]
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-6)
    tensors["weight"] = sparse_problem("3x3", density=1.0)[0]["weight"]
    tensors["weight"][[0, 7, 32]] = 0
    got = sparse_conv2d(**tensors, **options)
    assert_agrees(got, reference.sparse_conv2d, tensors, options)
    rows = [0, 7, 32]
    torch.testing.assert_close(got[:, rows], expected[:, rows], rtol=0, atol=1e-6)


# ---- what is not finite, not float32, or too large -----------------------------------------------


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("name", ["x", "weight", "bias", "residual"])
def test_what_is_not_finite_propagates_as_it_does_dense(name: str, value: float) -> None:
    tensors, options = sparse_problem("3x3", density=1.0)
    tensors[name].view(-1)[5] = value
    got = sparse_conv2d(**tensors, **options, activation="relu")
    dense = F.conv2d(tensors["x"], tensors["weight"], tensors["bias"], **options)
    expected = (dense + tensors["residual"]).relu()
    torch.testing.assert_close(got, expected, equal_nan=True)
    assert not expected.isfinite().all() or value < 0
    again, _ = sparse_problem("3x3", density=1.0)
    again["weight"] = tensors["weight"]
    if name == "x":  # what was refused once is not refused for ever
        got = sparse_conv2d(**again, **options)
        assert_agrees(got, reference.sparse_conv2d, again, options)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_other_dtypes_run_dense(dtype: torch.dtype) -> None:
    tensors, options = sparse_problem("groups, stride 3")
    given = {name: tensor.to(dtype) for name, tensor in tensors.items()}
    got = sparse_conv2d(**given, **options, activation="hardswish")
    expected = reference.sparse_conv2d(**given, **options, activation="hardswish")
    accuracy = 1e-12 if dtype == torch.float64 else 0.05
    assert got.dtype == dtype
    torch.testing.assert_close(got.double(), expected, rtol=accuracy, atol=accuracy)


def test_what_cannot_be_addressed_runs_dense(monkeypatch: pytest.MonkeyPatch) -> None:
    tensors, options = sparse_problem("3x3")
    monkeypatch.setattr("causalprune.ops.packed_plans._MOST_BLOCK_FLOATS", 1000)
    monkeypatch.setattr("causalprune.ops.packed_plans.workspace", None)
    got = sparse_conv2d(**tensors, **options)
    assert_agrees(got, reference.sparse_conv2d, tensors, options)


def test_no_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    tensors, options = sparse_problem("97 columns")
    whole = sparse_conv2d(**tensors, **options)

    def refuse(*sizes: Any, **settings: Any) -> Tensor:
        raise RuntimeError("can't allocate memory: you tried to allocate too much")

    from causalprune.ops.packed_plans import workspace

    larger, options = sparse_problem("1x1 to 97")
    with monkeypatch.context() as patch:
        patch.setattr("causalprune.ops.packed_plans._OF_THREAD", type("Empty", (), {})())
        patch.setattr("causalprune.ops.packed_plans.torch.empty", refuse)
        with pytest.raises(MemoryError, match="packed tensors need 400 bytes"):
            workspace(100)
    with pytest.raises(MemoryError, match="bytes"):
        workspace(2**55)
    assert_agrees(sparse_conv2d(**larger), reference.sparse_conv2d, larger, options)
    tensors, options = sparse_problem("97 columns")
    assert torch.equal(sparse_conv2d(**tensors, **options), whole)
