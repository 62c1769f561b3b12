"""channel_conv2d against its oracle, on every instruction set."""

from __future__ import annotations

import pytest
import torch
from convolution_cases import ACTIVATIONS, LAYERS, assert_agrees, channel_problem, without_dense

from causalprune import reference
from causalprune.ops import channel_conv2d


@pytest.mark.parametrize("layer", LAYERS)
def test_agrees_with_the_oracle(isa: str, layer: str, monkeypatch: pytest.MonkeyPatch) -> None:
    without_dense(monkeypatch, "channel_conv2d")
    draw = sum(map(ord, isa + layer))
    tensors, options = channel_problem(layer, kept=(0.3, 0.5, 0.9, 1.0)[draw % 4], seed=isa)
    if draw % 3 == 0:
        tensors["bias"] = None
    if draw % 2 == 0:
        tensors["residual"] = None
    if draw % 5 == 0:
        tensors["x"] = tensors["x"].contiguous(memory_format=torch.channels_last)
    options["activation"] = ACTIVATIONS[draw % len(ACTIVATIONS)]
    got = channel_conv2d(**tensors, **options)
    assert_agrees(got, reference.channel_conv2d, tensors, options)


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("with_residual", [False, True])
def test_channels_that_are_not_written(activation: str, with_residual: bool) -> None:
    tensors, options = channel_problem("3x3", seed=activation)
    if not with_residual:
        tensors["residual"] = None
    got = channel_conv2d(**tensors, **options, activation=activation)
    assert_agrees(got, reference.channel_conv2d, tensors, {**options, "activation": activation})
    others = sorted(set(range(33)) - set(tensors["outputs"].tolist()))
    assert len(others) > 10
    if not with_residual:
        assert got[:, others].count_nonzero() == 0
    elif activation in ("none", "relu"):
        passed = tensors["residual"][:, others]
        assert torch.equal(got[:, others], passed.relu() if activation == "relu" else passed)


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("step", [1, 3, 11, 25])
def test_lists_far_and_near(step: int, memory_format: torch.memory_format) -> None:
    """Channels that lie together are packed together, and those between them are not read."""
    random = torch.Generator().manual_seed(step)
    x = torch.randn(2, 400, 5, 6, generator=random).contiguous(memory_format=memory_format)
    inputs = torch.arange(3, 400, step)[:60]
    inputs = inputs[torch.randperm(len(inputs), generator=random)]
    outputs = torch.tensor([5, 0, 17])
    tensors = {
        "x": x,
        "weight": torch.randn(3, len(inputs), 3, 3, generator=random),
        "bias": None,
        "inputs": inputs,
        "outputs": outputs,
        "n_outputs": 19,
    }
    got = channel_conv2d(**tensors)
    assert_agrees(got, reference.channel_conv2d, tensors, {})
    assert got.is_contiguous(memory_format=memory_format)
    x[:, sorted(set(range(400)) - set(inputs.tolist()))] = torch.nan
    torch.testing.assert_close(channel_conv2d(**tensors), got)


def test_all_channels_in_another_order() -> None:
    tensors, options = channel_problem("3x3", kept=1.0)
    got = channel_conv2d(**tensors, **options)
    assert_agrees(got, reference.channel_conv2d, tensors, options)
    reads, writes = tensors["inputs"].argsort(), tensors["outputs"].argsort()
    ordered = {
        **tensors,
        "weight": tensors["weight"][writes][:, reads],
        "bias": tensors["bias"][writes],
        "inputs": torch.arange(15),
        "outputs": torch.arange(33),
    }
    torch.testing.assert_close(channel_conv2d(**ordered, **options), got, rtol=1e-4, atol=1e-4)


def test_lists_that_change_in_place() -> None:
    tensors, options = channel_problem("3x3")
    channel_conv2d(**tensors, **options)
    tensors["inputs"].copy_(tensors["inputs"].flip(0))
    tensors["outputs"] += 1
    tensors["outputs"] %= 33
    got = channel_conv2d(**tensors, **options)
    assert_agrees(got, reference.channel_conv2d, tensors, options)


@pytest.mark.parametrize("empty", ["inputs", "outputs", "both", "images"])
def test_nothing_kept(empty: str) -> None:
    tensors, options = channel_problem("3x3")
    if empty in ("inputs", "both"):
        tensors["inputs"] = tensors["inputs"][:0]
        tensors["weight"] = tensors["weight"][:, :0]
    if empty in ("outputs", "both"):
        tensors["outputs"] = tensors["outputs"][:0]
        tensors["weight"], tensors["bias"] = tensors["weight"][:0], tensors["bias"][:0]
    if empty == "images":
        tensors["x"], tensors["residual"] = tensors["x"][:0], tensors["residual"][:0]
    got = channel_conv2d(**tensors, **options, activation="relu")
    expected = reference.channel_conv2d(**tensors, **options, activation="relu")
    torch.testing.assert_close(got.double(), expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", ["x", "weight", "bias", "residual"])
def test_what_is_not_finite_propagates_as_it_does_dense(name: str) -> None:
    tensors, options = channel_problem("3x3")
    channel = int(tensors["inputs"][0]) if name == "x" else 0
    place = (0,) if name == "bias" else (0, channel, 0, 0)
    tensors[name][place] = torch.nan
    got = channel_conv2d(**tensors, **options)
    read = tensors["x"][:, tensors["inputs"]]
    expected = tensors["residual"].clone()
    expected[:, tensors["outputs"]] += torch.nn.functional.conv2d(
        read, tensors["weight"], tensors["bias"], **options
    )
    assert expected.isnan().any() and not expected.isnan().all()
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4, equal_nan=True)


def test_other_dtypes_run_dense() -> None:
    tensors, options = channel_problem("groups, stride 3")
    for name in ("x", "weight", "bias", "residual"):
        tensors[name] = tensors[name].double()
    got = channel_conv2d(**tensors, **options, activation="gelu")
    expected = reference.channel_conv2d(**tensors, **options, activation="gelu")
    torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-12)


def test_same_bits_on_several_threads() -> None:
    random = torch.Generator().manual_seed(5)
    tensors = {
        "x": torch.randn(3, 40, 24, 24, generator=random),
        "weight": torch.randn(40, 20, 3, 3, generator=random),
        "bias": torch.randn(40, generator=random),
        "inputs": torch.randperm(40, generator=random)[:20],
        "outputs": torch.randperm(64, generator=random)[:40],
        "n_outputs": 64,
    }
    results = []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        results.append(channel_conv2d(**tensors, padding=1))
    assert torch.equal(results[0], results[1]) and torch.equal(results[0], results[2])
