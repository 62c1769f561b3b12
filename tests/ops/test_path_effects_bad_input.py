from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from causalprune import _native
from causalprune.errors import InvalidArgumentError
from causalprune.ops import path_effects

ARGUMENTS = ("x", "weight", "pre", "grad")


def ones(*shapes: tuple[int, ...]) -> dict[str, Tensor]:
    return {name: torch.ones(shape) for name, shape in zip(ARGUMENTS, shapes, strict=True)}


def conv_inputs() -> dict[str, Tensor]:
    return ones((2, 6, 5, 7), (4, 6, 3, 3), (2, 4, 3, 5), (2, 4, 3, 5))


def pointwise_inputs() -> dict[str, Tensor]:
    return ones((2, 6, 5, 7), (4, 6, 1, 1), (2, 4, 5, 7), (2, 4, 5, 7))


def linear_inputs() -> dict[str, Tensor]:
    return ones((2, 6), (4, 6), (2, 4), (2, 4))


def token_inputs() -> dict[str, Tensor]:
    return ones((2, 9, 6), (4, 6), (2, 9, 4), (2, 9, 4))


LAYERS = (conv_inputs, pointwise_inputs, linear_inputs, token_inputs)


def refused(name: str, *parts: str, **arguments: Any) -> str:
    """Call with the arguments; the message it is refused with, which starts with the name."""
    with pytest.raises(InvalidArgumentError) as caught:
        path_effects(**arguments)
    message = str(caught.value)
    assert isinstance(caught.value, ValueError)
    assert name in message.split(":")[0], message
    for part in parts:
        assert part in message, message
    return message


@pytest.mark.parametrize("inputs", LAYERS)
def test_the_inputs_are_fine_as_they_are(inputs: Callable[[], dict[str, Tensor]]) -> None:
    effects = path_effects(**inputs())
    assert effects.edge.shape == (4, 6, 4) and effects.unit.shape == (2, 6)
    assert (effects.unit < 0).all()  # every cut takes a positive contribution away


# ---- what a tensor is ----------------------------------------------------------------------------


@pytest.mark.parametrize("name", ARGUMENTS)
@pytest.mark.parametrize(
    "dtype", [torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.complex64]
)
def test_dtype(name: str, dtype: torch.dtype) -> None:
    tensors = conv_inputs()
    tensors[name] = tensors[name].to(dtype)
    refused(name, "float32", str(dtype), **tensors)


@pytest.mark.parametrize("name", ARGUMENTS)
@pytest.mark.parametrize("inputs", LAYERS)
def test_no_tensor(inputs: Callable[[], dict[str, Tensor]], name: str) -> None:
    tensors: dict[str, Any] = inputs()
    tensors[name] = tensors[name].numpy()
    refused(name, "expected a tensor", "ndarray", **tensors)
    tensors[name] = [[1.0]]
    refused(name, "expected a tensor", "list", **tensors)
    if name != "grad":
        tensors[name] = None
        refused(name, "expected a tensor", "None", **tensors)


@pytest.mark.parametrize("name", ARGUMENTS)
def test_sparse(name: str) -> None:
    tensors = linear_inputs()
    tensors[name] = tensors[name].to_sparse()
    refused(name, "dense", "sparse", **tensors)


@pytest.mark.parametrize("name", ARGUMENTS)
@pytest.mark.parametrize("inputs", LAYERS)
def test_another_device(inputs: Callable[[], dict[str, Tensor]], name: str) -> None:
    tensors = inputs()
    tensors[name] = tensors[name].to("meta")
    # All are compared with x, so the second argument is the first to differ from it.
    at_fault = "weight" if name == "x" else name
    refused(at_fault, "cpu", "meta", **tensors)


# ---- shapes --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ARGUMENTS)
@pytest.mark.parametrize("inputs", LAYERS)
def test_number_of_dimensions(inputs: Callable[[], dict[str, Tensor]], name: str) -> None:
    tensors = inputs()
    tensors[name] = tensors[name][None]
    # A linear layer's x may have two or three, so there the others are at fault.
    at_fault = "pre" if name == "x" and inputs is linear_inputs else name
    refused(at_fault, **tensors)


SIZES = [
    (inputs, name, dimension)
    for inputs in LAYERS
    for name in ("weight", "pre", "grad")
    for dimension in range(inputs()[name].ndim)
]


@pytest.mark.parametrize(("inputs", "name", "dimension"), SIZES)
@pytest.mark.parametrize("change", [-1, 1])
def test_sizes(
    inputs: Callable[[], dict[str, Tensor]], name: str, dimension: int, change: int
) -> None:
    tensors = inputs()
    shape = list(tensors[name].shape)
    shape[dimension] += change
    if min(shape) == 0 and name == "weight" and dimension > 1:
        refused("weight", "kernel", **{**tensors, name: torch.ones(shape)})
        return
    tensors[name] = torch.ones(shape)
    # A weight of other outputs or another kernel is one that pre does not fit.
    at_fault = "pre" if name == "weight" and dimension != 1 else name
    message = refused(at_fault, "expected", "got", **tensors)
    assert re.search(r"\d", message)


@pytest.mark.parametrize("inputs", LAYERS)
def test_channels_of_x(inputs: Callable[[], dict[str, Tensor]]) -> None:
    tensors = inputs()
    channels = 1 if tensors["x"].ndim == 4 else -1
    tensors["x"] = tensors["x"].narrow(channels, 0, 5)
    refused("weight", "5", "6", **tensors)


