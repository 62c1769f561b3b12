"""Networks without a graph: what hooks can and cannot say about their units."""

from __future__ import annotations

from collections.abc import Callable

import networks
import pytest
import torch
import torch.nn.functional as F
import untraceable
from torch import Tensor, nn

import causalprune as cp
from causalprune.errors import CapturedByHooksWarning, UnsupportedModelError
from causalprune.graph import Consumer, Span, UnitGraph, capture, removed
from causalprune.graph.hooked import capture_by_hooks


def _captured(model: nn.Module, example: Tensor) -> UnitGraph:
    with pytest.warns(CapturedByHooksWarning):
        return capture(model, example)


def _on_values() -> untraceable.OnValues:
    model = networks.settle(untraceable.OnValues())
    assert isinstance(model, untraceable.OnValues)
    return model


def _images(n: int) -> Tensor:
    return torch.randn(n, 1, 9, 11)


def test_every_layer_is_a_group_cut_behind_its_chain() -> None:
    graph = _captured(_on_values(), _images(2))
    assert [(g.name, g.kind, g.n_units) for g in graph.groups] == [
        ("conv1", "filter", 4),
        ("conv2", "filter", 4),
        ("fc1", "hidden", 5),
    ]
    spans = (Span(0, 4, 0),)
    assert graph.group("conv1").consumers == (Consumer("pool", "map", 1, spans),)
    assert graph.group("conv1").layers("norm") == ("bn1",)
    assert graph.group("conv2").consumers == (Consumer("bn2", "map", 1, spans),)
    assert graph.group("fc1").consumers == (Consumer("tanh", "features", 1, (Span(0, 5, 0),)),)
    assert graph.refused == {"fc2": "feeds the model's output"}
    assert graph.positions == {"conv1": 99, "conv2": 20, "fc1": 1, "fc2": 1}
    assert not graph.traced and dict(graph.sites) == {}


def test_reason_names_the_layer_and_the_line() -> None:
    model = nn.Sequential(_on_values(), nn.Identity())
    with pytest.warns(CapturedByHooksWarning, match=r"layer '0' \(OnValues, .*untraceable\.py:\d+"):
        graph = capture(model, _images(2))
    assert "if x.sum() > 0:" in graph.untraced
    assert all("could not be traced" in group.surgery for group in graph.groups)
    with pytest.warns(CapturedByHooksWarning, match="'path'.*do not"):
        capture(model, _images(2))


@pytest.mark.parametrize("method", ["path", "taylor"])
def test_methods_that_need_a_graph_say_so(method: str) -> None:
    data = (_images(4), torch.arange(4) % 3)
    with (
        pytest.warns(CapturedByHooksWarning),
        pytest.raises(UnsupportedModelError, match=r"untraceable\.py.*ablation"),
    ):
        cp.score(_on_values(), data, method=method)


def test_ablation_is_zeroing_by_hand() -> None:
    model, x, y = _on_values(), _images(7), torch.randint(3, (7,))
    with pytest.warns(CapturedByHooksWarning):
        frame = cp.score(model, (x, y), method="ablation", outcome="logit").frame
    assert list(frame["layer"]) == ["conv1"] * 4 + ["conv2"] * 4 + ["fc1"] * 5
    effects = frame.set_index(["layer", "unit"])["effect"]
    layers = {"conv1": "pool", "conv2": "bn2", "fc1": "tanh"}
    for (layer, unit), effect in effects.items():
        found = _by_hand(model, x, layers[layer], unit) - _by_hand(model, x, "", 0)
        expected = float(found[torch.arange(7), y].mean())
        assert effect == pytest.approx(expected, rel=1e-4, abs=1e-6)


def _by_hand(model: untraceable.OnValues, x: Tensor, layer: str, unit: int) -> Tensor:
    """The forward of the network, written again, with one unit of one value at zero."""

    def cut(name: str, value: Tensor) -> Tensor:
        value = value.clone()
        if name == layer:
            value[:, unit] = 0
        return value

    with torch.no_grad():
        x = -x if x.sum() > 0 else x
        x = cut("pool", F.max_pool2d(F.relu(model.bn1(model.conv1(x))), 2))
        x = F.relu(x + cut("bn2", model.bn2(model.conv2(x))))
        x = cut("tanh", torch.tanh(model.fc1(x.mean((2, 3)))))
        return F.log_softmax(model.fc2(x), 1)


def test_removed_units_are_gone_and_hooks_too() -> None:
    model, x = _on_values(), _images(3)
    graph = _captured(model, x)
    with torch.no_grad():
        plain = model(x)
        with removed(model, graph, {"conv1": [0, 2], "fc1": [4]}):
            assert not torch.allclose(model(x), plain)
        assert torch.equal(model(x), plain)
    assert _hooks(model) == 0


