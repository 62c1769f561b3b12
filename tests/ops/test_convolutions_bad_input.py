"""What sparse_conv2d and channel_conv2d say of wrong arguments."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from convolution_cases import channel_problem, sparse_problem

from causalprune.errors import InvalidArgumentError
from causalprune.ops import channel_conv2d, sparse_conv2d

# Of the layer "3x3": x [2, 15, 9, 7], weight [33, 15, 3, 3].
WRONG: list[tuple[dict[str, Any], str]] = [
    ({"x": torch.zeros(15, 9, 7)}, r"x: expected \[N, I, H, W\], got \[15, 9, 7\]"),
    ({"x": [1.0]}, "x: expected a tensor, got list"),
    ({"x": torch.zeros(2, 15, 9, 7).to_sparse()}, "x: expected a dense tensor"),
    ({"x": torch.zeros(2, 15, 9, 7, dtype=torch.int64)}, "x: expected a floating-point dtype"),
    ({"x": torch.zeros(2, 15, 9, 7, dtype=torch.complex64)}, "x: expected a floating-point dtype"),
    ({"x": torch.zeros(2, 15, 0, 7)}, "x: expected a padded height of at least 3.*got 2"),
    ({"weight": torch.zeros(33, 15, 3)}, r"weight: expected \[O, I / groups, kh, kw\]"),
    ({"weight": torch.zeros(33, 15, 0, 3)}, "weight: expected a kernel of at least 1 x 1"),
    ({"weight": torch.zeros(33, 14, 3, 3)}, "weight: expected .* channels along dimension 1"),
    ({"weight": torch.zeros(33, 15, 3, 3).double()}, "weight: expected dtype torch.float32"),
    ({"weight": torch.zeros(33, 15, 3, 3, device="meta")}, "weight: expected a tensor on cpu"),
    ({"bias": torch.zeros(32)}, r"bias: expected shape \[\d+\], got \[32\]"),
    ({"bias": torch.zeros(33, 1)}, r"bias: expected shape \[\d+\], got \[33, 1\]"),
    ({"bias": torch.zeros(33).half()}, "bias: expected dtype torch.float32"),
    ({"residual": torch.zeros(1, 33, 9, 7)}, r"residual: expected shape \[2, 33, 9, 7\]"),
    ({"residual": torch.zeros(2, 33, 9, 7).double()}, "residual: expected dtype torch.float32"),
    ({"stride": 0}, "stride: expected at least 1"),
    ({"stride": (1, 2, 3)}, "stride: expected an int or two ints"),
    ({"padding": -1}, "padding: expected at least 0"),
    ({"padding": "same"}, "padding: expected an int or two ints, got 'same'"),
    ({"dilation": (1, 2**31)}, "dilation: expected at least 1 and below"),
    ({"dilation": 2**31 - 1}, "x: expected a padded height of at least"),
    ({"padding": 2**62}, "padding: expected at least 0 and below"),
    ({"groups": 2}, "groups: expected a divisor of .* input"),
    ({"groups": 0}, "groups: expected an int of at least 1"),
    ({"activation": "tanh"}, "activation: expected one of none, relu, .* got 'tanh'"),
]


@pytest.mark.parametrize(("change", "message"), WRONG)
def test_wrong_arguments(change: dict[str, Any], message: str) -> None:
    tensors, options = sparse_problem("3x3")
    with pytest.raises(InvalidArgumentError, match=message):
        sparse_conv2d(**{**tensors, **options, **change})
    listed, options = channel_problem("3x3", kept=1.0)
    with pytest.raises(InvalidArgumentError, match=message):
        channel_conv2d(**{**listed, **options, **change})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"inputs": torch.tensor([0, 15, 1, 2, 3, 4, 5, 6])}, r"inputs: .* \[0, 15\), got 15"),
        ({"inputs": torch.tensor([-1, 1, 2, 3, 4, 5, 6, 7])}, r"inputs: .* \[0, 15\), got -1"),
        ({"inputs": torch.tensor([0, 1, 2, 3, 4, 5, 6, 2])}, "inputs: .* once, got 2 twice"),
        ({"inputs": torch.arange(7)}, "weight: expected 7 channels along dimension 1"),
        ({"inputs": torch.arange(8).int()}, "inputs: expected a list of int64"),
        ({"inputs": torch.arange(8)[None]}, "inputs: expected a list of int64"),
        ({"inputs": list(range(8))}, "inputs: expected a tensor, got list"),
        ({"inputs": torch.empty(8, dtype=torch.int64, device="meta")}, "inputs: .* on cpu"),
        ({"outputs": torch.arange(16) + 18}, r"outputs: .* \[0, 33\), got 33"),
        ({"outputs": torch.zeros(16, dtype=torch.int64)}, "outputs: .* once, got 0 twice"),
        ({"outputs": torch.arange(15)}, "outputs: expected 16 channels"),
        ({"n_outputs": 5, "residual": None}, r"outputs: .* in \[0, 5\)"),
        ({"n_outputs": -1}, "n_outputs: expected at least 0"),
        ({"n_outputs": 32}, r"residual: expected shape \[2, 32, 9, 7\]"),
    ],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_wrong_lists(change: dict[str, Any], message: str, dtype: torch.dtype) -> None:
    tensors, options = channel_problem("3x3")
    for name in ("x", "weight", "bias", "residual"):
        tensors[name] = tensors[name].to(dtype)
    assert tensors["weight"].shape == (16, 8, 3, 3)
    with pytest.raises(InvalidArgumentError, match=message):
        channel_conv2d(**{**tensors, **options, **change})


def test_an_instruction_set_that_is_not_here(monkeypatch: pytest.MonkeyPatch) -> None:
    tensors, options = sparse_problem("3x3")
    monkeypatch.setenv("CAUSALPRUNE_ISA", "sse9")
    with pytest.raises(InvalidArgumentError, match=r"CAUSALPRUNE_ISA: .* got 'sse9'"):
        sparse_conv2d(**tensors, **options)
