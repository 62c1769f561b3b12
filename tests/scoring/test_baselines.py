"""The baselines against their definitions, by brute force on small networks."""

from __future__ import annotations

import itertools

import networks
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from causalprune.errors import (
    DataError,
    InvalidArgumentError,
    UnknownNameError,
    UnsupportedModelError,
)
from causalprune.graph import capture, removed
from causalprune.scoring import score
from causalprune.scoring.thinet import removal_order

X, Y = networks.images(9, seed=5), networks.targets(9)
DATA = (X, Y)


def loss(model: nn.Module, x: Tensor = X, y: Tensor = Y) -> Tensor:
    return F.cross_entropy(model(x).double(), y, reduction="none")


def rows(frame: object, group: str) -> object:
    return frame[frame["group"] == group]  # type: ignore[index]


# ---- batch-norm scale ----------------------------------------------------------------------------


def test_bn_scale_adds_the_norms_of_a_coupled_group() -> None:
    model = networks.residual()
    scores = score(model, X, "bn_scale")
    expected = model.bn.weight.abs() + model.block1.bn2.weight.abs()
    got = rows(scores.frame, "stem")["importance"]
    np.testing.assert_allclose(got, expected.detach(), rtol=1e-6)
    assert not any("batch norm" in note for note in scores.notes)


def test_bn_scale_names_groups_without_a_norm() -> None:
    scores = score(networks.vgg(), X, "bn_scale")
    assert (rows(scores.frame, "10")["importance"] == 1).all()
    assert any("no batch norm" in note and "10" in note for note in scores.notes)


def test_bn_scale_says_nothing_of_a_network_without_norms() -> None:
    with pytest.raises(UnsupportedModelError, match="no unit has one"):
        score(networks.mlp(), X, "bn_scale")


# ---- SNIP ----------------------------------------------------------------------------------------


def test_snip_is_the_derivative_of_a_gate_on_every_weight() -> None:
    """By central differences on gates of some weights, in float64."""
    model, e = networks.mlp().double(), 1e-5
    scores = score(model, (X.double(), Y), "snip", batch_size=4)
    assert sum(edge.sum() for edge in scores.edges.values()) == pytest.approx(1.0)
    twin, ratios = networks.mlp().double(), []
    for name, o, i in (("1", 3, 77), ("1", 0, 200), ("3", 4, 6), ("3", 1, 2), ("5", 2, 0)):
        weight = twin.get_submodule(name).weight
        old, values = weight[o, i].item(), []
        with torch.no_grad():
            for sign in (1, -1):
                weight[o, i] = old * (1 + sign * e)
                values.append(loss(twin, X.double()).mean().item())
            weight[o, i] = old
        ratios.append(abs(values[0] - values[1]) / (2 * e) / scores.edges[name][o, i])
    np.testing.assert_allclose(ratios, ratios[0], rtol=1e-4)  # all by the same total
    np.testing.assert_allclose(
        rows(scores.frame, "1")["importance"], scores.edges["1"].sum(1), rtol=1e-6
    )


@pytest.mark.parametrize("name", networks.ALL)
def test_snip_leaves_the_network_alone(name: str) -> None:
    model = networks.ALL[name]().requires_grad_(False)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    frame = score(model, DATA, "snip").frame
    assert frame["importance"].gt(0).any() and np.isfinite(frame["importance"]).all()
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    assert not any(p.requires_grad for p in model.parameters())


# ---- ThiNet --------------------------------------------------------------------------------------


def test_removal_order_is_greedy() -> None:
    draw = torch.Generator().manual_seed(0)
    z = torch.randn(50, 7, generator=draw, dtype=torch.float64)
    z[:, 3] = -z[:, 5] + 0.01 * z[:, 0]  # the two make up for each other
    order: list[int] = []
    while len(order) < 7:
        errors = {
            unit: z[:, [*order, unit]].sum(1).square().sum().item()
            for unit in range(7)
            if unit not in order
        }
        order.append(min(errors, key=errors.__getitem__))
    assert removal_order(z.T @ z) == order
    assert abs(order.index(3) - order.index(5)) == 1


