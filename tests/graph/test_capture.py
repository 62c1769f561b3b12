"""What capture finds: groups, consumers, sites, and named refusals."""

from __future__ import annotations

import re

import networks
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from causalprune.errors import InvalidArgumentError, UnknownNameError, UnsupportedModelError
from causalprune.graph import Consumer, Span, UnitGraph, capture


def _captured(name: str) -> UnitGraph:
    return capture(networks.ALL[name](), networks.images(2))


def test_chain_with_flatten() -> None:
    graph = _captured("lenet")
    assert [(g.name, g.kind, g.n_units) for g in graph.groups] == [
        ("conv1", "filter", 4),
        ("conv2", "filter", 6),
        ("fc1", "hidden", 10),
        ("fc2", "hidden", 8),
    ]
    assert graph.group("conv1").consumers == (Consumer("conv2", "conv", 1, (Span(0, 4, 0),)),)
    assert graph.group("conv2").consumers == (Consumer("fc1", "linear", 4, (Span(0, 6, 0, 4, 4),)),)
    assert graph.refused == {"fc3": "feeds the model's output"}
    assert graph.positions == {"conv1": 256, "conv2": 16, "fc1": 1, "fc2": 1, "fc3": 1}


def test_residual_addition_couples_producers() -> None:
    graph = _captured("residual")
    stem = graph.group("stem")
    assert stem.producers == ("stem", "block1.conv2")
    assert stem.layers("norm") == ("bn", "block1.bn2")
    assert {c.layer for c in stem.consumers} == {
        "block1.conv1",
        "block2.conv1",
        "block2.shortcut.0",
    }
    assert graph.group("block2.conv2").producers == ("block2.conv2", "block2.shortcut.0")


def test_depthwise_convolution_carries_its_units() -> None:
    group = _captured("depthwise").group("0.0")
    assert group.layers("depthwise") == ("1.0",)
    assert group.layers("norm") == ("0.1", "1.1")
    assert group.consumers == (Consumer("2.0", "conv", 1, (Span(0, 4, 0),)),)


def test_mlp() -> None:
    graph = _captured("mlp")
    assert [(g.name, g.kind, g.n_units) for g in graph.groups] == [
        ("1", "hidden", 7),
        ("3", "hidden", 5),
    ]


def test_site_includes_norm_shortcut_and_activation() -> None:
    sites = _captured("residual").sites
    assert (sites["block1.conv2"].norm, sites["block1.conv2"].activation) == ("block1.bn2", "relu")
    assert sites["block1.conv2"].pre == "add"
    assert sites["fc"].activation == "identity" and sites["fc"].reason == ""


def test_unknown_activation_is_linearised_with_a_reason() -> None:
    site = _captured("depthwise").sites["2.0"]
    assert site.activation == "identity"
    assert "2.2" in site.reason and "first order" in site.reason


def test_unknown_group_lists_the_known_ones() -> None:
    with pytest.raises(UnknownNameError, match="fc1"):
        _captured("lenet").group("conv9")


class _Tail(nn.Module):
    """A convolution, some operator on its output, and a classifier."""

    def __init__(self, features: int = 64) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 3, padding=1)
        self.other = nn.Conv2d(1, 4, 3, padding=1)
        self.fc = nn.Linear(features, 3)

    def between(self, x: Tensor) -> Tensor:
        return F.adaptive_avg_pool2d(self.conv(x), 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(torch.flatten(self.between(x), 1))


class _Cat(_Tail):
    def between(self, x: Tensor) -> Tensor:
        both = torch.cat([self.conv(x), self.other(x)], 1)
        return F.adaptive_avg_pool2d(both, 4)


class _Product(_Tail):
    def between(self, x: Tensor) -> Tensor:
        return F.adaptive_avg_pool2d(self.conv(x) * self.other(x), 4)


class _Softmax(_Tail):
    def between(self, x: Tensor) -> Tensor:
        return F.adaptive_avg_pool2d(self.conv(x), 4).softmax(1)


class _FixedView(_Tail):
    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.between(x).view(-1, 64))


class _InputAddition(_Tail):
    def between(self, x: Tensor) -> Tensor:
        return F.adaptive_avg_pool2d(self.conv(x) + x, 4)


class _Twice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(4, 4)
        self.again = nn.Linear(4, 4)
        self.last = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(F.relu(self.again(F.relu(self.again(F.relu(self.first(x)))))))


class _Broadcast(_Tail):
    def between(self, x: Tensor) -> Tensor:
        gate = self.other(x)[:, :1]
        return F.adaptive_avg_pool2d(self.conv(x) + gate, 4)


class _InPlace(_Tail):
    def between(self, x: Tensor) -> Tensor:
        first = self.conv(x)
        first.add_(self.other(x)).mul_(2.0)
        return F.adaptive_avg_pool2d(F.relu(first), 4)


class _Unknown(_Tail):
    def between(self, x: Tensor) -> Tensor:
        return F.adaptive_avg_pool2d(torch.flip(self.conv(x), [1]), 4)