def _hooks(model: nn.Module) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


def test_modes_and_hooks_are_restored_whatever_happens() -> None:
    class Fails(untraceable.OnValues):
        calls = 0

        def forward(self, x: Tensor) -> Tensor:
            self.calls += 1
            output = super().forward(x)
            if self.calls > 1:
                raise RuntimeError("out of luck")
            return output

    model = Fails().train()
    model.bn1.eval()
    before = [module.training for module in model.modules()]
    with pytest.raises(RuntimeError, match="out of luck"):
        capture_by_hooks(model, _images(2), "model: for the test")
    assert [module.training for module in model.modules()] == before
    assert _hooks(model) == 0

    kept = _on_values().train()
    statistics = kept.bn1.running_mean.clone()
    _captured(kept, _images(2))
    assert all(module.training for module in kept.modules())
    assert torch.equal(kept.bn1.running_mean, statistics) and _hooks(kept) == 0


class _Chain(nn.Module):
    """A convolution, something behind it, and a classifier; the branch cannot be traced."""

    def __init__(self, between: Callable[[_Chain, Tensor], Tensor]) -> None:
        super().__init__()
        self.conv, self.bn, self.relu = nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(True)
        self.drop, self.norm, self.fc = nn.Dropout(0.5), nn.LayerNorm([4, 7, 9]), nn.Linear(4, 3)
        self.between = between

    def forward(self, x: Tensor) -> Tensor:
        x = self.between(self, x if x.sum() > 0 else -x)
        return self.fc(x.mean((2, 3)))


@pytest.mark.parametrize(
    ("between", "layer"),
    [
        (lambda m, x: m.relu(m.bn(m.conv(x))), "relu"),
        (lambda m, x: m.relu(m.bn(m.drop(m.conv(x)))), "relu"),
        (lambda m, x: m.bn(m.relu(m.conv(x).clone())), "conv"),
        (lambda m, x: m.relu(m.norm(m.conv(x))), "conv"),
        (lambda m, x: m.relu(m.bn(m.bn(m.conv(x)))), "conv"),
        (lambda m, x: m.relu(F.relu(m.bn(m.conv(x)))), "bn"),
    ],
    ids=["chain", "inert", "function", "mixes", "twice", "function behind"],
)
def test_chain_ends_where_units_are_no_longer_handed_on(
    between: Callable[[_Chain, Tensor], Tensor], layer: str
) -> None:
    graph = _captured(_Chain(between), _images(2))
    assert [c.layer for c in graph.group("conv").consumers] == [layer]


def test_chain_ends_where_somebody_else_reads() -> None:
    def shortcut(model: _Chain, x: Tensor) -> Tensor:
        value = model.bn(model.conv(x))
        return value * 0.5 + model.relu(value.clone()) * 2 + F.relu(value)

    def shared(model: _Chain, x: Tensor) -> Tensor:
        value = model.conv(x)
        return model.bn(value) + value

    for between, layer in ((shortcut, "bn"), (shared, "conv")):
        graph = _captured(_Chain(between), _images(2))
        assert [c.layer for c in graph.group("conv").consumers] == [layer]


def test_refusals_are_named() -> None:
    class Refused(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.again, self.never = nn.Linear(4, 5), nn.Linear(5, 5), nn.Linear(5, 5)
            self.last, self.other = nn.Linear(5, 3), nn.Linear(4, 3)

        def forward(self, x: Tensor) -> Tensor:
            hidden = self.again(F.relu(self.again(self.first(x))))
            if hidden.sum() > 1e9:
                hidden = self.never(hidden)
            return (self.last(hidden) + self.other(x)).softmax(1)

    graph = _captured(Refused(), torch.randn(2, 4))
    assert [group.name for group in graph.groups] == ["first"]
    assert graph.refused == {
        "again": "is called 2 times",
        "never": "is not called by its own name",
        "last": "feeds the model's output",
        "other": "feeds the model's output",
    }


def test_nothing_to_cut_is_an_error_with_both_reasons() -> None:
    class OneLayer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(4, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.fc(x) if x.sum() > 0 else -self.fc(x)

    with pytest.raises(UnsupportedModelError, match=r"OneLayer.*fc: feeds the model's output"):
        capture(OneLayer(), torch.randn(2, 4))


def test_a_graph_by_hooks_is_that_of_frozen_layers_too() -> None:
    class Frozen(untraceable.OnValues):
        def forward(self, x: Tensor) -> Tensor:
            with torch.no_grad():
                return super().forward(x)

    plain = _captured(_on_values(), _images(2))
    frozen = _captured(networks.settle(Frozen()), _images(2))
    assert [(g.name, g.owned, g.consumers) for g in frozen.groups] == [
        (g.name, g.owned, g.consumers) for g in plain.groups
    ]