@pytest.mark.parametrize("options", [{}, {"groups": 2}, {"stride": 2, "dilation": 2}])
def test_thinet_samples_what_channels_give(options: dict[str, int]) -> None:
    """With one output place, every sample is that place: the order is known."""
    torch.manual_seed(3)
    last = nn.Conv2d(6, 2, 3, **options)
    model = networks.settle(
        nn.Sequential(
            nn.Conv2d(1, 6, 3),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(5 if "dilation" in options else 3),
            last,
            nn.Flatten(),
        )
    )
    with torch.no_grad():
        last.weight[1] = last.weight[0]  # the same contribution, whichever output is drawn
        x = model[:3](X)
        if "groups" in options:
            wide = torch.zeros(9, 6, dtype=torch.float64)
            one = torch.zeros(9, 6, dtype=torch.float64)
            wide[:, :3] = (x[:, :3] * last.weight[0]).double().sum((2, 3))
            one[:, 3:] = (x[:, 3:] * last.weight[1]).double().sum((2, 3))
            # Surgery takes whole groups; the channels alone are units of their layers.
            scores = score(model, DATA, "thinet", samples_per_image=400, units="filters")
            gram = (wide.T @ wide) / 2 + (one.T @ one) / 2
        else:
            d = options.get("dilation", 1)
            seen = x[:, :, ::d, ::d]
            z = (seen * last.weight[0]).double().sum((2, 3))
            scores = score(model, DATA, "thinet", samples_per_image=3)
            gram = z.T @ z
    places = np.empty(6)
    places[removal_order(gram)] = np.arange(1, 7) / 6
    np.testing.assert_allclose(scores.frame["importance"], places)


def test_thinet_on_linear_consumers_and_own_branches() -> None:
    for name in networks.ALL:
        for units in ("groups", "filters"):
            frame = score(networks.ALL[name](), DATA, "thinet", units=units).frame
            for _, group in frame.groupby("group"):
                n = len(group)
                np.testing.assert_allclose(sorted(group["importance"]), np.arange(1, n + 1) / n)


# ---- variance ------------------------------------------------------------------------------------


def test_variance_of_what_consumers_read() -> None:
    model = networks.vgg()
    frame = score(model, X, "variance", batch_size=4).frame
    with torch.no_grad():
        maps, flat = model[:4](X).double(), model[:10](X).double()
    expected = maps.movedim(1, 0).flatten(1).var(1, correction=0)
    np.testing.assert_allclose(rows(frame, "0")["importance"], expected, rtol=1e-5)
    expected = flat.var(0, correction=0).reshape(6, 4).sum(1)
    np.testing.assert_allclose(rows(frame, "4")["importance"], expected, rtol=1e-5)


# ---- conductance and integrated gradients --------------------------------------------------------


@pytest.mark.parametrize(("name", "group"), [("lenet", "conv2"), ("mlp", "1"), ("vgg", "0")])
def test_conductance_of_a_cut_adds_up(name: str, group: str) -> None:
    """Every path from input to output passes the group: completeness."""
    model = networks.ALL[name]()
    frame = score(model, DATA, "conductance", "logit", steps=100).frame
    with torch.no_grad():
        there, here = model(X * 0), model(X)
        change = (there - here).gather(1, Y[:, None]).mean().item()
    assert rows(frame, group)["effect"].sum() == pytest.approx(change, abs=2e-2 * abs(change))


def test_conductance_in_closed_form() -> None:
    """One hidden layer on a linear path: exactly -(a(x) - a(0)) w, whatever the steps."""
    model = networks.settle(nn.Sequential(nn.Flatten(), nn.Linear(256, 5), nn.Linear(5, 3)))
    frame = score(model, DATA, "conductance", "logit", steps=2).frame
    with torch.no_grad():
        change = model[1](X.flatten(1)) - model[1].bias
        effects = -(change * model[2].weight[Y])
    np.testing.assert_allclose(frame["effect"], effects.mean(0), atol=1e-5)
    np.testing.assert_allclose(frame["importance"], effects.abs().mean(0), atol=1e-5)


@pytest.mark.parametrize("name", networks.ALL)
def test_integrated_gradients_add_up_to_removing_the_group(name: str) -> None:
    model = networks.ALL[name]()
    graph = capture(model, X)
    frame = score(model, DATA, "integrated_gradients", steps=24).frame
    for group in graph.groups:
        with torch.no_grad(), removed(model, graph, {group.name: range(group.n_units)}):
            gone = loss(model)
        with torch.no_grad():
            change = (gone - loss(model)).mean().item()
        got = rows(frame, group.name)["effect"].sum()
        assert got == pytest.approx(change, abs=5e-2 * max(0.05, abs(change)))


