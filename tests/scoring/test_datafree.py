"""Data-free scores against the recursion written out, and its moments against Monte Carlo."""

from __future__ import annotations

import math
from collections.abc import Callable

import networks
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from causalprune import reference
from causalprune.errors import InvalidArgumentError, UnknownNameError, UnsupportedModelError
from causalprune.graph import trace
from causalprune.scoring import score
from causalprune.scoring.moment_walk import MomentWalk
from causalprune.scoring.moments import Moments, moments_through, relu_moments

IMAGE = torch.zeros(1, 1, 16, 16)


# ---- the closed form -----------------------------------------------------------------------------


def chain() -> nn.Sequential:
    model = nn.Sequential(
        nn.Conv2d(2, 5, 3, padding=1),
        nn.BatchNorm2d(5),
        nn.ReLU(),
        nn.Conv2d(5, 7, 3, bias=False),
        nn.BatchNorm2d(7),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(7 * 4 * 4, 6),
        nn.ReLU(),
        nn.Linear(6, 3),
    )
    return networks.settle(model, seed=int(torch.randint(1000, ())))  # type: ignore[return-value]


def recursion(model: nn.Sequential) -> dict[str, Tensor]:
    """The definition, one scalar at a time, for a chain of the layers above."""
    edges: dict[str, Tensor] = {}
    mu, var = [0.0, 0.0], [1.0, 1.0]
    for name, layer in model.named_children():
        if isinstance(layer, (nn.Conv2d, nn.Linear)):
            weight = layer.weight.detach().double().flatten(2) if layer.weight.ndim == 4 else None
            if weight is None:  # the places of a flattened map are one unit
                weight = layer.weight.detach().double().unflatten(1, (len(mu), -1))
            n_outputs, n_inputs = weight.shape[:2]
            energy = torch.zeros(n_outputs, n_inputs, dtype=torch.float64)
            means = []
            for o in range(n_outputs):
                means.append(0.0 if layer.bias is None else layer.bias[o].item())
                for i in range(n_inputs):
                    energy[o, i] = float(weight[o, i].square().sum()) * var[i]
                    means[o] += float(weight[o, i].sum()) * mu[i]
            share = energy / energy.sum(1, keepdim=True)
            edges[name] = -0.5 * torch.log1p(-share)
            mu, var = means, energy.sum(1).tolist()
        elif isinstance(layer, nn.BatchNorm2d):
            for c in range(len(mu)):
                scale = layer.weight[c].item() / math.sqrt(layer.running_var[c].item() + layer.eps)
                mu[c] = (mu[c] - layer.running_mean[c].item()) * scale + layer.bias[c].item()
                var[c] *= scale**2
        elif isinstance(layer, nn.ReLU):
            for c, (m, v) in enumerate(zip(mu, var, strict=True)):
                s = math.sqrt(v)
                below = 0.5 * math.erfc(-m / s / math.sqrt(2))
                density = math.exp(-0.5 * (m / s) ** 2) / math.sqrt(2 * math.pi)
                mu[c] = m * below + s * density
                var[c] = (m * m + v) * below + m * s * density - mu[c] ** 2
    return edges


def test_closed_form_is_the_recursion_written_out() -> None:
    model = chain()
    scores = score(model, torch.zeros(1, 2, 6, 6), "datafree")
    want = recursion(model)
    assert set(scores.edges) == {"3", "7", "9"}
    for layer, edge in scores.edges.items():
        np.testing.assert_allclose(edge, want[layer].numpy(), rtol=1e-6, atol=1e-9)
    for group, consumer in (("0", "3"), ("3", "7"), ("7", "9")):
        got = scores.frame[scores.frame["layer"] == group]["importance"].to_numpy()
        np.testing.assert_allclose(got, want[consumer].sum(0).numpy(), rtol=1e-6, atol=1e-9)
    assert (scores.frame["n"] == 0).all() and (scores.frame["cost"] == 0).all()