def test_tokens_of_pre_are_told_in_the_order_they_were_given() -> None:
    tensors = token_inputs()
    tensors["pre"] = torch.ones(2, 8, 4)
    refused("pre", "[2, 9, 4]", "[2, 8, 4]", **tensors)


# ---- values --------------------------------------------------------------------------------------


@pytest.mark.parametrize("isa", _native.available_isas())
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("name", ARGUMENTS)
@pytest.mark.parametrize("inputs", LAYERS)
def test_not_finite(
    inputs: Callable[[], dict[str, Tensor]],
    name: str,
    value: float,
    isa: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("CAUSALPRUNE_ISA", isa)
    for place in (0, -1, 3):
        tensors = inputs()
        index = torch.unravel_index(torch.tensor(place), tensors[name].shape)
        index = [int(k) % size for k, size in zip(index, tensors[name].shape, strict=True)]
        tensors[name][tuple(index)] = value
        refused(name, "finite", str(value), f"at {index}", **tensors)
        if name != "grad":
            refused(name, "finite", f"at {index}", **{**tensors, "grad": None})


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    layer=st.sampled_from(LAYERS),
    name=st.sampled_from(ARGUMENTS),
    place=st.integers(0, 10_000),
    channels_last=st.booleans(),
)
def test_one_value_that_is_not_finite_is_found_anywhere(
    layer: Callable[[], dict[str, Tensor]], name: str, place: int, channels_last: bool
) -> None:
    tensors = layer()
    if channels_last and tensors["x"].ndim == 4:
        for key in ("x", "pre", "grad"):
            tensors[key] = tensors[key].contiguous(memory_format=torch.channels_last)
    shape = tensors[name].shape
    index = [int(k) for k in torch.unravel_index(torch.tensor(place % shape.numel()), shape)]
    tensors[name][tuple(index)] = float("nan")
    refused(name, "nan", f"at {index}", **tensors)


# ---- everything else -----------------------------------------------------------------------------


@pytest.mark.parametrize("activation", ["tanh", "ReLU", "", None, 3, [], torch.relu])
def test_unknown_activation_lists_the_known(activation: Any) -> None:
    known = ("gelu", "hardswish", "identity", "relu", "silu")
    refused("activation", *known, **conv_inputs(), activation=activation)


@pytest.mark.parametrize("statistics", ["grad", "", None, 4, ["all"]])
def test_unknown_statistics_list_the_known(statistics: Any) -> None:
    refused("statistics", "all", "grad_weighted", **conv_inputs(), statistics=statistics)


@pytest.mark.parametrize("groups", [4, 5, 7, 0, -1, 2.0, "2", None, 2**70])
def test_groups(groups: Any) -> None:
    tensors = conv_inputs()
    if groups == 4:  # divides the outputs alone; the weight is as if it did
        tensors["weight"] = torch.ones(4, 1, 3, 3)
    refused("groups" if groups not in (5, 7) else "", "got", **tensors, groups=groups)


def test_groups_that_divide_but_do_not_fit_the_weight() -> None:
    refused("weight", "[4, 3, 3, 3]", "[4, 6, 3, 3]", **conv_inputs(), groups=2)


@pytest.mark.parametrize("name", ["stride", "padding", "dilation"])
@pytest.mark.parametrize(
    "value",
    [-1, (1, -1), (-3, 1), 1.0, (1, 1.5), (1,), (1, 1, 1), "11", "same", None, 2**40, [[1], 1]],
)
def test_geometry(name: str, value: Any) -> None:
    refused(name, "expected", "got", **conv_inputs(), **{name: value})


@pytest.mark.parametrize("name", ["stride", "dilation"])
@pytest.mark.parametrize("value", [0, (0, 1), (1, 0)])
def test_geometry_that_must_not_be_zero(name: str, value: Any) -> None:
    refused(name, "at least 1", f"got {value}", **conv_inputs(), **{name: value})


@pytest.mark.parametrize("name", ["stride", "padding", "dilation"])
def test_geometry_that_pre_does_not_fit(name: str) -> None:
    refused("pre", name, "got", **conv_inputs(), **{name: 2})


@pytest.mark.parametrize(
    "options", [{"stride": 2}, {"padding": (0, 1)}, {"dilation": 2}, {"groups": 2}]
)
@pytest.mark.parametrize("inputs", [linear_inputs, token_inputs])
def test_linear_layers_have_no_geometry(
    inputs: Callable[[], dict[str, Tensor]], options: dict[str, Any]
) -> None:
    refused(next(iter(options)), "linear", **inputs(), **options)


@pytest.mark.parametrize("value", ["sse9", "AVX2", " scalar"])
def test_unknown_instruction_set(value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CAUSALPRUNE_ISA", value)
    refused("CAUSALPRUNE_ISA", "scalar", repr(value), **conv_inputs())
    with pytest.raises(ValueError, match="CAUSALPRUNE_ISA"):
        _native.chosen_isa()


def test_empty_instruction_set_means_the_fastest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CAUSALPRUNE_ISA", "")
    assert _native.chosen_isa() == _native.available_isas()[-1]


def test_a_refused_call_leaves_nothing_behind() -> None:
    tensors = conv_inputs()
    before = path_effects(**tensors)
    broken = {**tensors, "x": tensors["x"].clone()}
    broken["x"][1, 2, 3, 4] = float("nan")
    refused("x", "[1, 2, 3, 4]", **broken)
    after = path_effects(**tensors)
    assert torch.equal(before.edge, after.edge) and torch.equal(before.unit, after.unit)
