"""Networks of which something cannot be removed: it is named, and the rest goes."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from pruning.own_network_cases import Layers, X, chain, check_pruned, conv, settled, two_groupings
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from causalprune.errors import UnsupportedModelError
from causalprune.graph import capture
from causalprune.pruning import plan
from causalprune.scoring import score


def _tied() -> nn.Module:
    model = Layers(
        chain("stem", "first", "second", "last"),
        stem=conv(3, 8), first=conv(8, 8), second=conv(8, 8), last=conv(8, 6),
        head=nn.Linear(6, 4),
    )  # fmt: skip
    model.second.weight = model.first.weight
    return model


def _looped(self: nn.Module, x: Tensor) -> Tensor:
    x = F.relu(self.stem(x))
    for _ in range(2):
        x = x + F.relu(self.body(x))
    return self.head(F.relu(self.last(x)).mean((2, 3)))


def _split(self: nn.Module, x: Tensor) -> Tensor:
    first, second = torch.split(F.relu(self.stem(x)), [3, 5], dim=1)
    return self.head(F.relu(self.last(first) + self.other(second)).mean((2, 3)))


def _sliced(self: nn.Module, x: Tensor) -> Tensor:
    x = F.relu(self.stem(x))
    return self.head(F.relu(self.last(x[:, :3]) + self.other(x[:, 3:])).mean((2, 3)))


def _volumes(self: nn.Module, x: Tensor) -> Tensor:
    x = F.relu(self.stem(x))[:, :, None]
    return self.head(F.relu(self.last(F.relu(self.volume(x)).mean(2))).mean((2, 3)))


def _sequence(self: nn.Module, x: Tensor) -> Tensor:
    x = self.line(F.relu(self.stem(x)).flatten(2)).unflatten(2, (16, 16))
    return self.head(F.relu(self.last(x)).mean((2, 3)))


def _helper_too_large(self: nn.Module, x: Tensor) -> Tensor:
    x = F.relu(self.stem(x))
    if self.training:
        self.helper(F.avg_pool2d(x, 50))
    return self.head(F.relu(self.last(x)).mean((2, 3)))


def _coupled_in_training(self: nn.Module, x: Tensor) -> Tensor:
    x = F.relu(self.stem(x))
    y = F.relu(self.last(x))
    return self.head((y + self.helper(x) if self.training else y).mean((2, 3)))


def _with_last(forward: Callable[[nn.Module, Tensor], Tensor], **layers: nn.Module) -> nn.Module:
    return Layers(forward, **{"last": conv(8, 6), "head": nn.Linear(6, 4), **layers})


# Name: network, a layer whose units stay, and what says so.
STAYS: dict[str, tuple[Callable[[], nn.Module], str, str]] = {
    "called in a loop": (
        lambda: _with_last(_looped, stem=conv(3, 8), body=conv(8, 8)),
        "body", "'body', which is called 2 times",
    ),
    "tied weights": (_tied, "first", "shares its parameters with layer 'second'"),
    "shared norm": (
        lambda: _with_last(
            chain("stem", "norm", "body", "norm", "last"),
            stem=conv(3, 8), norm=nn.InstanceNorm2d(8, affine=True), body=conv(8, 8),
        ),
        "stem", "'norm', which is called 2 times",
    ),
    "parametrised": (
        lambda: _with_last(
            chain("stem", "body", "last"),
            stem=conv(3, 8), body=parametrizations.weight_norm(conv(8, 8)),
        ),
        "stem", "'body', which is parametrised",
    ),
    "split into constants": (
        lambda: _with_last(_split, stem=conv(3, 8), last=conv(3, 6), other=conv(5, 6)),
        "stem", "split divides them",
    ),
    "sliced at a constant": (
        lambda: _with_last(_sliced, stem=conv(3, 8), last=conv(3, 6), other=conv(5, 6)),
        "stem", "takes fixed places",
    ),
    "pixel shuffle": (
        lambda: _with_last(
            chain("stem", "shuffle", "last"),
            stem=conv(3, 8), shuffle=nn.PixelShuffle(2), last=conv(2, 6),
        ),
        "stem", "'shuffle', which has no rule",
    ),
    "group norm": (
        lambda: _with_last(
            chain("stem", "norm", "last"), stem=conv(3, 8), norm=nn.GroupNorm(4, 8)
        ),
        "stem", "normalises all units",
    ),
    "transposed": (
        lambda: _with_last(
            chain("stem", "up", "last"), stem=conv(3, 5), up=nn.ConvTranspose2d(5, 8, 2, 2)
        ),
        "up", "ConvTranspose2d, which has no rule",
    ),
    "volumes": (
        lambda: _with_last(_volumes, stem=conv(3, 5), volume=nn.Conv3d(5, 8, (1, 3, 3))),
        "volume", "Conv3d, which has no rule",
    ),
    "sequences": (
        lambda: _with_last(_sequence, stem=conv(3, 5), line=nn.Conv1d(5, 8, 1)),
        "line", "Conv1d, which has no rule",
    ),
    "groups of the input": (
        lambda: _with_last(chain("stem", "last"), stem=conv(3, 12, groups=3), last=conv(12, 6)),
        "stem", "'stem' is a grouped convolution of channels that carry no units",
    ),
    "one group in all": (
        lambda: _with_last(
            two_groupings, stem=conv(3, 6), fours=conv(6, 6, groups=2),
            threes=conv(6, 6, groups=3), last=conv(6, 6),
        ),
        "stem", "can only go together",
    ),
    "training does not run": (
        lambda: _with_last(_helper_too_large, stem=conv(3, 8), helper=conv(8, 2)),
        "stem", "helper may read them in training mode",
    ),
    "coupled in training": (
        lambda: _with_last(_coupled_in_training, stem=conv(3, 8), helper=conv(8, 6)),
        "last", "called in training mode only",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", STAYS)
def test_what_cannot_go_is_named_and_the_rest_goes(name: str) -> None:
    build, layer, reason = STAYS[name]
    model = settled(build)
    graph = capture(model, X)
    stays = {name: group.surgery for group in graph.groups for name in group.producers}
    assert reason in {**stays, **graph.refused}[layer]
    if graph.removable:
        check_pruned(model, graph, plan(model, score(model, X, "random"), 0.2, "units"))
    else:
        with pytest.raises(UnsupportedModelError, match="for good"):
            plan(model, score(model, X, "l1"), 0.2)
