"""What the tests of networks as users write them share."""

from __future__ import annotations

import copy
from collections.abc import Callable

import networks
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from causalprune.graph import UnitGraph, capture, removed
from causalprune.pruning import Plan, apply
from causalprune.pruning.footprint import sizes_of
from causalprune.scoring import fingerprint

X = torch.randn(3, 3, 16, 16, dtype=torch.float64)


def conv(inputs: int, outputs: int, kernel: int = 3, **options: object) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, **options)


class Layers(nn.Module):
    """Runs a function on its layers."""

    def __init__(self, forward: Callable[[nn.Module, Tensor], Tensor], **layers: nn.Module) -> None:
        super().__init__()
        self.function = forward
        for name, layer in layers.items():
            self.add_module(name, layer)

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self, x)


def chain(*names: str) -> Callable[[nn.Module, Tensor], Tensor]:
    """One layer after the other with a ReLU behind each, and the mean of the last one's maps."""

    def forward(self: nn.Module, x: Tensor) -> Tensor:
        for name in names:
            x = F.relu(getattr(self, name)(x))
        return self.head(x.mean((2, 3)))

    return forward


def two_groupings(self: nn.Module, x: Tensor) -> Tensor:
    x = F.relu(self.stem(x))
    x = F.relu(x + self.threes(F.relu(self.fours(x))))
    return self.head(F.relu(self.last(x)).mean((2, 3)))


def settled(build: Callable[[], nn.Module]) -> nn.Module:
    return networks.settle(build()).double()


def plan_by_hand(model: nn.Module, remove: dict[str, tuple[int, ...]]) -> Plan:
    sizes = sizes_of(model, capture(model, X), X[:1])
    gone = [(name, unit) for name, units in remove.items() for unit in units]
    return Plan(
        remove=remove,
        ratio=0.5,
        achieved_ratio=0.5,
        reached=True,
        of="units",
        scope="layer",
        method="by hand",
        before=sizes.whole,
        after=sizes.without(gone),
        table=(),
        fingerprint=fingerprint(model),
        example_shape=tuple(X[:1].shape),
        example_dtype="float64",
    )


def check_pruned(model: nn.Module, graph: UnitGraph, decided: Plan) -> None:
    """The pruned network is the masked one in both modes, and as large as the plan says."""
    small, masked = apply(model, decided), copy.deepcopy(model)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        small(X[:1])
    assert decided.after.macs * 2 == counter.get_total_flops()
    assert decided.after.parameters == sum(p.numel() for p in small.parameters())
    tensors = [*small.parameters(), *small.buffers()]
    assert decided.after.bytes == sum(t.numel() * t.element_size() for t in tensors)
    for training in (False, True):
        masked.train(training), small.train(training)
        with torch.no_grad(), removed(masked, graph, decided.remove):
            expected = masked(X)
        torch.testing.assert_close(small(X), expected, rtol=1e-9, atol=1e-9)
