from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from path_effects_layers import ISAS, generator, instruction_set, strided
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from causalprune import _native, reference
from causalprune.errors import InvalidArgumentError
from causalprune.ops import relative_sensitivity

AGGREGATES = ("mean", "max")

LAYERS: dict[str, tuple[Any, ...]] = {
    "1 to 1": ((1, 1, 1, 1), 1, (1, 1), {}),
    "15 to 33, 1x1": ((2, 15, 5, 6), 33, (1, 1), {}),
    "97 to 15, 1x1 stride 2": ((1, 97, 5, 4), 15, (1, 1), {"stride": 2}),
    "3 to 97, 3x3": ((2, 3, 7, 6), 97, (3, 3), {"padding": 1}),
    "33 to 15, 3x3": ((1, 33, 9, 9), 15, (3, 3), {}),
    "7x7 stride 2": ((1, 3, 23, 22), 16, (7, 7), {"stride": 2, "padding": 3}),
    "3x1": ((2, 4, 17, 6), 15, (3, 1), {"padding": (1, 0), "stride": (2, 1)}),
    "dilation 2x3": ((2, 3, 11, 13), 15, (3, 3), {"dilation": (2, 3), "padding": (2, 1)}),
    "4 groups": ((2, 12, 6, 7), 20, (3, 3), {"groups": 4, "padding": 1}),
    "depthwise": ((2, 33, 7, 7), 33, (3, 3), {"groups": 33, "padding": 1}),
    "depthwise times 2": ((1, 15, 8, 7), 30, (3, 3), {"groups": 15, "stride": 2}),
    "three tiles": ((2, 2, 17, 19), 5, (3, 3), {"padding": 1}),
    "300 inputs": ((2, 300, 3, 3), 17, (3, 3), {"padding": 1}),
}


def layer(name: str, *, signed: bool = False) -> tuple[Tensor, Tensor, dict[str, Any]]:
    shape, n_outputs, kernel, geometry = LAYERS[name]
    random = generator(name, signed)
    x = torch.randn(shape, generator=random)
    weight = torch.randn(
        n_outputs, shape[1] // geometry.get("groups", 1), *kernel, generator=random
    )
    return x if signed else x.relu(), weight, geometry


def assert_agrees(x: Tensor, weight: Tensor, **options: Any) -> None:
    for aggregate in AGGREGATES:
        wanted = reference.relative_sensitivity(x, weight, aggregate=aggregate, **options)
        for isa in ISAS:
            with instruction_set(isa):
                got = relative_sensitivity(x, weight, aggregate=aggregate, **options)
            assert got.dtype == torch.float32 and got.is_contiguous()
            torch.testing.assert_close(got.double(), wanted, rtol=3e-5, atol=0.0)


def by_loops(x: Tensor, weight: Tensor, aggregate: str, padding: int = 0) -> Tensor:
    """The definition once more, as loops over scalars; stride, dilation and groups are 1."""
    x = F.pad(x, (padding,) * 4).double()
    n_outputs, n_inputs, kh, kw = weight.shape
    places = [(i, y, c) for i in range(n_inputs) for y in range(kh) for c in range(kw)]
    best = torch.zeros(weight.shape, dtype=torch.float64)
    for point in [part for image in x for part in (image.clamp_min(0), -image.clamp_max(0))]:
        for o in range(n_outputs):
            shares: dict[tuple[int, int, int], list[float]] = {place: [] for place in places}
            for row in range(x.shape[2] - kh + 1):
                for column in range(x.shape[3] - kw + 1):
                    terms = {
                        (i, y, c): float(weight[o, i, y, c]) * float(point[i, row + y, column + c])
                        for i, y, c in places
                    }
                    sums = {
                        sign: sum(abs(t) for p, t in terms.items() if (weight[o][p] < 0) == sign)
                        for sign in (False, True)
                    }
                    for place, term in terms.items():
                        total = sums[bool(weight[o][place] < 0)]
                        shares[place].append(abs(term) / total if total > 1.1920929e-7 else 0.0)
            for place, values in shares.items():
                found = max(values) if aggregate == "max" else sum(values) / len(values)
                best[o][place] = max(float(best[o][place]), found)
    return best


