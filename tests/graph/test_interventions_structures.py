"""Interventions on networks whose structure tempts a replay into a wrong answer."""

from __future__ import annotations

import networks
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from causalprune.errors import InvalidArgumentError
from causalprune.graph import Interventions, capture, removed

X = networks.images(5, seed=3)


class Chain(nn.Module):
    """Three convolutions and a classifier; subclasses say what happens between them."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(1, 5, 3, padding=1), nn.Conv2d(5, 6, 3, padding=1)
        self.conv3, self.fc = nn.Conv2d(6, 4, 3, stride=2), nn.Linear(4, 3)
        self.identity, self.dropout, self.relu = nn.Identity(), nn.Dropout(0.5), nn.ReLU()

    def tail(self, x: Tensor, more: Tensor) -> Tensor:
        return self.fc(self.conv3(x).mean((2, 3))) + 5 * more.mean((1, 2))[:, None]


class ViewBeforeActivation(Chain):
    """A view of a value that an activation reads last."""

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv2(F.relu(self.conv1(x)))
        view = x.flatten(2)
        return self.tail(F.relu(x), view)


class IdentityBeforeActivation(Chain):
    """The same memory under the names that identity and dropout give it."""

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv2(F.relu(self.conv1(x)))
        first, second = self.identity(x), self.dropout(x)
        return self.tail(self.relu(x), (first + second).flatten(2))


class WriteThroughIdentity(Chain):
    """An in-place activation behind an identity changes what the identity read."""

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv1(x)
        self.identity(x).relu_()
        x = self.conv2(x)
        return self.tail(x, x.flatten(2))


class WriteTwice(Chain):
    """Two writes into one value that is read by its first name afterwards."""

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv1(x)
        written = x.relu_()
        written.add_(0.3)
        x = self.conv2(x + written)
        return self.tail(x, x.flatten(2))


class WriteByPosition(Chain):
    """An activation that is told by position to write into its input."""

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv1(x)
        F.relu(x, True)
        x = self.conv2(F.leaky_relu(x, 0.1, True))
        return self.tail(F.relu(x, True), x.flatten(2))


class ClampAtTensor(Chain):
    """A bound that is a tensor without the channels of what it bounds."""

    def __init__(self) -> None:
        super().__init__()
        self.least = nn.Parameter(torch.zeros(1, 1, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv2(torch.clamp(self.conv1(x), min=self.least))
        return self.tail(torch.maximum(x, self.least), x.flatten(2))


class SizesByHand(nn.Module):
    """A flatten that names the number of all features."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.inner = nn.Conv2d(1, 3, 5, stride=5), nn.Linear(27, 6)
        self.head = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.relu(self.inner(F.relu(self.conv(x)).view(-1, 27))))


class ClassToken(nn.Module):
    """A class token, positions and a layer scale: constants behind the cut."""

    def __init__(self) -> None:
        super().__init__()
        self.patch, self.mix = nn.Conv2d(1, 6, 4, stride=4), nn.Conv2d(6, 8, 1)
        self.token = nn.Parameter(torch.ones(1, 1, 8))
        self.position = nn.Parameter(torch.ones(17, 8))
        self.inner, self.outer, self.head = nn.Linear(8, 9), nn.Linear(9, 8), nn.Linear(8, 3)
        self.scale = nn.Parameter(torch.ones(8))

    def forward(self, x: Tensor) -> Tensor:
        x = self.mix(F.gelu(self.patch(x))).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(x.shape[0], -1, -1), x], 1) + self.position
        x = x + self.outer(F.gelu(self.inner(x))) * self.scale
        return self.head(x[:, 0])


