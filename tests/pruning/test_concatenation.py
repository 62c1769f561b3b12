"""Surgery where a layer holds channels of several groups, of none, or of one twice."""

from __future__ import annotations

from dataclasses import replace

import networks
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from causalprune.errors import InvalidArgumentError
from causalprune.graph import capture, removed
from causalprune.pruning import apply, plan
from causalprune.scoring import score

X = networks.images(5)


class Branches(nn.Module):
    """Two layers and the input concatenated, normalised, filtered, gated, and read again."""

    def __init__(self, *, twice: bool = False) -> None:
        super().__init__()
        self.left, self.right = nn.Conv2d(1, 3, 3, padding=1), nn.Conv2d(1, 4, 1)
        width = 11 if twice else 8
        self.twice = twice
        self.norm = nn.BatchNorm2d(width)
        self.depthwise = nn.Conv2d(width, width, 3, groups=width, bias=True)
        self.scale = nn.Parameter(torch.ones(1))
        self.down = nn.Conv2d(width, 4, 1)
        self.next = nn.Conv2d(width, 5, 3)
        self.head = nn.Linear(5 * 4, 3)

    def forward(self, x: Tensor) -> Tensor:
        left = self.left(x)
        parts = [left, self.right(x), x] + [left] * self.twice
        x = F.relu(self.depthwise(self.norm(torch.cat(parts, dim=1)))) * self.scale
        x = self.next(x) - F.silu(self.next_of(x))
        return self.head(F.adaptive_max_pool2d(F.relu(x), 2).flatten(1))

    def next_of(self, x: Tensor) -> Tensor:
        return torch.sigmoid(self.down(F.avg_pool2d(x, 3))).mean((1, 2, 3), keepdim=True)


class Gated(nn.Module):
    """Squeeze and excitation on a depthwise convolution, with a residual around it."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 5, 3, 2, 1)
        self.expand, self.norm = nn.Conv2d(5, 9, 1, bias=False), nn.BatchNorm2d(9)
        self.depthwise = nn.Conv2d(9, 9, 3, 1, 1, groups=9)
        self.down, self.up = nn.Linear(9, 4), nn.Linear(4, 9)
        self.project = nn.Conv2d(9, 5, 1)
        self.head = nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        y = F.silu(self.depthwise(F.relu6(self.norm(self.expand(x)))))
        gate = torch.sigmoid(self.up(F.relu(self.down(y.mean((2, 3))))))
        return self.head((x + self.project(y * gate[:, :, None, None])).mean((2, 3)))


NETWORKS = {
    "branches": lambda: Branches(),
    "twice": lambda: Branches(twice=True),
    "gated": lambda: Gated(),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_pruned_networks_compute_what_masked_ones_do(name: str) -> None:
    model = networks.settle(NETWORKS[name]())
    graph = capture(model, X)
    scores = score(model, X, "random", seed=int(torch.randint(99, (1,))))
    for of in ("parameters", "macs", "units"):
        decided = plan(model, scores, 0.5, of)
        small = apply(model, decided)
        with torch.no_grad(), removed(model, graph, decided.remove):
            torch.testing.assert_close(small(X), model(X), rtol=1e-5, atol=1e-5)
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            small(X[:1])
        assert decided.after.macs * 2 == counter.get_total_flops()
        assert decided.after.parameters == sum(p.numel() for p in small.parameters())
        tensors = [*small.parameters(), *small.buffers()]
        assert decided.after.bytes == sum(t.numel() * t.element_size() for t in tensors)


@pytest.mark.parametrize("name", NETWORKS)
def test_every_single_unit_can_go(name: str) -> None:
    model = networks.settle(NETWORKS[name]())
    graph = capture(model, X)
    nothing = plan(model, score(model, X, "l1"), 0.0)
    assert len(graph.removable) > 1
    for group in graph.removable:
        for unit in range(group.n_units):
            gone = {group.name: (unit,)}
            with torch.no_grad(), removed(model, graph, gone):
                expected = model(X)
            small = apply(model, replace(nothing, remove=gone))
            torch.testing.assert_close(small(X), expected, rtol=1e-5, atol=1e-5)


def test_channels_of_the_input_stay() -> None:
    model = networks.settle(Branches())
    nothing = plan(model, score(model, X, "l1"), 0.0)
    small = apply(model, replace(nothing, remove={"left": (0, 2), "right": (0, 1, 3)}))
    assert small.get_submodule("norm").num_features == 3
    assert small.get_submodule("depthwise").groups == 3
    assert torch.equal(small.norm.weight, model.norm.weight[[1, 5, 7]])


def test_the_gate_goes_with_what_it_scales() -> None:
    model = networks.settle(Gated())
    group = capture(model, X).group("expand")
    assert group.producers == ("expand", "up")
    nothing = plan(model, score(model, X, "l1"), 0.0)
    small = apply(model, replace(nothing, remove={"expand": (4,)}))
    assert small.up.out_features == 8 and small.down.in_features == 8


def test_units_that_cannot_go_for_good_are_refused_by_name() -> None:
    model = networks.settle(
        nn.Sequential(
            nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.PReLU(4),
            nn.Conv2d(4, 6, 3), nn.ReLU(), nn.Flatten(), nn.Linear(600, 3),
        )
    )  # fmt: skip
    decided = plan(model, score(model, X, "l1"), 0.9, "units")
    assert set(decided.remove) == {"0", "4"} and not decided.reached
    with pytest.raises(InvalidArgumentError, match="one slope per channel"):
        apply(model, replace(decided, remove={"2": (1,)}))