@pytest.mark.parametrize("aggregate", AGGREGATES)
def test_oracle_is_the_definition(aggregate: str) -> None:
    random = generator(aggregate)
    for x, weight, padding in (
        (torch.randn(3, 2, 4, 5, generator=random), torch.randn(3, 2, 3, 2, generator=random), 1),
        (torch.rand(2, 5, 1, 1, generator=random), torch.randn(2, 5, 1, 1, generator=random), 0),
    ):
        got = reference.relative_sensitivity(x, weight, aggregate=aggregate, padding=padding)
        wanted = by_loops(x, weight, aggregate, padding)
        torch.testing.assert_close(got, wanted, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("name", LAYERS)
def test_agrees_with_the_oracle(name: str, signed: bool) -> None:
    x, weight, geometry = layer(name, signed=signed)
    assert_agrees(x, weight, **geometry)


@pytest.mark.parametrize(("n_inputs", "n_outputs"), [(1, 1), (15, 97), (97, 33), (33, 15)])
def test_linear(n_inputs: int, n_outputs: int) -> None:
    random = generator(n_inputs, n_outputs)
    weight = torch.randn(n_outputs, n_inputs, generator=random)
    for shape in ((7,), (3, 21)):
        x = torch.randn(*shape, n_inputs, generator=random)
        image = x[:, :, None, None] if x.ndim == 2 else x.transpose(1, 2)[..., None]
        for aggregate in AGGREGATES:
            got = relative_sensitivity(x, weight, aggregate=aggregate)
            wanted = reference.relative_sensitivity(
                image, weight[:, :, None, None], aggregate=aggregate
            )
            assert got.shape == weight.shape
            torch.testing.assert_close(got.double(), wanted[..., 0, 0], rtol=3e-5, atol=0.0)


@pytest.mark.parametrize("how", ["channels_last", "transposed", "gaps", "batch innermost"])
def test_any_strides(how: str) -> None:
    x, weight, geometry = layer("3 to 97, 3x3", signed=True)
    assert_agrees(strided(x, how), weight, **geometry)
    doubled = torch.cat([weight, weight], 1)[:, : weight.shape[1]]
    assert not doubled.is_contiguous()
    assert_agrees(x, doubled, **geometry)


def test_shares_add_up_to_one_where_there_is_one_position() -> None:
    x = torch.rand(1, 40, generator=generator("one")) + 0.1
    weight = torch.randn(9, 40, generator=generator("sum"))
    for aggregate in AGGREGATES:
        found = relative_sensitivity(x, weight, aggregate=aggregate)
        for sign in (weight > 0, weight < 0):
            torch.testing.assert_close((found * sign).sum(1), torch.ones(9))


def test_points_go_by_maximum() -> None:
    x, weight, geometry = layer("4 groups", signed=True)
    for aggregate in AGGREGATES:
        whole = relative_sensitivity(x, weight, aggregate=aggregate, **geometry)
        parts = [
            relative_sensitivity(part[None], weight, aggregate=aggregate, **geometry)
            for image in x
            for part in (image.relu(), (-image).relu())
        ]
        assert torch.equal(whole, torch.stack(parts).amax(0))
        torch.testing.assert_close(
            whole, relative_sensitivity(-x, -weight, aggregate=aggregate, **geometry)
        )


def test_sums_that_are_never_reached() -> None:
    weight = torch.tensor([[1.0, -1.0], [2.0, 3.0]])
    dark = torch.zeros(3, 2)
    assert relative_sensitivity(dark, weight).tolist() == [[0.0, 0.0], [0.0, 0.0]]
    # Only the first input is ever on: the negative weight of output 0 reads nothing.
    x = torch.tensor([[0.5, 0.0], [0.0, 0.0]])
    assert relative_sensitivity(x, weight).tolist() == [[1.0, 0.0], [1.0, 0.0]]
    # At the threshold and just above it.
    tiny = torch.tensor([[2.0**-23, 0.0]])
    assert relative_sensitivity(tiny, weight)[0].tolist() == [0.0, 0.0]
    assert relative_sensitivity(tiny, weight)[1].tolist() == [1.0, 0.0]


def test_empty() -> None:
    weight = torch.randn(4, 3, 3, 3)
    for shape in ((0, 3, 5, 5), (2, 3, 2, 2)):
        assert (relative_sensitivity(torch.ones(shape), weight) == 0).all()
    assert relative_sensitivity(torch.ones(2, 0), torch.ones(4, 0)).shape == (4, 0)
    assert relative_sensitivity(torch.ones(2, 3), torch.ones(0, 3)).shape == (0, 3)


@pytest.mark.parametrize("name", ["3 to 97, 3x3", "4 groups"])
def test_same_bits_for_any_number_of_threads(name: str) -> None:
    x, weight, geometry = layer(name, signed=True)
    x = x.repeat(40, 1, 1, 1) * torch.rand(len(x) * 40, 1, 1, 1, generator=generator(name))
    assert x.shape[0] * x.shape[2] * x.shape[3] * weight.numel() > 1 << 20
    for aggregate in AGGREGATES:
        found = []
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            found.append(relative_sensitivity(x, weight, aggregate=aggregate, **geometry))
        assert torch.equal(found[0], found[1]) and torch.equal(found[0], found[2])


# ---- bad input -----------------------------------------------------------------------------------


def given(**changes: Any) -> dict[str, Any]:
    return {"x": torch.ones(2, 6, 5, 7), "weight": torch.ones(4, 6, 3, 3), **changes}


def with_value(shape: tuple[int, ...], value: float) -> Tensor:
    tensor = torch.ones(shape)
    tensor.view(-1)[8] = value
    return tensor


@pytest.mark.parametrize(
    ("name", "part", "arguments"),
    [
        ("x", "float32", given(x=torch.ones(2, 6, 5, 7).double())),
        ("x", "expected a tensor", given(x=[1.0])),
        ("weight", "dense", given(weight=torch.ones(4, 6).to_sparse())),
        ("weight", "CPU", given(weight=torch.ones(4, 6, 3, 3, device="meta"))),
        ("weight", "shape", given(weight=torch.ones(4, 6, 3))),
        ("weight", "O, I", given(weight=torch.ones(4, 5, 3, 3))),
        ("weight", "O, 6", given(x=torch.ones(2, 6), weight=torch.ones(4, 5))),
        ("x", "N, I, H, W", given(x=torch.ones(2, 6))),
        ("aggregate", "median", given(aggregate="median")),
        ("stride", "at least 1", given(stride=0)),
        ("padding", "two ints", given(padding=(1, 2, 3))),
        ("dilation", "two ints", given(dilation=1.5)),
        ("groups", "at least 1", given(groups=0)),
        ("groups", "divisor", given(weight=torch.ones(4, 1, 3, 3), groups=5)),
        ("stride", "linear", given(x=torch.ones(2, 6), weight=torch.ones(4, 6), stride=2)),
        (
            "x",
            "finite values, got nan at [0, 0, 1, 1]",
            given(x=with_value((2, 6, 5, 7), torch.nan)),
        ),
        ("x", "finite values, got -inf", given(x=with_value((2, 6, 5, 7), -torch.inf))),
        (
            "weight",
            "finite values, got inf at [0, 0, 2, 2]",
            given(weight=with_value((4, 6, 3, 3), torch.inf)),
        ),
        (
            "x",
            "float32",
            given(x=with_value((2, 6, 5, 7), 3e38), weight=torch.full((4, 6, 3, 3), 9.0)),
        ),
    ],
)
def test_bad_input(name: str, part: str, arguments: dict[str, Any]) -> None:
    with pytest.raises(InvalidArgumentError) as caught:
        relative_sensitivity(**arguments)
    assert name in str(caught.value).split(":")[0]
    assert part in str(caught.value)


@pytest.mark.parametrize("name", ["x", "weight", "sensitivity"])
def test_the_extension_checks_for_itself(name: str) -> None:
    good = given() | {"sensitivity": torch.empty(4, 6, 3, 3)}
    options = {"aggregate": "max", "stride": (1, 1), "padding": (0, 0), "dilation": (1, 1)}
    call: Callable[..., None] = lambda **tensors: _native.relative_sensitivity(  # noqa: E731
        **tensors, **options, groups=1, threads=1
    )
    call(**good)
    bad = {"dtype": good[name].double(), "dimensions": good[name][0], "got NoneType": None}
    if name != "x":
        bad["contiguous"] = torch.cat([good[name], good[name]], -1)[..., ::2]
    for part, value in bad.items():
        with pytest.raises(ValueError, match=rf"^{name}: .*{part}"):
            call(**{**good, name: value})


# ---- torch around it -----------------------------------------------------------------------------


@pytest.mark.parametrize("aggregate", AGGREGATES)
def test_opcheck(aggregate: str) -> None:
    x, weight, _ = layer("4 groups")
    operator = torch.ops.causalprune.relative_sensitivity.default
    rest = (aggregate, [1, 1], [1, 1], [1, 1], 4)
    torch.library.opcheck(operator, (x, weight, *rest))
    torch.library.opcheck(operator, (strided(x, "channels_last"), weight, *rest))


def test_fake_and_meta_tensors() -> None:
    with FakeTensorMode():
        fake = relative_sensitivity(torch.empty(5, 12, 9, 9), torch.empty(8, 3, 3, 3), groups=4)
    meta = relative_sensitivity(
        torch.empty(5, 12, device="meta"), torch.empty(8, 12, device="meta"), aggregate="max"
    )
    assert fake.shape == (8, 3, 3, 3) and fake.device.type == "cpu"
    assert meta.shape == (8, 12) and meta.device.type == "meta"
    assert fake.dtype == meta.dtype == torch.float32


def test_export_passes_through() -> None:
    class Scored(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Conv2d(3, 17, 3, padding=1, bias=False)

        def forward(self, x: Tensor) -> Tensor:
            return 2.0 * relative_sensitivity(x, self.layer.weight, aggregate="max", padding=1)

    model, x = Scored().eval(), torch.randn(2, 3, 8, 8, generator=generator("export"))
    with torch.no_grad():
        program = torch.export.export(model, (x,))
        assert any("relative_sensitivity" in str(node.target) for node in program.graph.nodes)
        torch.testing.assert_close(program.module()(x), model(x))


def test_backward_says_that_there_is_none() -> None:
    found = relative_sensitivity(torch.ones(1, 3), torch.ones(2, 3, requires_grad=True))
    with pytest.raises(NotImplementedError, match="relative_sensitivity has no derivative"):
        found.sum().backward()
