"""Every method against its definition, by brute force."""

from __future__ import annotations

import copy
from collections.abc import Callable

import networks
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from causalprune.errors import InvalidArgumentError
from causalprune.graph import UnitGraph, capture, removed
from causalprune.scoring import METHODS, score

X, Y = networks.images(9), networks.targets(9)


def _effects(model: nn.Module, group: str, unit: int, graph: UnitGraph | None = None) -> Tensor:
    """Per-image loss change of removing a unit, by two whole forward passes."""
    graph = graph or capture(model, X)
    with torch.no_grad():
        plain = F.cross_entropy(model(X).double(), Y, reduction="none")
        with removed(model, graph, {group: [unit]}):
            cut = F.cross_entropy(model(X).double(), Y, reduction="none")
    return cut - plain


TAKES = {
    "ablation": {"mean", "resample", "predicted"},
    "banzhaf": {"mean", "resample"},
    "blame": {"mean"},
    "cexcnn": {"mean", "resample"},
    "cswap": {"mean", "resample"},
    "irreplaceable": {"predicted"},
    "path": {"mean", "predicted"},
    "responsibility": {"mean", "resample"},
    "taylor": {"mean", "predicted"},
}


@pytest.mark.parametrize("value", ["mean", "resample", "predicted"])
@pytest.mark.parametrize("method", sorted(METHODS))
def test_an_intervention_is_honoured_or_refused(method: str, value: str) -> None:
    model = networks.mlp()
    if value not in TAKES.get(method, set()):
        with pytest.raises(InvalidArgumentError, match=f"intervention.*{method}.*ablation"):
            score(model, (X, Y), method, intervention=value)
        return
    # Blame and responsibility are about few decisions, which another value need not change.
    options = {"theta": 1e-9, "target_class": 1} if method in ("blame", "responsibility") else {}
    zero, other = (
        score(model, (X, Y), method, intervention=v, **options).frame for v in ("zero", value)
    )
    effect = "importance" if options else "effect"
    # "zero" is score's default, which stands for "predicted" where that is all a method does.
    same = method == "irreplaceable"
    assert np.allclose(zero[effect], other[effect], atol=1e-4) == same


def test_taylor_to_the_mean_is_first_order_in_the_deviation() -> None:
    model = networks.mlp().double()
    x = X.double()
    frame = score(model, (x, Y), "taylor", "logit", intervention="mean", batch_size=4).frame
    hidden = model[:5](x).detach().requires_grad_()
    (slope,) = torch.autograd.grad(model[5](hidden)[torch.arange(9), Y].sum(), hidden)
    expected = -((hidden - hidden.mean(0)) * slope).mean(0)
    got = frame[frame["layer"] == "3"]["effect"]
    np.testing.assert_allclose(got, expected.detach(), atol=1e-6)


@pytest.mark.parametrize("outcome", ["logit", lambda logits, targets: logits[:, 0]])
@pytest.mark.parametrize("method", sorted(METHODS))
def test_an_outcome_is_measured_or_refused(method: str, outcome: object) -> None:
    model = networks.vgg()
    if METHODS[method].outcomes is not None:
        with pytest.raises(InvalidArgumentError, match=f"outcome.*{method}"):
            score(model, (X, Y), method, outcome)
        return
    loss, other = (score(model, (X, Y), method, y).frame["importance"] for y in ("loss", outcome))
    assert not np.allclose(loss, other, atol=1e-4)


@pytest.mark.parametrize("name", networks.ALL)
def test_ablation_equals_brute_force(name: str) -> None:
    model = networks.ALL[name]()
    scores = score(model, (X, Y), "ablation", batch_size=4)
    whole = score(model, (X, Y), "ablation", batch_size=9)
    graph = capture(model, X)
    for row in whole.frame.itertuples():
        effects = _effects(model, row.group, row.unit, graph)
        assert row.effect == pytest.approx(effects.mean().item(), abs=1e-6)
        assert row.importance == pytest.approx(effects.abs().mean().item(), abs=1e-6)
        assert row.se == pytest.approx(effects.std().item() / 3, abs=1e-6)
    # Other batch cuts change only how convolutions round.
    np.testing.assert_allclose(scores.frame["effect"], whole.frame["effect"], atol=1e-5)


