"""Layers of derived classes, which a trace sees as functions."""

from __future__ import annotations

from typing import Any

import networks
import pytest
import torch
import torch.nn.functional as F
import untraceable
from torch import Tensor, nn

import causalprune as cp
from causalprune.graph import capture, removed
from causalprune.graph.trace import layers_of, trace


class NormAct(nn.BatchNorm2d):
    """Batch norm, dropout and activation in one module."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels, eps=3e-3)
        self.drop, self.act = nn.Identity(), nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        x = F.batch_norm(
            x, self.running_mean, self.running_var, self.weight, self.bias,
            self.training, self.momentum or 0.0, self.eps,
        )  # fmt: skip
        return self.act(self.drop(x))


class Padded(nn.Conv2d):
    """Convolution that pads by hand."""

    def forward(self, x: Tensor) -> Tensor:
        x = F.pad(x, (1, 0, 0, 1))
        return F.conv2d(x, self.weight, self.bias, self.stride, self.padding, self.dilation)


class Cast(nn.Linear):
    """Linear layer that calls the function itself."""

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight, bias=self.bias)


class Derived(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.norm1 = Padded(1, 6, 2, bias=False), NormAct(6)
        self.conv2, self.norm2 = Padded(6, 5, 2, stride=2), NormAct(5)
        self.fc1, self.fc2 = Cast(5, 7), Cast(7, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm2(self.conv2(self.norm1(self.conv1(x))))
        return self.fc2(F.relu(self.fc1(x.mean((2, 3)))))


class Plain(nn.Module):
    """The same network out of torch.nn's own layers."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.norm1 = nn.Conv2d(1, 6, 2, bias=False), nn.BatchNorm2d(6, eps=3e-3)
        self.conv2, self.norm2 = nn.Conv2d(6, 5, 2, stride=2), nn.BatchNorm2d(5, eps=3e-3)
        self.fc1, self.fc2 = nn.Linear(5, 7), nn.Linear(7, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm1(self.conv1(F.pad(x, (1, 0, 0, 1)))))
        x = F.relu(self.norm2(self.conv2(F.pad(x, (1, 0, 0, 1)))))
        return self.fc2(F.relu(self.fc1(x.mean((2, 3)))))


def _pair() -> tuple[nn.Module, nn.Module]:
    derived, plain = networks.settle(Derived()), networks.settle(Plain())
    plain.load_state_dict(derived.state_dict())
    return derived, plain


@pytest.mark.parametrize("sized", [False, True], ids=["symbolic", "exported"])
def test_derived_layers_are_layers(sized: bool) -> None:
    derived, _ = _pair()
    model = untraceable.Sized(derived) if sized else derived
    prefix = "inner." if sized else ""
    x = torch.randn(3, 1, 16, 16)
    traced = trace(model, x)
    called = {str(n.target) for n in traced.graph.nodes if n.op == "call_module"}
    for name, base in (("conv1", nn.Conv2d), ("norm2", nn.BatchNorm2d), ("fc2", nn.Linear)):
        assert prefix + name in called
        assert type(layers_of(traced, model)[prefix + name]) is base
        layer = model.get_submodule(prefix + name)
        assert traced.get_submodule(prefix + name).weight is layer.weight
    assert not [n for n in traced.graph.nodes if n.op == "get_attr"]
    with torch.no_grad():
        torch.testing.assert_close(traced(x), model(x))
        derived.get_submodule("norm1").running_mean.add_(1.0)
        torch.testing.assert_close(traced(x), model(x))


def test_units_are_those_of_the_plain_network() -> None:
    derived, plain = _pair()
    x = torch.randn(2, 1, 13, 12)
    first, second = capture(derived, x), capture(plain, x)
    assert first.groups == second.groups
    assert first.refused == second.refused
    assert first.positions == second.positions
    assert {k: (s.norm, s.activation) for k, s in first.sites.items()} == {
        k: (s.norm, s.activation) for k, s in second.sites.items()
    }


@pytest.mark.parametrize("method", ["ablation", "path"])
def test_scores_are_those_of_the_plain_network(method: str) -> None:
    derived, plain = _pair()
    data = (torch.randn(6, 1, 11, 12), torch.randint(3, (6,)))
    first, second = (cp.score(m, data, method=method).frame["effect"] for m in (derived, plain))
    torch.testing.assert_close(
        torch.tensor(first.to_numpy(copy=True)),
        torch.tensor(second.to_numpy(copy=True)),
        rtol=1e-4,
        atol=1e-5,
    )


def test_what_is_removed_is_what_is_zeroed() -> None:
    derived, _ = _pair()
    data = (torch.randn(6, 1, 12, 12), torch.randint(3, (6,)))
    scores = cp.score(derived, data, method="l1")
    smaller = cp.apply(derived, cp.plan(derived, scores, ratio=0.3), example=data[0])
    assert type(smaller.norm1) is NormAct
    assert sum(p.numel() for p in smaller.parameters()) < sum(
        p.numel() for p in derived.parameters()
    )


class _Other(nn.Module):
    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.conv, self.layer = nn.Conv2d(1, 4, 3), layer

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(self.conv(x)).mean((2, 3))


class _Standardised(nn.Conv2d):
    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.weight - self.weight.mean(), self.bias)


class _Prepared(nn.Conv2d):
    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x.flip(1), self.weight, self.bias)


class _Dilated(nn.Conv2d):
    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.weight, self.bias, dilation=2)


class _OnBatches(nn.BatchNorm2d):
    def forward(self, x: Tensor) -> Tensor:
        return F.batch_norm(
            x, self.running_mean.clone(), self.running_var.clone(), self.weight, self.bias, True
        )


@pytest.mark.parametrize(
    "layer",
    [_Standardised(4, 3, 3), _Prepared(4, 3, 3), _Dilated(4, 3, 3), _OnBatches(4)],
    ids=lambda layer: type(layer).__name__,
)
def test_another_computation_is_no_layer(layer: Any) -> None:
    model, x = _Other(layer).eval(), torch.randn(3, 1, 12, 12)
    traced = trace(model, x)
    assert "layer" not in {n.target for n in traced.graph.nodes if n.op == "call_module"}
    torch.testing.assert_close(traced(x), model(x))


def test_removed_zeroes_what_the_derived_layer_reads() -> None:
    derived, plain = _pair()
    x = torch.randn(3, 1, 12, 12)
    graph = capture(derived, x)
    with torch.no_grad(), removed(derived, graph, {"conv1": [1, 4]}):
        found = derived(x)
    with torch.no_grad():
        plain.conv2.weight[:, [1, 4]] = 0
        torch.testing.assert_close(found, plain(x))
