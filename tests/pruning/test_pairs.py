"""Layers that make units fitted together with those that read them."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import networks
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from causalprune.graph import capture
from causalprune.pruning import apply, plan, refit_run
from causalprune.pruning.joint_fit import Part, error_of, scaled, solve
from causalprune.pruning.pairs import Pair, pairs_of
from causalprune.pruning.readers import readers_of, traced_of
from causalprune.pruning.refit import refit_in_place
from causalprune.scoring import score


def _shrunk(
    model: nn.Module, x: Tensor, remove: Mapping[str, Sequence[int]], **options: Any
) -> nn.Module:
    nothing = plan(model, score(model, x, "random", max_images=1), 0.0, of="units")
    decided = replace(nothing, remove={name: tuple(units) for name, units in remove.items()})
    return apply(model, decided, **options)


def _pairs(model: nn.Module, x: Tensor, remove: Mapping[str, Sequence[int]]) -> dict[str, Pair]:
    small, graph = _shrunk(model, x, remove), capture(model, x[:1])
    before, after = traced_of(model, x[:1], graph), traced_of(small, x[:1])
    readers = readers_of(before, after, graph, remove, "pairs")
    return pairs_of(after, readers, graph, remove)


# ---- the regression ------------------------------------------------------------------------------


@pytest.mark.parametrize("flat_below", [None, 0.0])
def test_a_step_solves_the_normal_equations(flat_below: float | None) -> None:
    """Against the Jacobian written out, on two convolutions with a rectifier between."""
    first, second = nn.Conv2d(2, 3, 3, padding=1).double(), nn.Conv2d(3, 2, 1).double()
    x = torch.randn(40, 2, 5, 6, dtype=torch.float64)
    target = torch.randn(40, 2, 5, 6, dtype=torch.float64)
    layers: Any = [
        SimpleNamespace(layer="first", module=first, place=object()),
        SimpleNamespace(layer="second", module=second, place=object()),
    ]

    def run(part: slice) -> Callable[..., Tensor]:
        def with_changes(add: Callable[[Any, Tensor], Tensor]) -> Tensor:
            hidden = F.relu(first(x[part]) + add(layers[0], x[part]))
            return second(hidden) + add(layers[1], hidden)

        return with_changes

    cuts = [slice(0, 16), slice(16, 40)]
    parts = [Part(run(cut), lambda cut=cut: target[cut]) for cut in cuts]
    with torch.no_grad():
        changes = solve(layers, parts, ridge=1e-9, n_iterations=400, flat_below=flat_below)

    def whole(w1: Tensor, b1: Tensor, w2: Tensor, b2: Tensor) -> Tensor:
        hidden = F.relu(F.conv2d(x, w1, b1, padding=1))
        return F.conv2d(hidden, w2, b2).flatten()

    start = tuple(t.detach() for t in (first.weight, first.bias, second.weight, second.bias))
    jacobian: Any = torch.autograd.functional.jacobian(whole, start)
    rows = torch.cat([part.flatten(1) for part in jacobian], 1)
    got, aim = whole(*start), target.flatten()
    residual = aim - got
    if flat_below is not None:
        shown = (aim > 0) | (got > 0)
        residual = torch.where(aim > 0, residual, torch.where(got > 0, -got, 0.0))
        rows = rows * shown[:, None]
    found = torch.cat([t.flatten() for name in ("first", "second") for t in changes[name]])
    # Several changes do the same (scale one layer, unscale the other): what they do compares.
    expected = rows @ torch.linalg.lstsq(rows, residual).solution
    torch.testing.assert_close(rows @ found, expected, rtol=1e-3, atol=1e-3)
    with torch.no_grad():
        errors = [error_of(parts, scaled(changes, size), flat_below) for size in (0.0, 1e-3)]
    assert errors[1] < errors[0]


def test_the_error_leaves_out_what_the_rectifier_hides() -> None:
    got, target = torch.tensor([[-1.0, 2.0, -3.0, 1.0]]), torch.tensor([[-2.0, -1.0, 1.0, 3.0]])
    part = Part(lambda add: got, lambda: target)
    # -1 for -2: hidden; 2 for -1: seen as 2; -3 for 1: 4 to go; 1 for 3.
    assert error_of([part], {}, 0.0) == 4 + 16 + 4
    assert error_of([part], {}, None) == 1 + 9 + 16 + 4


# ---- which layers --------------------------------------------------------------------------------


class _Gated(nn.Module):
    """An inverted residual block: a depthwise convolution and a gate between the two."""

    def __init__(self) -> None:
        super().__init__()
        self.expand = nn.Conv2d(3, 8, 1)
        self.deep = nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.squeeze = nn.Conv2d(8, 4, 1)
        self.excite = nn.Conv2d(4, 8, 1)
        self.project = nn.Conv2d(8, 3, 1)
        self.last = nn.Linear(75, 2)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.deep(F.relu(self.expand(x))))
        gate = torch.sigmoid(self.excite(F.relu(self.squeeze(y.mean((2, 3), keepdim=True)))))
        return self.last(F.relu(self.project(y * gate) + x).flatten(1))


class _ChannelsLast(nn.Module):
    """Linear layers over the channels of a map, as in ConvNeXt."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.wide, self.narrow = nn.LayerNorm(3), nn.Linear(3, 8), nn.Linear(8, 3)
        self.last = nn.Linear(75, 2)

    def forward(self, x: Tensor) -> Tensor:
        y = self.narrow(F.gelu(self.wide(self.norm(x.permute(0, 2, 3, 1)))))
        return self.last((y.permute(0, 3, 1, 2) + x).flatten(1))


