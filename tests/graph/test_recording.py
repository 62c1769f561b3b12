"""Watching values on their way through a network."""

from __future__ import annotations

import networks
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from causalprune.errors import UnsupportedModelError
from causalprune.graph import Recorder, frozen, trace

X = networks.images(5, seed=2)


class Keyword(nn.Module):
    """In-place activation by function, and a layer called by keyword."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(256, 4), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        hidden = F.relu(self.first(x.flatten(1)), inplace=True)
        return self.last(input=hidden)


@pytest.mark.parametrize("fold", [False, True])
@pytest.mark.parametrize("name", networks.ALL)
@torch.no_grad()
def test_runs_as_the_network_does(name: str, fold: bool) -> None:
    model = networks.ALL[name]()
    got = Recorder(trace(model), {}, {}, fold=fold).run(X)
    torch.testing.assert_close(got, model(X), rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_values_are_not_overwritten_after_they_were_shown() -> None:
    model, seen = networks.vgg(), {}

    def show(name: str, value: Tensor) -> Tensor:
        seen[name] = value
        return value

    values = {"_1": lambda v: show("norm", v)}
    inputs = {"_4": lambda v: show("read", v)}
    Recorder(trace(model), values, inputs, fold=False).run(X)
    assert torch.equal(seen["norm"], model[1](model[0](X)))
    assert torch.equal(seen["read"], model[:4](X))


@torch.no_grad()
def test_readers_further_on_get_what_the_watcher_returns() -> None:
    model = networks.settle(Keyword())
    doubled = Recorder(trace(model), {}, {"last": lambda v: 2 * v}).run(X)
    hidden = F.relu(model.first(X.flatten(1)))
    torch.testing.assert_close(doubled, model.last(2 * hidden))


@torch.no_grad()
def test_later_readers_see_an_in_place_change() -> None:
    class Aliased(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            y = x * 1.0
            z = y.relu_()
            return y + z

    assert torch.equal(Recorder(trace(Aliased()), {}, {}).run(X), Aliased()(X))


def test_overwritten_views_are_refused() -> None:
    class Shared(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            y = x * 1.0
            view = y.flatten(1)
            view.mul_(2.0)
            return y + view.sum()

    with pytest.raises(UnsupportedModelError, match="overwrites"):
        Recorder(trace(Shared()), {}, {})


def test_frozen_parameters_get_their_flag_back() -> None:
    model = networks.lenet()
    model.fc1.requires_grad_(False)
    with frozen(model):
        assert not any(p.requires_grad for p in model.parameters())
    assert model.fc2.weight.requires_grad and not model.fc1.weight.requires_grad
