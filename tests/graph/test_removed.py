"""The intervention do(unit := 0), and the two ways of replaying a network."""

from __future__ import annotations

import networks
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from causalprune.errors import InvalidArgumentError, UnknownNameError
from causalprune.graph import capture, removed

X = networks.images(5)


def _hooks(model: nn.Module) -> int:
    return sum(len(module._forward_pre_hooks) for module in model.modules())


def test_equals_zeroing_by_hand_through_a_flatten() -> None:
    model = networks.lenet()
    with removed(model, capture(model, X), {"conv2": [1, 4]}), torch.no_grad():
        got = model(X)
    with torch.no_grad():
        maps = F.max_pool2d(F.relu(model.conv1(X)), 2)
        maps = F.max_pool2d(F.relu(model.conv2(maps)), 2)
        maps[:, [1, 4]] = 0
        expected = model.fc3(F.relu(model.fc2(F.relu(model.fc1(maps.flatten(1))))))
    assert torch.equal(got, expected)


def test_units_of_several_groups_go_jointly() -> None:
    model = networks.mlp()
    with removed(model, capture(model, X), {"1": [0], "3": [2, 4]}), torch.no_grad():
        got = model(X)
    with torch.no_grad():
        hidden = F.relu(model[1](X.flatten(1)))
        hidden[:, 0] = 0
        hidden = F.gelu(model[3](hidden))
        hidden[:, [2, 4]] = 0
        assert torch.equal(got, model[5](hidden))


def test_behind_the_batch_norm_not_before() -> None:
    model = networks.vgg()
    with torch.no_grad():
        model[1].bias[2] = 3.0  # zeroing the filter would leave relu(3) behind
        maps = model[2](model[1](model[0](X)))
        maps[:, 2] = 0
        expected = model[3:](maps)
        with removed(model, capture(model, X), {"0": [2]}):
            assert torch.equal(model(X), expected)


def test_coupled_group_is_zeroed_at_every_consumer() -> None:
    model = networks.residual()
    seen: list[Tensor] = []
    with removed(model, capture(model, X), {"stem": [3]}), torch.no_grad():
        for name in ("block1.conv1", "block2.conv1", "block2.shortcut.0"):
            layer = model.get_submodule(name)
            layer.register_forward_hook(lambda module, args, output: seen.append(args[0]))
        model(X)
    assert len(seen) == 3
    assert all(not value[:, 3].any() and value[:, :3].any() for value in seen)


def test_a_nan_does_not_survive_removal() -> None:
    model = networks.mlp()
    with torch.no_grad():
        model[1].bias[0] = torch.nan
        with removed(model, capture(model, X), {"1": [0]}):
            assert torch.isfinite(model(X)).all()


def test_hooks_are_removed_even_on_an_exception() -> None:
    model = networks.lenet()
    graph = capture(model, X)
    with pytest.raises(RuntimeError, match="inside"), removed(model, graph, {"conv1": [0]}):
        assert _hooks(model) == 1
        raise RuntimeError("inside")
    assert _hooks(model) == 0
    with pytest.raises(UnknownNameError), removed(model, graph, {"conv1": [0], "nothing": [0]}):
        pass
    assert _hooks(model) == 0


@pytest.mark.parametrize("units", [[-1], [4], [0, 99]])
def test_units_out_of_range(units: list[int]) -> None:
    model = networks.lenet()
    graph = capture(model, X)
    with (
        pytest.raises(InvalidArgumentError, match="conv1"),
        removed(model, graph, {"conv1": units}),
    ):
        pass


def test_another_network() -> None:
    graph = capture(networks.lenet(), X)
    with (
        pytest.raises(InvalidArgumentError, match="conv2"),
        removed(networks.mlp(), graph, {"conv1": [0]}),
    ):
        pass


def test_consumers_called_by_keyword() -> None:
    class Keyword(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.last = nn.Linear(256, 4), nn.Linear(4, 3)

        def forward(self, x: Tensor) -> Tensor:
            hidden = F.relu(self.first(x.flatten(1)), inplace=True)
            return self.last(input=hidden)

    model = networks.settle(Keyword())
    graph = capture(model, X)
    with torch.no_grad():
        hidden = F.relu(model.first(X.flatten(1)))
        hidden[:, 1] = 0
        with removed(model, graph, {"first": [1]}):
            assert torch.equal(model(X), model.last(hidden))