class _Read(nn.Module):
    """Hidden units that two branches read."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.left, self.right = nn.Linear(4, 6), nn.Linear(6, 4), nn.Linear(6, 4)
        self.last, self.other = nn.Linear(4, 2), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        hidden = F.relu(self.first(x))
        left, right = F.relu(self.left(hidden)), F.relu(self.right(hidden))
        return self.last(left) + self.other(right)


def test_a_pair_holds_all_that_lies_between() -> None:
    model, x = _Gated().eval(), torch.randn(6, 3, 5, 5)
    pairs = _pairs(model, x, {"expand": (1, 5), "squeeze": (0,)})
    assert list(pairs) == ["expand"]  # the gate's own pair lies within
    names = [reader.layer for reader in pairs["expand"].layers]
    assert names == ["expand", "deep", "squeeze", "excite", "project"]


def test_units_that_are_read_elsewhere_have_no_pair() -> None:
    model, x = _Read().eval(), torch.randn(6, 4)
    assert _pairs(model, x, {"first": (0, 3)}) == {}
    assert [r.layer for r in _pairs(model, x, {"left": (0,)})["left"].layers] == ["left", "last"]


def test_units_of_two_layers_have_no_pair() -> None:
    """Channels that an addition couples are made by both of its sides."""
    model, x = networks.residual(), networks.images(6)
    graph = capture(model, x[:1])
    coupled = [group for group in graph.removable if len(group.producers) > 1]
    assert coupled
    assert _pairs(model, x, {group.name: (0,) for group in coupled}) == {}


def test_chains_of_layers_are_fitted_pair_by_pair() -> None:
    model = nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 2))
    pairs = _pairs(model, torch.randn(6, 3), {"0": (0, 1), "2": (2,)})
    assert {name: [r.layer for r in pair.layers] for name, pair in pairs.items()} == {
        "0": ["0", "2"],
        "2": ["2", "4"],
    }


# ---- what it is for ------------------------------------------------------------------------------


def _gain(make: Callable[[], nn.Module]) -> float:
    """Squared error on new images with half of every group gone: in pairs, over one by one."""
    model = make().eval()
    x = (
        torch.randn(400, 3, 5, 5)
        if make in (_Gated, _ChannelsLast)
        else torch.randn(400, 1, 16, 16)
    )
    state = copy.deepcopy(model.state_dict())
    remove = {
        group.name: tuple(sorted(torch.randperm(group.n_units)[: group.n_units // 2].tolist()))
        for group in capture(model, x[:1]).removable
    }
    errors = []
    for layers in ("pairs", "all"):
        how: dict[str, Any] = {"compensation": "refit", "data": x[:300], "refit_layers": layers}
        small = _shrunk(model, x[:300], remove, **how)
        with torch.no_grad():
            errors.append(float((small(x[300:]) - model(x[300:])).square().sum()))
    assert all(torch.equal(state[name], value) for name, value in model.state_dict().items())
    return errors[0] / errors[1]


def test_pairs_come_closer_on_new_images() -> None:
    """Subsets of units are not the best that so many units can do."""
    networks_made = (_Gated, _ChannelsLast, networks.residual, networks.depthwise, networks.vgg)
    gains = torch.tensor([_gain(make) for make in networks_made for _ in range(3)])
    assert gains.log().mean().exp() < 0.95, gains
    assert gains.max() < 1.5, gains  # a step that does not help on images kept aside is not taken


def test_layers_between_are_fitted_alone_where_no_step_helps(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model, x, remove = _Gated().eval(), torch.randn(64, 3, 5, 5), {"expand": (1, 5)}
    graph = capture(model, x[:1])

    def fitted() -> set[str]:
        small = _shrunk(model, x, remove)
        fits = refit_in_place(model, small, graph, x, remove=remove, layers="pairs")
        return {fit.layer for fit in fits}

    between = {"deep", "squeeze", "excite"}
    errors = itertools.count(0, -1)
    with monkeypatch.context() as patch:  # every step helps
        patch.setattr(refit_run, "error_of", lambda *arguments: float(next(errors)))
        assert not between & fitted()
    monkeypatch.setattr(refit_run, "STEPS", ())
    assert between <= fitted()


def test_few_images_do_no_harm() -> None:
    """A step that does not help on the images kept aside is not taken."""
    model = networks.residual()
    x = networks.images(200)
    remove = {"block1.conv1": (0, 2)}
    few = x[:9]
    options: dict[str, Any] = {"compensation": "refit", "data": few}
    plain = _shrunk(model, few, remove, **options, refit_layers="all")
    small = _shrunk(model, few, remove, **options, refit_layers="pairs")
    with torch.no_grad():
        error, before = ((m(x) - model(x)).square().sum() for m in (small, plain))
    assert error < 3 * before


def test_the_same_images_give_the_same_bits() -> None:
    model, x = networks.residual(), networks.images(60)
    small = [
        _shrunk(
            model,
            x,
            {"block1.conv1": (0, 2)},
            compensation="refit",
            data=x,
            refit_layers="pairs",
            max_cache_bytes=limit,
        )
        for limit in (2**30, 0)
    ]
    for one, other in zip(*(m.state_dict().values() for m in small), strict=True):
        assert torch.equal(one, other)