class _Mean(_Tail):
    def between(self, x: Tensor) -> Tensor:
        return F.adaptive_avg_pool2d(self.conv(x).mean(1, keepdim=True), 8)


@pytest.mark.parametrize(
    ("model", "layer", "reason"),
    [
        (_Softmax(), "conv", "softmax normalises"),
        (_InputAddition(), "conv", "does not carry"),
        (_Broadcast(), "conv", "spreads a unit"),
        (_Unknown(), "conv", "flip, which has no rule"),
        (_Mean(), "conv", "averages over the units"),
        (_Tail(), "other", "not called"),
        (_Tail(), "fc", "output"),
    ],
)
def test_refusals_are_named(model: nn.Module, layer: str, reason: str) -> None:
    graph = capture(model, networks.images(2))
    assert layer not in {p for g in graph.groups for p in g.producers}
    assert re.search(reason, graph.refused[layer])


def test_concatenated_layers_stay_groups_of_their_own() -> None:
    graph = capture(_Cat(128), networks.images(2))
    assert [(g.name, g.n_units, g.surgery) for g in graph.groups] == [
        ("conv", 4, ""),
        ("other", 4, ""),
    ]
    first, second = (group.consumers[0] for group in graph.groups)
    assert first.columns([0]).tolist() == list(range(16))
    assert second.columns([0]).tolist() == list(range(64, 80))


def test_factors_of_a_product_are_coupled() -> None:
    graph = capture(_Product(), networks.images(2))
    assert [g.producers for g in graph.groups] == [("conv", "other")]


def test_an_in_place_sum_is_seen_by_those_who_read_the_overwritten_value() -> None:
    graph = capture(_InPlace(), networks.images(2))
    assert [g.producers for g in graph.groups] == [("conv", "other")]
    alone = capture(_InPlace(), networks.images(2), units="filters")
    assert [g.consumers[0].layer for g in alone.groups] == ["conv", "other"]


def test_constant_width_forbids_surgery_only() -> None:
    (group,) = capture(_FixedView(), networks.images(2)).groups
    assert "constant 64" in group.surgery
    assert group.consumers[0].columns([1]).tolist() == list(range(16, 32))