def test_ablation_where_a_prefix_value_changes_under_a_later_reader() -> None:
    class Aliased(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.last = nn.Linear(256, 6), nn.Linear(6, 3)
            self.skip = nn.Linear(256, 3)

        def forward(self, x: Tensor) -> Tensor:
            skip = self.skip(x.flatten(1))
            out = self.last(F.relu(self.first(x.flatten(1)))) + skip
            return out + skip.mul_(0.5)

    model = networks.settle(Aliased())
    for row in score(model, (X, Y), "ablation").frame.itertuples():
        expected = _effects(model, row.group, row.unit).mean().item()
        assert row.effect == pytest.approx(expected, abs=1e-6)


def _cut_paths(model: nn.Module, group: str, unit: int) -> Tensor:
    """Per-image path effect of a unit, in float64, without the graph's sites and the operator.

    The consumer is run again with the unit's input columns at zero; what its pre-activation loses
    goes through the activation, and the change is weighted with the outcome's gradient.
    """
    model = copy.deepcopy(model).double()
    (consumer,) = capture(model, X.double()).group(group).consumers
    layer = model.get_submodule(consumer.layer)
    entry, behind, phi, norm = _AROUND[consumer.layer](model)
    with torch.no_grad():
        read = entry(X.double())
        zeroed, width = read.clone(), consumer.features_per_unit
        zeroed[:, unit * width : (unit + 1) * width] = 0
        whole, cut = phi(norm(layer(read))), phi(norm(layer(zeroed)))
    gradient = _gradient(lambda value: _loss(behind(value), Y), whole)
    return (gradient * (cut - whole)).flatten(1).sum(1)


def _gradient(outcome_of: Callable[[Tensor], Tensor], value: Tensor) -> Tensor:
    value = value.detach().requires_grad_()
    (gradient,) = torch.autograd.grad(outcome_of(value).sum(), value)
    return gradient


def _loss(logits: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy(logits, targets, reduction="none")


# Consumer of the VGG-like chain -> what runs before it, behind it, its activation and its norm.
_AROUND = {
    "4": lambda m: (m[:4], m[7:], F.relu, m[5]),
    "10": lambda m: (m[:10], m[12:], F.relu, nn.Identity()),
    "12": lambda m: (m[:12], nn.Identity(), nn.Identity(), nn.Identity()),
}


def test_path_equals_cutting_edges_one_by_one() -> None:
    model = networks.vgg()
    for row in score(model, (X, Y), "path", batch_size=4).frame.itertuples():
        effects = _cut_paths(model, row.group, row.unit)
        tolerance = 1e-4 * max(1e-2, effects.abs().max().item())
        assert row.effect == pytest.approx(effects.mean().item(), abs=tolerance)
        assert row.importance == pytest.approx(effects.abs().mean().item(), abs=tolerance)


def test_path_through_shortcut_and_shared_relu() -> None:
    """Block 2, second convolution: pre-activation is its batch norm plus the shortcut."""
    model = networks.residual()
    scores = score(model, (X, Y), "path")
    rows = scores.frame[scores.frame["group"] == "block2.conv1"]
    twin = copy.deepcopy(model).double()
    block = twin.block2
    with torch.no_grad():
        entry = twin.block1(F.relu(twin.bn(twin.stem(X.double()))))
        hidden = F.relu(block.bn1(block.conv1(entry)))
        shortcut = block.shortcut(entry)
        pre = block.bn2(block.conv2(hidden)) + shortcut
    gradient = _gradient(lambda v: _loss(twin.fc(torch.flatten(twin.pool(v), 1)), Y), F.relu(pre))
    for row in rows.itertuples():
        cut = hidden.clone()
        cut[:, row.unit] = 0
        with torch.no_grad():
            change = F.relu(block.bn2(block.conv2(cut)) + shortcut) - F.relu(pre)
        expected = (gradient * change).sum((1, 2, 3)).mean().item()
        assert row.effect == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize(("name", "group"), [("lenet", "fc2"), ("mlp", "3"), ("vgg", "10")])
def test_path_is_exact_where_the_suffix_is_linear(name: str, group: str) -> None:
    model = networks.ALL[name]()
    path = score(model, (X, Y), "path", "logit").frame
    exact = score(model, (X, Y), "ablation", "logit").frame
    chosen = path["group"] == group
    assert chosen.any()
    for column in ("effect", "se", "importance"):
        np.testing.assert_allclose(path[column][chosen], exact[column][chosen], atol=1e-5)


@pytest.mark.parametrize("method", ["path", "taylor"])
def test_effects_through_several_consumers_add_up(method: str) -> None:
    class Fork(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = nn.Linear(256, 5)
            self.left, self.right = nn.Linear(5, 3), nn.Linear(5, 3)

        def forward(self, x: Tensor) -> Tensor:
            hidden = F.relu(self.first(x.flatten(1)))
            return self.left(hidden) + self.right(hidden)

    model = networks.settle(Fork())
    got = score(model, (X, Y), method, "logit").frame
    exact = score(model, (X, Y), "ablation", "logit").frame
    np.testing.assert_allclose(got["effect"], exact["effect"], atol=1e-5)


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")
@pytest.mark.parametrize("options", [{"padding": "same"}, {"padding_mode": "circular"}])
def test_path_with_unusual_padding(options: dict[str, str]) -> None:
    model = networks.settle(
        nn.Sequential(
            nn.Conv2d(1, 4, 3),
            nn.ReLU(),
            nn.Conv2d(4, 3, 4, **{"padding": 2, **options}),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
        )
    )
    path = score(model, (X, Y), "path", "logit").frame
    exact = score(model, (X, Y), "ablation", "logit").frame
    np.testing.assert_allclose(path["effect"], exact["effect"], atol=1e-5)


def test_path_on_tokens_and_flattened_tokens() -> None:
    class Tokens(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.patch = nn.Conv2d(1, 6, 4, stride=4)
            self.head = nn.Linear(6, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(F.gelu(self.patch(x)).flatten(2).transpose(1, 2)).mean(1)

    model = networks.settle(Tokens())
    path = score(model, (X, Y), "path", "logit").frame
    exact = score(model, (X, Y), "ablation", "logit").frame
    np.testing.assert_allclose(path["effect"], exact["effect"], atol=1e-5)


def test_frozen_parameters_do_not_stop_gradients() -> None:
    model, frozen = networks.lenet(), networks.lenet().requires_grad_(False)
    for method in ("path", "taylor"):
        with torch.inference_mode():
            got = score(frozen, (X, Y), method).frame["effect"]
        np.testing.assert_allclose(got, score(model, (X, Y), method).frame["effect"])


def test_taylor_is_minus_activation_times_gradient() -> None:
    model = networks.lenet()
    maps = F.max_pool2d(F.relu(model.conv1(X)), 2)
    maps = F.max_pool2d(F.relu(model.conv2(maps)), 2).detach().requires_grad_()
    logits = model.fc3(F.relu(model.fc2(F.relu(model.fc1(maps.flatten(1))))))
    (gradient,) = torch.autograd.grad(_loss(logits.double(), Y).sum(), maps)
    expected = -(maps.detach() * gradient).sum((2, 3))
    frame = score(model, (X, Y), "taylor").frame
    rows = frame[frame["group"] == "conv2"]
    np.testing.assert_allclose(rows["effect"], expected.mean(0), atol=1e-6)
    np.testing.assert_allclose(rows["importance"], expected.abs().mean(0), atol=1e-6)


def test_taylor_adds_the_readings_of_a_coupled_group_but_not_its_shortcut() -> None:
    """Against a central difference: scale what the consumers read of the unit by 1 + e."""
    model = networks.residual().double()
    graph, e = capture(model, X.double()), 1e-6
    frame = score(model, (X.double(), Y), "taylor").frame
    for unit in range(4):
        losses = []
        for sign in (1, -1):
            handles = [
                model.get_submodule(c.layer).register_forward_pre_hook(
                    lambda module, args, sign=sign, unit=unit: _scaled(args[0], unit, 1 + sign * e)
                )
                for c in graph.group("stem").consumers
            ]
            with torch.no_grad():
                losses.append(_loss(model(X.double()), Y).mean().item())
            for handle in handles:
                handle.remove()
        derivative = (losses[0] - losses[1]) / (2 * e)
        row = frame[(frame["group"] == "stem") & (frame["unit"] == unit)]
        assert row["effect"].item() == pytest.approx(-derivative, abs=1e-6)


def _scaled(x: Tensor, unit: int, factor: float) -> Tensor:
    x = x.clone()
    x[:, unit] *= factor
    return x


def test_norms() -> None:
    model = networks.residual()
    l1, l2 = (score(model, X, method).frame for method in ("l1", "l2"))
    stem, twin = model.stem.weight.detach(), model.block1.conv2.weight.detach()
    expected = stem.abs().sum((1, 2, 3)) + twin.abs().sum((1, 2, 3))
    np.testing.assert_allclose(l1[l1["group"] == "stem"]["importance"], expected, rtol=1e-6)
    squared = stem.square().sum((1, 2, 3)) + twin.square().sum((1, 2, 3))
    np.testing.assert_allclose(l2[l2["group"] == "stem"]["importance"], squared.sqrt(), rtol=1e-6)
    assert l1["effect"].isna().all() and (l1["category"] == "").all()


def test_random_depends_on_the_seed_alone() -> None:
    model = networks.lenet()
    first = score(model, X, "random", seed=1).frame["importance"]
    torch.manual_seed(99)
    assert first.equals(score(model, X, "random", seed=1).frame["importance"])
    assert not first.equals(score(model, X, "random", seed=2).frame["importance"])
    assert first.between(0, 1).all() and first.nunique() == len(first)


@pytest.mark.parametrize("name", networks.ALL)
def test_unit_that_nobody_weighs_has_no_effect(name: str) -> None:
    model = networks.ALL[name]()
    graph = capture(model, X)
    group = graph.groups[-1]
    with torch.no_grad():
        for consumer in group.consumers:
            layer = model.get_submodule(consumer.layer)
            layer.weight[:, : consumer.features_per_unit] = 0
    for method in ("path", "ablation", "taylor"):
        frame = score(model, (X, Y), method).frame
        row = frame[(frame["group"] == group.name) & (frame["unit"] == 0)]
        assert row["effect"].item() == 0 and row["category"].item() == "neutral"