def test_only_the_shape_of_the_data_is_read() -> None:
    model = networks.lenet()
    first = score(model, torch.zeros(1, 1, 16, 16), "datafree")
    second = score(model, torch.randn(3, 1, 16, 16), "datafree")
    assert first.frame.equals(second.frame)


def test_edge_of_a_linear_layer_is_its_gaussian_information() -> None:
    # Independent Gaussian inputs: rho^2 is the squared correlation of input and output.
    model = nn.Sequential(nn.Linear(4, 4, bias=False), nn.Identity(), nn.Linear(4, 3))
    with torch.no_grad():
        model[0].weight.copy_(torch.diag(torch.tensor([0.5, 1.0, 2.0, 3.0])))
    x = torch.randn(400_000, 4)
    with torch.no_grad():
        joint = torch.cat([model[0](x), model(x)], 1)
    correlation = torch.corrcoef(joint.T)[4:, :4].double()
    want = -0.5 * torch.log1p(-correlation.square())
    edge = score(model, x[:1], "datafree").edges["2"]
    np.testing.assert_allclose(edge, want.numpy(), atol=0.02)


@pytest.mark.parametrize("name", networks.ALL)
def test_every_network_of_the_tests_has_finite_scores(name: str) -> None:
    frame = score(networks.ALL[name](), IMAGE, "datafree").frame
    assert np.isfinite(frame["importance"]).all() and (frame["importance"] >= 0).all()
    assert frame["importance"].max() > 0


def test_a_unit_that_nobody_hears_and_a_dead_unit_score_zero() -> None:
    model = chain()
    with torch.no_grad():
        model[3].weight[:, 2] = 0
        model[0].weight[4] = 0
    importance = score(model, torch.zeros(1, 2, 6, 6), "datafree").frame["importance"]
    assert importance[2] == 0 and importance[4] == 0 and importance[0] > 0


# ---- the moments ---------------------------------------------------------------------------------


def test_relu_moments_against_monte_carlo_and_the_grid() -> None:
    mean, var = torch.randn(9).double(), torch.rand(9).double() * 4 + 0.01
    drawn = F.relu(mean + var.sqrt() * torch.randn(400_000, 9).double())
    got = relu_moments(mean, var)
    torch.testing.assert_close(got[0], drawn.mean(0), rtol=0.01, atol=0.01)
    torch.testing.assert_close(got[1], drawn.var(0), rtol=0.03, atol=0.01)
    for closed, grid in zip(got, moments_through(F.relu, mean, var), strict=True):
        torch.testing.assert_close(closed, grid, rtol=0, atol=1e-4)


def test_relu_moments_without_variance() -> None:
    mean, var = relu_moments(torch.tensor([-1.0, 0.0, 2.0]).double(), torch.zeros(3).double())
    assert mean.tolist() == [0.0, 0.0, 2.0] and var.tolist() == [0.0, 0.0, 0.0]


def test_smooth_functions_are_exact_by_gauss_hermite() -> None:
    nodes, weights = (torch.from_numpy(a) for a in np.polynomial.hermite_e.hermegauss(60))
    mean, var = torch.randn(5).double(), torch.rand(5).double() + 0.1
    value = F.gelu(mean[:, None] + var.sqrt()[:, None] * nodes)
    first = value @ weights / weights.sum()
    second = (value - first[:, None]).square() @ weights / weights.sum()
    for got, want in zip(moments_through(F.gelu, mean, var), (first, second), strict=True):
        torch.testing.assert_close(got, want, rtol=0, atol=1e-9)


def test_maximum_of_two_gaussians() -> None:
    one = torch.ones(1).double()
    mean, var = moments_through(lambda x: x, 0 * one, one, window=2)
    assert mean.item() == pytest.approx(1 / math.sqrt(math.pi), abs=1e-9)
    assert var.item() == pytest.approx(1 - 1 / math.pi, abs=1e-9)