class TokensFirst(nn.Module):
    """Sizes read where the images are the second dimension, then folded into the first."""

    def __init__(self) -> None:
        super().__init__()
        self.patch, self.mix = nn.Conv2d(1, 8, 4, stride=4), nn.Conv2d(8, 8, 1)
        self.inner, self.outer, self.head = nn.Linear(8, 9), nn.Linear(9, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.mix(F.relu(self.patch(x))).flatten(2).permute(2, 0, 1)
        t, n, c = x.shape
        x = self.outer(F.relu(self.inner(x.reshape(t * n, c)))).reshape(t, n, c)
        return self.head(x.mean(0))


class Windows(nn.Module):
    """Windows folded into the images, and their number read from the folded value."""

    def __init__(self) -> None:
        super().__init__()
        self.patch, self.head = nn.Conv2d(1, 8, 4, stride=2, padding=1), nn.Linear(8, 3)
        self.inner, self.outer = nn.Linear(8, 9), nn.Linear(9, 8)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.patch(x))
        n, c, h, w = x.shape
        x = x.view(n, c, h // 4, 4, w // 4, 4).permute(0, 2, 4, 3, 5, 1).reshape(-1, 16, c)
        windows = x.shape[0]
        x = x + self.outer(F.relu(self.inner(x)))
        return self.head(x.view(windows // 4, 4, 16, c).mean((1, 2)))


class Latent(nn.Module):
    """Units that read a parameter, so that their consumer's input has no images."""

    def __init__(self) -> None:
        super().__init__()
        self.latent, self.first = nn.Parameter(torch.ones(4, 6)), nn.Linear(6, 7)
        self.second, self.image, self.head = nn.Linear(7, 5), nn.Linear(256, 5), nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        found = self.second(F.relu(self.first(self.latent))).sum(0)
        return self.head(F.relu(self.image(x.flatten(1)) + found))


class SizesOfTensors(Chain):
    """The device and dtype of a value behind the cut."""

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv2(F.relu(self.conv1(x)))
        share = 0.7 * torch.ones(x.shape[0], 1, 1, 1, device=x.device, dtype=x.dtype)
        return self.tail(F.relu(x * share), x.flatten(2))


NETWORKS = (
    ViewBeforeActivation, IdentityBeforeActivation, WriteThroughIdentity, WriteTwice,
    WriteByPosition, ClampAtTensor, SizesByHand, ClassToken, TokensFirst, Windows, Latent,
    SizesOfTensors,
)  # fmt: skip


def close(got: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5 * expected.abs().max().item())


def check(model: nn.Module, x: Tensor, units: str, cache: int) -> None:
    graph = capture(model, x[:2], units=units)
    run = Interventions(model, graph, example=x[:1], max_cache_bytes=cache)
    close(run.observe(x), model(x))
    assert graph.groups
    for group in graph.groups:
        every = range(group.n_units)
        outputs = run.remove(group.name, every)
        for unit in every:
            with removed(model, graph, {group.name: [unit]}):
                close(outputs[unit], model(x))
        some = run.remove(group.name, [every[-1], 0, 0], [4, 1, 1, 2, 0, 4])
        close(some, outputs[[every[-1], 0, 0]][:, [4, 1, 1, 2, 0, 4]])
    draw = torch.Generator().manual_seed(1)
    masks = {g.name: torch.rand(len(x), g.n_units, generator=draw) < 0.3 for g in graph.groups}
    rows = run.remove_masked(masks)
    for row, found in enumerate(rows):
        gone = {name: mask[row].nonzero().flatten().tolist() for name, mask in masks.items()}
        with removed(model, graph, gone):
            expected = model(x)
        close(run.remove_jointly(gone), expected)
        close(found, expected[row])


@pytest.mark.parametrize("cache", [2**30, 1])
@pytest.mark.parametrize("units", ["groups", "filters"])
@pytest.mark.parametrize("network", NETWORKS)
@torch.no_grad()
def test_equals_whole_passes(network: type[nn.Module], units: str, cache: int) -> None:
    check(networks.settle(network()), X, units, cache)


@torch.no_grad()
def test_what_hooks_make_of_values_is_kept() -> None:
    class Hooked(Chain):
        def forward(self, x: Tensor) -> Tensor:
            x = self.conv2(self.relu(self.conv1(x)))
            return self.tail(self.relu(x), x.flatten(2))

    model = networks.settle(Hooked())
    model.conv2.register_forward_hook(lambda module, args, output: output * 1.7 + 0.3)
    model.conv3.register_forward_pre_hook(lambda module, args: (torch.tanh(args[0]),))
    model.relu.register_forward_hook(lambda m, args, out: out / (1 + out.mean(1, keepdim=True)))
    check(model, X, "groups", 2**30)


@torch.no_grad()
def test_double_precision_and_frozen_parameters() -> None:
    model = networks.residual().double().requires_grad_(False)
    check(model, X.double(), "groups", 2**30)


@pytest.mark.parametrize("images", [[-1], [0, 5]])
@torch.no_grad()
def test_images_that_were_not_observed(images: list[int]) -> None:
    model = networks.lenet()
    run = Interventions(model, capture(model, X[:2]), example=X[:1])
    run.observe(X)
    with pytest.raises(InvalidArgumentError, match="images"):
        run.remove("conv1", [0], images)
    assert run.remove("conv1", [0, 1], []).shape == (2, 0, 3)


@torch.no_grad()
def test_untraced_networks_run_the_images_asked_for() -> None:
    model = networks.settle(WriteThroughIdentity())
    run = Interventions(model, capture(model, X[:2]), example=X[:1])
    run.observe(X)
    whole = run.remove("conv1", [0, 3])
    before = run.rows_run
    close(run.remove("conv1", [0, 3], [4, 1, 1]), whole[:, [4, 1, 1]])
    assert run.rows_run - before == 6