class _Shuffle(_Tail):
    def between(self, x: Tensor) -> Tensor:
        n, c, h, w = (y := self.conv(x)).shape
        return F.adaptive_avg_pool2d(y.view(n, 2, c // 2, h, w).transpose(1, 2).flatten(1, 2), 4)


class _Split(_Tail):
    def between(self, x: Tensor) -> Tensor:
        first, second = self.conv(x).split([1, 3], 1)
        return F.adaptive_avg_pool2d(torch.cat([second, first], 1), 4)


class _Stacked(_Tail):
    def between(self, x: Tensor) -> Tensor:
        y = torch.stack([self.conv(x), self.other(x)], 1)
        return F.adaptive_avg_pool2d(y[:, 1], 4)


class _Rolled(_Tail):
    def between(self, x: Tensor) -> Tensor:
        return F.adaptive_avg_pool2d(torch.roll(self.conv(x), (1, 2), (1, 3)), 4)


class _Permuted(_Tail):
    def between(self, x: Tensor) -> Tensor:
        y = self.conv(x).permute(0, 2, 3, 1)[:, ::2, 1::2]
        return F.adaptive_avg_pool2d(y.permute(0, 3, 1, 2), 4)


@pytest.mark.parametrize(
    ("model", "order", "surgery"),
    [
        (_Shuffle(), [0, 2, 1, 3], "spreads"),
        (_Split(), [1, 2, 3, 0], "parts"),
        (_Rolled(), [3, 0, 1, 2], "shifts"),
        (_Permuted(), [0, 1, 2, 3], ""),
    ],
)
def test_units_are_followed_wherever_they_go(
    model: nn.Module, order: list[int], surgery: str
) -> None:
    (group,) = capture(model, networks.images(2)).groups
    (consumer,) = group.consumers
    places = [int(consumer.columns([unit])[0]) // 16 for unit in range(4)]
    assert [places.index(k) for k in range(4)] == order
    assert surgery in group.surgery and bool(surgery) == bool(group.surgery)


def test_a_layer_that_nobody_reads_is_refused() -> None:
    graph = capture(_Stacked(), networks.images(2))
    assert graph.refused["conv"] == "no layer reads these units"
    assert [g.name for g in graph.groups] == ["other"]


def test_partial_coupling_makes_one_group_of_the_longer_layer() -> None:
    class Padded(_Tail):
        def __init__(self) -> None:
            super().__init__(96)
            self.wide = nn.Conv2d(4, 6, 3, padding=1)

        def between(self, x: Tensor) -> Tensor:
            first = self.conv(x)
            return F.adaptive_avg_pool2d(self.wide(first) + F.pad(first, (0, 0, 0, 0, 1, 1)), 4)

    graph = capture(Padded(), networks.images(2))
    (group,) = graph.groups
    assert (group.producers, group.n_units) == (("conv", "wide"), 6)
    conv, wide = (owned.columns for owned in group.owned)
    # The channels of the first layer come first, then those that only the second one has.
    assert [conv([u]).tolist() for u in range(6)] == [[0], [1], [2], [3], [], []]
    assert [wide([u]).tolist() for u in range(6)] == [[1], [2], [3], [4], [0], [5]]
    assert "pad" in group.surgery
    fc = next(c for c in group.consumers if c.layer == "fc")
    assert fc.columns([4])[0] == 0 and fc.columns([0])[0] == 16


def test_layer_called_twice_is_refused() -> None:
    graph = capture(_Twice(), torch.zeros(2, 4))
    assert graph.groups == ()
    assert "called 2 times" in graph.refused["again"]
    assert "called 2 times" in graph.refused["first"]


def test_a_unit_of_a_grouped_convolution_is_a_group_of_it() -> None:
    model = nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.Conv2d(4, 6, 3, groups=2), nn.Conv2d(6, 3, 3), nn.Flatten()
    )
    (group,) = capture(model, networks.images(2)).groups
    assert (group.producers, group.n_units, group.surgery) == (("0", "1"), 2, "")
    assert [item.columns([1]).tolist() for item in group.owned] == [[2, 3], [3, 4, 5]]
    assert [c.columns([1]).tolist() for c in group.consumers] == [[3, 4, 5]]
    alone = capture(model, networks.images(2), units="filters")
    assert [(group.name, group.n_units) for group in alone.groups] == [("0", 4), ("1", 6)]
    assert all("grouped" in group.surgery for group in alone.groups)


def test_layer_norm_refuses_what_it_normalises_but_not_along_other_axes() -> None:
    class Normed(nn.Module):
        def __init__(self, axis: int) -> None:
            super().__init__()
            self.patch = nn.Conv2d(1, 6, 4, stride=4)
            self.norm = nn.LayerNorm(6 if axis else 16)
            self.down = nn.Linear(6, 3)
            self.axis = axis

        def forward(self, x: Tensor) -> Tensor:
            x = self.patch(x).flatten(2)
            x = self.norm(x.transpose(1, 2)) if self.axis else self.norm(x).transpose(1, 2)
            return self.down(x).mean(1)

    assert "'norm' normalises" in capture(Normed(1), networks.images(2)).refused["patch"]
    assert [g.name for g in capture(Normed(0), networks.images(2)).groups] == ["patch"]


def test_choice_of_units_is_checked() -> None:
    with pytest.raises(UnknownNameError, match="filters"):
        capture(networks.lenet(), networks.images(2), units="neurons")


def test_masked_layer_of_another_tool_is_refused() -> None:
    from torch.nn.utils import prune

    model = networks.lenet()
    prune.l1_unstructured(model.get_submodule("conv1"), "weight", 0.5)
    assert "masked" in capture(model, networks.images(2)).refused["conv1"]


def test_shared_parameters_are_refused() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2))
    model[2].weight = model[0].weight
    assert "shares" in capture(model, torch.zeros(2, 4)).refused["0"]


def test_tokens_and_permutation() -> None:
    class Tokens(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.patch = nn.Conv2d(1, 6, 4, stride=4)
            self.up = nn.Linear(6, 5)
            self.down = nn.Linear(5, 3)

        def forward(self, x: Tensor) -> Tensor:
            x = self.patch(x).flatten(2).transpose(1, 2)
            return self.down(F.gelu(self.up(x))).mean(1)

    graph = capture(Tokens(), networks.images(2))
    assert [g.name for g in graph.groups] == ["patch", "up"]
    assert graph.positions["up"] == 16


def test_capture_restores_every_mode() -> None:
    model = networks.vgg().train()
    model[1].eval()
    before = [module.training for module in model.modules()]
    capture(model, networks.images(2))
    assert [module.training for module in model.modules()] == before
    with pytest.raises(InvalidArgumentError):
        capture(model, torch.zeros(2, 7, 16, 16))
    assert [module.training for module in model.modules()] == before


def test_capture_leaves_buffers_alone() -> None:
    model = networks.vgg().train()
    before = {name: buffer.clone() for name, buffer in model.named_buffers()}
    capture(model, networks.images(2))
    assert all(torch.equal(before[name], buffer) for name, buffer in model.named_buffers())


@pytest.mark.parametrize("example", [torch.zeros(3), torch.zeros(0, 1, 16, 16), "image"])
def test_bad_example(example: object) -> None:
    with pytest.raises(InvalidArgumentError, match="example"):
        capture(networks.lenet(), example)  # type: ignore[arg-type]


def test_untraceable_network_is_named() -> None:
    class Branching(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x if x.sum() > 0 else -x

    with pytest.raises(UnsupportedModelError, match="Branching"):
        capture(Branching(), torch.zeros(1, 2))


def test_model_must_be_a_module() -> None:
    with pytest.raises(InvalidArgumentError, match="model"):
        capture(lambda x: x, torch.zeros(1, 2))  # type: ignore[arg-type]
