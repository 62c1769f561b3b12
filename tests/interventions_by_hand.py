"""Networks of every structure, and interventions on them by whole passes patched by hand."""

from __future__ import annotations

from collections.abc import Callable

import networks
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from causalprune.graph import Consumer, UnitGroup


class Tokens(nn.Module):
    """Patches as tokens, the token axis first inside; hidden units of an MLP and heads."""

    def __init__(self) -> None:
        super().__init__()
        self.patch = nn.Conv2d(1, 8, 4, stride=4)
        self.norm = nn.LayerNorm(8)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.inner, self.outer = nn.Linear(8, 11), nn.Linear(11, 8)
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch(x).flatten(2).transpose(1, 2)
        y = self.norm(x)
        x = x + self.attention(y, y, y, need_weights=False)[0]
        x = x.transpose(0, 1)  # tokens first: not to be cut into images
        x = x + self.outer(F.gelu(self.inner(x)))
        return self.head(x.mean(0))


class Joined(nn.Module):
    """Two branches joined by a concatenation, read by a convolution and by a grouped one."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Conv2d(1, 4, 3, padding=1), nn.Conv2d(1, 6, 3, stride=1)
        self.both = nn.Conv2d(10, 6, 3)
        self.grouped = nn.Conv2d(6, 4, 3, groups=2)
        self.head = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        left = F.relu(self.left(x))
        right = F.pad(F.relu_(self.right(x)), (1, 1, 1, 1))
        x = F.relu(self.both(torch.cat([left, right], 1)))
        x = self.grouped(x)
        x *= 0.5
        return self.head(x.mean((2, 3)))


def tokens() -> nn.Module:
    return networks.settle(Tokens())


def joined() -> nn.Module:
    return networks.settle(Joined())


NETWORKS = {**networks.ALL, "tokens": tokens, "joined": joined}


def readings(model: nn.Module, group: UnitGroup, x: Tensor) -> dict[str, Tensor]:
    """What the consumers of a group read (or give) in a plain run."""
    found: dict[str, Tensor] = {}
    handles = []
    for consumer in group.consumers:
        module = model.get_submodule(consumer.layer)
        if consumer.at_output:
            hook = lambda m, a, out, key=consumer.layer: found.__setitem__(key, out.clone())  # noqa: E731
            handles.append(module.register_forward_hook(hook))
        else:
            pre = lambda m, a, key=consumer.layer: found.__setitem__(key, a[0].clone())  # noqa: E731
            handles.append(module.register_forward_pre_hook(pre))
    with torch.no_grad():
        model(x)
    for handle in handles:
        handle.remove()
    return found


Fill = Callable[[Consumer, Tensor, int, Tensor], Tensor]


def by_hand(model: nn.Module, group: UnitGroup, unit: int, x: Tensor, fill: Fill) -> Tensor:
    """Output of a whole forward pass in which the unit's columns are replaced by hooks."""
    handles = []
    for consumer in group.consumers:
        columns = consumer.columns([unit])

        def replaced(value: Tensor, consumer: Consumer = consumer, c: Tensor = columns) -> Tensor:
            axis = value.ndim + consumer.axis
            return value.index_copy(axis, c, fill(consumer, value, axis, c))

        module = model.get_submodule(consumer.layer)
        if consumer.at_output:
            handles.append(module.register_forward_hook(lambda m, a, out, r=replaced: r(out)))
        else:
            handles.append(module.register_forward_pre_hook(lambda m, a, r=replaced: (r(a[0]),)))
    with torch.no_grad():
        output: Tensor = model(x)
    for handle in handles:
        handle.remove()
    return output


def close(got: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5 * expected.abs().max().item())