class Around(nn.Module):
    """A diagonal 1x1 convolution (Gaussian, channels and places independent), a piece, a reader."""

    def __init__(self, piece: Callable[[Tensor], Tensor], linear: bool) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 3, 1, groups=3)
        self.second = nn.Conv2d(3, 3, 1, groups=3)
        self.norm = nn.BatchNorm2d(3)
        self.layer_norm = nn.LayerNorm([3, 4, 4], elementwise_affine=False)
        self.piece = piece
        self.last = nn.Linear(48, 2) if linear else nn.Conv2d(3, 2, 1)
        networks.settle(self)

    def before(self, x: Tensor) -> Tensor:
        return self.piece(self, self.first(x[:, :3]), self.second(x[:, 3:]))

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.before(x))


PIECES: dict[str, Callable[[Around, Tensor, Tensor], Tensor]] = {
    "linear": lambda self, a, b: a,
    "relu": lambda self, a, b: F.relu(a),
    "gelu": lambda self, a, b: F.gelu(a),
    "hardswish": lambda self, a, b: F.hardswish(a),
    "leaky relu": lambda self, a, b: F.leaky_relu(a, 0.2),
    "batch norm": lambda self, a, b: F.relu(self.norm(a)),
    "residual": lambda self, a, b: F.relu(self.norm(a) + b),
    "difference": lambda self, a, b: (a - 2 * b) / 3,
    "product": lambda self, a, b: F.silu(a) * torch.sigmoid(b),
    "average pool": lambda self, a, b: F.avg_pool2d(F.relu(a), 2),
    "global pool": lambda self, a, b: F.adaptive_avg_pool2d(F.relu(a), 1),
    "mean": lambda self, a, b: F.relu(a).mean((2, 3), keepdim=True),
    "maximum": lambda self, a, b: F.max_pool2d(a, 2),
    "maximum behind relu": lambda self, a, b: F.max_pool2d(F.relu(a), 2),
    "branches": lambda self, a, b: torch.cat([F.relu(a), b], 1)[:, 1:4],
    "zero channels": lambda self, a, b: F.pad(a[:, :2], (0, 0, 0, 0, 1, 0), "constant", 0),
    "constant channels": lambda self, a, b: F.pad(F.relu(a[:, 1:]), (0,) * 5 + (1,), value=0.5),
    "reflected": lambda self, a, b: F.pad(F.relu(a), (1, 2, 0, 1), mode="reflect"),
    "moved": lambda self, a, b: torch.cat([F.relu(a[:, 2:]), b.chunk(3, 1)[0], a[:, :1]], 1),
}  # fmt: skip


def moments_of(model: nn.Module, layer: str, example: Tensor) -> Moments:
    traced, seen = trace(model, example), []
    (node,) = [n.name for n in traced.graph.nodes if n.target == layer]
    zero, one = (torch.full((), v, dtype=torch.float64) for v in (0.0, 1.0))
    shape = example[:1].shape
    MomentWalk(traced, {node: seen.append}).run(Moments(zero.expand(shape), one.expand(shape)))
    return seen[0]


@pytest.mark.parametrize("piece", PIECES)
def test_moments_against_monte_carlo(piece: str) -> None:
    model = Around(PIECES[piece], linear=False)
    x = torch.randn(30_000, 6, 4, 4)
    with torch.no_grad():
        drawn = model.before(x).double()
    got = moments_of(model, "last", x[:2])
    assert_moments(got, drawn)


def assert_moments(got: Moments, drawn: Tensor) -> None:
    """Places of one channel have one distribution: they are pooled."""
    tolerance = 0.02 * drawn.std().item()
    for tensor in (got.mean, got.var):
        assert tensor.shape == drawn[:1].shape
    channels = drawn.reshape(len(drawn), 3, -1).transpose(0, 1).flatten(1)
    for place in got.mean.reshape(3, -1).T:
        torch.testing.assert_close(place, channels.mean(1), rtol=0.01, atol=tolerance)
    for place in got.var.reshape(3, -1).T:
        torch.testing.assert_close(place, channels.var(1), rtol=0.05, atol=1e-4)