# ---- edge patching -------------------------------------------------------------------------------


def test_edge_patching_is_exact_on_a_linear_end() -> None:
    """Behind the last hidden layer the logit is linear: an edge is what it carries."""
    model = networks.lenet()
    scores = score(model, DATA, "edge_patching", "logit", batch_size=4)
    with torch.no_grad():
        hidden = F.relu(model.fc2(F.relu(model.fc1(_flat(model, X)))))
        zero = F.relu(model.fc2(F.relu(model.fc1(_flat(model, X * 0)))))
        carried = (hidden - zero).double()
    expected = torch.zeros(3, 8, dtype=torch.float64)
    for n in range(9):
        expected[Y[n]] -= carried[n] * model.fc3.weight[Y[n]].detach() / 9
    np.testing.assert_allclose(scores.edges["fc3"], expected, atol=1e-6)
    np.testing.assert_allclose(rows(scores.frame, "fc2")["effect"], expected.sum(0), atol=1e-6)


def _flat(model: nn.Module, x: Tensor) -> Tensor:
    x = F.max_pool2d(F.relu(model.conv1(x)), 2)
    return F.max_pool2d(F.relu(model.conv2(x)), 2).flatten(1)


def test_edge_patching_of_a_convolution_edge_by_edge() -> None:
    model, steps = networks.vgg().double(), 3
    x = X.double()
    other = x.roll(1, 0)
    scores = score(model, (x, Y), "edge_patching", steps=steps, corrupted="shuffled")
    conv = model[4]
    slope = torch.zeros(9, 6, 8, 8, dtype=torch.float64)
    for k in range(1, steps + 1):
        start = model[:5](other + (x - other) * k / steps).detach().requires_grad_()
        (found,) = torch.autograd.grad(loss_of(model[5:](start)).sum(), start)
        slope += found / steps
    with torch.no_grad():
        change = model[:4](x) - model[:4](other)
        for j, i in itertools.product(range(6), range(4)):
            carried = F.conv2d(change[:, i, None], conv.weight[j, i][None, None], padding=1)
            expected = -(carried[:, 0] * slope[:, j]).sum() / 9
            assert scores.edges["4"][j, i] == pytest.approx(expected.item(), abs=1e-9)
    first = rows(scores.frame, "0")["effect"]
    np.testing.assert_allclose(first, scores.edges["4"].sum(0), atol=1e-9)


def loss_of(logits: Tensor) -> Tensor:
    return F.cross_entropy(logits, Y, reduction="none")


# ---- all of them ---------------------------------------------------------------------------------

EVERY = (
    "bn_scale", "conductance", "edge_patching", "integrated_gradients", "snip", "thinet",
    "variance",
)  # fmt: skip


@pytest.mark.parametrize("method", EVERY)
@pytest.mark.parametrize("name", ["residual", "depthwise"])
def test_every_baseline_scores_every_unit(name: str, method: str) -> None:
    model = networks.ALL[name]()
    for units in ("groups", "filters"):
        frame = score(model, DATA, method, units=units).frame
        assert np.isfinite(frame["importance"]).all() and (frame["importance"] >= 0).all()


@pytest.mark.parametrize(
    ("method", "options", "message"),
    [
        ("thinet", {"samples_per_image": 0}, "samples_per_image"),
        ("conductance", {"steps": 0}, "steps"),
        ("integrated_gradients", {"steps": True}, "steps"),
        ("edge_patching", {"steps": 1.5}, "steps"),
        ("edge_patching", {"corrupted": "noise"}, "corruption"),
        ("edge_patching", {"corrupted": "shuffled", "batch_size": 1}, "two images"),
        ("snip", {"outcome": "correctness"}, "differentiable"),
    ],
)
def test_bad_options(method: str, options: dict[str, object], message: str) -> None:
    with pytest.raises((InvalidArgumentError, UnknownNameError, DataError), match=message):
        score(networks.lenet(), DATA, method, **options)