def test_flatten_keeps_every_place() -> None:
    model = Around(lambda self, a, b: torch.flatten(F.relu(a), 1), linear=True)
    x = torch.randn(30_000, 6, 4, 4)
    with torch.no_grad():
        drawn = model.before(x).double()
    got = moments_of(model, "last", x[:2])
    assert_moments(got, drawn)


def test_layer_norm_is_close_where_it_is_wide() -> None:
    class Wide(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm, self.last = nn.LayerNorm(200), nn.Linear(200, 2)
            networks.settle(self)

        def forward(self, x: Tensor) -> Tensor:
            return self.last(self.norm(3 * x + 1))

    model, x = Wide(), torch.randn(40_000, 200)
    with torch.no_grad():
        drawn = model.norm(3 * x + 1).double()
    got = moments_of(model, "last", x[:2])
    torch.testing.assert_close(got.mean[0], drawn.mean(0), rtol=0.02, atol=0.03)
    torch.testing.assert_close(got.var[0], drawn.var(0), rtol=0.05, atol=0.01)


# ---- histogram mode ------------------------------------------------------------------------------


def test_histogram_mode_is_that_of_noise_through_the_network() -> None:
    model = networks.vgg()
    scores = score(model, IMAGE, "datafree", mode="histogram", n_noise=300, bins=8, seed=3)
    noise = torch.randn(256, 1, 16, 16, generator=(g := torch.Generator().manual_seed(3)))
    noise = torch.cat([noise, torch.randn(44, 1, 16, 16, generator=g)])
    seen: dict[str, tuple[Tensor, Tensor]] = {}
    handles = [
        model.get_submodule(layer).register_forward_hook(
            lambda module, given, out, layer=layer: seen.update({layer: (given[0], out)})
        )
        for layer in ("4", "10", "12")
    ]
    with torch.no_grad():
        model(noise)
    for handle in handles:
        handle.remove()
    for layer, (given, out) in seen.items():
        width = {"4": 1, "10": 4, "12": 1}[layer]
        given = given.mean((2, 3)) if given.ndim == 4 else given.unflatten(1, (-1, width)).mean(2)
        out = out.mean((2, 3)) if out.ndim == 4 else out
        want = reference.histogram_information(given, out, 8)
        # The order of a mean may move a value into the next bin.
        np.testing.assert_allclose(scores.edges[layer], want.numpy(), atol=0.03)
    assert (scores.frame["n"] == 300).all()
    assert scores.frame["cost"].sum() == pytest.approx(300)


def test_histogram_mode_repeats_with_its_seed() -> None:
    model = networks.residual()
    runs = [
        score(model, IMAGE, "datafree", mode="histogram", n_noise=200, seed=s) for s in (1, 1, 2)
    ]
    assert runs[0].frame.equals(runs[1].frame) and not runs[0].frame.equals(runs[2].frame)


# ---- what it refuses -----------------------------------------------------------------------------


class Sine(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(4, 3), nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(F.relu(self.first(torch.sin(x))))


def test_an_operator_without_a_rule_is_named() -> None:
    with pytest.raises(UnsupportedModelError, match=r"sin\b.*no rule.*histogram"):
        score(Sine(), torch.zeros(1, 4), "datafree")
    assert score(Sine(), torch.zeros(1, 4), "datafree", mode="histogram", n_noise=50).edges


def test_options_are_checked() -> None:
    model = networks.mlp()
    with pytest.raises(UnknownNameError, match="closed_form, histogram"):
        score(model, IMAGE, "datafree", mode="exact")
    with pytest.raises(InvalidArgumentError, match=r"n_noise.*1"):
        score(model, IMAGE, "datafree", n_noise=1)
    with pytest.raises(InvalidArgumentError, match=r"bins.*1"):
        score(model, IMAGE, "datafree", mode="histogram", n_noise=50, bins=1)
    with pytest.raises(InvalidArgumentError, match=r"units.*groups"):
        score(networks.residual(), IMAGE, "datafree", units="filters")
